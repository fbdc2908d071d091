"""Translations, summaries and answers: the language model reads all of a recording's speech tokens in one prompt."""

from time import monotonic
from typing import Any

from fastslm.longform.generation import DOES_NOT_READ, check_budget, fitting_budget, generate, token_budget
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Answer, Span, Usage, clock
from fastslm.longform.transcription import joined
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor

ANSWER_TOKENS = 256


def answer(
    model: FastSLMForConditionalGeneration,
    processor: FastSLMProcessor,
    memory: SpeechMemory,
    task: str,
    *,
    max_new_tokens: int | None = None,
    started: float | None = None,
    **prompt_options: Any,
) -> Answer:
    """What the language model says of a recording, greedily.

    A recording that is silent from beginning to end gives an empty text.

    Args:
        task: `translate`, `summarize` or `ask`.
        max_new_tokens: of the answer; by default what a translation needs grows with the recording, and the others
            may take `ANSWER_TOKENS`, as far as the context has room.
        prompt_options: `FastSLMProcessor.build_prompt`'s.

    Raises:
        OptionError: an unknown language, an empty question, or a recording longer than the language model's context.
    """
    started = monotonic() if started is None else started
    check_budget(max_new_tokens)
    prompt = processor.build_prompt(task, **prompt_options)
    default = token_budget(memory.duration) if task == "translate" else ANSWER_TOKENS
    spans = memory.times.tolist()
    quiet = [tuple(span) for span, silent in zip(spans, memory.silent.tolist(), strict=True) if silent]
    warnings = [
        *memory.facts.warnings,
        *(f"No speech was heard from {clock(a)} to {clock(b)}." for a, b in joined(quiet)),
    ]
    if len(quiet) == len(spans):
        text, tokens, reason = "", 0, "silence"
    else:
        budget = max_new_tokens or fitting_budget(model, processor, prompt, len(memory.tokens), default)
        (written,) = generate(model, processor, prompt, memory.tokens[None], [budget])
        text, tokens, reason = written.text, written.tokens, written.finish_reason
        if reason == "length":
            warnings.append(f"The text is cut at {tokens} tokens: give a larger max_new_tokens.")
        if not model.config.llm_reads_speech:
            warnings.append(DOES_NOT_READ)
    processing = monotonic() - started
    heard = [(start, end) for (start, end), silent in zip(spans, memory.silent.tolist(), strict=True) if not silent]
    return Answer(
        text=text,
        spans=tuple(Span(start, end) for start, end in joined(heard)),
        duration=memory.duration,
        warnings=tuple(warnings),
        usage=Usage(
            windows=len(memory.tokens),
            audio_tokens=memory.audio_tokens,
            text_tokens=tokens,
            seconds=memory.duration,
            seconds_heard=sum(end - start for start, end in heard),
            processing_seconds=processing,
            real_time_factor=processing / memory.duration,
            reader="llm",
            method="whole",
        ),
        finish_reason=reason,
    )

"""Translations, summaries and answers: all speech tokens in one prompt, or span by span beyond its limit."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, get_args

import torch

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import OptionError
from fastslm.inference.cascade import is_cascade
from fastslm.longform.generation import (
    Decoding,
    Generated,
    caveats,
    check_budget,
    prompt_ids,
    text_of,
    token_budget,
    write,
)
from fastslm.longform.map_reduce import MAP_QUESTION, Piece, reduce_notes, says_nothing, split
from fastslm.longform.memory import SpeechMemory, missing_seconds
from fastslm.longform.numeric_options import is_real, plain_numbers
from fastslm.longform.prefix_cache import PrefixCache, can_keep
from fastslm.longform.readers import Reading
from fastslm.longform.recording_prefix import RecordingPrefixes
from fastslm.longform.repetition import Repetition, check_repetition, guarded
from fastslm.longform.results import Answer, FinishReason, Span, Usage, clock, ended, without_speech
from fastslm.longform.rope import check_rope_scaling, positions_limit, rope_scaled
from fastslm.longform.transcription import joined
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import AUDIO_SPAN, NOT_MENTIONED

AnswerMethod = Literal["auto", "whole", "map_reduce"]
ANSWER_TOKENS = 256
# A summary may say so much more for each window.
SUMMARY_TOKENS_PER_WINDOW = 2


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer.

    Attributes:
        max_new_tokens: of an answer, and by `map_reduce` of each span's; `None` is what a translation of the seconds
            needs, `ANSWER_TOKENS` for an answer, and for a summary a little more the longer the recording is.
        method: `whole`, all of it in one prompt; `map_reduce`, span by span, and one answer made of the spans' (of
            translations, one after another); `auto`, the first where the language model has the positions for it and
            was taught as long recordings (`Capabilities.taught_seconds`), or where a prefix_file keeps the prompt.
        span_seconds: of a span at most, by `map_reduce`; `None` is as much as the language model has positions for
            and was taught.
        rope_scaling: factor by which the language model's positions are stretched (YaRN); `None` leaves them.
        repetition: as in `TranscriptionOptions`.
        prefix_file: a file that keeps what the language model made of the recording: read if it is there, else
            written. A later question then costs only itself, in another process too.
    """

    max_new_tokens: int | None = None
    method: AnswerMethod = "auto"
    span_seconds: float | None = None
    rope_scaling: float | None = None
    repetition: Repetition = "retry"
    prefix_file: Path | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)

    def check(self, model: FastSLMForConditionalGeneration) -> None:
        """Refuse what cannot be met.

        Raises:
            OptionError: an unknown value, one that is no positive number, or options that exclude each other.
        """
        check_budget(self.max_new_tokens)
        check_repetition(self.repetition)
        check_rope_scaling(model, self.rope_scaling)
        if self.method not in get_args(AnswerMethod):
            raise OptionError(f"There is no method {self.method!r}: choose one of {', '.join(get_args(AnswerMethod))}.")
        span = self.span_seconds
        known = is_real(span) and WINDOW_SECONDS <= span < math.inf
        if span is not None and (self.method == "whole" or not known):
            raise OptionError(
                f"span_seconds is {self.span_seconds!r} by the method {self.method}: give {WINDOW_SECONDS} or more, by "
                "the method map_reduce."
            )
        if self.prefix_file is not None and (self.method == "map_reduce" or span is not None):
            other = "map_reduce" if span is None else "span_seconds"
            raise OptionError(f"A prefix_file keeps one prompt, and {other} makes several: leave one of them out.")
        if self.prefix_file is not None and (self.prefix_file.is_dir() or not self.prefix_file.parent.is_dir()):
            raise OptionError(f"{self.prefix_file} cannot be a file, or its folder does not exist: name another.")
        if self.prefix_file is not None and not can_keep(model):
            raise OptionError("This language model's memory of a prompt cannot be kept: leave prefix_file out.")


@dataclass
class _Cost:
    """What passed the language model, counted as it happens."""

    prompt: int = 0
    cached: int = 0
    written: int = 0


class Answerer:
    """Answers from speech memories with one model; what it made of the recordings asked last, `recordings` keeps."""

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model
        self.processor = processor
        self.recordings = RecordingPrefixes(model, processor)

    @property
    def prefixes(self) -> PrefixCache:
        """What is kept; its `max_bytes` may be set."""
        return self.recordings.cache

    def answer(
        self,
        memories: Sequence[SpeechMemory],
        task: str,
        options: AnswerOptions,
        started: float | None = None,
        **prompt_options: Any,
    ) -> Answer:
        """What the language model says of recordings, greedily. Silent ones alone give an empty text.

        Args:
            memories: one, or several that are asked about together.
            task: `translate`, `summarize` or `ask`.
            prompt_options: `FastSLMProcessor.build_prompt`'s.

        Raises:
            OptionError: an unknown language, an empty question, options that cannot be met, or a recording longer than
                the language model's context where `whole` is asked for.
            CheckpointError: a prefix file of another model or recording.
        """
        started = monotonic() if started is None else started
        options.check(self.model)
        if not memories:
            raise OptionError("There is no recording to ask about: give at least one.")
        whole = [Piece.whole(memory, number) for number, memory in enumerate(memories)]
        cost, warnings, reason = _Cost(), [*_silences(memories)], "silence"
        text, spans = "", tuple[Span, ...]()
        pieces = self._plan(whole, task, options, prompt_options)
        with rope_scaled(self.model, options.rope_scaling):
            if all(piece.silent for piece in whole):
                pass
            elif pieces is None:
                warnings += _untaught(whole, self._taught(task))
                written = self._one(whole, task, options, prompt_options, cost)
                text, reason, spans = written.text, written.finish_reason, _heard(memories)
                warnings += _remarks(reason, len(written.ids))
            else:
                text, reason, spans, more = self._map_reduce(pieces, task, options, prompt_options, cost)
                warnings += more
        if reason != "silence":
            warnings += caveats(self.model, task, prompt_options.get("language"))
        heard = sum(float(end - start) for memory in memories for start, end in _sounding(memory))
        duration = sum(memory.duration for memory in memories)
        processing = monotonic() - started
        return Answer(
            text=text,
            spans=spans,
            duration=duration,
            warnings=tuple(warnings),
            usage=Usage(
                windows=sum(piece.windows for piece in whole),
                audio_tokens=sum(memory.audio_tokens for memory in memories),
                text_tokens=cost.written,
                seconds=duration,
                seconds_heard=heard,
                processing_seconds=processing,
                real_time_factor=processing / duration,
                reader=reader_of_answers(self.model),
                method="whole" if pieces is None else "map_reduce",
                prompt_tokens=cost.prompt,
                cached_tokens=cost.cached,
                seconds_silent=duration - heard,
            ),
            finish_reason=reason,
            options={**asdict(options), "prefix_file": options.prefix_file and str(options.prefix_file)},
            partial=any(memory.facts.partial for memory in memories),
            missing_seconds=missing_seconds(memories),
        )

    def _plan(
        self, whole: list[Piece], task: str, options: AnswerOptions, prompt_options: dict[str, Any]
    ) -> list[Piece] | None:
        """The pieces of a map–reduce, `None` where one prompt holds everything."""
        memories = [piece.memory for piece in whole]
        limit = positions_limit(self.model, options.rope_scaling)
        needed = len(self._ids(whole, task, prompt_options)[0]) + _least(_budget(whole, task, options), options)
        fits = limit is None or needed <= limit
        if options.method == "whole" and not fits:
            raise OptionError(
                f"The recording becomes {sum(memory.audio_tokens for memory in memories)} speech tokens, and with "
                f"prompt and answer {needed} positions are needed, but the language model has {limit}: choose the "
                "method map_reduce, or give rope_scaling."
            )
        taught = self._taught(task)
        longer = taught is not None and options.method == "auto" and sum(piece.windows for piece in whole) > taught
        longer = longer and options.prefix_file is None
        if fits and not longer and options.method != "map_reduce" and options.span_seconds is None:
            return None
        if options.prefix_file is not None:
            raise OptionError(
                f"A prefix_file keeps one prompt, and this recording needs several (the language model has {limit} "
                "positions): leave prefix_file out."
            )
        most = max(piece.windows for piece in whole)
        if options.span_seconds is not None:
            most = min(most, int(options.span_seconds // WINDOW_SECONDS))
        elif taught is not None:
            most = min(most, taught)
        while limit is not None and most > 0:
            largest = max(split(memories, most), key=lambda piece: piece.windows)
            mapped = _mapped(task, prompt_options)
            places = len(self._ids([largest], task, mapped)[0]) + _budget([largest], task, options)
            if places <= limit:
                break
            most = min(most - 1, most * limit // places)
        if most == 0:
            raise OptionError(
                f"The language model has {limit} positions, which do not hold one window, the prompt and the answer: "
                "give a smaller max_new_tokens."
            )
        return split(memories, most)

    def _taught(self, task: str) -> int | None:
        """Windows of the longest recording that answers were taught from, `None` for any number."""
        seconds = (self.model.config.capabilities.taught_seconds or {}).get(task)
        return None if seconds is None else int(seconds // WINDOW_SECONDS)

    def _map_reduce(
        self,
        pieces: list[Piece],
        task: str,
        options: AnswerOptions,
        prompt_options: dict[str, Any],
        cost: _Cost,
    ) -> tuple[str, FinishReason, tuple[Span, ...], list[str]]:
        """Text, how it ended, the spans it was made of, and what to say of it."""
        mapped = _mapped(task, prompt_options)
        several = len({piece.number for piece in pieces}) > 1
        notes: list[Span] = []
        reasons: list[FinishReason] = []
        for piece in pieces:
            if piece.silent:
                continue
            written = self._one([piece], task, options, mapped, cost)
            reasons.append(written.finish_reason)
            name = piece.memory.facts.name if several else None
            notes.append(Span(piece.start, piece.end, name, written.text))
        said = [note for note in notes if not says_nothing(note.text or "")]
        limit = positions_limit(self.model, options.rope_scaling)
        taught = self._taught(task)
        why = f", the language model having {limit} positions" if limit is not None else ""
        if options.span_seconds is not None:
            why = ""
        elif taught is not None:
            why = f", the language model having been taught with {_windows(taught)} at most"
        warnings = []
        if len(pieces) > 1:
            warnings = [f"The recording was read in {len(pieces)} parts{why}: its text is put together from theirs."]
        cut = [note for note, reason in zip(notes, reasons, strict=True) if reason != "stop"]
        if cut:
            times = ", ".join(f"{clock(note.start)} to {clock(note.end)}" for note in cut)
            warnings.append(f"What was said of these parts is cut: {times}.")
        if task == "ask" and notes and not said:
            return NOT_MENTIONED, ended(reasons), (), warnings
        if task == "translate" or len(said) <= 1:
            return " ".join(note.text or "" for note in said), ended(reasons), tuple(said), warnings
        budget = options.max_new_tokens or ANSWER_TOKENS

        def ask(content: str) -> str:
            written = self._write(self._text_ids(content), budget, options, cost)
            reasons.append(written.finish_reason)
            return written.text

        room = None if limit is None else limit - budget
        text = reduce_notes(
            said, ask, lambda content: self._text_ids(content).shape[1], room, prompt_options.get("question")
        )
        return text, reasons[-1], tuple(said), [*warnings, *_remarks(reasons[-1], budget)]

    def _one(
        self,
        pieces: list[Piece],
        task: str,
        options: AnswerOptions,
        prompt_options: dict[str, Any],
        cost: _Cost,
    ) -> Reading:
        """What is said of all pieces in one prompt."""
        _, prompt = self._ids(pieces, task, prompt_options)
        ids = self._prompt_ids(prompt, pieces)
        limit = positions_limit(self.model, options.rope_scaling)
        budget = _budget(pieces, task, options)
        if limit is not None:
            budget = min(budget, limit - ids.shape[1])
        tokens = [piece.memory.tokens[piece.first : piece.last] for piece in pieces]
        if not can_keep(self.model):
            return self._write(ids, budget, options, cost, speech_tokens=self.recordings.heard(tokens))
        with self.recordings.of(prompt, tokens, options.rope_scaling, options.prefix_file) as (prefix, kept):
            if kept:
                cost.cached += prefix.length
            else:
                cost.prompt += prefix.length
            return self._write(ids, budget, options, cost, after=prefix.length, past_key_values=prefix.cache)

    def _write(
        self, ids: torch.Tensor, budget: int, options: AnswerOptions, cost: _Cost, after: int = 0, **inputs: Any
    ) -> Reading:
        """One text after a prompt (1, length), of which `after` places are in a cache already."""
        cache = inputs.get("past_key_values")

        def read(_: Sequence[int], decoding: Decoding) -> list[Reading]:
            if cache is not None:
                for layer in cache.layers:
                    layer.crop(after - layer.get_seq_length())
            written: Generated
            (written,) = write(self.model, self.processor, ids, [budget], decoding, **inputs)
            cost.prompt += ids.shape[1] - after
            cost.written += written.tokens
            return [Reading(written.text, (), written.ids, written.finish_reason)]

        (reading,) = guarded(read, 1, lambda kept: text_of(self.processor, kept), options.repetition)
        return reading

    def _ids(self, pieces: list[Piece], task: str, prompt_options: dict[str, Any]) -> tuple[torch.Tensor, str]:
        """The ids (length,) of a prompt about pieces, and its text with one `<|AUDIO|>` for each."""
        prompt = self.processor.build_prompt(task, **prompt_options).replace(AUDIO_SPAN, AUDIO_SPAN * len(pieces))
        return self._prompt_ids(prompt, pieces)[0], prompt

    def _prompt_ids(self, prompt: str, pieces: list[Piece]) -> torch.Tensor:
        return prompt_ids(self.processor, prompt, [piece.windows for piece in pieces]).to(self.model.device)

    def _text_ids(self, content: str) -> torch.Tensor:
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return prompt_ids(self.processor, prompt, []).to(self.model.device)


def reader_of_answers(model: FastSLMForConditionalGeneration) -> str:
    """What reads the speech tokens where the language model answers, as results name it."""
    return "llm, words heard by whisper" if is_cascade(model) else "llm"


def _mapped(task: str, prompt_options: dict[str, Any]) -> dict[str, Any]:
    """The prompt of one span."""
    if task != "ask":
        return prompt_options
    return {**prompt_options, "question": MAP_QUESTION.format(question=prompt_options["question"])}


def _budget(pieces: list[Piece], task: str, options: AnswerOptions) -> int:
    """Tokens that an answer may take."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    if task == "translate":
        return token_budget(sum(piece.end - piece.start for piece in pieces))
    windows = sum(piece.windows for piece in pieces)
    return ANSWER_TOKENS + (windows * SUMMARY_TOKENS_PER_WINDOW if task == "summarize" else 0)


def _least(budget: int, options: AnswerOptions) -> int:
    """Tokens that there must be room for: half of what nobody asked for is enough nearly always."""
    return budget if options.max_new_tokens is not None else math.ceil(budget / 2)


def _sounding(memory: SpeechMemory) -> list[tuple[float, float]]:
    """The windows that are not silent, in seconds."""
    pairs = zip(memory.times.tolist(), memory.silent.tolist(), strict=True)
    return [(start, end) for (start, end), silent in pairs if not silent]


def _heard(memories: Sequence[SpeechMemory]) -> tuple[Span, ...]:
    return tuple(
        Span(start, end, memory.facts.name if len(memories) > 1 else None)
        for memory in memories
        for start, end in joined(_sounding(memory))
    )


def _silences(memories: Sequence[SpeechMemory]) -> list[str]:
    """What the recordings warn of, and where they are silent."""
    warnings = []
    for memory in memories:
        of = f" of {memory.facts.name}" if len(memories) > 1 else ""
        pairs = zip(memory.times.tolist(), memory.silent.tolist(), strict=True)
        quiet = joined([(start, end) for (start, end), silent in pairs if silent])
        warnings += memory.facts.warnings
        warnings += [without_speech(start, end, of) for start, end in quiet]
    return warnings


def _untaught(whole: Sequence[Piece], taught: int | None) -> list[str]:
    windows = sum(piece.windows for piece in whole)
    if taught is None or windows <= taught:
        return []
    return [
        f"One prompt holds {windows} windows, and the language model was taught with {_windows(taught)} at most: trust "
        "this less than what is made by the method map_reduce."
    ]


def _windows(count: int) -> str:
    return f"{count} window{'s' if count != 1 else ''}"


def _remarks(reason: FinishReason, tokens: int) -> list[str]:
    if reason == "length":
        return [f"The text is cut at {tokens} tokens: give a larger max_new_tokens."]
    if reason == "repetition":
        return ["The text said the same again and again, and the copies are left out."]
    return []

"""The language model at work on speech tokens: prompts, their limit, and greedy text with how it ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from fastslm.errors import OptionError
from fastslm.inference.cascade import speech_embeddings
from fastslm.longform.numeric_options import is_whole
from fastslm.longform.results import FinishReason
from fastslm.model.loops import RowsDone
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import DEFAULT_LANGUAGE, language_code, language_name

# Room for what is said: fast speech has 4 words a second, and a word takes up to 2 tokens.
TOKENS_PER_SECOND = 10
LEAST_TOKENS = 32
DOES_NOT_READ = (
    "The language model of this checkpoint does not read speech tokens yet, so the text is fluent but says nothing "
    "reliable of the recording: trust only the transcript."
)


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: greedily, and what is held against saying the same again.

    Attributes:
        no_repeat_ngram_size: no sequence of so many tokens is written twice; 0 allows all.
        repetition_penalty: what divides the score of a token that was written before; 1 leaves it.
        stop_at_loop: end a text that has fallen into a loop (`fastslm.model.loops`); no other text is touched.
    """

    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    stop_at_loop: bool = False


PLAIN = Decoding()
WATCHED = Decoding(stop_at_loop=True)


@dataclass(frozen=True)
class Generated:
    """What the language model wrote for one prompt.

    ids: its tokens, the end token not among them. prompt_tokens: places that it read before, but those in a cache.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return len(self.ids)


def caveats(model: FastSLMForConditionalGeneration, task: str, language: str | None = None) -> list[str]:
    """What is known beforehand to be poor in what the language model says, one sentence each.

    Args:
        language: what is translated into, as a code or an English name.
    """
    able = model.config.capabilities
    if able.tasks == ():
        return [DOES_NOT_READ]
    if able.tasks is not None and task not in able.tasks:
        return [
            f"The language model of this checkpoint has not learnt to {task}, only to "
            f"{', '.join(able.tasks)}: trust only the transcript."
        ]
    learnt = able.translates_into
    if task == "translate" and learnt is not None and language_code(language or DEFAULT_LANGUAGE) not in learnt:
        names = ", ".join(map(language_name, learnt))
        return [
            f"The language model of this checkpoint has learnt to translate into {names} alone, not into "
            f"{language_name(language or DEFAULT_LANGUAGE)}: do not trust this text."
        ]
    if taught_with := (able.taught_with or {}).get(task):
        return [
            f"The language model of this checkpoint has learnt to {task} from {taught_with} alone: of other speech "
            "trust only the transcript."
        ]
    return []


def token_budget(seconds: float) -> int:
    """Tokens that suffice for all that can be said in `seconds`."""
    return LEAST_TOKENS + math.ceil(seconds * TOKENS_PER_SECOND)


def check_budget(max_new_tokens: int | None) -> None:
    """Refuse a budget that is no positive whole number.

    Raises:
        OptionError: it is not.
    """
    if max_new_tokens is not None and not is_whole(max_new_tokens):
        raise OptionError(
            f"max_new_tokens is {max_new_tokens!r}, a whole number of 1 or more is allowed: give one, or leave it out."
        )


def generate(
    model: FastSLMForConditionalGeneration,
    processor: FastSLMProcessor,
    prompt: str,
    tokens: torch.Tensor,
    budgets: Sequence[int],
    decoding: Decoding = PLAIN,
) -> list[Generated]:
    """One text for each recording; the same prompt for all, the recordings equally long.

    A text does not depend on the others: each has a budget of its own, and prompts of one length need no padding.

    Args:
        prompt: from `FastSLMProcessor.build_prompt`, with one `<|AUDIO|>`.
        tokens: (recordings, windows, 50, hidden), before the projection.
        budgets: tokens to write at most, one number a recording.
        decoding: how tokens are chosen.

    Raises:
        OptionError: prompt, speech and answer do not fit into the language model's context.
    """
    rows, windows = tokens.shape[:2]
    ids = prompt_ids(processor, prompt, [windows]).to(model.device)
    check_context(model, ids.shape[1], windows, max(budgets))
    speech = speech_embeddings(model, processor, tokens.to(model.device)).flatten(0, 2)
    return write(model, processor, ids.expand(rows, -1).contiguous(), budgets, decoding, speech_tokens=speech)


@torch.inference_mode()
def write(
    model: FastSLMForConditionalGeneration,
    processor: FastSLMProcessor,
    ids: torch.Tensor,
    budgets: Sequence[int],
    decoding: Decoding = PLAIN,
    **inputs: Any,
) -> list[Generated]:
    """One text for each prompt, greedily; nothing is padded, so the prompts are equally long.

    Args:
        ids: (prompts, length).
        budgets: tokens to write at most, one number a prompt.
        inputs: `speech_tokens` of the placeholders, or `past_key_values` that hold the prompts' beginning.
    """
    done = RowsDone(ids.shape[1], budgets, decoding.stop_at_loop)
    held = inputs.get("past_key_values")
    places = ids.shape[1] - (0 if held is None else held.get_seq_length())
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max(budgets),
        pad_token_id=processor.tokenizer.pad_token_id,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size or None,
        repetition_penalty=decoding.repetition_penalty,
        stopping_criteria=StoppingCriteriaList([done]),
        **inputs,
    )
    ends = _end_tokens(model, processor)
    new = written[:, ids.shape[1] :].tolist()
    return [_generated(row[:length], ends, processor, places) for row, length in zip(new, done.lengths, strict=True)]


def prompt_ids(processor: FastSLMProcessor, prompt: str, windows: Sequence[int]) -> torch.Tensor:
    """A prompt's ids (1, length), with the placeholders of its recordings, which have so many windows each."""
    tokenizer: Any = processor.tokenizer
    text = processor.expand([prompt], windows)[0]
    begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not begun, return_tensors="pt")["input_ids"]


def context_length(model: FastSLMForConditionalGeneration) -> int | None:
    """Positions that the language model has, `None` where its configuration does not say."""
    return getattr(model.config.text_config.get_text_config(), "max_position_embeddings", None)


def check_context(model: FastSLMForConditionalGeneration, prompt: int, windows: int, budget: int) -> None:
    """Refuse what does not fit into the language model's positions.

    Args:
        prompt: places of the whole prompt. windows: in it. budget: tokens of answer.

    Raises:
        OptionError: it does not, with what would.
    """
    limit = context_length(model)
    if limit is None or prompt + budget <= limit:
        return
    speech = windows * model.config.tokens_per_window
    room = max(0, limit - budget - (prompt - speech)) // model.config.tokens_per_window
    raise OptionError(
        f"The recording becomes {speech} speech tokens, and with the prompt and up to {budget} tokens of answer "
        f"{prompt + budget} positions are needed, but the language model has {limit}: give a recording of up to "
        f"{room // 2} minutes, or a smaller max_new_tokens."
    )


def _end_tokens(model: FastSLMForConditionalGeneration, processor: FastSLMProcessor) -> set[int]:
    configured: Any = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return {end for end in [*ends, processor.tokenizer.eos_token_id] if end is not None}


def _generated(ids: list[int], ends: set[int], processor: FastSLMProcessor, places: int) -> Generated:
    stop = next((index for index, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[:stop]
    return Generated(text_of(processor, kept), tuple(kept), "length" if stop is None else "stop", places)


def text_of(processor: FastSLMProcessor, ids: Sequence[int]) -> str:
    """The text of tokens that the language model wrote."""
    text: Any = processor.tokenizer.decode(list(ids), skip_special_tokens=True)
    return text.strip()

"""What reads the speech tokens of windows: the CTC head, Whisper's decoder, the language model, behind one protocol.

A further one is one class here, and its name in `Decoder`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import ClassVar, Literal, Protocol, cast, get_args

import torch
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import OptionError
from fastslm.longform.generation import (
    PLAIN,
    Decoding,
    Generated,
    caveats,
    check_context,
    context_length,
    generate,
    prompt_ids,
    text_of,
    token_budget,
    write,
)
from fastslm.longform.hints import Hints
from fastslm.longform.prefix_cache import can_keep
from fastslm.longform.recording_prefix import RecordingPrefixes
from fastslm.longform.results import FinishReason, Word
from fastslm.longform.timestamps import word_times
from fastslm.model.ctc_head import BLANK, SPACE, greedy_words
from fastslm.model.loops import RowsDone
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import CONTROL_TOKEN

Decoder = Literal["auto", "ctc", "whisper", "llm"]
# Each window alone; each with those before it; all of them in one prompt.
Method = Literal["window", "context", "whole"]
NoSpeech = Literal["skip", "read"]
NO_HINTS = Hints()


@dataclass(frozen=True)
class Reading:
    """One window as it was read.

    Attributes:
        words: with times from the window's start, where the reader knows any.
        ids: the tokens that were written, the end token not among them; empty of a reader that writes none.
        attempts: how often it was read: more than once where it said the same again and again.
        prompt_tokens, cached_tokens: as in `Usage`, of the language model in all attempts.
    """

    text: str
    words: tuple[Word, ...] = ()
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    attempts: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0


SILENT = Reading("", finish_reason="silence")


class WindowReader(Protocol):
    """A part of one model that reads windows, each alone.

    Attributes:
        name: what options and results call it.
        writes_tokens: whether it writes one token after another: then it has a budget, and can fall into a loop.
        methods: how it can read a recording; only `LLMReader` is asked for more than `window`.
        read_together: windows that it best reads together.
    """

    name: ClassVar[str]
    writes_tokens: ClassVar[bool]
    read_together: ClassVar[int]
    methods: ClassVar[tuple[Method, ...]]

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor): ...

    @staticmethod
    def lacking(model: FastSLMForConditionalGeneration) -> str | None:
        """Why the model has no such reader, one sentence with the remedy; `None` where it has."""
        ...

    def caveats(self) -> list[str]:
        """What is known beforehand to be poor, one sentence each."""
        ...

    def read(
        self, tokens: torch.Tensor, seconds: Sequence[float], budgets: Sequence[int], decoding: Decoding = PLAIN
    ) -> list[Reading]:
        """One reading for each window; none depends on the windows beside it.

        Args:
            tokens: (windows, 50, hidden), before the projection.
            seconds: of each window that are sound; the rest of its 30 s is padding.
            budgets: tokens to write at most, one number a window.
            decoding: how tokens are chosen; a reader that writes none ignores it and the budgets.
        """
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that it wrote."""
        ...


class CTCReader:
    """The CTC head: letters and their times in one pass."""

    name: ClassVar[str] = "ctc"
    writes_tokens: ClassVar[bool] = False
    methods: ClassVar[tuple[Method, ...]] = ("window",)
    read_together: ClassVar[int] = 8

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model

    @staticmethod
    def lacking(model: FastSLMForConditionalGeneration) -> str | None:
        """As `WindowReader`."""
        return "The model has no CTC head: choose the decoder llm." if model.ctc_head is None else None

    def caveats(self) -> list[str]:
        """As `WindowReader`."""
        return []

    @torch.inference_mode()
    def read(
        self, tokens: torch.Tensor, seconds: Sequence[float], budgets: Sequence[int], decoding: Decoding = PLAIN
    ) -> list[Reading]:
        """As `WindowReader`."""
        readings = []
        letters = self.model.letters(tokens.to(self.model.device)).cpu()
        for log_probs, end in zip(letters, seconds, strict=True):
            # Nothing can be said after the end: the window goes on with padding there.
            spoken = [word for word in greedy_words(log_probs, WINDOW_SECONDS) if word.start < end]
            words = tuple(Word(w.word, w.start, min(w.end, end), w.log_probability) for w in spoken)
            readings.append(Reading(" ".join(word.text for word in words), words))
        return readings

    def text_of(self, ids: Sequence[int]) -> str:
        """As `WindowReader`: it writes no tokens."""
        raise NotImplementedError


class WhisperDecoderReader:
    """Whisper's decoder, frozen, reads what the unfolder makes of the tokens: cased and punctuated text."""

    name: ClassVar[str] = "whisper"
    writes_tokens: ClassVar[bool] = True
    methods: ClassVar[tuple[Method, ...]] = ("window",)
    # A token moves all weights, for one window as for many. Keys and values of a window: 7 MB in float32 (tiny.en).
    read_together: ClassVar[int] = 32

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model

    @staticmethod
    def lacking(model: FastSLMForConditionalGeneration) -> str | None:
        """As `WindowReader`."""
        if model.whisper_decoder is None:
            return "The model has no Whisper decoder with its unfolder: choose the decoder ctc or llm."
        return None

    def caveats(self) -> list[str]:
        """As `WindowReader`."""
        return []

    @torch.inference_mode()
    def read(
        self,
        tokens: torch.Tensor,
        seconds: Sequence[float],
        budgets: Sequence[int],
        decoding: Decoding = PLAIN,
        no_speech: NoSpeech = "read",
        hints: Hints = NO_HINTS,
    ) -> list[Reading]:
        """As `WindowReader`; what the unfolder makes of the tokens serves letters and text alike.

        Args:
            no_speech: `skip`, a window in which the CTC head hears not a letter is silent and costs no decoding.
            hints: stand before the text of each window, as the text of one before it would in Whisper.
        """
        decoder, head = self.model.whisper_decoder, self.model.ctc_head
        assert decoder is not None
        frames = decoder.unfolded(tokens)
        letters = None
        if head is not None:
            reads_frames = self.model.config.ctc_reads == "frames"
            letters = (self.model.letters_of(frames) if reads_frames else self.model.letters(tokens)).cpu()
        rows = list(range(len(tokens)))
        if no_speech == "skip":
            assert letters is not None
            rows = hears_letters(letters, seconds)
        found = [SILENT] * len(tokens)
        if not rows:
            return found
        done = RowsDone(len(decoder.start), [budgets[row] for row in rows], decoding.stop_at_loop)
        previous = decoder.previous_text(hints.prompt, hints.hotwords).ids if hints else ()
        written = decoder.read_frames(frames[rows], max(done.lengths), done, _processors(decoding), previous)
        texts = [self.text_of(own.ids[:length]) for own, length in zip(written, done.lengths, strict=True)]
        words: list[list[Word]] = [[] for _ in texts]
        if letters is not None:
            words = word_times(letters[rows], texts, [seconds[row] for row in rows], WINDOW_SECONDS)
        for row, text, timed, own, length in zip(rows, texts, words, written, done.lengths, strict=True):
            # A row whose budget ends before another's is filled up with the end token, which it did not write.
            reason = "stop" if own.complete and len(own.ids) < length else "length"
            found[row] = Reading(text, tuple(timed), own.ids[:length], reason)
        return found

    def hint_warnings(self, hints: Hints) -> list[str]:
        """What of the hints the decoder has no room for, one sentence each."""
        assert self.model.whisper_decoder is not None
        told = self.model.whisper_decoder.previous_text(hints.prompt, hints.hotwords)
        found = []
        for name, end, count, left in (
            ("hotwords", "first", told.hotwords, told.hotwords_left_out),
            ("prompt", "last", told.prompt, told.prompt_left_out),
        ):
            if left:
                kept = f"of which only the {end} {count - left} are read" if left < count else "none of which is read"
                found.append(f"The {name} of {count} tokens {'is' if name == 'prompt' else 'are'} too long, {kept}.")
        return found

    def text_of(self, ids: Sequence[int]) -> str:
        """As `WindowReader`."""
        assert self.model.whisper_decoder is not None
        return self.model.whisper_decoder.text_of(ids)


def hears_letters(log_probs: torch.Tensor, seconds: Sequence[float]) -> list[int]:
    """The windows in whose sound the CTC head hears a letter, (windows, steps, classes) of log-probabilities."""
    heard = log_probs.argmax(-1)
    begins = torch.arange(heard.shape[1]) * (WINDOW_SECONDS / heard.shape[1])
    within = begins < torch.tensor(seconds)[:, None]
    return ((heard != BLANK) & (heard != SPACE) & within).any(1).nonzero()[:, 0].tolist()


def _processors(decoding: Decoding) -> list[LogitsProcessor]:
    """What transformers' `generate` puts together of the same options, in its order."""
    found: list[LogitsProcessor] = []
    if decoding.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    if decoding.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    return found


class LLMReader:
    """The language model, as the paper has it."""

    name: ClassVar[str] = "llm"
    writes_tokens: ClassVar[bool] = True
    methods: ClassVar[tuple[Method, ...]] = ("window", "context", "whole")
    # All prompts of a group are equally long, so nothing is padded.
    read_together: ClassVar[int] = 8

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model, self.processor = model, processor

    @staticmethod
    def lacking(model: FastSLMForConditionalGeneration) -> str | None:
        """As `WindowReader`: every model has a language model."""
        return None

    def caveats(self) -> list[str]:
        """As `WindowReader`."""
        return caveats(self.model, "transcribe")

    def read(
        self,
        tokens: torch.Tensor,
        seconds: Sequence[float],
        budgets: Sequence[int],
        decoding: Decoding = PLAIN,
        hints: Hints = NO_HINTS,
    ) -> list[Reading]:
        """As `WindowReader`; the hints are part of the instruction."""
        prompt = self._prompt(hints)
        written = generate(self.model, self.processor, prompt, tokens[:, None], budgets, decoding)
        return [_reading(own) for own in written]

    def read_after(
        self,
        tokens: torch.Tensor,
        before: Sequence[str],
        budget: int,
        decoding: Decoding = PLAIN,
        hints: Hints = NO_HINTS,
    ) -> Reading:
        """The last of some windows that follow one another, the others being in the prompt with what was read in them.

        Args:
            tokens: (windows, 50, hidden).
            before: texts of all windows but the last.
        """
        begun = " ".join(text for text in before if text)
        prompt = self._prompt(hints) + CONTROL_TOKEN.sub("", begun)
        (written,) = generate(self.model, self.processor, prompt, tokens[None], [budget], decoding)
        return _reading(written)

    def read_whole(
        self,
        tokens: torch.Tensor,
        budget: int,
        recordings: RecordingPrefixes,
        decoding: Decoding = PLAIN,
        hints: Hints = NO_HINTS,
    ) -> Reading:
        """All windows of a recording, (windows, 50, hidden), in one prompt.

        Args:
            recordings: where it may have been read before, and is kept for the next time.

        Raises:
            OptionError: the language model has too few positions.
        """
        if not can_keep(self.model):
            return self.read_after(tokens, [], budget, decoding, hints)
        prompt = self._prompt(hints)
        ids = prompt_ids(self.processor, prompt, [len(tokens)]).to(self.model.device)
        check_context(self.model, ids.shape[1], len(tokens), budget)
        with recordings.of(prompt, [tokens]) as (prefix, kept):
            (written,) = write(self.model, self.processor, ids, [budget], decoding, past_key_values=prefix.cache)
        read, saved = (0, prefix.length) if kept else (prefix.length, 0)
        return replace(_reading(written), prompt_tokens=read + written.prompt_tokens, cached_tokens=saved)

    def whole_budget(self, tokens: torch.Tensor, seconds: float, hints: Hints = NO_HINTS) -> int:
        """Tokens for all that is said in a recording, or what the positions leave room for, but at least half of it."""
        budget, limit = token_budget(seconds), context_length(self.model)
        if limit is None:
            return budget
        prompt = prompt_ids(self.processor, self._prompt(hints), [len(tokens)])
        return min(budget, max(math.ceil(budget / 2), limit - prompt.shape[1]))

    def hint_warnings(self, hints: Hints) -> list[str]:
        """None: the language model has room for all of the hints, or they are refused.

        Raises:
            OptionError: they would take more than half of its positions.
        """
        places, limit = prompt_ids(self.processor, self._prompt(hints), [0]).shape[1], context_length(self.model)
        if limit is not None and places > limit // 2:
            raise OptionError(
                f"With the prompt and hotwords {places} positions are needed before any speech, and up to {limit // 2} "
                "of the language model's are for them: shorten them."
            )
        return []

    def _prompt(self, hints: Hints) -> str:
        return self.processor.build_prompt("transcribe", instruction=hints.instruction)

    def text_of(self, ids: Sequence[int]) -> str:
        """As `WindowReader`."""
        return text_of(self.processor, ids)


def _reading(written: Generated) -> Reading:
    return Reading(written.text, (), written.ids, written.finish_reason, prompt_tokens=written.prompt_tokens)


READERS: dict[str, type[WindowReader]] = {
    reader.name: reader for reader in (CTCReader, WhisperDecoderReader, LLMReader)
}


def choose_method(name: str, reader: type[WindowReader]) -> Method:
    """The method of that name, if the reader has it.

    Raises:
        OptionError: it is unknown, or the reader cannot read so.
    """
    known = get_args(Method)
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise OptionError(f"There is no method {name!r}{hint}: choose one of {', '.join(known)}.")
    if name not in reader.methods:
        able = [other.name for other in READERS.values() if name in other.methods]
        raise OptionError(
            f"The decoder {reader.name} has no method {name}: choose the decoder {' or '.join(able)}, or "
            f"the method {' or '.join(reader.methods)}."
        )
    return cast(Method, name)


def reader_named(name: str, model: FastSLMForConditionalGeneration) -> type[WindowReader]:
    """The reader of that name; of `auto`, the one that the checkpoint's configuration names as the best.

    Raises:
        OptionError: it is unknown, and the nearest is named, or the model lacks it.
    """
    known = ("auto", *READERS)
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise OptionError(f"There is no decoder {name!r}{hint}: choose one of {', '.join(known)}.")
    if name == "auto":
        name = model.config.capabilities.decoder or ("llm" if CTCReader.lacking(model) else "ctc")
    reader = READERS[name]
    if lacking := reader.lacking(model):
        raise OptionError(lacking)
    return reader

"""Transcripts of any length, window by window, by whichever part of the model hears best: the CTC head or the LLM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from time import monotonic
from typing import Literal, get_args

import torch

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import OptionError
from fastslm.longform.encoder import window_seconds
from fastslm.longform.generation import DOES_NOT_READ, check_budget, generate, token_budget
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Segment, Transcript, Usage, Word, clock
from fastslm.model.ctc_head import greedy_words
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import LANGUAGES, language_name

Reader = Literal["auto", "ctc", "llm"]
READERS = get_args(Reader)
# Windows that are read together. All prompts of a group are equally long, so nothing is padded.
READ_TOGETHER = 8


@dataclass(frozen=True)
class TranscriptionOptions:
    """How to transcribe.

    Attributes:
        language: code or English name of what is spoken; `None` is the model's first language. It is checked against
            what the model was trained on and reported; it does not steer the reader.
        reader: `ctc`, the CTC head reads the speech tokens; `llm`, the language model does, as the paper has it;
            `auto`, what the checkpoint's configuration names as the better of the two.
        max_new_tokens: of the language model, for one window; `None` grows with the window's seconds.
    """

    language: str | None = None
    reader: Reader = "auto"
    max_new_tokens: int | None = None

    def resolved(self, model: FastSLMForConditionalGeneration) -> "TranscriptionOptions":
        """The same with nothing left open, checked against a model.

        Raises:
            OptionError: an unknown language or reader, one that the model lacks, or an option that changes nothing.
        """
        reader = self.reader
        if reader not in READERS:
            near = get_close_matches(str(reader), READERS, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise OptionError(f"There is no reader {reader!r}{hint}: choose one of {', '.join(READERS)}.")
        if reader == "auto":
            reader = model.config.transcript_reader or ("llm" if model.ctc_head is None else "ctc")
        if reader == "ctc" and model.ctc_head is None:
            raise OptionError("The model has no CTC head to read with: choose the reader llm.")
        check_budget(self.max_new_tokens)
        if reader == "ctc" and self.max_new_tokens is not None:
            raise OptionError("max_new_tokens was given, but the CTC head writes no tokens: leave it out.")
        return replace(self, language=_spoken(self.language, model.config.languages), reader=reader)


def _spoken(language: str | None, allowed: Sequence[str]) -> str:
    """The code of a language that the model transcribes."""
    if language is None:
        return allowed[0]
    name = language_name(language)
    code = next(code for code, known in LANGUAGES.items() if known == name)
    if code not in allowed:
        raise OptionError(f"The model does not transcribe {name}: {', '.join(allowed)} is what it was trained on.")
    return code


@dataclass(frozen=True)
class _Reading:
    """One window as it was read; times from the window's start."""

    text: str
    words: tuple[Word, ...]
    tokens: int
    finish_reason: Literal["stop", "length", "silence"]


SILENT = _Reading("", (), 0, "silence")


class Transcriber:
    """Reads speech memories with one model."""

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model
        self.processor = processor

    def transcribe(
        self, memories: Iterator[SpeechMemory], options: TranscriptionOptions, started: float | None = None
    ) -> Iterator[Transcript]:
        """A transcript for each memory, in order. Windows of several short recordings are read together.

        Each window is read alone: its text depends neither on its neighbours nor on what it is grouped with. A silent
        window is not read, so nothing can be invented for it.

        Args:
            started: when the work on the first of them began, by `time.monotonic`.
        """
        options = options.resolved(self.model)
        clock_started = monotonic() if started is None else started
        for group in _grouped(memories):
            windows = [
                (tokens, seconds)
                for memory in group
                for tokens, seconds, silent in zip(
                    memory.tokens, window_seconds(memory.times), memory.silent.tolist(), strict=True
                )
                if not silent
            ]
            readings = iter(self._read(windows, options))
            own = [[SILENT if silent else next(readings) for silent in memory.silent.tolist()] for memory in group]
            elapsed = monotonic() - clock_started
            total = sum(memory.duration for memory in group)
            for memory, parts in zip(group, own, strict=True):
                yield _transcript(memory, parts, options, elapsed * memory.duration / total, self._caveats(options))
            clock_started = monotonic()

    def _caveats(self, options: TranscriptionOptions) -> list[str]:
        """What is known beforehand to be poor."""
        return [DOES_NOT_READ] if options.reader == "llm" and not self.model.config.llm_reads_speech else []

    def _read(self, windows: list[tuple[torch.Tensor, float]], options: TranscriptionOptions) -> Iterator[_Reading]:
        for start in range(0, len(windows), READ_TOGETHER):
            group = windows[start : start + READ_TOGETHER]
            tokens = torch.stack([tokens for tokens, _ in group]).to(self.model.device)
            seconds = [seconds for _, seconds in group]
            if options.reader == "ctc":
                yield from self._read_ctc(tokens, seconds)
            else:
                yield from self._read_llm(tokens, seconds, options.max_new_tokens)

    @torch.inference_mode()
    def _read_ctc(self, tokens: torch.Tensor, seconds: list[float]) -> Iterator[_Reading]:
        head = self.model.ctc_head
        assert head is not None
        log_probs_of = head(tokens.to(next(head.parameters()).dtype)).cpu()
        for log_probs, end in zip(log_probs_of, seconds, strict=True):
            # Nothing can be said after the end: the window goes on with padding there.
            spoken = [word for word in greedy_words(log_probs, WINDOW_SECONDS) if word.start < end]
            words = tuple(Word(w.word, w.start, min(w.end, end), w.log_probability) for w in spoken)
            yield _Reading(" ".join(word.text for word in words), words, 0, "stop")

    def _read_llm(self, tokens: torch.Tensor, seconds: list[float], limit: int | None) -> Iterator[_Reading]:
        prompt = self.processor.build_prompt("transcribe")
        budgets = [limit or token_budget(own) for own in seconds]
        for written in generate(self.model, self.processor, prompt, tokens[:, None], budgets):
            yield _Reading(written.text, (), written.tokens, written.finish_reason)


def _grouped(memories: Iterator[SpeechMemory]) -> Iterator[list[SpeechMemory]]:
    """Short recordings together, up to READ_TOGETHER of them; a longer one fills a group by itself."""
    while group := list(islice(memories, 1)):
        windows = len(group[0].tokens)
        while windows < READ_TOGETHER and (following := list(islice(memories, 1))):
            group += following
            windows += len(following[0].tokens)
        yield group


def _transcript(
    memory: SpeechMemory,
    readings: list[_Reading],
    options: TranscriptionOptions,
    processing: float,
    caveats: list[str],
) -> Transcript:
    segments = tuple(
        Segment(
            start,
            end,
            reading.text,
            tuple(Word(w.text, start + w.start, start + w.end, w.log_probability) for w in reading.words),
            reading.finish_reason,
        )
        for (start, end), reading in zip(memory.times.tolist(), readings, strict=True)
    )
    heard = sum(segment.end - segment.start for segment in segments if segment.finish_reason == "stop")
    assert options.language is not None
    return Transcript(
        text=" ".join(segment.text for segment in segments if segment.text),
        segments=segments,
        language=options.language,
        duration=memory.duration,
        warnings=(*memory.facts.warnings, *_remarks(segments), *caveats),
        usage=Usage(
            windows=len(memory.tokens),
            audio_tokens=memory.audio_tokens,
            text_tokens=sum(reading.tokens for reading in readings),
            seconds=memory.duration,
            seconds_heard=heard,
            processing_seconds=processing,
            real_time_factor=processing / memory.duration,
            reader=options.reader,
            method="window",
        ),
    )


def _remarks(segments: tuple[Segment, ...]) -> list[str]:
    """What a reader of the text alone would miss."""
    quiet = [(segment.start, segment.end) for segment in segments if not segment.text]
    cut = [(segment.start, segment.end) for segment in segments if segment.finish_reason == "length"]
    return [
        *(f"No speech was heard from {clock(a)} to {clock(b)}." for a, b in joined(quiet)),
        *(
            f"The text from {clock(a)} to {clock(b)} is cut: the language model used up its max_new_tokens."
            for a, b in joined(cut)
        ),
    ]


def joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans in order, those that touch made one."""
    result: list[tuple[float, float]] = []
    for start, end in spans:
        if result and result[-1][1] >= start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result

"""Transcripts of any length, window by window, by whichever part of the model hears best: the CTC head or the LLM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic

import torch

from fastslm.errors import OptionError
from fastslm.longform.encoder import window_seconds
from fastslm.longform.generation import check_budget, token_budget
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.readers import READERS, SILENT, Reader, Reading, WindowReader, reader_named
from fastslm.longform.results import Segment, Transcript, Usage, Word, clock
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import LANGUAGES, language_name

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
        reader = reader_named(self.reader, model)
        check_budget(self.max_new_tokens)
        if self.max_new_tokens is not None and not reader.writes_tokens:
            raise OptionError(f"max_new_tokens was given, but the reader {reader.name} writes no tokens: leave it out.")
        return replace(self, language=_spoken(self.language, model.config.languages), reader=reader.name)


def _spoken(language: str | None, allowed: Sequence[str]) -> str:
    """The code of a language that the model transcribes."""
    if language is None:
        return allowed[0]
    name = language_name(language)
    code = next(code for code, known in LANGUAGES.items() if known == name)
    if code not in allowed:
        raise OptionError(f"The model does not transcribe {name}: {', '.join(allowed)} is what it was trained on.")
    return code


class Transcriber:
    """Reads speech memories with one model."""

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        self.model = model
        self.processor = processor
        self._readers: dict[str, WindowReader] = {}

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
        reader = self._reader(options.reader)
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
            readings = self._read(reader, windows, options.max_new_tokens)
            own = [[SILENT if silent else next(readings) for silent in memory.silent.tolist()] for memory in group]
            elapsed = monotonic() - clock_started
            total = sum(memory.duration for memory in group)
            for memory, parts in zip(group, own, strict=True):
                yield _transcript(memory, parts, options, elapsed * memory.duration / total, reader.caveats())
            clock_started = monotonic()

    def _reader(self, name: str) -> WindowReader:
        """One reader of each kind is kept."""
        if name not in self._readers:
            self._readers[name] = READERS[name](self.model, self.processor)
        return self._readers[name]

    def _read(
        self, reader: WindowReader, windows: list[tuple[torch.Tensor, float]], limit: int | None
    ) -> Iterator[Reading]:
        for start in range(0, len(windows), READ_TOGETHER):
            group = windows[start : start + READ_TOGETHER]
            tokens = torch.stack([tokens for tokens, _ in group])
            seconds = [seconds for _, seconds in group]
            yield from reader.read(tokens, seconds, [limit or token_budget(own) for own in seconds])


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
    readings: list[Reading],
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
            text_tokens=sum(len(reading.ids) for reading in readings),
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

"""Transcripts of any length, by whichever part of the model reads best, by one of three methods."""

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, asdict, dataclass, replace
from itertools import islice
from time import monotonic
from typing import Any, get_args

import torch

from fastslm.errors import OptionError
from fastslm.longform.encoder import OnProgress, window_seconds
from fastslm.longform.generation import Decoding, check_budget, token_budget
from fastslm.longform.hints import Hints, checked_hint
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.numeric_options import is_whole, plain_numbers
from fastslm.longform.readers import (
    READERS,
    SILENT,
    CTCReader,
    Decoder,
    LLMReader,
    Method,
    NoSpeech,
    Reading,
    WhisperDecoderReader,
    WindowReader,
    choose_method,
    reader_named,
)
from fastslm.longform.recording_prefix import RecordingPrefixes
from fastslm.longform.repetition import Repetition, check_repetition, guarded
from fastslm.longform.results import Progress, Segment, Transcript, Usage, Word, clock, without_speech
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import LANGUAGES, language_name

CONTEXT_WINDOWS = 2
LEAST_SAID = 0.05  # seconds; less without speech is 0.0 s, and not worth a sentence


@dataclass(frozen=True)
class TranscriptionOptions:
    """How to transcribe.

    Attributes:
        language: code or English name of what is spoken; `None` is the model's first language. It is checked against
            what the model was trained on and reported; it does not steer the decoder.
        decoder: what writes the text: `ctc`, the CTC head; `whisper`, Whisper's decoder; `llm`, the language model, as
            the paper has it; `auto`, what the checkpoint's configuration names as the best of them.
        max_new_tokens: of a decoder that writes tokens, for one window, or by the method `whole` for all; `None` grows
            with the seconds.
        method: `window`, each window alone, many at once; `context`, each with up to `context_windows` before it and
            what was read there; `whole`, all in one prompt, up to the language model's context.
        context_windows: of the method `context`.
        repetition: what is done about a text that says the same again and again: `retry`, it is written again with
            what holds against that, and cut if nothing helps; `cut`, cut at once; `keep`, nothing.
        no_speech: what is done about windows with sound in which the CTC head hears not a letter, such as music:
            `skip`, they get an empty text; `read`, they are read. By default they are skipped by a decoder that writes
            tokens, which might invent some, if the model has a CTC head.
        prompt: text that might stand before the transcript, whose words, names and style are taken up, in every window;
            of Whisper's decoder the last 223 tokens. An empty one is none.
        hotwords: words and names that may be said, as they are spelled; of Whisper's decoder the first 223 tokens,
            which leave the prompt so much less.
        reader: what `decoder` was called before.
    """

    language: str | None = None
    decoder: Decoder = "auto"
    max_new_tokens: int | None = None
    method: Method = "window"
    context_windows: int | None = None
    repetition: Repetition = "retry"
    no_speech: NoSpeech | None = None
    prompt: str | None = None
    hotwords: str | None = None
    reader: InitVar[Decoder | None] = None

    def __post_init__(self, reader: Decoder | None) -> None:
        if reader is not None:
            if self.decoder not in ("auto", reader):
                raise OptionError(f"decoder {self.decoder!r} and reader {reader!r} are the same option: give decoder.")
            object.__setattr__(self, "decoder", reader)
        plain_numbers(self)

    def resolved(self, model: FastSLMForConditionalGeneration) -> "TranscriptionOptions":
        """The same with nothing left open, checked against a model.

        Raises:
            OptionError: an unknown language or decoder, one that the model lacks, or an option that changes nothing.
        """
        reader = reader_named(self.decoder, model)
        check_budget(self.max_new_tokens)
        idle = {"max_new_tokens": self.max_new_tokens is not None, "repetition": self.repetition != "retry"}
        hints = {option: checked_hint(option, getattr(self, option)) for option in ("prompt", "hotwords")}
        idle["no_speech"] = self.no_speech is not None
        idle |= {option: text is not None for option, text in hints.items()}
        for option in (name for name, given in idle.items() if given and not reader.writes_tokens):
            raise OptionError(f"{option} was given, but the decoder {reader.name} writes no tokens: leave it out.")
        method = choose_method(self.method, reader)
        check_repetition(self.repetition)
        context = self.context_windows
        if context is not None and (method != "context" or not is_whole(context)):
            raise OptionError(
                f"context_windows is {context!r} by the method {method}: give a whole number of 1 or more, by the "
                "method context."
            )
        if self.no_speech not in (None, *get_args(NoSpeech)):
            raise OptionError(f"no_speech is {self.no_speech!r}: choose one of {', '.join(get_args(NoSpeech))}.")
        if self.no_speech == "skip" and model.ctc_head is None:
            raise OptionError("The model has no CTC head to tell speech from other sound: leave no_speech out.")
        skip: NoSpeech = "read" if model.ctc_head is None else "skip"
        return replace(
            self,
            no_speech=(self.no_speech or skip) if reader.writes_tokens else None,
            language=_spoken(self.language, model.config.capabilities.languages),
            decoder=reader.name,  # type: ignore[arg-type]
            method=method,
            context_windows=context or (CONTEXT_WINDOWS if method == "context" else None),
            **hints,
        )

    @property
    def hints(self) -> Hints:
        """What the reader is told beforehand."""
        return Hints(self.prompt, self.hotwords)


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
    """Reads speech memories with one model.

    Args:
        read_together: windows that are read together by the method `window`, by default the reader's own number; it
            changes no text.
        recordings: what the language model made of recordings before, from which the method `whole` goes on.
    """

    def __init__(
        self,
        model: FastSLMForConditionalGeneration,
        processor: FastSLMProcessor,
        read_together: int | None = None,
        recordings: RecordingPrefixes | None = None,
    ):
        self.model = model
        self.processor = processor
        self.read_together = read_together
        self.recordings = recordings or RecordingPrefixes(model, processor)
        self._readers: dict[str, WindowReader] = {}

    def transcribe(
        self,
        memories: Iterator[SpeechMemory],
        options: TranscriptionOptions,
        started: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Transcript]:
        """A transcript for each memory, in order. By the method `window`, those of short recordings are read together.

        By that method each window is read alone: its text depends neither on its neighbours nor on what it is grouped
        with. A silent window is not read, so nothing can be invented for it; by the method `whole`, only a recording
        that is silent altogether.

        Args:
            started: when the work on the first of them began, by `time.monotonic`.
            on_progress: told, by the methods `window` and `context`, of the seconds with sound that are read: of a
                memory, or of several that are read together.

        Raises:
            OptionError: by the method `whole`, a recording longer than the language model's context; hints that are
                too long for it.
        """
        options = options.resolved(self.model)
        reader = self._reader(options.decoder)
        warnings = [*self.hint_warnings(options), *reader.caveats()]
        clock_started = monotonic() if started is None else started
        for group in _grouped(memories, self._together(reader) if options.method == "window" else 1):
            if options.method == "window":
                own = self._by_window(reader, group, options, on_progress)
            elif options.method == "context":
                own = [self._by_context(reader, memory, options, on_progress) for memory in group]
            else:
                own = [[self._whole(reader, memory, options)] for memory in group]
            elapsed = monotonic() - clock_started
            total = sum(memory.duration for memory in group)
            for memory, parts in zip(group, own, strict=True):
                yield _transcript(memory, parts, options, elapsed * memory.duration / total, warnings)
            clock_started = monotonic()

    def hint_warnings(self, options: TranscriptionOptions) -> list[str]:
        """What the reader does not take of the prompt and the hotwords, one sentence each.

        Args:
            options: resolved.

        Raises:
            OptionError: the reader can't have them, or so many.
        """
        if not options.hints:
            return []
        reader = self._reader(options.decoder)
        assert isinstance(reader, WhisperDecoderReader | LLMReader)
        return reader.hint_warnings(options.hints)

    def _reader(self, name: str) -> WindowReader:
        """One reader of each kind is kept."""
        if name not in self._readers:
            self._readers[name] = READERS[name](self.model, self.processor)
        return self._readers[name]

    def _together(self, reader: WindowReader) -> int:
        return self.read_together or reader.read_together

    def _by_window(
        self,
        reader: WindowReader,
        group: list[SpeechMemory],
        options: TranscriptionOptions,
        on_progress: OnProgress | None,
    ) -> list[list[Reading]]:
        # Whisper's decoder hears for itself whether there are letters, in the frames that it reads.
        hears = isinstance(reader, WhisperDecoderReader)
        quiet = [memory.silent.tolist() if hears else self._quiet(memory, options) for memory in group]
        sounding = [
            (tokens, seconds)
            for memory, own in zip(group, quiet, strict=True)
            for tokens, seconds, silent in zip(memory.tokens, window_seconds(memory.times), own, strict=True)
            if not silent
        ]
        readings = iter(self._read(reader, sounding, options, on_progress))
        return [[SILENT if silent else next(readings) for silent in own] for own in quiet]

    def _quiet(self, memory: SpeechMemory, options: TranscriptionOptions) -> list[bool]:
        """Which windows are not read: the silent ones, and where `no_speech` says so those without a letter."""
        quiet = memory.silent.tolist()
        if options.no_speech != "skip":
            return quiet
        ears = CTCReader(self.model, self.processor)
        sounding = [index for index, silent in enumerate(quiet) if not silent]
        seconds = window_seconds(memory.times)
        together = self._together(ears)
        for start in range(0, len(sounding), together):
            group = sounding[start : start + together]
            heard = ears.read(memory.tokens[group], [seconds[index] for index in group], [])
            for index, reading in zip(group, heard, strict=True):
                quiet[index] = not reading.text
        return quiet

    def _read(
        self,
        reader: WindowReader,
        windows: list[tuple[torch.Tensor, float]],
        options: TranscriptionOptions,
        on_progress: OnProgress | None,
    ) -> list[Reading]:
        own_options: dict[str, Any] = {}
        if isinstance(reader, WhisperDecoderReader):
            own_options["no_speech"] = options.no_speech
        if options.hints:
            own_options["hints"] = options.hints
        tell = _Told([seconds for _, seconds in windows], on_progress)

        def read(rows: Sequence[int], decoding: Decoding) -> list[Reading]:
            seconds = [windows[row][1] for row in rows]
            budgets = [options.max_new_tokens or token_budget(own) for own in seconds]
            tokens = torch.stack([windows[row][0] for row in rows])
            readings = reader.read(tokens, seconds, budgets, decoding, **own_options)
            tell.read_to(max(rows, default=-1))
            return readings

        # What writes no tokens has no loops.
        guard = options.repetition if reader.writes_tokens else "keep"
        return guarded(read, len(windows), reader.text_of, guard, self._together(reader))

    def _by_context(
        self,
        reader: WindowReader,
        memory: SpeechMemory,
        options: TranscriptionOptions,
        on_progress: OnProgress | None,
    ) -> list[Reading]:
        assert isinstance(reader, LLMReader)
        assert options.context_windows is not None
        readings: list[Reading] = []
        quiet = self._quiet(memory, options)
        tell = _Told(window_seconds(memory.times), on_progress)
        for index, (seconds, silent) in enumerate(zip(window_seconds(memory.times), quiet, strict=True)):
            tell.read_to(index - 1)
            if silent:
                readings.append(SILENT)
                continue
            first = max(0, index - options.context_windows)
            tokens = memory.tokens[first : index + 1]
            before = [reading.text for reading in readings[first:]]
            budget = options.max_new_tokens or token_budget(seconds)

            def read(_: Sequence[int], decoding: Decoding, given=(tokens, before, budget)) -> list[Reading]:
                tokens, before, budget = given
                return [reader.read_after(tokens, before, budget, decoding, options.hints)]

            readings += guarded(read, 1, reader.text_of, options.repetition)
        tell.read_to(len(readings) - 1)
        return readings

    def _whole(self, reader: WindowReader, memory: SpeechMemory, options: TranscriptionOptions) -> Reading:
        assert isinstance(reader, LLMReader)
        if all(self._quiet(memory, options)):
            return SILENT
        budget = options.max_new_tokens or reader.whole_budget(memory.tokens, memory.duration, options.hints)
        (reading,) = guarded(
            lambda _, decoding: [reader.read_whole(memory.tokens, budget, self.recordings, decoding, options.hints)],
            1,
            reader.text_of,
            options.repetition,
        )
        return reading


class _Told:
    """Somebody is told how much is read, and not again where windows are read once more."""

    def __init__(self, seconds: Sequence[float], on_progress: OnProgress | None):
        self.seconds, self.on_progress, self.furthest = seconds, on_progress, -1

    def read_to(self, window: int) -> None:
        """Windows up to this one are read."""
        if self.on_progress is not None and window > self.furthest:
            self.furthest = window
            self.on_progress(Progress(sum(self.seconds[: window + 1]), sum(self.seconds)))


def _grouped(memories: Iterator[SpeechMemory], least: int) -> Iterator[list[SpeechMemory]]:
    """Short recordings together, up to `least` windows of them; a longer one fills a group by itself."""
    while group := list(islice(memories, 1)):
        windows = len(group[0].tokens)
        while windows < least and (following := list(islice(memories, 1))):
            group += following
            windows += len(following[0].tokens)
        yield group


def _transcript(
    memory: SpeechMemory,
    readings: list[Reading],
    options: TranscriptionOptions,
    processing: float,
    caveats: Sequence[str],
) -> Transcript:
    spans = [(memory.start, memory.end)] if options.method == "whole" else memory.times.tolist()
    segments = tuple(
        Segment(
            start,
            end,
            reading.text,
            tuple(Word(w.text, start + w.start, start + w.end, w.log_probability) for w in reading.words),
            reading.finish_reason,
            reading.attempts,
        )
        for (start, end), reading in zip(spans, readings, strict=True)
    )
    heard = sum(segment.end - segment.start for segment in segments if segment.finish_reason == "stop")
    silent = sum(segment.end - segment.start for segment in segments if segment.finish_reason == "silence")
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
            reader=options.decoder,
            method=options.method,
            prompt_tokens=sum(reading.prompt_tokens for reading in readings),
            cached_tokens=sum(reading.cached_tokens for reading in readings),
            seconds_silent=silent,
        ),
        options=asdict(options),
        partial=memory.facts.partial,
        missing_seconds=memory.facts.missing_seconds,
        start=memory.start,
    )


def _remarks(segments: tuple[Segment, ...]) -> list[str]:
    """What a reader of the text alone would miss."""

    def those(reason: str) -> list[tuple[float, float]]:
        return joined([(segment.start, segment.end) for segment in segments if segment.finish_reason == reason])

    empty = joined([(s.start, s.end) for s in segments if not s.text and s.finish_reason in ("stop", "silence")])
    return [
        *(without_speech(start, end) for start, end in empty if end - start >= LEAST_SAID),
        *(
            f"The text from {clock(a)} to {clock(b)} is cut: the decoder used up its max_new_tokens."
            for a, b in those("length")
        ),
        *(
            f"The text from {clock(a)} to {clock(b)} said the same again and again, and the copies are left out."
            for a, b in those("repetition")
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

"""The object that `fastslm.load` returns: the four tasks and the memory, for one recording or many."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from fastslm.audio import AudioSource, LiveChunk
from fastslm.audio.part import Part, Seconds
from fastslm.errors import OptionError
from fastslm.longform.cuts import Cuts, refuse_cuts_of_memory
from fastslm.longform.encoder import OnProgress, WindowEncoder, name_of
from fastslm.longform.fingerprint import model_fingerprint
from fastslm.longform.live import UPDATE_SECONDS, LiveText, transcribe_stream
from fastslm.longform.memory import SUFFIX, SpeechMemory
from fastslm.longform.questions import Answerer, AnswerOptions
from fastslm.longform.readers import Decoder, Method, reader_named
from fastslm.longform.repetition import Repetition
from fastslm.longform.results import Answer, Transcript
from fastslm.longform.transcription import NoSpeech, Transcriber, TranscriptionOptions
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.products import Kernels
from fastslm.model.threads import refuse_fork, settle

Source = AudioSource | SpeechMemory
Sources = Source | Sequence[Source]
# Of a model that does not say: the paper's.
TRANSLATES_INTO = ("ko",)


class FastSLM:
    """A model that hears, with what it needs to read recordings and write text.

    Any number of threads may use it at the same time, each with the answers that it would get alone. Their work runs
    side by side, but for calls of `summarize`, `ask` and `translate` about the same recording, which wait for each
    other. It pickles, for processes that are spawned; in a forked one it is refused.

    Every task takes a recording as `fastslm.audio.stream_audio` does (a path, an encoded file's content, an array with
    its `sampling_rate`), or a `SpeechMemory`, or the path of a saved one (`.fslm`).

    Args:
        model: transformers' model, put in evaluation mode; `self.model` for all that transformers offers.
        processor: of the same checkpoint.
        name: what results and messages call it.
        encoder_dtype: what encoder and HFQ-Former compute in (`WindowEncoder`), by default the model's.
        kernels: what the encoder multiplies with (`WindowEncoder`).
    """

    def __init__(
        self,
        model: FastSLMForConditionalGeneration,
        processor: FastSLMProcessor,
        name: str = "the model",
        encoder_dtype: torch.dtype | None = None,
        kernels: Kernels = "torch",
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.encoder = WindowEncoder(model, dtype=encoder_dtype, kernels=kernels)
        self.answerer = Answerer(model, processor)
        self.transcriber = Transcriber(model, processor, recordings=self.answerer.recordings)
        self._process = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())

    def _begin(self) -> None:
        """Before anything is computed in a thread.

        Raises:
            OptionError: this process is a fork of the one that loaded the model.
        """
        refuse_fork(self._process, self.model.device)
        settle()

    @property
    def fingerprint(self) -> str:
        """A digest of what was trained: a measured figure belongs to one."""
        return model_fingerprint(self.model)

    def encode(
        self,
        source: Source,
        *,
        sampling_rate: float | None = None,
        cuts: Cuts | None = None,
        track: int | None = None,
        start: Seconds | None = None,
        duration: Seconds | None = None,
        strict: bool = False,
        kept_at: str | os.PathLike | None = None,
        on_progress: OnProgress | None = None,
    ) -> SpeechMemory:
        """The recording as 50 tokens for each window: every task takes it in place of the audio.

        It then answers as the recording does: all tasks cut one alike, unless they are told otherwise.

        Args:
            sampling_rate: Hz, of an array.
            cuts: where windows end: `fixed`, every 30 s; `quiet`, at the quietest place within the last 5 s of each 30,
                so that no word is split. By default `own_cuts` of the model.
            track: number of the audio track in a file that has several, from 1 on; by default the one that FFmpeg
                thinks best.
            start, duration: read only a part, from this second on and for so many, as numbers or as "1:30" or
                "0:01:30". Times in results stay those of the whole recording.
            strict: refuse a recording that breaks off before its end. Else what is there is read, a warning says what
                is missing, and what is made of it is marked `partial`.
            kept_at: a file for what is finished, from which a stopped encoding goes on; to be deleted afterwards.
            on_progress: told how far it is, from time to time.

        Raises:
            AudioError: the recording cannot be read, or ends before `start`; with `strict` a CutShortError, it breaks
                off.
            OptionError: unknown cuts, or such as the model does not allow; no such track; a negative start or
                duration; what a memory cannot have.
            CheckpointError: a memory of another model.
        """
        self._begin()
        part = Part.of(track, start, duration)
        _check_options(source, sampling_rate, cuts, part, kept_at)
        memory = _memory(source)
        if memory is None:
            assert not isinstance(source, SpeechMemory)
            return self.encoder.encode(
                source,
                sampling_rate,
                cuts=cuts or own_cuts(self.model),
                kept_at=kept_at,
                part=part,
                strict=strict,
                on_progress=on_progress,
            )
        memory.require(self.encoder.fingerprint)
        return memory

    def transcribe(
        self,
        source: Source,
        *,
        language: str | None = None,
        decoder: Decoder = "auto",
        max_new_tokens: int | None = None,
        method: Method = "window",
        context_windows: int | None = None,
        repetition: Repetition = "retry",
        no_speech: NoSpeech | None = None,
        prompt: str | None = None,
        hotwords: str | None = None,
        cuts: Cuts | None = None,
        sampling_rate: float | None = None,
        track: int | None = None,
        start: Seconds | None = None,
        duration: Seconds | None = None,
        strict: bool = False,
        on_progress: OnProgress | None = None,
        reader: Decoder | None = None,
    ) -> Transcript:
        """What is said in a recording of any length, with the times of its windows and, from the CTC head, its words.

        Args:
            language, decoder, max_new_tokens, method, context_windows, repetition, no_speech, prompt, hotwords,
                reader: those of
                `TranscriptionOptions`.
            cuts, sampling_rate, track, start, duration, strict: those of `encode`.
            on_progress: that of `encode`; of a memory, told how much of it is read.

        Raises:
            AudioError: the recording cannot be read.
            OptionError: an unknown language, decoder or method, or one that does not go with the others.
            CheckpointError: a memory of another model.
        """
        started = monotonic()
        self._begin()
        options = TranscriptionOptions(
            language, decoder, max_new_tokens, method, context_windows, repetition, no_speech, prompt, hotwords, reader
        ).resolved(self.model)

        def memories() -> Iterator[SpeechMemory]:  # encoded once the options are known to be right
            yield self.encode(
                source,
                sampling_rate=sampling_rate,
                cuts=cuts,
                track=track,
                start=start,
                duration=duration,
                strict=strict,
                on_progress=on_progress,
            )

        # The encoding was told of; of a memory, the reading is all the work.
        reading = on_progress if _is_memory(source) else None
        (transcript,) = self.transcriber.transcribe(memories(), options, started, reading)
        return transcript

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        language: str | None = None,
        decoder: Decoder = "auto",
        max_new_tokens: int | None = None,
        method: Method = "window",
        context_windows: int | None = None,
        repetition: Repetition = "retry",
        no_speech: NoSpeech | None = None,
        prompt: str | None = None,
        hotwords: str | None = None,
        cuts: Cuts | None = None,
        track: int | None = None,
        start: Seconds | None = None,
        duration: Seconds | None = None,
        strict: bool = False,
        reader: Decoder | None = None,
    ) -> Iterator[Transcript]:
        """As `transcribe`, for many recordings, in their order: short ones share the model's batches.

        The text of each is that which it has alone. Processing time is shared out by duration.
        """
        self._begin()
        options = TranscriptionOptions(
            language, decoder, max_new_tokens, method, context_windows, repetition, no_speech, prompt, hotwords, reader
        ).resolved(self.model)
        named = ((name_of(own), own) for own in sources)
        memories = self.encoder.encode_many(
            named, cuts=cuts or own_cuts(self.model), part=Part.of(track, start, duration), strict=strict
        )
        yield from self.transcriber.transcribe(memories, options)

    def transcribe_stream(
        self,
        chunks: Iterable[LiveChunk],
        *,
        sampling_rate: float | None = None,
        sample_format: str | None = None,
        channels: int | None = None,
        channel_axis: int | None = None,
        cuts: Cuts | None = None,
        update_seconds: float = UPDATE_SECONDS,
        **options: Any,
    ) -> Iterator[LiveText]:
        """What is said in sound that is still coming: partial texts, and for each window a final one.

        The final texts together are what `transcribe` gives for the same sound as a file. What is held is one window.

        Args:
            chunks: arrays or bytes, of any length each, or with their times `TimedSamples` or PyAV's frames.
            sampling_rate: Hz (16,000 if None).
            sample_format, channels, channel_axis: how the chunks hold their samples: bytes from PyAudio are
                `sample_format="s16le", channels=1`, arrays from sounddevice `channel_axis=1`; see
                `fastslm.longform.live.transcribe_stream`.
            update_seconds: new sound between two partial texts.
            cuts: those of `encode`.
            options: those of `TranscriptionOptions`.

        Raises:
            OptionError: an option that a stream cannot have.
            AudioError: the chunks are no sound.
        """
        self._begin()
        chosen = TranscriptionOptions(**options).resolved(self.model)
        return transcribe_stream(
            self.encoder,
            self.transcriber,
            chunks,
            chosen,
            sampling_rate=sampling_rate,
            sample_format=sample_format,
            channels=channels,
            channel_axis=channel_axis,
            cuts=cuts or own_cuts(self.model),
            update_seconds=update_seconds,
        )

    def translate(self, source: Sources, to: str | None = None, **options: Any) -> Answer:
        """What is said, in another language.

        Args:
            source: a recording, or a list of several that are taken together.
            to: code or English name of the language; by default the first that the model says it has learnt to
                translate into, else Korean.
            options: those of `AnswerOptions`, and those of `encode`.

        Raises:
            OptionError: an unknown language, or options that cannot be met.
            AudioError: the recording cannot be read.
            CheckpointError: a memory or a prefix file of another model.
        """
        if to is None:
            to = (self.model.config.capabilities.translates_into or TRANSLATES_INTO)[0]
        return self._answer(source, "translate", {"language": to}, **options)

    def summarize(self, source: Sources, **options: Any) -> Answer:
        """What recordings say in short. Arguments and errors are `translate`'s."""
        return self._answer(source, "summarize", {}, **options)

    def ask(self, source: Sources, question: str, **options: Any) -> Answer:
        """The answer to a question about recordings. Further arguments and errors are `translate`'s.

        What the language model made of them is kept in memory (`answerer.prefixes`), so a further question about the
        same recordings costs only itself.
        """
        return self._answer(source, "ask", {"question": question}, **options)

    def _answer(
        self,
        source: Sources,
        task: str,
        prompt_options: dict[str, str],
        *,
        sampling_rate: float | None = None,
        cuts: Cuts | None = None,
        track: int | None = None,
        start: Seconds | None = None,
        duration: Seconds | None = None,
        strict: bool = False,
        on_progress: OnProgress | None = None,
        prefix_file: str | os.PathLike | None = None,
        **options: Any,
    ) -> Answer:
        started = monotonic()
        self._begin()
        # Errors of the prompt and of the options come before the encoding, which may take long.
        self.processor.build_prompt(task, **prompt_options)
        chosen = AnswerOptions(**options, prefix_file=None if prefix_file is None else Path(prefix_file))
        chosen.check(self.model)
        sources: Any = source if isinstance(source, list | tuple) else [source]
        part = Part.of(track, start, duration)
        for own in sources:
            _check_options(own, sampling_rate, cuts, part)
        memories = [
            self.encode(
                own,
                sampling_rate=sampling_rate,
                cuts=cuts,
                track=part.track,
                start=part.start,
                duration=part.duration,
                strict=strict,
                on_progress=on_progress,
            )
            for own in sources
        ]
        return self.answerer.answer(memories, task, chosen, started, **prompt_options)


def own_cuts(model: FastSLMForConditionalGeneration) -> Cuts:
    """Where windows end unless it is said: at pauses for a model whose transcripts are written token by token.

    Such a decoder loses fewer words at them (docs/benchmarks.md). They need a log-mel of each window alone.
    """
    writes = reader_named("auto", model).writes_tokens
    return "quiet" if writes and model.config.mel_mode == "window" else "fixed"


def _is_memory(source: Source) -> bool:
    """Whether a memory is given or named, and not a recording."""
    named = isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == SUFFIX
    return named or isinstance(source, SpeechMemory)


def _check_options(
    source: Source,
    sampling_rate: float | None,
    cuts: Cuts | None,
    part: Part,
    kept_at: str | os.PathLike | None = None,
) -> None:
    """Raise what a speech memory cannot have."""
    if not _is_memory(source):
        return
    if sampling_rate is not None:
        raise OptionError("A sampling rate was given with a speech memory: leave it out, it belongs to arrays.")
    if kept_at is not None:
        raise OptionError("kept_at was given with a speech memory: leave it out, there is nothing left to encode.")
    name = source.facts.name if isinstance(source, SpeechMemory) else os.fspath(source)  # type: ignore[arg-type]
    refuse_cuts_of_memory(cuts, name)
    part.refuse_of_memory(name)


def _memory(source: Source) -> SpeechMemory | None:
    """The memory that was given or named, `None` for a recording."""
    if isinstance(source, SpeechMemory):
        return source
    if _is_memory(source):
        assert isinstance(source, str | os.PathLike)
        return SpeechMemory.load(source)
    return None

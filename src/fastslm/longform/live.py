"""Sound as it comes → text as it is said: each window is read again as it fills, and once more when it is full.

What is held is one window. Its last reading is that of the same window in a file, so the final texts together are the
transcript of the file.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import torch

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, LiveChunk, stream_chunks
from fastslm.audio.loudness import is_silent
from fastslm.errors import OptionError
from fastslm.features import window_mel
from fastslm.longform.cuts import Cuts, check_cuts, cut
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.longform.numeric_options import is_real
from fastslm.longform.results import Segment
from fastslm.longform.transcription import Transcriber, TranscriptionOptions

# How much sound is listened to in one go. Less makes no text come sooner that is not asked for so often.
STEP_SAMPLES = SAMPLE_RATE // 10
UPDATE_SECONDS = 2.0
# At most this part of the time goes into texts that are not final, so that a slow machine does not fall behind.
PARTIAL_SHARE = 0.5


@dataclass(frozen=True)
class LiveText:
    """What is said since the last final text.

    Attributes:
        segment: the text with its seconds, from the beginning of the stream.
        final: whether it stands; else the next one replaces it.
        heard_seconds: how much of the stream had come.
        processing_seconds: of reading it: how far it is behind what was heard.
        warnings: what there is to say of the sound since the text before, a sentence each: channels that cancel, say.
    """

    segment: Segment
    final: bool
    heard_seconds: float
    processing_seconds: float
    warnings: tuple[str, ...] = ()


def transcribe_stream(
    encoder: WindowEncoder,
    transcriber: Transcriber,
    chunks: Iterable[LiveChunk],
    options: TranscriptionOptions,
    *,
    sampling_rate: float | None = None,
    sample_format: str | None = None,
    channels: int | None = None,
    channel_axis: int | None = None,
    cuts: Cuts = "fixed",
    update_seconds: float = UPDATE_SECONDS,
) -> Iterator[LiveText]:
    """Partial and final texts of a stream, as soon as there are any.

    Args:
        chunks: samples as they come, each of any length, with or without times: arrays, bytes, `TimedSamples` or
            PyAV's frames, see `fastslm.audio.stream_chunks`. In what chunks they come changes nothing.
        options: of the method `window`.
        sampling_rate: Hz, of the chunks (16,000 if None).
        sample_format: of bytes, which do not tell: `s16le` is PyAudio's paInt16, `f32le` its paFloat32; see
            `fastslm.audio.arrays.SAMPLE_FORMATS`. A chunk may end inside a sample.
        channels: how many are interleaved, in bytes or in arrays (samples,); 1 if None.
        channel_axis: of chunks with two axes: 0 for (channels, samples), 1 for (samples, channels), as sounddevice has
            them. It may be left out where the first chunk leaves no doubt (`fastslm.audio.arrays.stream_samples`).
        cuts: where a text becomes final: `fixed`, every 30 s; `quiet`, at the quietest place within the last 5 s of
            each 30, which is known when those have come.
        update_seconds: new sound between two partial texts; more of it where the machine is slow.

    Raises:
        OptionError: another method, unknown cuts, an update that is not positive, or an unknown sample format.
        AudioError: the chunks are no sound, are not what was stated, or end before 0.1 s.
    """
    check_live(encoder, options, cuts, update_seconds)
    for sentence in transcriber.hint_warnings(options):
        warnings.warn(sentence, stacklevel=2)
    window = _LiveWindow(encoder, transcriber, options, cuts, update_seconds)
    blocks = stream_chunks(
        chunks,
        sampling_rate,
        STEP_SAMPLES,
        sample_format=sample_format,
        channels=channels,
        channel_axis=channel_axis,
        on_warning=window.warnings.append,
    )
    for block in blocks:
        yield from window.hear(block)
    yield from window.end()


def check_live(encoder: WindowEncoder, options: TranscriptionOptions, cuts: Cuts, update_seconds: float) -> None:
    """Refuse what a stream cannot have.

    Raises:
        OptionError: see `transcribe_stream`.
    """
    mode = encoder.model.config.mel_mode
    check_cuts(cuts, mode)
    if mode == "authors":
        raise OptionError(
            "The model's log-mel (mode 'authors') is that of a whole file, which a stream is not: transcribe the file."
        )
    if options.method != "window":
        raise OptionError(f"A stream was to be read by the method {options.method}: leave it out, it is window.")
    if not is_real(update_seconds) or not update_seconds > 0:
        raise OptionError(
            f"update_seconds is {update_seconds!r}, more than 0 is allowed: give the seconds of an update."
        )


class _LiveWindow:
    """The window that is filling, and what it is read with."""

    def __init__(
        self,
        encoder: WindowEncoder,
        transcriber: Transcriber,
        options: TranscriptionOptions,
        cuts: Cuts,
        update_seconds: float,
    ):
        self.encoder = encoder
        self.transcriber = transcriber
        self.options = options
        self.cuts: Cuts = cuts
        self.update_seconds = update_seconds
        self.warnings: list[str] = []  # that no text was given yet
        self._start = 0  # sample of the stream at which the window begins
        self._blocks: list[np.ndarray] = []
        self._samples = 0
        self._next_update = update_seconds  # second of the stream

    def hear(self, block: np.ndarray) -> Iterator[LiveText]:
        """One more piece of sound, shorter than a window; the texts that it makes possible."""
        self._blocks.append(block)
        self._samples += len(block)
        heard = (self._start + self._samples) / SAMPLE_RATE
        # A window of just 30 s may be the last one, which is not cut; a fixed cut falls there in any case.
        if self._samples > WINDOW_SAMPLES or (self.cuts == "fixed" and self._samples == WINDOW_SAMPLES):
            windows = cut(self._blocks, self.cuts)
            window, rest = next(windows), list(windows)
            yield self._read(window, heard, final=True)
            self._blocks, self._samples = rest, sum(map(len, rest))
            self._start += len(window)
            self._next_update = heard + self.update_seconds
        elif heard >= self._next_update:
            text = self._read(np.concatenate(self._blocks), heard, final=False)
            self._next_update = heard + max(self.update_seconds, text.processing_seconds / PARTIAL_SHARE)
            yield text

    def end(self) -> Iterator[LiveText]:
        """The stream is over: what was filling is final."""
        if self._blocks:
            yield self._read(np.concatenate(self._blocks), (self._start + self._samples) / SAMPLE_RATE, final=True)

    def _read(self, samples: np.ndarray, heard: float, *, final: bool) -> LiveText:
        started = monotonic()
        length, offset = len(samples) / SAMPLE_RATE, self._start / SAMPLE_RATE
        blank = not samples.any()
        mels = self.encoder.model.config.audio_config.num_mel_bins
        memory = SpeechMemory(
            self.encoder.blank_tokens[None] if blank else self.encoder.tokens(window_mel([samples], mels)),
            torch.tensor([[0.0, length]], dtype=torch.float64),
            torch.tensor([is_silent(samples)]),
            MemoryFacts(self.encoder.fingerprint, "the stream", length, hashlib.sha256(samples.tobytes()).hexdigest()),
        )
        (transcript,) = self.transcriber.transcribe(iter([memory]), self.options, started)
        warnings = tuple(self.warnings)
        self.warnings.clear()
        return LiveText(_moved(transcript.segments[0], offset), final, heard, monotonic() - started, warnings)


def _moved(segment: Segment, seconds: float) -> Segment:
    """The same, so much later."""
    words = tuple(replace(word, start=word.start + seconds, end=word.end + seconds) for word in segment.words)
    return replace(segment, start=segment.start + seconds, end=segment.end + seconds, words=words)

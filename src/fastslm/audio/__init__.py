"""Recordings of every kind → 16 kHz mono float32, block by block, each sample at its second of the recording's clock.

FFmpeg's libraries (PyAV) decode, soxr resamples; both run as streams, so that memory does not grow with the duration.
"""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, BinaryIO, cast

import numpy as np
import soxr
import torch
from av.audio.frame import AudioFrame

from fastslm.audio.arrays import channels_first, check_stated, stream_samples
from fastslm.audio.channels import Mixer
from fastslm.audio.clock import Clock
from fastslm.audio.decode import (
    READ_SECONDS,
    Chunk,
    OnPartial,
    OnWarning,
    Silence,
    TimedSamples,
    file_chunks,
    frame_samples,
    placed,
    stated_seconds,
)
from fastslm.audio.ending import JOINED_SECONDS
from fastslm.audio.part import WHOLE, Part
from fastslm.audio.tape import source_name
from fastslm.errors import AudioError, OptionError

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
MIN_SECONDS = 0.1
MIN_SAMPLES = round(MIN_SECONDS * SAMPLE_RATE)
PAD_TO_SECONDS = 1
PAD_TO_SAMPLES = PAD_TO_SECONDS * SAMPLE_RATE

AudioSource = str | os.PathLike | np.ndarray | torch.Tensor | BinaryIO | bytes

LOWEST_RATE = 1_000  # Hz; below it a rate was meant in kHz
LOUDEST = 100.0  # float samples lie within about -1…1; 40 dB above that they are unscaled integers

_FULL_SCALE = {"i1": 2**7, "i2": 2**15, "i4": 2**31, "i8": 2**63, "u1": 2**7}


class AudioWarning(UserWarning):
    """A recording was read, but not all that it announces or holds could be decoded."""


def window_count(samples: int) -> int:
    """How many windows of 30 s hold `samples` samples at 16 kHz: `ceil(samples / WINDOW_SAMPLES)`, at least 1."""
    return max(1, -(-samples // WINDOW_SAMPLES))


def stream_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    block_samples: int = WINDOW_SAMPLES,
    *,
    channel_axis: int | None = None,
    part: Part = WHOLE,
    strict: bool = False,
    on_warning: OnWarning | None = None,
    on_partial: OnPartial | None = None,
) -> Iterator[np.ndarray]:
    """Decodes a recording block by block; with the default block size this is the iterator of the 30 s windows.

    Concatenating all blocks gives `load_audio` of the same source exactly, whatever the block size, and concatenating
    parts that follow one another gives the whole. Sound lies where the container's clock has it: what starts late has
    silence before it, and so have gaps; what overlaps is left out. The clock begins where a player does.

    Args:
        source: a path, an encoded file's content (`bytes`, or a binary file object, read from where it stands), or
            samples. Samples are float within -1…1, or integers (8, 16 or 32 bits), which are divided by their full
            scale; (samples,), (channels, samples) and (samples, channels) all do. Channels are averaged, unless they
            cancel or one is only noise (`fastslm.audio.channels`). A file that breaks off is read as far as it goes,
            and files of one format that were joined are read one after another.
        sampling_rate: Hz, of an array (16,000 if None). A file states its own, and giving one is an error.
        block_samples: samples of a block, at 16 kHz.
        channel_axis: of an array with two axes, which is that of the channels; needed only if both are longer than
            any number of channels (`fastslm.audio.arrays.channels_first`).
        part: what of the recording is read: a track, from a second on, for so many seconds.
        strict: whether a file that breaks off is an error.
        on_warning: receives one sentence for each thing inside the file that could not be decoded or was not read,
            and for channels that were not averaged; without it the sentence is an `AudioWarning`.
        on_partial: receives one sentence after the last block of a file that breaks off, and the seconds that are
            missing, `None` where that is not known; without it the sentence is a warning. What says nothing of its
            length, such as an mp3 without a Xing header, is taken as whole.

    Yields:
        float32 arrays (samples,), 16 kHz mono, each of exactly `block_samples` but the last, which is never empty.

    Raises:
        AudioError: missing, unreadable, empty, without sound, shorter than 0.1 s, ended before the part begins, or
            with samples that are no numbers; at the block where it is found, which for all but the last is the first.
        CutShortError: the file breaks off, and `strict`; after the last block.
        OptionError: there is no such track.
    """
    if block_samples < 1:
        raise AudioError(f"A block of {block_samples} samples is not possible: give 1 or more.")
    warn = on_warning or _warn
    if isinstance(source, np.ndarray | torch.Tensor):
        if part.track is not None:
            raise OptionError(f"Track {part.track} was asked of an array, tracks are a file's: leave it out.")
        name, chunks = "The array", _array_chunks(source, _array_rate(sampling_rate), channel_axis, part.end)
    else:
        if channel_axis is not None:
            raise AudioError("A channel_axis was given with an encoded file, which states its own: leave it out.")
        if sampling_rate is not None:
            raise AudioError(
                f"A sampling rate of {sampling_rate} Hz was given with an encoded file, which states its own: "
                "leave sampling_rate out, it belongs to arrays."
            )
        name = source_name(source)
        until = None if part.duration is None else part.end
        on_partial = on_partial or (lambda sentence, _: warn(sentence))
        chunks = file_chunks(source, warn, on_partial, track=part.track, until=until, strict=strict)
    mixing = _Mixing(name, warn, told_from=part.start, told_until=part.end)
    yield from _blocks(_only(part, _resampled(_mono(chunks, mixing)), name), block_samples, name)
    mixing.conclude()


LiveChunk = np.ndarray | torch.Tensor | bytes | bytearray | memoryview | TimedSamples | AudioFrame


def stream_chunks(
    chunks: Iterable[LiveChunk],
    sampling_rate: float | None = None,
    block_samples: int = WINDOW_SAMPLES,
    *,
    sample_format: str | None = None,
    channels: int | None = None,
    channel_axis: int | None = None,
    on_warning: OnWarning | None = None,
) -> Iterator[np.ndarray]:
    """As `stream_audio`, for samples that come bit by bit, of a microphone or a call: each block as soon as it is full.

    In what chunks they come changes nothing. Where they carry times, as packets of a call do, what was lost between
    them is silence, what comes twice is left out, and jitter changes nothing. Of several channels half a second is
    held, until it is known whether they cancel.

    Args:
        chunks: float within -1…1, or integers, as `stream_audio` has arrays, or bytes; any length each, also none. With
            times they are `TimedSamples` of these, or PyAV's frames (`av.AudioFrame`), which state their own rate and
            channels. The stream begins at second 0, or with the first sound if that is later than a minute: who joins a
            call has its clock.
        sampling_rate: Hz, of all that do not state it (16,000 if None).
        sample_format, channels, channel_axis: how the chunks hold their samples, see
            `fastslm.audio.arrays.stream_samples`. Bytes need a format, such as `s16le`.
        on_warning: as `stream_audio`; told at once where channels cancel for the first time, and of all at the end.

    Raises:
        AudioError: as `stream_audio`; a chunk is not what was stated.
        OptionError: what is stated cannot be.
    """
    tell = on_warning or _warn
    rate = _array_rate(sampling_rate)
    check_stated(sample_format, channels, channel_axis)
    stated = {"sample_format": sample_format, "channels": channels, "channel_axis": channel_axis}
    alien = [word for word, value in {"sampling_rate": sampling_rate, **stated}.items() if value is not None]

    def found() -> Iterator[tuple[Chunk, float | None]]:
        for are_frames, own in groupby(chunks, lambda chunk: isinstance(chunk, AudioFrame)):
            if not are_frames:
                yield from _stated_chunks(own, rate, on_warning=tell, **stated)
            elif alien:
                raise AudioError(f"{alien[0]} was given with frames, which state their own: leave it out.")
            else:
                yield from map(_frame_chunk, cast("Iterator[AudioFrame]", own))

    mixing = _Mixing("The stream", tell, at_once=True)
    yield from _blocks(_resampled(_mono(_on_clock(found()), mixing)), block_samples, "The stream")
    mixing.conclude()


def _stated_chunks(chunks: Iterable[Any], rate: float, **stated: Any) -> Iterator[tuple[Chunk, float | None]]:
    """Arrays and bytes, with the second at which each begins if it has a time; options are `stream_samples`'s."""
    second = None

    def untimed() -> Iterator[Any]:
        nonlocal second
        for chunk in chunks:
            samples, second = chunk if isinstance(chunk, TimedSamples) else (chunk, None)
            yield samples

    # One chunk makes at most one, so `second` is its own; what a chunk before has left is less than a sample.
    for samples in stream_samples(untimed(), **stated):
        yield Chunk(samples, rate), second


def _frame_chunk(frame: AudioFrame) -> tuple[Chunk, float | None]:
    second = None if frame.pts is None else float(frame.pts * (frame.time_base or 0))
    return Chunk(frame_samples(frame), frame.sample_rate), second


def _on_clock(found: Iterable[tuple[Chunk, float | None]]) -> Iterator[Chunk | Silence]:
    clock = Clock()
    for chunk, second in found:
        if second is not None and not clock.position and not 0 <= second <= JOINED_SECONDS:
            clock.begin(second, None)
        yield from placed(clock, chunk, second)


def load_audio(source: AudioSource, sampling_rate: float | None = None, **options: Any) -> np.ndarray:
    """The whole recording as one float32 array (samples,), 16 kHz mono. Options and errors are `stream_audio`'s."""
    return np.concatenate(list(stream_audio(source, sampling_rate, **options)))


def probe_duration(
    source: AudioSource, sampling_rate: float | None = None, part: Part = WHOLE, *, channel_axis: int | None = None
) -> float | None:
    """Seconds of a recording as its container states or FFmpeg estimates them, without decoding; None if neither can.

    They are counted from the beginning of the container's clock, as `stream_audio` does. A file object is left where
    it stood; of one that cannot be rewound nothing is read, and the answer is None.

    Args:
        part: of which the seconds are.
        sampling_rate, channel_axis: of an array, as `stream_audio` has them.

    Raises:
        AudioError: as `stream_audio`, for what shows without decoding; OptionError, there is no such track.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        total = channels_first(source, channel_axis).shape[1] / _array_rate(sampling_rate)
    elif sampling_rate is not None:
        raise AudioError("A sampling rate was given with an encoded file, which states its own: leave it out.")
    else:
        total = stated_seconds(source, part.track)
    return part.seconds_of(total)


# From chunks as they were found to blocks at 16 kHz


class _Mixing:
    """The mixers of one recording, and what they are told to say.

    Args:
        name: of the recording.
        on_warning: told of channels that are not averaged, once all is read.
        told_from, told_until: seconds before and after which nothing is told.
        at_once: tell it when that first happens, too.
    """

    def __init__(
        self,
        name: str,
        on_warning: OnWarning,
        *,
        told_from: float = 0.0,
        told_until: float = math.inf,
        at_once: bool = False,
    ) -> None:
        self.name = name
        self._tell, self._told, self._at_once = on_warning, (told_from, told_until), at_once
        self._mixers: list[Mixer] = []

    def begin(self, rate: float, second: float) -> Mixer:
        """A mixer for what comes now, of this rate and number of channels."""
        self._mixers.append(Mixer(rate, second, *self._told))
        return self._mixers[-1]

    def heard(self) -> None:
        """Some more is mixed."""
        if self._at_once:
            for sentence in self._mixers[-1].news(self.name):
                self._tell(sentence)

    def conclude(self) -> None:
        """All is read."""
        for mixer in self._mixers:
            for sentence in mixer.remarks(self.name):
                self._tell(sentence)


def _mono(chunks: Iterable[Chunk | Silence], mixing: _Mixing) -> Iterator[tuple[np.ndarray, float] | Silence]:
    """Float32 (samples,) with its rate: integers scaled by their full range, channels mixed; refuses non-numbers."""
    name = mixing.name
    seconds = 0.0
    mixer, shape = None, None
    for chunk in chunks:
        if isinstance(chunk, Silence):
            if mixer is not None:
                yield from ((piece, mixer.rate) for piece in mixer.rest(chunk.until))
                mixing.heard()
            yield chunk
            seconds = chunk.until
            continue
        samples, rate = chunk
        if not samples.size:
            continue
        kind = samples.dtype.kind + str(samples.dtype.itemsize)
        with np.errstate(over="ignore"):
            scaled = samples.astype(np.float32)
        if kind[0] == "u":
            scaled -= _FULL_SCALE[kind]
        if kind[0] != "f":
            scaled /= _FULL_SCALE[kind]
        peak = max(float(scaled.max()), -float(scaled.min()))
        if not math.isfinite(peak):
            position = seconds + int(np.argmin(np.isfinite(scaled).all(axis=0))) / rate
            raise AudioError(
                f"{name} holds a sample at {position:.3f} s that is NaN or infinite, only finite samples are allowed: "
                "repair the recording, or what computed it."
            )
        if peak > LOUDEST:
            raise AudioError(
                f"{name} holds float samples up to {peak:.6g}, but they are to lie within -1…1: divide them by the "
                "full scale of the integers they were made of."
            )
        # Another rate or number of channels, in a chained file, begins anew.
        if mixer is not None and shape != (len(scaled), rate):
            yield from ((piece, mixer.rate) for piece in mixer.end())
            mixer = None
        if len(scaled) == 1:
            yield scaled[0], rate
        else:
            if mixer is None:
                mixer, shape = mixing.begin(rate, seconds), (len(scaled), rate)
            for piece in mixer.mix(scaled):
                mixing.heard()
                yield piece, rate
        seconds += scaled.shape[1] / rate
    if mixer is not None:
        yield from ((piece, mixer.rate) for piece in mixer.end())


def _resampled(pieces: Iterable[tuple[np.ndarray, float] | Silence]) -> Iterator[np.ndarray]:
    """Float32 (samples,) at 16 kHz. A rate that changes inside a file (chained streams) starts a new resampler.

    Silence is filled up to its second, whatever resamplers have rounded before it.
    """
    current, resampler = None, None
    given = 0
    for piece in pieces:
        rate = None if isinstance(piece, Silence) else piece[1]
        if rate != current:
            if resampler is not None:
                rest = _flush(resampler)
                given += len(rest)
                yield rest
            current = rate
            own = rate in (None, SAMPLE_RATE)
            resampler = None if own else soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1)
        if isinstance(piece, Silence):
            lacking = round(piece.until * SAMPLE_RATE) - given
            while lacking > 0:
                zeros = np.zeros(min(lacking, WINDOW_SAMPLES), np.float32)
                lacking, given = lacking - len(zeros), given + len(zeros)
                yield zeros
            continue
        samples = piece[0]
        found = samples if resampler is None else resampler.resample_chunk(np.ascontiguousarray(samples))
        given += len(found)
        yield found
    if resampler is not None:
        yield _flush(resampler)


def _only(part: Part, pieces: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Of pieces that follow one another, the samples that belong to a part; the pieces end soon after it."""
    if part.start == 0 and part.duration is None:
        yield from pieces
        return
    first = round(part.start * SAMPLE_RATE)
    last = None if part.duration is None else round(part.end * SAMPLE_RATE)
    at = 0
    for piece in pieces:
        own = piece[max(0, first - at) : None if last is None else max(0, last - at)]
        at += len(piece)
        if len(own):
            yield own
    if at <= first:
        raise _ended_before(name, part, at / SAMPLE_RATE)


def _ended_before(name: str, part: Part, seconds: float) -> AudioError:
    return AudioError(
        f"{name} ends at {seconds:.1f} s, and what is asked for starts at {part.start:g} s: give an earlier start."
    )


def _flush(resampler: soxr.ResampleStream) -> np.ndarray:
    return resampler.resample_chunk(np.zeros((0, 1), np.float32), last=True)[:, 0]


def _blocks(pieces: Iterable[np.ndarray], size: int, name: str) -> Iterator[np.ndarray]:
    """Cuts pieces of any length into blocks of `size`; yields nothing before the least duration is reached."""
    pending: list[np.ndarray] = []
    held = total = 0
    for piece in pieces:
        pending.append(piece)
        held += len(piece)
        total += len(piece)
        if held < size or total < MIN_SAMPLES:
            continue
        joined = np.concatenate(pending)
        whole = held - held % size
        for start in range(0, whole, size):
            yield joined[start : start + size]
        pending, held = [joined[whole:].copy()], held - whole  # a view would keep the block in memory
        del joined
    if total < MIN_SAMPLES:
        raise AudioError(
            f"{name} holds {total / SAMPLE_RATE:.2g} s of sound, at least {MIN_SECONDS} s is needed: "
            "give a longer recording."
        )
    if held:
        yield np.concatenate(pending)


# Arrays


def _array_rate(sampling_rate: float | None) -> float:
    if sampling_rate is None:
        return SAMPLE_RATE
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, int | float | np.integer | np.floating):
        raise AudioError(
            f"The sampling rate is {sampling_rate!r}, a number of Hz is allowed: give the array's own rate."
        )
    if not (math.isfinite(sampling_rate) and sampling_rate >= LOWEST_RATE):
        raise AudioError(
            f"The sampling rate is {sampling_rate} Hz, {LOWEST_RATE} Hz or more is allowed: give the array's own rate."
        )
    return float(sampling_rate)


def _array_chunks(
    array: np.ndarray | torch.Tensor, rate: float, channel_axis: int | None, until: float
) -> Iterator[Chunk]:
    samples = channels_first(array, channel_axis)
    if until < math.inf:
        samples = samples[:, : math.ceil((until + READ_SECONDS) * rate)]  # the resampler is behind
    step = max(1, round(rate * READ_SECONDS))
    for start in range(0, samples.shape[1], step):
        yield Chunk(samples[:, start : start + step], rate)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, AudioWarning, stacklevel=3)

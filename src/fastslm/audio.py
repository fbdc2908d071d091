"""Recordings of every kind → 16 kHz mono float32, block by block.

FFmpeg's libraries (PyAV) decode, soxr resamples; both run as streams, so that memory does not grow with the duration.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import soxr
import torch

from fastslm.arrays import channels_first, stream_samples
from fastslm.channels import Mixer
from fastslm.decoding import (
    READ_SECONDS,
    Chunk,
    file_chunks,
    is_seekable,
    open_container,
    opened,
    refuse_cut,
    sound_stream,
    source_name,
)
from fastslm.errors import AudioError
from fastslm.extent import stated_extent
from fastslm.truncation import announced_seconds

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
    on_warning: Callable[[str], None] | None = None,
    on_cut: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """Decodes a recording block by block; with the default block size this is the iterator of the 30 s windows.

    Concatenating all blocks gives `load_audio` of the same source exactly, whatever the block size.

    Args:
        source: a path, an encoded file's content (`bytes`, or a binary file object, read from where it stands), or
            samples. Samples are float within -1…1, or integers (8, 16 or 32 bits), which are divided by their full
            scale; (samples,), (channels, samples) and (samples, channels) all do. Channels are averaged, unless they
            cancel or one is only noise (`fastslm.channels`). Of a file with several sound streams FFmpeg's default one
            is read.
        sampling_rate: Hz, of an array (16,000 if None). A file states its own, and giving one is an error.
        block_samples: samples of a block, at 16 kHz.
        channel_axis: of an array with two axes, which is that of the channels; needed only if both are longer than
            any number of channels (`fastslm.arrays.channels_first`).
        on_warning: receives one sentence for each thing inside the file that could not be decoded (damaged packets
            are left out, and what follows moves up), and for channels that were not averaged; without it the sentence
            is an `AudioWarning`.
        on_cut: receives one sentence after the last block of a file that breaks off before its end; without it that
            is an error. What says nothing of its length, such as an mp3 without a Xing header, is taken as whole.

    Yields:
        float32 arrays (samples,), 16 kHz mono, each of exactly `block_samples` but the last, which is never empty.

    Raises:
        AudioError: missing, unreadable, empty, without sound, shorter than 0.1 s, or with samples that are no
            numbers; at the block where it is found, which for all but the last is the first.
        CutShortError: the file breaks off; before the first block where its headers show it, else after the last.
    """
    if block_samples < 1:
        raise AudioError(f"A block of {block_samples} samples is not possible: give 1 or more.")
    if isinstance(source, np.ndarray | torch.Tensor):
        name, chunks = "The array", _array_chunks(source, _array_rate(sampling_rate), channel_axis)
    else:
        if channel_axis is not None:
            raise AudioError("A channel_axis was given with an encoded file, which states its own: leave it out.")
        if sampling_rate is not None:
            raise AudioError(
                f"A sampling rate of {sampling_rate} Hz was given with an encoded file, which states its own: "
                "leave sampling_rate out, it belongs to arrays."
            )
        name, chunks = source_name(source), file_chunks(source, on_warning or _warn, on_cut)
    yield from _blocks(_resampled(_mono(chunks, name, on_warning or _warn)), block_samples, name)


def stream_chunks(
    chunks: Iterable[np.ndarray | torch.Tensor | bytes],
    sampling_rate: float | None = None,
    block_samples: int = WINDOW_SAMPLES,
    *,
    sample_format: str | None = None,
    channels: int | None = None,
    channel_axis: int | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """As `stream_audio`, for samples that come bit by bit, of a microphone or a call: each block as soon as it is full.

    In what chunks they come changes nothing. Of several channels half a second is held, until it is known whether they
    cancel.

    Args:
        chunks: float within -1…1, or integers, as `stream_audio` has arrays, or bytes; any length each, also none.
        sampling_rate: Hz, of all of them (16,000 if None).
        sample_format, channels, channel_axis: how the chunks hold them, see `fastslm.arrays.stream_samples`. Bytes
            need a format, such as `s16le`.
        on_warning: as `stream_audio`; told at once where channels cancel for the first time, and of all at the end.
    """
    rate, tell = _array_rate(sampling_rate), on_warning or _warn
    samples = stream_samples(
        chunks, sample_format=sample_format, channels=channels, channel_axis=channel_axis, on_warning=tell
    )
    found = (Chunk(own, rate) for own in samples)
    yield from _blocks(_resampled(_mono(found, "The stream", tell, at_once=True)), block_samples, "The stream")


def load_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    *,
    channel_axis: int | None = None,
    on_warning: Callable[[str], None] | None = None,
    on_cut: Callable[[str], None] | None = None,
) -> np.ndarray:
    """The whole recording as one float32 array (samples,), 16 kHz mono. Arguments and errors are `stream_audio`'s."""
    blocks = stream_audio(source, sampling_rate, channel_axis=channel_axis, on_warning=on_warning, on_cut=on_cut)
    return np.concatenate(list(blocks))


def require_whole(source: AudioSource) -> None:
    """Refuse a file that breaks off before its end, as far as that shows without decoding it.

    It takes a moment for most kinds, and some seconds for hours of flac, aac, opus in a stream or mp3 without its
    bytes counted. Of what cannot be rewound nothing is read.

    Raises:
        CutShortError: it breaks off. AudioError: as `stream_audio`, for what shows without decoding.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return
    with opened(source) as file:
        if is_seekable(file):
            refuse_cut(file, source_name(source))


def probe_duration(source: AudioSource, sampling_rate: float | None = None) -> float | None:
    """Seconds of a recording as its container states or FFmpeg estimates them, without decoding; None if neither can.

    A file object is left where it stood; of one that cannot be rewound nothing is read, and the answer is None.

    Raises:
        AudioError: as `stream_audio`, for what shows without decoding.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return channels_first(source).shape[1] / _array_rate(sampling_rate)
    if sampling_rate is not None:
        raise AudioError("A sampling rate was given with an encoded file, which states its own: leave it out.")
    with opened(source) as file:
        if not is_seekable(file):
            return None
        start = file.tell()
        try:
            with open_container(file, source_name(source), stated_extent(file)) as container:
                stream = sound_stream(container, source_name(source))
                return announced_seconds(container, stream)
        finally:
            file.seek(start)


# From chunks as they were found to blocks at 16 kHz


def _mono(
    chunks: Iterable[Chunk], name: str, on_warning: Callable[[str], None], *, at_once: bool = False
) -> Iterator[tuple[np.ndarray, float]]:
    """Float32 (samples,) with its rate: integers scaled by their full range, channels mixed; refuses non-numbers.

    Args:
        on_warning: told of channels that are not averaged, at the end.
        at_once: tell it when that first happens, too.
    """
    seconds = 0.0
    mixer, shape = None, None
    for samples, rate in chunks:
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
            for sentence in mixer.remarks(name):
                on_warning(sentence)
            mixer = None
        if len(scaled) == 1:
            yield scaled[0], rate
        else:
            if mixer is None:
                mixer, shape = Mixer(rate, seconds), (len(scaled), rate)
            for piece in mixer.mix(scaled):
                if at_once:
                    for sentence in mixer.news(name):
                        on_warning(sentence)
                yield piece, rate
        seconds += scaled.shape[1] / rate
    if mixer is not None:
        yield from ((piece, mixer.rate) for piece in mixer.end())
        for sentence in mixer.remarks(name):
            on_warning(sentence)


def _resampled(pieces: Iterable[tuple[np.ndarray, float]]) -> Iterator[np.ndarray]:
    """Float32 (samples,) at 16 kHz. A rate that changes inside a file (chained streams) starts a new resampler."""
    current, resampler = None, None
    for samples, rate in pieces:
        if rate != current:
            if resampler is not None:
                yield _flush(resampler)
            current = rate
            resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, num_channels=1)
        yield samples if resampler is None else resampler.resample_chunk(np.ascontiguousarray(samples))
    if resampler is not None:
        yield _flush(resampler)


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


def _array_chunks(array: np.ndarray | torch.Tensor, rate: float, channel_axis: int | None) -> Iterator[Chunk]:
    samples = channels_first(array, channel_axis)
    step = max(1, round(rate * READ_SECONDS))
    for start in range(0, samples.shape[1], step):
        yield Chunk(samples[:, start : start + step], rate)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, AudioWarning, stacklevel=3)

"""Recordings of every kind → 16 kHz mono float32, block by block.

FFmpeg's libraries (PyAV) decode, soxr resamples; both run as streams, so that memory does not grow with the duration.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import soxr
import torch
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.errors import AudioError

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30
WINDOW_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
MIN_SECONDS = 0.1
MIN_SAMPLES = round(MIN_SECONDS * SAMPLE_RATE)
PAD_TO_SECONDS = 1
PAD_TO_SAMPLES = PAD_TO_SECONDS * SAMPLE_RATE

AudioSource = str | os.PathLike | np.ndarray | torch.Tensor | BinaryIO | bytes

READ_SECONDS = 1  # how much is decoded before it is mixed and resampled in one go: less costs calls, more costs memory
SHORTFALL_SECONDS = 0.5  # encoders round a duration up to their frame or page; what lacks more than this was lost
LOWEST_RATE = 1_000  # Hz; below it a rate was meant in kHz
LOUDEST = 100.0  # float samples lie within about -1…1; 40 dB above that they are unscaled integers
ESTIMATE_TOLERANCE = 0.02
RIFF_SIZE_UNKNOWN = (2**31, 2**32)  # what recorders that cannot go back write, give or take a header
RIFF_HEADER_SLACK = 2**16

_FULL_SCALE = {"i1": 2**7, "i2": 2**15, "i4": 2**31, "i8": 2**63, "u1": 2**7}
_FFMPEG_SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
# Containers that state how long their sound is. Of any other (mp3, aac) FFmpeg may have guessed it.
_STATES_DURATION = {
    "aiff",
    "asf",
    "avi",
    "caf",
    "flac",
    "flv",
    "matroska,webm",
    "mov,mp4,m4a,3gp,3g2,mj2",
    "ogg",
    "w64",
}
_READABLE = "what FFmpeg reads, such as wav, mp3, m4a, flac, ogg, opus or mp4, is allowed"


class AudioWarning(UserWarning):
    """A recording was read, but not all that it announces or holds could be decoded."""


class _Chunk(NamedTuple):
    """Consecutive samples as they were found."""

    samples: np.ndarray  # (channels, samples), any of the types in _FULL_SCALE, or float
    rate: float  # Hz


def window_count(samples: int) -> int:
    """How many windows of 30 s hold `samples` samples at 16 kHz: `ceil(samples / WINDOW_SAMPLES)`, at least 1."""
    return max(1, -(-samples // WINDOW_SAMPLES))


def stream_audio(
    source: AudioSource,
    sampling_rate: float | None = None,
    block_samples: int = WINDOW_SAMPLES,
    *,
    on_warning: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """Decodes a recording block by block; with the default block size this is the iterator of the 30 s windows.

    Concatenating all blocks gives `load_audio` of the same source exactly, whatever the block size.

    Args:
        source: a path, an encoded file's content (`bytes`, or a binary file object, read from where it stands), or
            samples. Samples are float within -1…1, or integers (8, 16 or 32 bits), which are divided by their full
            scale; of a 2-D array the longer axis is time, so (channels, samples) and (samples, channels) both do.
            Channels are averaged. Of a file with several sound streams FFmpeg's default one is read.
        sampling_rate: Hz, of an array (16,000 if None). A file states its own, and giving one is an error.
        block_samples: samples of a block, at 16 kHz.
        on_warning: receives one sentence for each thing that the file announces but that could not be decoded
            (damaged packets are left out, and what follows moves up); without it the sentence is an `AudioWarning`.

    Yields:
        float32 arrays (samples,), 16 kHz mono, each of exactly `block_samples` but the last, which is never empty.

    Raises:
        AudioError: missing, unreadable, empty, without sound, shorter than 0.1 s, or with samples that are no
            numbers; at the block where it is found, which for all but the last is the first.
    """
    if block_samples < 1:
        raise AudioError(f"A block of {block_samples} samples is not possible: give 1 or more.")
    if isinstance(source, np.ndarray | torch.Tensor):
        name, chunks = "The array", _array_chunks(source, _array_rate(sampling_rate))
    else:
        if sampling_rate is not None:
            raise AudioError(
                f"A sampling rate of {sampling_rate} Hz was given with an encoded file, which states its own: "
                "leave sampling_rate out, it belongs to arrays."
            )
        name, chunks = _name(source), _file_chunks(source, on_warning or _warn)
    yield from _blocks(_resampled(_mono(chunks, name)), block_samples, name)


def load_audio(
    source: AudioSource, sampling_rate: float | None = None, *, on_warning: Callable[[str], None] | None = None
) -> np.ndarray:
    """The whole recording as one float32 array (samples,), 16 kHz mono. Arguments and errors are `stream_audio`'s."""
    return np.concatenate(list(stream_audio(source, sampling_rate, on_warning=on_warning)))


def probe_duration(source: AudioSource, sampling_rate: float | None = None) -> float | None:
    """Seconds of a recording as its container states or FFmpeg estimates them, without decoding; None if neither can.

    A file object is left where it stood; of one that cannot be rewound nothing is read, and the answer is None.

    Raises:
        AudioError: as `stream_audio`, for what shows without decoding.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return max(_two_axes(source).shape) / _array_rate(sampling_rate)
    if sampling_rate is not None:
        raise AudioError("A sampling rate was given with an encoded file, which states its own: leave it out.")
    with _opened(source) as file:
        if not _is_seekable(file):
            return None
        start = file.tell()
        try:
            with _container(file, _name(source)) as container:
                stream = _sound_stream(container, _name(source))
                return _announced_seconds(container, stream)
        finally:
            file.seek(start)


# From chunks as they were found to blocks at 16 kHz


def _mono(chunks: Iterable[_Chunk], name: str) -> Iterator[tuple[np.ndarray, float]]:
    """Float32 (samples,) with its rate: integers scaled by their full range, channels averaged; refuses non-numbers."""
    seconds = 0.0
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
        seconds += scaled.shape[1] / rate
        yield (scaled[0] if len(scaled) == 1 else scaled.mean(axis=0)), rate


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


def _two_axes(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """A view as (channels, samples); the longer axis is time. Refuses what is no recording by its shape or type."""
    if isinstance(array, torch.Tensor):
        if array.is_complex():
            raise _wrong_type(str(array.dtype))
        tensor = array.detach().cpu()
        # NumPy has no bfloat16
        array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    known = array.dtype.kind == "f" or (array.dtype.kind + str(array.dtype.itemsize)) in ("i1", "i2", "i4", "u1")
    if not known:
        raise _wrong_type(str(array.dtype))
    if array.ndim not in (1, 2):
        raise AudioError(
            f"The array has {array.ndim} axes, (samples,) or (channels, samples) is allowed: give one recording."
        )
    if not array.size:
        raise AudioError(f"The array has shape {array.shape} and holds no samples: give a recording of some length.")
    if array.ndim == 1:
        return array[None]
    return array if array.shape[1] >= array.shape[0] else array.T


def _wrong_type(dtype: str) -> AudioError:
    return AudioError(
        f"The array's samples are of type {dtype}, but float (within -1…1), int8, int16, int32 or uint8 is allowed: "
        "convert them."
    )


def _array_chunks(array: np.ndarray | torch.Tensor, rate: float) -> Iterator[_Chunk]:
    samples = _two_axes(array)
    step = max(1, round(rate * READ_SECONDS))
    for start in range(0, samples.shape[1], step):
        yield _Chunk(samples[:, start : start + step], rate)


# Encoded files


def _name(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "The recording"


def _warn(sentence: str) -> None:
    warnings.warn(sentence, AudioWarning, stacklevel=3)


def _is_seekable(file: BinaryIO) -> bool:
    return hasattr(file, "seek") and hasattr(file, "tell") and (not hasattr(file, "seekable") or file.seekable())


@contextmanager
def _opened(source: object) -> Iterator[BinaryIO]:
    """A binary file object; what was opened here is closed again, the caller's own file is not."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if os.path.isdir(name):
            raise AudioError(f"{name} is a folder, a sound or video file is allowed: name a file inside it.")
        try:
            file = open(name, "rb")  # noqa: SIM115
        except FileNotFoundError:
            remedy = "download it and give the file" if "://" in name else "check the path"
            raise AudioError(f"{name} does not exist as a file: {remedy}.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{name} cannot be opened ({reason}): check the path and its permissions.") from None
        with file:
            yield file
    elif isinstance(source, io.TextIOBase):
        raise AudioError(f"{_name(source)} was opened as text, a recording is binary: open it with mode 'rb'.")
    elif hasattr(source, "read"):
        yield source  # pyright: ignore[reportReturnType]
    else:
        raise AudioError(
            f"A recording was given as {type(source).__name__}, but a path, bytes, a binary file object, a NumPy array "
            "or a tensor is allowed: convert it."
        )


@contextmanager
def _container(file: BinaryIO, name: str) -> Iterator[InputContainer]:
    if _is_seekable(file):
        start = file.tell()
        if file.seek(0, io.SEEK_END) == start:
            raise AudioError(f"{name} is empty (0 bytes to read), a sound or video file is needed: give another.")
        file.seek(start)
    try:
        # A playlist may name other files and addresses: no protocol may be used but the bytes at hand. Tags are not
        # ours to judge, and many are in no encoding that is known.
        container = av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="ignore")
    except (FFmpegError, OSError) as error:
        raise _not_readable(name, error) from None
    with container:
        if container.format.name == "tty":  # FFmpeg draws text files as video
            raise _not_readable(name, "it is text")
        yield container


def _not_readable(name: str, reason: object) -> AudioError:
    reason = getattr(reason, "strerror", None) or reason
    return AudioError(
        f"{name} is no sound or video file, or it is cut short or damaged ({reason}); {_READABLE}: check or convert it."
    )


def _sound_stream(container: InputContainer, name: str) -> AudioStream:
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type or "unknown" for stream in container.streams})) or "none"
        raise AudioError(f"{name} has no sound (its streams: {kinds}): give a recording that has some.")
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise _not_readable(name, "no sound in it can be decoded")
    return stream


def _file_chunks(source: object, on_warning: Callable[[str], None]) -> Iterator[_Chunk]:
    """Decodes about a second at a time; tells `on_warning` what is damaged or missing once the end is reached."""
    name = _name(source)
    with _opened(source) as file, _container(file, name) as container:
        stream = _sound_stream(container, name)
        announced = _announced_seconds(container, stream)
        estimated = announced is not None and _is_estimate(announced, container, stream)
        missing = _missing_seconds(file, container, stream)
        seconds = 0.0
        tally = _Tally()
        for chunk in _gathered(_frames(container, stream, tally)):
            seconds += chunk.samples.shape[1] / chunk.rate
            yield chunk
        if not seconds:
            raise _not_readable(name, tally.reason or "no sound in it can be decoded")
        if tally.failed > tally.decoded:  # noise has a few bytes that pass for sound
            raise _not_readable(name, f"of {tally.failed + tally.decoded} packets {tally.failed} cannot be decoded")
        if tally.failed:
            on_warning(
                f"{name} is damaged: what could not be decoded was left out (packets: {tally.failed}, the first after "
                f"{tally.intact_seconds:.1f} s of sound; {tally.reason})."
            )
        if missing:
            announced, estimated = seconds + missing, False
        if announced is not None and not estimated and announced - seconds > SHORTFALL_SECONDS:
            on_warning(
                f"{name} is cut short or damaged: {seconds:.1f} s were decoded of the {announced:.1f} s that the "
                "file announces."
            )


@dataclass
class _Tally:
    """How decoding went, in packets."""

    decoded: int = 0
    failed: int = 0
    intact_seconds: float = 0.0  # before the first that failed
    reason: str = ""  # FFmpeg's, for the first that failed

    def fail(self, seconds: float, error: FFmpegError) -> None:
        if not self.failed:
            self.intact_seconds, self.reason = seconds, str(error.strerror)
        self.failed += 1


def _frames(container: InputContainer, stream: AudioStream, tally: _Tally) -> Iterator[_Chunk]:
    """What FFmpeg decodes, frame by frame; what it cannot is left out and counted in `tally`."""
    seconds = 0.0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            tally.fail(seconds, error)
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except FFmpegError as error:
            tally.fail(seconds, error)
            continue
        tally.decoded += 1
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            yield _Chunk(_channels(frame), frame.sample_rate)


def _channels(frame: AudioFrame) -> np.ndarray:
    """A frame's samples as they are, (channels, samples); FFmpeg's own mixing would weigh the channels."""
    channels, planar = frame.layout.nb_channels, frame.format.is_planar
    dtype, count = _FFMPEG_SAMPLES[frame.format.name.removesuffix("p")], frame.samples * (1 if planar else channels)
    # Not `frame.planes`: of eight planes PyAV 18 finds a ninth behind the end of the list.
    planes = [AudioPlane(frame, index) for index in range(channels if planar else 1)]
    samples = [np.frombuffer(memoryview(plane), dtype, count) for plane in planes]
    return np.stack(samples) if planar else samples[0].reshape(-1, channels).T


def _gathered(frames: Iterable[_Chunk]) -> Iterator[_Chunk]:
    """Joins frames of one format to chunks of about READ_SECONDS: FFmpeg's own are as short as 20 ms."""
    pending: list[np.ndarray] = []
    held, rate = 0, 0.0
    for samples, frame_rate in frames:
        alike = not pending or (
            frame_rate == rate and pending[0].dtype == samples.dtype and len(pending[0]) == len(samples)
        )
        if pending and (not alike or held >= rate * READ_SECONDS):
            yield _Chunk(np.concatenate(pending, axis=1), rate)
            pending, held = [], 0
        pending.append(samples)
        held, rate = held + samples.shape[1], frame_rate
    if pending:
        yield _Chunk(np.concatenate(pending, axis=1), rate)


def _announced_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The sound stream's own duration; the container's only where nothing but this stream can have set it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _is_estimate(seconds: float, container: InputContainer, stream: AudioStream) -> bool:
    """Whether the duration follows from the file's size and bit rate: FFmpeg's guess where a file states none."""
    if container.format.name in _STATES_DURATION:
        return False
    expected = seconds * (stream.bit_rate or 0) / 8
    return abs(expected - container.size) <= ESTIMATE_TOLERANCE * container.size


def _missing_seconds(file: BinaryIO, container: InputContainer, stream: AudioStream) -> float:
    """Seconds that a wav file's header promises beyond its end; FFmpeg announces only what is there."""
    if container.format.name != "wav" or not stream.bit_rate or not _is_seekable(file):
        return 0.0
    position = file.tell()
    file.seek(0)
    head = file.read(8)
    file.seek(position)
    promised = int.from_bytes(head[4:8], "little") + 8
    if head[:4] != b"RIFF" or any(abs(promised - unknown) < RIFF_HEADER_SLACK for unknown in RIFF_SIZE_UNKNOWN):
        return 0.0
    return max(0, promised - container.size) * 8 / stream.bit_rate

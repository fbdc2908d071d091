"""Encoded recordings → chunks of samples as they were found, by FFmpeg's libraries (PyAV), as a stream."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.errors import AudioError

SHORTFALL_SECONDS = 0.5  # encoders round a duration up to their frame or page; what lacks more than this was lost
ESTIMATE_TOLERANCE = 0.02
RIFF_SIZE_UNKNOWN = (2**31, 2**32)  # what recorders that cannot go back write, give or take a header
RIFF_HEADER_SLACK = 2**16
OGG_HEADER_BYTES = 27  # of a page; the last of them counts the sizes that follow, a byte each
OGG_PAGE_BYTES = OGG_HEADER_BYTES + 255 + 255 * 255  # at most
READ_SECONDS = 1  # how much is decoded before it is mixed and resampled in one go: less costs calls, more costs memory
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d\.\d+)")  # the tag in which its writers keep a stream's duration
_FFMPEG_SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_READABLE = "what FFmpeg reads, such as wav, mp3, m4a, flac, ogg, opus or mp4, is allowed"
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


class Chunk(NamedTuple):
    """Consecutive samples as they were found."""

    samples: np.ndarray  # (channels, samples), any of the types in _FULL_SCALE, or float
    rate: float  # Hz


def source_name(source: object) -> str:
    """What messages call a recording: its path or its file's name."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "The recording"


def is_seekable(file: BinaryIO) -> bool:
    """Whether a file object can be rewound."""
    return hasattr(file, "seek") and hasattr(file, "tell") and (not hasattr(file, "seekable") or file.seekable())


@contextmanager
def opened(source: object) -> Iterator[BinaryIO]:
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
        raise AudioError(f"{source_name(source)} was opened as text, a recording is binary: open it with mode 'rb'.")
    elif hasattr(source, "read"):
        yield source  # pyright: ignore[reportReturnType]
    else:
        raise AudioError(
            f"A recording was given as {type(source).__name__}, but a path, bytes, a binary file object, a NumPy array "
            "or a tensor is allowed: convert it."
        )


@contextmanager
def open_container(file: BinaryIO, name: str) -> Iterator[InputContainer]:
    """FFmpeg's view of a file.

    Raises:
        AudioError: it is empty, text, or nothing that FFmpeg knows.
    """
    if is_seekable(file):
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


def sound_stream(container: InputContainer, name: str) -> AudioStream:
    """The container's first sound stream.

    Raises:
        AudioError: it has none, as a video without sound.
    """
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type or "unknown" for stream in container.streams})) or "none"
        raise AudioError(f"{name} has no sound (its streams: {kinds}): give a recording that has some.")
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise _not_readable(name, "no sound in it can be decoded")
    return stream


def file_chunks(source: object, on_warning: Callable[[str], None]) -> Iterator[Chunk]:
    """Decodes about a second at a time; tells `on_warning` what is damaged or missing once the end is reached."""
    name = source_name(source)
    with opened(source) as file, open_container(file, name) as container:
        stream = sound_stream(container, name)
        announced = announced_seconds(container, stream)
        estimated = announced is not None and _is_estimate(announced, container, stream)
        missing = _missing_seconds(file, container, stream)
        cut = _ends_within_a_page(file, container)
        seconds = 0.0
        tally = _Tally()
        try:
            for chunk in _gathered(_frames(container, stream, tally)):
                seconds += chunk.samples.shape[1] / chunk.rate
                yield chunk
        except OSError as error:  # the caller's stream: what FFmpeg cannot decode is in the tally
            raise AudioError(
                f"{name} stopped after {seconds:.1f} s of sound while it was read ({error.strerror or error}): "
                "open it again, or save it to a file first."
            ) from error
        if not seconds:
            raise _not_readable(name, tally.reason or "no sound in it can be decoded")
        if tally.failed > tally.decoded:  # noise has a few bytes that pass for sound
            raise _not_readable(name, f"of {tally.failed + tally.decoded} packets {tally.failed} cannot be decoded")
        if tally.failed:
            on_warning(
                f"{name} is damaged: what could not be decoded was left out (packets: {tally.failed}, the first after "
                f"{tally.intact_seconds:.1f} s of sound; {tally.reason})."
            )
        if cut:
            on_warning(f"{name} is cut short: {seconds:.1f} s were decoded, and then its last Ogg page breaks off.")
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


def _frames(container: InputContainer, stream: AudioStream, tally: _Tally) -> Iterator[Chunk]:
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
            yield Chunk(_channels(frame), frame.sample_rate)


def _channels(frame: AudioFrame) -> np.ndarray:
    """A frame's samples as they are, (channels, samples); FFmpeg's own mixing would weigh the channels."""
    channels, planar = frame.layout.nb_channels, frame.format.is_planar
    dtype, count = _FFMPEG_SAMPLES[frame.format.name.removesuffix("p")], frame.samples * (1 if planar else channels)
    # Not `frame.planes`: of eight planes PyAV 18 finds a ninth behind the end of the list.
    planes = [AudioPlane(frame, index) for index in range(channels if planar else 1)]
    samples = [np.frombuffer(memoryview(plane), dtype, count) for plane in planes]
    return np.stack(samples) if planar else samples[0].reshape(-1, channels).T


def _gathered(frames: Iterable[Chunk]) -> Iterator[Chunk]:
    """Joins frames of one format to chunks of about READ_SECONDS: FFmpeg's own are as short as 20 ms."""
    pending: list[np.ndarray] = []
    held, rate = 0, 0.0
    for samples, frame_rate in frames:
        alike = not pending or (
            frame_rate == rate and pending[0].dtype == samples.dtype and len(pending[0]) == len(samples)
        )
        if pending and (not alike or held >= rate * READ_SECONDS):
            yield Chunk(np.concatenate(pending, axis=1), rate)
            pending, held = [], 0
        pending.append(samples)
        held, rate = held + samples.shape[1], frame_rate
    if pending:
        yield Chunk(np.concatenate(pending, axis=1), rate)


def announced_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The sound stream's own duration; the container's only where nothing but this stream can have set it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if tag := MATROSKA_DURATION.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = (float(part) for part in tag.groups())
        return hours * 3600 + minutes * 60 + seconds
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
    if container.format.name != "wav" or not stream.bit_rate or not is_seekable(file):
        return 0.0
    position = file.tell()
    file.seek(0)
    head = file.read(8)
    file.seek(position)
    promised = int.from_bytes(head[4:8], "little") + 8
    if head[:4] != b"RIFF" or any(abs(promised - unknown) < RIFF_HEADER_SLACK for unknown in RIFF_SIZE_UNKNOWN):
        return 0.0
    return max(0, promised - container.size) * 8 / stream.bit_rate


def _ends_within_a_page(file: BinaryIO, container: InputContainer) -> bool:
    """Whether an Ogg file's last page announces more than is there: of an Ogg's own duration nothing is written."""
    if container.format.name != "ogg" or not is_seekable(file):
        return False
    position = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - OGG_PAGE_BYTES))
    end = file.read()
    file.seek(position)
    page = end[start:] if (start := end.rfind(b"OggS")) >= 0 else b""
    if len(page) < OGG_HEADER_BYTES:
        return bool(page)
    sizes_end = OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]
    return len(page) < sizes_end + sum(page[OGG_HEADER_BYTES:sizes_end])

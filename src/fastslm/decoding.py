"""Encoded recordings → chunks of samples as they were found, by FFmpeg's libraries (PyAV), as a stream."""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.errors import AudioError, CutShortError
from fastslm.extent import Extent, Passing, stated_extent
from fastslm.truncation import SHORTFALL_SECONDS, Ending, cut_short, stated_seconds, walk

READ_SECONDS = 1  # how much is decoded before it is mixed and resampled in one go: less costs calls, more costs memory
_FFMPEG_SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_READABLE = "what FFmpeg reads, such as wav, mp3, m4a, flac, ogg, opus or mp4, is allowed"


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
            if name == "-":
                remedy = "for standard input give /dev/stdin"
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
def open_container(file: BinaryIO | Passing, name: str, extent: Extent | None = None) -> Iterator[InputContainer]:
    """FFmpeg's view of a file.

    Args:
        extent: what the file says of its length, for the sentence about one that cannot be opened.

    Raises:
        AudioError: it is empty, text, or nothing that FFmpeg knows.
    """
    if not isinstance(file, Passing) and is_seekable(file):
        start = file.tell()
        if file.seek(0, io.SEEK_END) == start:
            raise AudioError(f"{name} is empty (0 bytes to read), a sound or video file is needed: give another.")
        file.seek(start)
    try:
        # A playlist may name other files and addresses: no protocol may be used but the bytes at hand. Tags are not
        # ours to judge, and many are in no encoding that is known.
        container = av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="ignore")
    except (FFmpegError, OSError) as error:
        if extent is not None and extent.missing:
            raise CutShortError(
                f"{name} is cut short: at least its last {extent.missing} bytes are missing, and without them nothing "
                "of it can be read: get the file again."
            ) from None
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


def file_chunks(
    source: object, on_warning: Callable[[str], None], on_cut: Callable[[str], None] | None = None
) -> Iterator[Chunk]:
    """Decodes about a second at a time.

    Args:
        on_warning: told what is damaged or missing inside, once the end is reached.
        on_cut: told, once the end is reached, that it comes too early; without it that is an error, and comes before
            the first chunk where the file's headers show it.
    """
    name = source_name(source)
    with opened(source) as file:
        if on_cut is None and is_seekable(file) and stated_extent(file).missing:
            refuse_cut(file, name)
        passing = None if is_seekable(file) else Passing(file)
        extent = stated_extent(file) if passing is None else Extent()
        with open_container(file if passing is None else passing, name, extent) as container:
            stream = sound_stream(container, name)
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
            extent = extent if passing is None else passing.extent()
            if not seconds:
                raise _not_readable(name, tally.reason or "no sound in it can be decoded")
            if tally.failed > tally.decoded:  # noise has a few bytes that pass for sound
                raise _not_readable(name, f"of {tally.failed + tally.decoded} packets {tally.failed} cannot be decoded")
            sentence = cut_short(name, container, stream, extent, tally.ending, seconds)
            if sentence and on_cut is None:
                raise _cut(sentence, seconds)
            if sentence and on_cut:
                on_cut(f"{sentence}.")
            else:
                stated = stated_seconds(container, stream, extent)
                _tell_of_damage(name, tally, seconds, stated, on_warning)


def refuse_cut(file: BinaryIO, name: str) -> None:
    """Refuse a file that breaks off, as far as that shows without decoding it. It is left where it stood.

    What states its end in bytes costs no time; of anything else all packets are looked at, 3 hours in 2 to 4 s.

    Raises:
        CutShortError: it does. AudioError: it is no recording.
    """
    start, extent = file.tell(), stated_extent(file)
    if extent.end is not None and not extent.missing:
        return
    with open_container(file, name, extent) as container:
        stream = sound_stream(container, name)
        ending = walk(container, stream)
        sentence = cut_short(name, container, stream, extent, ending, ending.second)
    file.seek(start)
    if sentence:
        raise _cut(sentence, ending.second)


def _cut(sentence: str, seconds: float) -> CutShortError:
    return CutShortError(
        f"{sentence}: get the file again, or have what is there taken with --partial (partial=True in Python).", seconds
    )


def _tell_of_damage(
    name: str, tally: "_Tally", seconds: float, stated: float | None, on_warning: Callable[[str], None]
) -> None:
    """Of a recording whose end is there."""
    if tally.failed:
        on_warning(
            f"{name} is damaged: what could not be decoded was left out (packets: {tally.failed}, the first after "
            f"{tally.intact_seconds:.1f} s of sound; {tally.reason})."
        )
    # What is missing between packets was never recorded, as where nobody spoke, or it is damaged.
    if stated is not None and stated - seconds > SHORTFALL_SECONDS:
        on_warning(f"{name} has gaps or is damaged: {seconds:.1f} s of sound are in it, of {stated:.1f} s in all.")


@dataclass
class _Tally:
    """How decoding went, in packets."""

    decoded: int = 0
    failed: int = 0
    intact_seconds: float = 0.0  # before the first that failed
    reason: str = ""  # FFmpeg's, for the first that failed
    ending: Ending = field(default_factory=Ending)

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
            tally.ending.broken = True
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except FFmpegError as error:
            tally.fail(seconds, error)
            tally.ending.tell(packet, decoded=False)
            continue
        tally.decoded += 1
        tally.ending.tell(packet)
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            yield Chunk(_channels(frame), frame.sample_rate)


def _channels(frame: AudioFrame) -> np.ndarray:
    """A frame's samples as they are, (channels, samples); FFmpeg's own mixing would weigh the channels."""
    channels, kind = frame.layout.nb_channels, frame.format.name
    planar = kind.endswith("p")
    dtype, count = _FFMPEG_SAMPLES[kind.removesuffix("p")], frame.samples * (1 if planar else channels)
    # Not `frame.planes`: of eight planes PyAV 18 finds a ninth behind the end of the list.
    planes = [AudioPlane(frame, index) for index in range(channels if planar else 1)]
    samples = [np.frombuffer(memoryview(plane), dtype, count) for plane in planes]
    if planar and channels > 1:
        return np.stack(samples)
    return samples[0].reshape(-1, channels).T


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

"""A tape as FFmpeg opens it: its container, and the stream of sound that is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.audio.tape import SeekableView, Tape, View
from fastslm.errors import AudioError, OptionError

READABLE = "what FFmpeg reads, such as wav, mp3, m4a, flac, ogg, opus or mp4, is allowed"
# A playlist may name other files and addresses: no protocol may be used but the bytes at hand.
NO_PROTOCOL = {"protocol_whitelist": "none"}


def not_readable(name: str, reason: object) -> AudioError:
    """That a file cannot be read, and why."""
    reason = getattr(reason, "strerror", None) or reason
    return AudioError(
        f"{name} is no sound or video file, or it is cut short or damaged ({reason}); {READABLE}: check or convert it."
    )


@contextmanager
def open_container(tape: Tape, offset: int = 0) -> Iterator[tuple[InputContainer, View]]:
    """The container that begins at a byte of a tape, and the view by which FFmpeg reads it.

    A WAV is read as a stream even where it could be rewound: FFmpeg looks for chunks behind its samples, and takes
    minutes for a gigabyte of zeros there.

    Raises:
        AudioError: it is empty, text, or nothing that FFmpeg knows.
    """
    if tape.size == 0:
        raise AudioError(f"{tape.name} is empty (0 bytes to read), a sound or video file is needed: give another.")
    head = tape.peek(offset, 12)
    is_wav = head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE"
    # Garbage at the end keeps FFmpeg from opening some files that it can read as streams.
    kinds = [SeekableView, View] if tape.seekable and not is_wav else [View]
    container, failure = None, not_readable(tape.name, "it cannot be opened")
    for kind in kinds:
        view = kind(tape, offset)
        try:
            # Tags are not ours to judge, and many are in no encoding that is known.
            container = av.open(view, "r", options=NO_PROTOCOL, metadata_errors="ignore")
            break
        except (FFmpegError, OSError) as error:
            failure = not_readable(tape.name, error)
    if container is None:
        raise failure from None
    with container:
        if container.format.name == "tty":  # FFmpeg draws text files as video
            raise not_readable(tape.name, "it is text")
        view.budget = None
        yield container, view


@dataclass(frozen=True)
class BareSamples:
    """How samples lie without a container: FFmpeg's name of it, Hz and channels."""

    form: str
    rate: int
    channels: int


def bare_samples(stream: AudioStream) -> BareSamples | None:
    """How a stream's samples would lie without its container, `None` where they could not."""
    context = stream.codec_context
    form = context.name.removeprefix("pcm_")
    if form == context.name or form not in av.formats_available:
        return None
    return BareSamples(form, context.sample_rate, context.layout.nb_channels)


@contextmanager
def open_samples(tape: Tape, offset: int, bare: BareSamples) -> Iterator[tuple[InputContainer, View]]:
    """Samples without a container, from a byte of a tape on."""
    options = {**NO_PROTOCOL, "sample_rate": str(bare.rate), "ch_layout": f"{bare.channels}c"}
    view = View(tape, offset)
    view.budget = None
    with av.open(view, "r", format=bare.form, options=options) as container:
        yield container, view


def sound_stream(container: InputContainer, name: str, track: int | None = None) -> AudioStream:
    """The container's stream of sound of that number from 1 on, or FFmpeg's best.

    Raises:
        AudioError: it has none, as a video without sound.
        OptionError: it has fewer.
    """
    streams = container.streams.audio
    if not streams:
        kinds = ", ".join(sorted({stream.type or "unknown" for stream in container.streams})) or "none"
        raise AudioError(f"{name} has no sound (its streams: {kinds}): give a recording that has some.")
    if track is not None and not 1 <= track <= len(streams):
        tracks = "; ".join(described(stream, number) for number, stream in enumerate(streams, 1))
        raise OptionError(f"{name} has no audio track {track}, its tracks are {tracks}: choose one of them.")
    stream = container.streams.best("audio") if track is None else streams[track - 1]
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        raise not_readable(name, "no sound in it can be decoded")
    return stream


def described(stream: AudioStream, number: int) -> str:
    """A track as messages call it: `2 (fre, aac, stereo)`."""
    facts = [stream.metadata.get("language"), stream.metadata.get("title")]
    if (context := stream.codec_context) is not None:
        count = context.layout.nb_channels
        facts += [context.name, {1: "mono", 2: "stereo"}.get(count, f"{count} channels")]
    return f"{number} ({', '.join(fact for fact in facts if fact)})"

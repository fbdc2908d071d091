"""Where a container says that its sound begins and ends, and what of it is missing, or lies behind that end.

PyAV is asked what a container states; what was decoded is compared with it. What states no length (MP3 without a Xing
header, AAC, Ogg, a recorder's stream) can only show that it breaks off by a last packet or page that is incomplete.
"""

import re
from dataclasses import dataclass
from itertools import islice

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.audio.clock import TOLERANCE_SECONDS
from fastslm.audio.container import BareSamples, bare_samples, open_container, sound_stream
from fastslm.audio.tape import EndlessView, Tape
from fastslm.errors import AudioError

# Encoders round a duration up to their frame or page, and players cut what fills it up: what lacks more was lost.
SHORTFALL_SECONDS = 0.5
# Where the last packet is damaged as well, this is enough: packets have 2.5 ms and more.
PACKET_SECONDS = 0.002
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d\.\d+)")  # the tag in which its writers keep a stream's duration
MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
# Containers that state how long their sound is. Of others FFmpeg takes it from the file's size or the last timestamp.
STATES_SECONDS = frozenset(["aiff", "ape", "asf", "au", "flac", "flv", MATROSKA, MOV, "tta", "wv"])
# Containers whose clock begins at 0, whenever the first sound comes. Others begin anywhere (a broadcast's MPEG-TS), or
# with what a codec puts before the sound (MP3).
COUNTS_FROM_ZERO = frozenset(["avi", "flv", MATROSKA, MOV, "nut", "ogg"])
# Their length, too, is that of their clock, and not of the sound.
LASTS_FROM_ZERO = frozenset([MATROSKA, "nut"])
# A stream of these may have been joined at any second (RFC 7845, section 4): a later first sound is not a late one.
JOINED_ANYWHERE, JOINED_SECONDS = frozenset(["flv", "ogg"]), 60.0
# What a recorder that cannot go back writes in place of a WAV's length, give or take a header.
UNKNOWN_BYTES, UNKNOWN_SLACK = (2**31, 2**32), 2**16
# A guess of FFmpeg's is the bytes by the bit rate, but for a frame.
GUESS_SECONDS = 0.05

# Containers behind whose end FFmpeg does not look, or only once. With others it goes on where a file follows.
ENDS_WHERE_IT_STATES = frozenset(["aiff", "caf", "flv", MATROSKA, MOV, "tta", "voc", "w64", "wav", "wv"])
# Containers whose sound is one run of bytes, behind whose stated end only other chunks may follow.
ONE_RUN = frozenset(["aiff", "caf", "w64", "wav"])
# Containers of samples: what states no length may end anywhere.
ENDS_ANYWHERE = frozenset(["caf", "wav"])
OGG_HEADER_BYTES = 27  # of a page; the last of them counts the sizes that follow, a byte each
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
# How far behind the last packet another file's beginning is looked for: indexes and pictures lie between.
SEARCH_BYTES, PIPE_SEARCH_BYTES = 1 << 24, 1 << 20
LEAST_BEHIND_SECONDS = 0.1
MOST_TRIES = 8


@dataclass(frozen=True)
class Statement:
    """What a container says of its sound, in seconds.

    Attributes:
        origin: second of its own clock at which it begins to play.
        end: of the sound, from there on; `None` where it does not say. Of an MP3 it may be a guess (`is_guess`).
        latest: from there on; no timestamp can be later. `None` where that is not known.
    """

    origin: float
    end: float | None
    latest: float | None


NOTHING_SAID = Statement(0.0, None, None)


def statement(container: InputContainer, stream: AudioStream, tape: Tape, offset: int = 0) -> Statement:
    """What a container that begins at a byte of a tape says of one of its streams."""
    kind, origin = container.format.name, _origin(container)
    end = latest = None
    if kind == "wav":
        end = counted_seconds(tape, offset)
    elif kind in STATES_SECONDS or kind == "mp3":
        end = announced_end(container, stream)
        # Of a stream, FFmpeg knows the first fragment only.
        if tape.seekable and kind in COUNTS_FROM_ZERO and end is not None:
            latest = max(end, (_seconds(container.start_time) + _seconds(container.duration)))
            latest -= origin
    return Statement(origin, None if end is None else end - origin, latest)


def announced_end(container: InputContainer, stream: AudioStream) -> float | None:
    """The second of the container's clock at which the sound ends, as it states or FFmpeg estimates it."""
    if stream.duration is not None and stream.duration > 0 and stream.time_base is not None:
        # FFmpeg takes that of Ogg from the last page, which counts from 0.
        start = 0 if container.format.name == "ogg" else stream.start_time or 0
        return float((start + stream.duration) * stream.time_base)
    ends = []
    if tag := MATROSKA_DURATION.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = (float(part) for part in tag.groups())
        ends.append(hours * 3600 + minutes * 60 + seconds)
    # The container's own only where nothing but this stream can have set it. An FLV that breaks off within a packet's
    # head seems to have a second stream of sound.
    torn = container.format.name == "flv" and all(other.type == "audio" for other in container.streams)
    if container.duration and (torn or len(container.streams) == 1):
        start = 0.0 if container.format.name in LASTS_FROM_ZERO else _seconds(container.start_time)
        ends.append(start + _seconds(container.duration))
    return max(ends, default=None)


def counted_seconds(tape: Tape, offset: int) -> float | None:
    """What a WAV's header counts; FFmpeg believes the file's size before it, and is not told that."""
    try:
        with av.open(EndlessView(tape, offset), "r", format="wav", metadata_errors="ignore") as container:
            stream = container.streams.audio[0]
            if stream.duration is None or stream.time_base is None:
                return None
            seconds = float(stream.duration * stream.time_base)
            counted = seconds * (stream.codec_context.bit_rate or 0) / 8
    except (FFmpegError, OSError, IndexError):
        return None
    if counted > 2**60 or any(abs(counted - size) < UNKNOWN_SLACK for size in UNKNOWN_BYTES):
        return None
    return seconds


def _origin(container: InputContainer) -> float:
    kind, start = container.format.name, _seconds(container.start_time)
    if kind not in COUNTS_FROM_ZERO or start < -TOLERANCE_SECONDS:
        return start
    return start if kind in JOINED_ANYWHERE and start > JOINED_SECONDS else 0.0


def is_guess(seconds: float, bit_rate: int, sound_bytes: int) -> bool:
    """Whether a duration is only what so many bytes last at a bit rate: FFmpeg's, of an MP3 that states none."""
    return not bit_rate or abs(sound_bytes * 8 / bit_rate - seconds) <= GUESS_SECONDS


def breaks_off(
    kind: str, stated: float | None, heard: float, *, broken: bool, undecodable: bool
) -> tuple[bool, float | None]:
    """Whether a recording breaks off, and how many seconds of it are missing, as far as that is known.

    Args:
        kind: FFmpeg's name of its container.
        stated: second at which the sound ends, as the container states.
        heard: second at which it was found to end.
        broken: whether its last packet is incomplete.
        undecodable: whether that packet could not even be decoded.
    """
    if kind == "mp3":  # the tags behind an MP3 pass for a last packet, and some writers count those before it
        broken = undecodable = False
    if stated is None:
        # What states no length often ends within a packet of samples.
        return undecodable or (broken and kind not in ENDS_ANYWHERE), None
    lacking = stated - heard
    return lacking > (PACKET_SECONDS if broken else SHORTFALL_SECONDS), max(0.0, lacking)


@dataclass(frozen=True)
class Behind:
    """What lies behind the end of a container.

    Attributes:
        kind: `container`, another one of the format; `samples`, more samples of it; `unread`, bytes that are neither;
            `page`, a page of Ogg that breaks off; `tags`; `nothing`, or only other chunks of the container.
        offset: byte of the tape at which it begins.
        bare: how the samples lie.
    """

    kind: str
    offset: int = 0
    bare: BareSamples | None = None


def behind(tape: Tape, container: InputContainer, stream: AudioStream, head: bytes, end: int) -> Behind:
    """What lies behind the last packet of a container.

    Args:
        head: bytes with which the container begins.
        end: byte of the tape at which its last packet ends.
    """
    kind = container.format.name
    content = tape.peek(end, SEARCH_BYTES if tape.seekable else PIPE_SEARCH_BYTES)
    found = _another(tape, kind, head, end, content) if kind in ENDS_WHERE_IT_STATES else None
    if found is not None:
        return Behind("container", found)
    if content.startswith(TAGS):
        return Behind("tags")
    if kind == "ogg" and len(container.streams) == 1 and _is_cut_page(content):
        return Behind("page", end)
    least = LEAST_BEHIND_SECONDS * (stream.codec_context.bit_rate or 0) / 8
    size = 2**31 if tape.size is None else tape.size - end
    # A chunk begins at an even byte.
    if (
        kind not in ONE_RUN
        or len(content) <= max(64, least)
        or _is_chunk(content, size)
        or _is_chunk(content[1:], size)
    ):
        return Behind("nothing")
    bare = bare_samples(stream)
    return Behind("unread" if bare is None else "samples", end, bare)


def _another(tape: Tape, kind: str, head: bytes, end: int, content: bytes) -> int | None:
    """Where a further container of the kind begins that FFmpeg does not go on to by itself."""
    mark, shift = (head[4:8], 4) if head[4:8] == b"ftyp" else (head[:4], 0)
    at = -1
    for _ in range(MOST_TRIES):
        at = content.find(mark, at + 1)
        if at < shift:
            return None
        if _opens(tape, end + at - shift, kind):
            return end + at - shift
    return None


def _opens(tape: Tape, offset: int, kind: str) -> bool:
    """Whether a container of the kind begins there, with sound in it."""
    try:
        with open_container(tape, offset) as (container, _):
            if container.format.name != kind:
                return False
            packets = islice(container.demux(sound_stream(container, tape.name)), MOST_TRIES)
            return any(packet.decode() for packet in packets)
    except (AudioError, FFmpegError):
        return False


def _is_cut_page(content: bytes) -> bool:
    """Whether the last page of Ogg breaks off; FFmpeg leaves such a one out without a word."""
    page = content[content.rfind(b"OggS") :]
    if not page.startswith(b"OggS"):
        return False
    sizes = (
        page[OGG_HEADER_BYTES : OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]] if len(page) > OGG_HEADER_BYTES else b""
    )
    return len(page) < OGG_HEADER_BYTES + len(sizes) + sum(sizes)


def _is_chunk(content: bytes, size: int) -> bool:
    """Whether bytes begin as a chunk does, of at most `size` bytes: four letters, and how many bytes follow."""
    sizes = [int.from_bytes(content[4:8], "little"), int.from_bytes(content[4:8]), int.from_bytes(content[4:12])]
    sizes.append(int.from_bytes(content[16:24], "little"))  # W64, behind 16 bytes of name
    return all(32 <= letter < 127 for letter in content[:4]) and any(0 < own <= size for own in sizes)


def _seconds(microseconds: int | None) -> float:
    return (microseconds or 0) / av.time_base

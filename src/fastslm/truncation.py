"""Whether a recording is all there: what a file says of its own length, against what it holds.

Most formats decode without an error when they break off, and an hour is missing without a word. Where a recording
should end shows in two ways: in bytes, as its container counts its parts, and in seconds, as it counts its sound. What
counts neither (MP3 without its Xing header, MP2, AC-3, a recorder's stream without a length) nobody can know to be cut,
nor what is cut just between two pieces that are counted one by one (pages of Ogg, packets of AAC, parts of an MP4).
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.extent import Extent

# Encoders round a duration up to their frame or page, and players cut what fills it up: what lacks more was lost.
SHORTFALL_SECONDS = 0.5
# Where the last packet is damaged as well, this is enough: packets have 2.5 ms and more.
PACKET_SECONDS = 0.002
MATROSKA_DURATION = re.compile(r"(\d+):(\d\d):(\d\d\.\d+)")  # the tag in which its writers keep a stream's duration
# Containers that state how long their sound is. Of others FFmpeg takes it from the file's size (wav, w64, caf, avi),
# from the sound that is there (ogg), or it guesses (mp3, aac, mpeg).
STATES_SECONDS = frozenset(
    ["aiff", "ape", "asf", "au", "flac", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "tta", "wv"]
)
SIZES_SECONDS = frozenset(["wav", "w64", "caf"])


def announced_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The sound stream's own duration; the container's only where nothing but this stream can have set it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if tag := MATROSKA_DURATION.fullmatch(stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = (float(part) for part in tag.groups())
        return hours * 3600 + minutes * 60 + seconds
    # An FLV that breaks off within a packet's head seems to have a second stream of sound.
    torn = container.format.name == "flv" and all(other.type == "audio" for other in container.streams)
    if container.duration is not None and (torn or len(container.streams) == 1):
        return container.duration / av.time_base
    return None


def stated_seconds(container: InputContainer, stream: AudioStream, extent: Extent) -> float | None:
    """How long the sound is, where the file says so; a guess of FFmpeg's is not that."""
    if extent.seconds is None and container.format.name in STATES_SECONDS:
        return announced_seconds(container, stream)
    return extent.seconds


@dataclass
class Ending:
    """How a recording ended, told packet by packet.

    Attributes:
        last: tick at which the last packet ends that was in order, as the container counts.
        tick: in seconds, the same in all packets of a stream.
        broken: whether something came after it that could not be decoded.
    """

    last: int = 0
    tick: Fraction | None = None
    broken: bool = False

    @property
    def second(self) -> float:
        """At which the last packet ends that was in order."""
        return float(self.last * (self.tick or 0))

    def tell(self, packet: av.Packet, *, decoded: bool = True) -> None:
        """One more packet; the empty ones at the end tell nothing."""
        if not packet.size:
            return
        self.broken = not decoded
        if decoded and packet.pts is not None:
            # A fraction is slow to make, and an hour has 180,000 packets.
            self.tick = self.tick or packet.time_base
            self.last = max(self.last, packet.pts + (packet.duration or 0))


def walk(container: InputContainer, stream: AudioStream) -> Ending:
    """How a recording ends, without decoding more than its last packets: a second of work for an hour of sound."""
    ending, before = Ending(), Ending()
    last: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                before = replace(ending)
                ending.tell(packet)
                last = [*last[-2:], packet]
    except FFmpegError:
        return replace(ending, broken=True)
    verdicts = [_decodes(packet) for packet in last]
    # Where those before it cannot be decoded either, they need what comes before them.
    if verdicts[-2:] == [True, False]:
        return replace(before, broken=True)
    return ending


def _decodes(packet: av.Packet) -> bool:
    try:
        packet.decode()
    except FFmpegError:
        return False
    return True


def cut_short(
    name: str, container: InputContainer, stream: AudioStream, extent: Extent, ending: Ending, seconds: float
) -> str | None:
    """That a recording breaks off, as a sentence without its end; `None` if it is whole as far as can be known.

    Bytes are believed before seconds: a container may have gaps, edits or tags that are no longer true.

    Args:
        seconds: of sound that are there.
    """
    kind = container.format.name
    stated = stated_seconds(container, stream, extent)
    # There may be gaps between packets, and packets without a time.
    lacking = 0.0 if stated is None else stated - max(ending.second, seconds)
    # The tags behind an MP3 pass for a last packet, and some writers count those before it.
    broken = ending.broken and kind != "mp3"
    if extent.missing:
        cut = kind != "mp3" or lacking > PACKET_SECONDS
    elif stated is None:
        cut = broken and extent.end is None
    elif extent.end is None:
        cut = lacking > (PACKET_SECONDS if broken else SHORTFALL_SECONDS)
    else:
        cut = broken and lacking > SHORTFALL_SECONDS
    if not cut:
        return None
    about = ""
    if stated is None and kind in SIZES_SECONDS and extent.end is not None and extent.size:
        stated, about = seconds * extent.end / extent.size, "about "
    if stated is not None and stated - seconds >= 0.05:  # what the figures below show
        return f"{name} is cut short: {seconds:.1f} s of sound are there of {about}{stated:.1f} s that it announces"
    what = f"at least its last {extent.missing} bytes are missing" if extent.missing else "its last packet breaks off"
    return f"{name} is cut short: {what}, after {seconds:.1f} s of sound"

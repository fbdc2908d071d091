"""Encoded recordings → chunks of samples as they were found, by FFmpeg's libraries (PyAV), on the container's clock."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from fastslm.audio.clock import Clock, Sound, confirmed
from fastslm.audio.container import described, not_readable, open_container, open_samples, sound_stream
from fastslm.audio.ending import (
    MOV,
    NOTHING_SAID,
    SHORTFALL_SECONDS,
    Behind,
    Statement,
    announced_end,
    behind,
    breaks_off,
    counted_seconds,
    is_guess,
    statement,
)
from fastslm.audio.tape import Tape, View, opened, source_name
from fastslm.errors import AudioError, CutShortError

READ_SECONDS = 1  # how much is decoded before it is mixed and resampled in one go: less costs calls, more costs memory
READ_AHEAD_BYTES = 1 << 20  # beyond the last packet of a WAV, where FFmpeg looks for more
_FFMPEG_SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}


class Chunk(NamedTuple):
    """Consecutive samples as they were found."""

    samples: np.ndarray  # (channels, samples), any of the types in _FULL_SCALE, or float
    rate: float  # Hz


class Silence(NamedTuple):
    """No sound up to a second of the recording; it may last for hours."""

    until: float


class TimedSamples(NamedTuple):
    """Samples of a stream, and the second of its clock at which they begin."""

    samples: Any  # as an array of `stream_audio`
    second: float


OnWarning = Callable[[str], None]
# Told what is said of a recording that breaks off, and how many seconds of it are missing, as far as that is known.
OnPartial = Callable[[str, float | None], None]


def file_chunks(
    source: object,
    on_warning: OnWarning,
    on_partial: OnPartial,
    *,
    track: int | None = None,
    until: float | None = None,
    strict: bool = False,
) -> Iterator[Chunk | Silence]:
    """Decodes about a second at a time. Sound lies where the container's clock has it, from its beginning on.

    Args:
        on_warning: told what is damaged, doubled or not read, once the end is reached.
        on_partial: told, once the end is reached, that it comes too early.
        track: number of the audio track, from 1 on; `None` is FFmpeg's choice.
        until: second after which nothing is wanted.
        strict: whether an end that comes too early is an error.
    """
    with opened(source) as file:
        reading = _Reading(Tape(file, source_name(source)), track, until)
        try:
            yield from _gathered(reading.pieces())
        except OSError as error:  # the caller's stream: what FFmpeg cannot decode is in the tally
            raise AudioError(
                f"{reading.name} stopped after {reading.clock.position:.1f} s of sound while it was read "
                f"({error.strerror or error}): open it again, or save it to a file first."
            ) from error
        reading.conclude(on_warning, on_partial, strict)


def stated_seconds(source: object, track: int | None = None) -> float | None:
    """Seconds of a recording on its clock, as its container states or FFmpeg estimates them, without decoding.

    A file object is left where it stood; of one that cannot be rewound nothing is read, and the answer is `None`.

    Raises:
        AudioError: it is no recording. OptionError: it has no such track.
    """
    with opened(source) as file:
        tape = Tape(file, source_name(source))
        if not tape.seekable:
            return None
        start = file.tell()
        try:
            with open_container(tape) as (container, _):
                stream = sound_stream(container, tape.name, track)
                if container.format.name == "wav":
                    return _wav_seconds(tape, container, stream)
                end = announced_end(container, stream)
                return None if end is None else end - statement(container, stream, tape).origin
        finally:
            file.seek(start)


def _wav_seconds(tape: Tape, container: InputContainer, stream: AudioStream) -> float | None:
    """What its header counts, or what is there of it, or is there behind it."""
    counted, rate = counted_seconds(tape, 0), stream.codec_context.bit_rate
    packet = next(container.demux(stream), None)
    if not rate or packet is None or packet.pos is None or tape.size is None:
        return counted
    there = (tape.size - packet.pos) * 8 / rate
    if counted is None or counted >= there:
        return there
    following = behind(tape, container, stream, tape.peek(0, 12), packet.pos + round(counted * rate / 8))
    return counted if following.kind in ("nothing", "tags") else there


@dataclass
class _Tally:
    """How decoding went, in packets."""

    decoded: int = 0
    failed: int = 0
    intact_seconds: float = 0.0  # before the first that failed
    reason: str = ""  # FFmpeg's, for the first that failed

    def fail(self, seconds: float, error: FFmpegError) -> None:
        """One could not be decoded."""
        if not self.failed:
            self.intact_seconds, self.reason = seconds, str(error.strerror)
        self.failed += 1


class _Reading:
    """One recording as it is read: a container, and what of its kind follows it in the same file."""

    def __init__(self, tape: Tape, track: int | None, until: float | None):
        self.tape, self.name, self.track = tape, tape.name, track
        self.until = math.inf if until is None else until
        self.clock, self.tally = Clock(), _Tally()
        self.ending: _Ending
        self.announced: float | None = None  # seconds of the recording, where it breaks off
        self.cut = ""  # how it does
        self.remarks: list[str] = []

    def pieces(self) -> Iterator[Chunk | Silence]:
        """All of its sound, frame by frame; what cannot be decoded is left out and counted."""
        following = Behind("container")
        enough = self.until + READ_SECONDS  # the resampler is behind
        while following.kind in ("container", "samples"):
            offset, bare = following.offset, following.bare
            opening = open_container(self.tape, offset) if bare is None else open_samples(self.tape, offset, bare)
            with opening as (container, view):
                stream = sound_stream(container, self.name, self.track if bare is None else None)
                said = NOTHING_SAID
                if bare is None:
                    self._remark_on_tracks(container, stream)
                    said = statement(container, stream, self.tape, offset)
                    self.ending = _Ending(container, stream, said, self.clock.position)
                head = self.tape.peek(offset, 12)
                self.clock.begin(said.origin, said.latest)
                for chunk, second, _ in confirmed(self._frames(container, stream, view)):
                    for piece in placed(self.clock, chunk, second):
                        yield Silence(min(piece.until, enough)) if isinstance(piece, Silence) else piece
                    if self.clock.position >= enough:
                        return
                following = Behind("nothing")
                if bare is None and self.ending.last_byte:
                    following = behind(self.tape, container, stream, head, offset + self.ending.last_byte)
        self._judge(following)

    def _frames(self, container: InputContainer, stream: AudioStream, view: View) -> Iterator[Sound[Chunk]]:
        """What FFmpeg decodes, and the seconds that the container gives it."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                self.tally.reason = self.tally.reason or str(error.strerror)
                self.ending.broken = self.ending.undecodable = True
                return
            if packet is None or (container.format.name == MOV and self.ending.had(packet)):
                return
            if container.format.name == "wav":
                view.budget = READ_AHEAD_BYTES
            try:
                frames = packet.decode()
            except FFmpegError as error:
                self.tally.fail(self.clock.position, error)
                self.ending.tell(packet, decoded=False)
                continue
            self.tally.decoded += 1
            self.ending.tell(packet)
            for frame in frames:
                second = None if frame.pts is None else frame.pts * self.ending.seconds_per_tick(frame)
                chunk = Chunk(frame_samples(frame), frame.sample_rate)
                yield chunk, second, frame.samples / frame.sample_rate

    def _remark_on_tracks(self, container: InputContainer, stream: AudioStream) -> None:
        tracks = container.streams.audio
        if self.track is None and len(tracks) > 1 and not self.remarks:
            number = tracks.index(stream) + 1
            self.remarks.append(
                f"{self.name} has {len(tracks)} audio tracks, of which {described(stream, number)} was read: choose "
                "another one with --track (track= in Python)."
            )

    def _judge(self, following: Behind) -> None:
        """Whether it breaks off, and what was not read; nothing follows that could be."""
        ending, end = self.ending, self.ending.said.end
        if ending.kind == "mp3" and end is not None:
            guess = is_guess(end, ending.bit_rate, ending.last_byte - ending.first_byte)
            end = None if guess else end
        if following.kind == "tags":
            ending.broken = ending.undecodable = False
        heard = max(self.clock.position, ending.second) - ending.begin
        cut, lacking = breaks_off(ending.kind, end, heard, broken=ending.broken, undecodable=ending.undecodable)
        if cut or following.kind == "page":
            self.cut = "its last packet breaks off"
            self.announced = None if lacking is None else self.clock.position + lacking
        if following.kind == "unread":
            count = self.tape.rest(following.offset)
            seconds = f" (about {count * 8 / ending.bit_rate:.1f} s)" if ending.bit_rate else ""
            self.remarks.append(
                f"{self.name} holds {count} bytes{seconds} behind the end that it states, and they were not read: "
                "convert it, or repair its header."
            )

    def conclude(self, on_warning: OnWarning, on_partial: OnPartial, strict: bool) -> None:
        """Say what there is to say of it.

        Raises:
            AudioError: there was no sound in it. CutShortError: it breaks off, and `strict`.
        """
        name, tally, clock = self.name, self.tally, self.clock
        if not clock.position:
            raise not_readable(name, tally.reason or "no sound in it can be decoded")
        if tally.failed > tally.decoded:  # noise has a few bytes that pass for sound
            raise not_readable(name, f"of {tally.failed + tally.decoded} packets {tally.failed} cannot be decoded")
        if self.cut and clock.position < self.until:  # else nothing is missing that was asked for
            lacking = None if self.announced is None else min(self.announced, self.until) - clock.position
            about = f"{self.cut}, after {clock.position:.1f} s of sound"
            if self.announced is not None and self.announced - clock.position >= 0.05:  # what the figures show
                about = f"{clock.position:.1f} s of sound are there of {self.announced:.1f} s that it announces"
            sentence = f"{name} is cut short: {about}"
            if strict:
                raise CutShortError(
                    f"{sentence}: get the file again, or have what is there taken without --strict (strict=True in "
                    "Python).",
                    clock.position,
                )
            on_partial(f"{sentence}.", lacking)
        elif tally.failed:
            on_warning(
                f"{name} is damaged: what could not be decoded was left out (packets: {tally.failed}, the first after "
                f"{tally.intact_seconds:.1f} s of sound; {tally.reason})."
            )
        for sentence in [*self.remarks, *_clock_remarks(name, clock)]:
            on_warning(sentence)


class _Ending:
    """How a container ended, told packet by packet.

    Attributes:
        kind: FFmpeg's name of the container.
        said: what it states.
        bit_rate: as it was before anything was decoded.
        begin: second of the recording at which it began.
        second: of the recording, at which the last packet ends that was in order.
        broken: whether the last packet is incomplete, `undecodable`: so much that it could not be decoded.
        first_byte, last_byte: of its packets.
    """

    def __init__(self, container: InputContainer, stream: AudioStream, said: Statement, begin: float):
        self.kind, self.said, self.begin = container.format.name, said, begin
        self.bit_rate = stream.codec_context.bit_rate or 0
        self.second = begin
        self.broken = self.undecodable = False
        self.first_byte = self.last_byte = 0
        self._ticks: dict[type, float] = {}
        self._place: int | None = None
        self._own_end = 0

    def seconds_per_tick(self, of: AudioFrame | av.Packet) -> float:
        """Of a stream, the same in all its packets and frames; a fraction is slow, and an hour has 180,000 packets."""
        if type(of) not in self._ticks:
            self._ticks[type(of)] = float(of.time_base or 0)
        return self._ticks[type(of)]

    def had(self, packet: av.Packet) -> bool:
        """Whether it is the first packet again: FFmpeg finds the parts of an MP4 twice that another one follows."""
        return bool(self.last_byte and packet.size and packet.pos == self.first_byte)

    def tell(self, packet: av.Packet, *, decoded: bool = True) -> None:
        """One more packet; the empty ones at the end tell nothing."""
        if not packet.size:
            return
        self.undecodable = not decoded
        self.broken = not decoded or packet.is_corrupt
        if packet.pos is not None and packet.pos >= 0:
            # All packets of a page of Ogg have its place.
            own = self._own_end if packet.pos == self._place else packet.pos
            self._own_end = own + packet.size
            self.last_byte = max(self.last_byte, self._own_end)
            self.first_byte = packet.pos if self._place is None else self.first_byte
            self._place = packet.pos
        if decoded and packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * self.seconds_per_tick(packet)
            self.second = max(self.second, self.begin + end - self.said.origin)


def _clock_remarks(name: str, clock: Clock) -> Iterator[str]:
    """What became of timestamps that are not in order."""
    if clock.gaps >= SHORTFALL_SECONDS:
        places = "one place" if clock.gap_count == 1 else f"{clock.gap_count} places"
        yield f"{name} has gaps: {clock.gaps:.1f} s without sound, in {places}, are taken as silence."
    if clock.dropped:
        yield f"{name} has {clock.dropped:.1f} s twice, as its timestamps overlap: the second time was left out."
    if clock.jumps:
        yield f"{name} has timestamps that cannot be true ({clock.jumps}): the sound there follows without a gap."


def placed(clock: Clock, chunk: Chunk, second: float | None) -> Iterator[Chunk | Silence]:
    """A chunk that begins at a second, if that is known: what lacks before it, and what of it was not there before."""
    length = chunk.samples.shape[1] / chunk.rate
    place = clock.place(second, length)
    if place.gap:
        yield Silence(clock.position - length)
    samples = chunk.samples[:, round(place.drop * chunk.rate) :]
    if samples.size:
        yield Chunk(samples, chunk.rate)


def frame_samples(frame: AudioFrame) -> np.ndarray:
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


def _gathered(frames: Iterable[Chunk | Silence]) -> Iterator[Chunk | Silence]:
    """Joins frames of one format to chunks of about READ_SECONDS: FFmpeg's own are as short as 20 ms."""
    pending: list[np.ndarray] = []
    held, rate = 0, 0.0
    for piece in frames:
        fits = isinstance(piece, Chunk) and (
            not pending
            or (
                piece.rate == rate and pending[0].dtype == piece.samples.dtype and len(pending[0]) == len(piece.samples)
            )
        )
        if pending and (not fits or held >= rate * READ_SECONDS):
            yield Chunk(np.concatenate(pending, axis=1), rate)
            pending, held = [], 0
        if isinstance(piece, Silence):
            yield piece
            continue
        pending.append(piece.samples)
        held, rate = held + piece.samples.shape[1], piece.rate
    if pending:
        yield Chunk(np.concatenate(pending, axis=1), rate)

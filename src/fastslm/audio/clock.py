"""Timestamps → where sound lies on one clock: late starts and gaps are silence, overlaps dropped, jitter is nothing.

Seconds given out and seconds of the container agree within `TOLERANCE_SECONDS` at any place, whatever the container's
timestamps are rounded to, and however many packets were lost before it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

# Timestamps are rounded (to 1 ms in WebM), shake by a packet in recordings of calls, and start with a codec's priming
# (69 ms of MP3 at 16 kHz). FFmpeg's own resampler tolerates as much before it fills or cuts.
TOLERANCE_SECONDS = 0.1
# Longer gaps together are damaged timestamps, and so is one that ends behind what the container states as its end.
MOST_GAP_SECONDS = 24 * 3600.0
# A longer gap is believed where the sound behind it goes on for so long from there. Damage moves a page, or a cluster.
SUSPECT_SECONDS, CONFIRMING_SECONDS = 10.0, 10.0
BEHIND_END_SECONDS = 1.0
# A clock that falls back by so much of what has passed has begun anew, as where two files were joined.
RESTART_SHARE = 0.75


@dataclass(frozen=True)
class Placed:
    """What goes before some sound, in seconds. At most one of them is more than 0.

    Attributes:
        gap: silence in front of it.
        drop: of its own beginning, which was there before.
    """

    gap: float = 0.0
    drop: float = 0.0


class Clock:
    """Places sound as it comes.

    Attributes:
        position: seconds given out so far, silence included.
        gaps, gap_count: seconds between sounds, and how many.
        dropped: seconds that overlapped.
        jumps: timestamps that were not believed.
    """

    def __init__(self) -> None:
        self.position = 0.0
        self.gaps = self.dropped = 0.0
        self.gap_count = self.jumps = 0
        self._shift = 0.0  # from seconds of the container to the position
        self._believed = 0.0  # the same before a timestamp that was not believed
        self._end: float | None = None  # position behind which no gap ends
        self._first: float | None = None  # position of the first sound by this clock
        self._expected: float | None = None  # position at which the sound before ends, as its timestamp says
        self._overlapping = False

    def begin(self, origin: float, end: float | None) -> None:
        """A container begins where the one before ended.

        Args:
            origin: second of the container's clock at which it begins.
            end: seconds from there on that it states as its length.
        """
        self._shift = self._believed = self.position - origin
        self._end = None if end is None else self.position + end
        self._first = self._expected = None
        self._overlapping = False

    def place(self, second: float | None, length: float) -> Placed:
        """Where sound of `length` seconds goes that begins at `second` of the container, if that is known."""
        placed = Placed()
        if second is not None:
            if abs(second + self._believed - self.position) <= TOLERANCE_SECONDS:
                self._shift = self._believed
            placed = self._placed(second + self._shift, length)
            self._expected = second + self._shift + length
        elif self._expected is not None:
            self._expected += length
        if self._first is None:
            self._first = self.position + placed.gap
        self.position += placed.gap + length - placed.drop
        return placed

    def _placed(self, at: float, length: float) -> Placed:
        deviation = at - self.position
        fell_back = self._expected is not None and at - self._expected < -TOLERANCE_SECONDS
        if deviation > TOLERANCE_SECONDS:
            self._overlapping = False
            if self.gaps + deviation > MOST_GAP_SECONDS or self._is_behind_end(at):
                self._shift -= deviation
                self.jumps += 1
                return Placed()
            if self.position:  # else it only starts late
                self.gaps += deviation
                self.gap_count += 1
            return Placed(gap=deviation)
        if fell_back and deviation < -TOLERANCE_SECONDS:
            assert self._first is not None
            if -deviation >= RESTART_SHARE * (self.position - self._first):
                self._shift -= deviation
                self._believed, self._first, self._end = self._shift, self.position, None
                self._overlapping = False
                return Placed()
            self._overlapping = True
        if not self._overlapping:
            return Placed()
        # Until the place is reached at which the sound was before: just there, and not within the tolerance.
        drop = min(max(-deviation, 0.0), length)
        self._overlapping = drop == length
        self.dropped += drop
        return Placed(drop=drop)

    def _is_behind_end(self, at: float) -> bool:
        """Whether a place lies behind the stated end, which was not reached yet: else the statement is out of date."""
        end, slack = self._end, BEHIND_END_SECONDS
        return end is not None and at > end + slack and self.position < end - slack


Kind = TypeVar("Kind")
Sound = tuple[Kind, float | None, float]  # and the second at which it begins, if that is known, and its length


def confirmed(sounds: Iterable[Sound[Kind]]) -> Iterator[Sound[Kind]]:
    """The same sounds; the seconds of some are taken away that lie far ahead of the sound before.

    That is so where the clock soon goes on as if there had been no gap. To know it, what follows a long gap is held
    for `CONFIRMING_SECONDS`.
    """
    held: list[Sound[Kind]] = []
    waiting, expected = 0.0, None  # seconds that are held, and the second at which what was before them ends
    for sound in sounds:
        own, second, length = sound
        ahead = 0.0 if second is None or expected is None else second - expected - waiting
        if held and second is not None and abs(ahead) <= SUSPECT_SECONDS / 2:
            yield from ((own, None, length) for own, _, length in held)
            held, waiting = [], 0.0
        elif held or ahead > SUSPECT_SECONDS:
            held.append(sound)
            waiting += length
            if waiting < CONFIRMING_SECONDS:
                continue
            yield from held[:-1]
            held, waiting = [], 0.0
        yield own, second, length
        if second is not None:
            expected = second + length
        elif expected is not None:
            expected += length
    yield from held

"""Which part of a recording is read: one of its audio tracks, from a second on, for so many seconds."""

import math
import re
from dataclasses import dataclass

from fastslm.errors import OptionError

CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d*)?|\.\d+)")
Seconds = float | str  # 90, or as a clock has them: "1:30", "0:01:30.5"


@dataclass(frozen=True)
class Part:
    """A part of a recording.

    Attributes:
        track: number of the audio track, from 1 on; `None` is the one that FFmpeg thinks best.
        start: seconds of the recording's clock at which it begins.
        duration: its seconds; `None` is all that follows.
    """

    track: int | None = None
    start: float = 0.0
    duration: float | None = None

    @classmethod
    def of(cls, track: int | None = None, start: Seconds | None = None, duration: Seconds | None = None) -> "Part":
        """A part as callers name it.

        Raises:
            OptionError: a track that is no number from 1 on, a start before 0, or a duration that is not positive.
        """
        if track is not None and (isinstance(track, bool) or not isinstance(track, int) or track < 1):
            raise OptionError(f"The track is {track!r}, a number from 1 on is allowed: 1 is the first audio track.")
        begin = 0.0 if start is None else seconds_of(start, "start")
        length = None if duration is None else seconds_of(duration, "duration")
        if length == 0:
            raise OptionError("The duration is 0, more is needed: leave it out to read to the end.")
        return cls(track, begin, length)

    @property
    def end(self) -> float:
        """Second at which it ends at the latest."""
        return math.inf if self.duration is None else self.start + self.duration

    def seconds_of(self, total: float | None) -> float | None:
        """How long it is in a recording of so many seconds, `None` where that is not known."""
        return None if total is None else max(0.0, min(total, self.end) - self.start)

    def refuse_of_memory(self, name: str) -> None:
        """Raise if anything but the whole was asked of a speech memory, which is read as it is.

        Raises:
            OptionError: it was.
        """
        if self != WHOLE:
            raise OptionError(
                f"A track, a start or a duration was asked of {name}, a speech memory: leave it out, or give the "
                "recording."
            )


WHOLE = Part()


def seconds_of(value: Seconds, what: str) -> float:
    """Seconds of a number, or of a text such as `90`, `1:30` or `1:01:30.5`.

    Raises:
        OptionError: it is neither, negative, or not finite.
    """
    if isinstance(value, str):
        match = CLOCK.fullmatch(value.strip())
        seconds = (
            sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True))
            if match
            else math.nan
        )
    else:
        seconds = math.nan if isinstance(value, bool) or not hasattr(value, "__float__") else float(value)
    if not 0 <= seconds < math.inf:
        raise OptionError(
            f"The {what} is {value!r}, seconds or H:MM:SS from 0 on are allowed: give it as 90, 1:30 or 0:01:30."
        )
    return seconds

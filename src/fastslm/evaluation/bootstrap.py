"""How sure a figure is: one percentile bootstrap over clips, for every figure of every suite.

A figure is a function of sums over clips (errors over words, say). A clip is drawn whole, with all that was asked about
it, since what one speaker says is not independent of itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0


def ratio(sums: np.ndarray) -> np.ndarray:
    """(…, 2) → (…): the first over the second, NaN where the second is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


@dataclass(frozen=True, eq=False)
class Measure:
    """A figure of a corpus.

    Attributes:
        clips: names of the clips, in the order of `parts`.
        parts: (clips, parts), what each clip adds to the sums.
        samples: how many answers the figure is of.
        of: sums (…, parts) → figures (…), NaN where there is none.
    """

    clips: tuple[str, ...]
    parts: np.ndarray
    samples: int
    of: Callable[[np.ndarray], np.ndarray] = ratio

    @property
    def value(self) -> float | None:
        """The figure of all clips, `None` where there is none."""
        return _number(self.of(self.parts.sum(0)))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, the same every time."""
        return _percentiles(self.of(self._resampled()))

    def _resampled(self) -> np.ndarray:
        return _draws(len(self.clips)) @ self.parts


def measure(
    rows: Iterable[tuple[str, Sequence[float]]],
    of: Callable[[np.ndarray], np.ndarray] = ratio,
    samples: int | None = None,
) -> Measure:
    """A measure of answers: of each, the clip that it belongs to, and what it adds to the sums.

    samples: how many of them the figure is of, by default all.
    """
    sums: dict[str, np.ndarray] = {}
    count = 0
    for clip, parts in rows:
        added = np.asarray(parts, dtype=np.float64)
        sums[clip] = sums[clip] + added if clip in sums else added
        count += 1
    return Measure(tuple(sums), np.array(list(sums.values())), count if samples is None else samples, of)


def difference(first: Measure, second: Measure) -> tuple[float | None, tuple[float, float] | None]:
    """Second less first, and its 95 % interval when both are drawn with the same clips.

    The measures are of the same clips, in any order.
    """
    position = {clip: index for index, clip in enumerate(second.clips)}
    order = [position[clip] for clip in first.clips]
    paired = Measure(first.clips, second.parts[order], second.samples, second.of)
    if first.value is None or paired.value is None:
        return None, None
    drawn = paired.of(paired._resampled()) - first.of(first._resampled())
    return paired.value - first.value, _percentiles(drawn)


@lru_cache(maxsize=4)
def _draws(clips: int) -> np.ndarray:
    """(resamples, clips): how often each resample has each clip."""
    drawn = np.random.default_rng(SEED).integers(clips, size=(RESAMPLES, clips))
    return np.stack([np.bincount(row, minlength=clips) for row in drawn]).astype(np.float64)


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    # A resample can miss all the clips that the figure is of.
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, INTERVAL)
    return float(low), float(high)

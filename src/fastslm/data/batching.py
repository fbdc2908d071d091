"""Batches of clips of about the same duration, in an order that a seed decides, resumable at any clip (ours).

A batch costs as much as its longest clip in every row, so clips are sorted into buckets by duration and batched within
them. The order of batches is a function of (seed, epoch) alone: processes share out each batch, workers only fetch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastslm.data.mixture import epoch_indices
from fastslm.errors import ManifestError, OptionError

# Rows that `MixedBatches` draws at once: shares are exact in every so many, to a thousandth.
ROUND_ROWS = 1000


class Sample(NamedTuple):
    """One clip of a batch, as a data set is asked for it.

    Attributes:
        index: of the clip.
        epoch: which its augmentation is drawn from.
        resume: the position from which to go on once the sample's batch is done.
    """

    index: int
    epoch: int
    resume: int


@dataclass(frozen=True)
class Batching:
    """How batches are made, checked once.

    Attributes:
        max_seconds: of a batch as it is padded: its clips times the longest.
        max_clips: of a batch.
        buckets: how many groups of durations; 1 is no grouping.
    """

    max_seconds: float
    max_clips: int = 64
    buckets: int = 10

    def __post_init__(self) -> None:
        if not (self.max_seconds > 0 and self.max_clips >= 1 and self.buckets >= 1):
            raise OptionError(
                f"Batches of {self.max_seconds} s, {self.max_clips} clips and {self.buckets} buckets are not possible: "
                "give more than 0 s, and at least 1 of the others."
            )

    def epoch(self, durations: Sequence[float], seed: int, epoch: int) -> list[list[int]]:
        """All batches of an epoch, every clip in exactly one: indices into `durations` (seconds).

        Raises:
            ManifestError: a clip is longer than a batch may be.
        """
        seconds = np.asarray(durations, dtype=np.float64)
        if seconds.size and seconds.max() > self.max_seconds:
            raise ManifestError(
                f"Clip {int(seconds.argmax())} lasts {seconds.max():.1f} s, and a batch {self.max_seconds:.1f} s; "
                "allow longer batches, or leave such clips out."
            )
        rng = np.random.default_rng([seed, epoch])
        # Shuffled before the stable sort: clips of one duration, at a bucket's edge, do not meet the same ones always.
        shuffled = rng.permutation(len(seconds))
        by_duration = shuffled[np.argsort(seconds[shuffled], kind="stable")]
        batches: list[list[int]] = []
        for bucket in np.array_split(by_duration, min(self.buckets, max(1, len(seconds)))):
            batches += self._cut(bucket[rng.permutation(len(bucket))], seconds)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, bucket: np.ndarray, seconds: np.ndarray) -> Iterator[list[int]]:
        batch: list[int] = []
        longest = 0.0
        for index in bucket.tolist():
            longest_then = max(longest, float(seconds[index]))
            if batch and (len(batch) == self.max_clips or (len(batch) + 1) * longest_then > self.max_seconds):
                yield batch
                batch, longest_then = [], float(seconds[index])
            batch, longest = [*batch, index], longest_then
        if batch:
            yield batch


class DurationBatches:
    """Batches epoch after epoch, without end: a `batch_sampler` for torch's DataLoader.

    The state is (epoch, position), the position counting clips of all processes. A loader fetches ahead of the
    training, so what belongs in a checkpoint is not how far this object is but `Sample.resume` of the last batch
    trained on.
    Resumed anywhere, even inside a batch, what follows is what would have followed.
    """

    def __init__(self, durations: Sequence[float], batching: Batching, seed: int, *, rank: int = 0, processes: int = 1):
        """Batches for one of several processes: every `processes`-th clip of each batch from the `rank`-th on.

        A batch with fewer clips than processes leaves some of these an empty list, so that all count the same steps.
        """
        if not 0 <= rank < processes:
            raise OptionError(f"Process {rank} of {processes} is not possible: ranks count from 0 below the processes.")
        self.durations, self.batching, self.seed = durations, batching, seed
        self.rank, self.processes = rank, processes
        self.epoch = self.position = 0

    def state_dict(self, sample: Sample | None = None) -> dict[str, int]:
        """Where to go on: after the batch of `sample`, or where this object was told to start."""
        if sample is None:
            return {"epoch": self.epoch, "position": self.position}
        return {"epoch": sample.epoch, "position": sample.resume}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` says.

        Raises:
            OptionError: no epoch has such a position.
        """
        epoch, position = state["epoch"], state["position"]
        if epoch < 0 or not 0 <= position <= len(self.durations):
            raise OptionError(
                f"Epoch {epoch} has no position {position} in {len(self.durations)} clips: the state belongs to "
                "another manifest; start anew or give that one."
            )
        self.epoch, self.position = epoch, position

    def __iter__(self) -> Iterator[list[Sample]]:
        """This process's share of each batch, from the state on."""
        epoch, skip = self.epoch, self.position
        while len(self.durations):
            end = 0
            for batch in self.batching.epoch(self.durations, self.seed, epoch):
                begin, end = end, end + len(batch)
                if end <= skip:
                    continue
                rest = batch[max(0, skip - begin) :]
                yield [Sample(index, epoch, end) for index in rest[self.rank :: self.processes]]
            epoch, skip = epoch + 1, 0


class MixedBatches:
    """Batches of several manifests' rows, by shares and of about the same duration each.

    Rows are drawn in rounds of `round_rows`, exactly by their shares, and each round is batched by duration. Which rows
    are in the `index`-th batch is a function of (seed, index), so a position is a number and nothing else is kept.

    Args:
        durations: of each source's rows, in seconds.
        weights: of the sources.
    """

    def __init__(
        self,
        durations: Sequence[Sequence[float]],
        weights: Sequence[float],
        batching: Batching,
        seed: int,
        round_rows: int = ROUND_ROWS,
    ):
        self.durations, self.weights, self.batching, self.seed = durations, weights, batching, seed
        self.round_rows = round_rows
        # How many batches the rounds up to each one have, and the batches of the round that was asked for last.
        self._ends: list[int] = []
        self._last: tuple[int, list[list[tuple[int, int]]]] = (-1, [])

    def batch(self, index: int) -> list[tuple[int, int]]:
        """The `index`-th batch: source and row of each of its rows."""
        while not self._ends or index >= self._ends[-1]:
            begun = self._ends[-1] if self._ends else 0
            self._ends.append(begun + len(self._round(len(self._ends))))
        number = next(number for number, end in enumerate(self._ends) if index < end)
        return self._round(number)[index - (self._ends[number - 1] if number else 0)]

    def _round(self, number: int) -> list[list[tuple[int, int]]]:
        if self._last[0] != number:
            sizes = [len(own) for own in self.durations]
            drawn = epoch_indices(sizes, self.weights, self.round_rows, self.seed, number).tolist()
            seconds = [self.durations[source][row] for source, row in drawn]
            batches = self.batching.epoch(seconds, self.seed, number)
            self._last = number, [[(drawn[i][0], drawn[i][1]) for i in batch] for batch in batches]
        return self._last[1]

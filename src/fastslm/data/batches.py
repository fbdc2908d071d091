"""Which rows a training step sees: sources mixed by shares, batches of rows of like length, resumable at any batch.

Rows are drawn in rounds of a few thousand, exactly by the sources' shares. A round is sorted into buckets by duration,
and full batches are cut from each; what is left over joins the next round, so that every batch is full, and each of
several processes has a row of it. All of it is a function of (seed, round): a position is a few numbers.

Lhotse's `DynamicBucketingSampler` was not used here because its batches may exceed `max_duration` by a cut, its state
belongs to one number of processes, the last batches of an epoch are partial or duplicated, and it resumes by drawing
all batches of the epoch again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS, window_count
from fastslm.data.rows import Row, Rows
from fastslm.errors import ManifestError, OptionError

ROUND_ROWS = 4096


@dataclass(frozen=True)
class Source:
    """Rows, and how much they weigh beside the other sources: 0.5 beside 1 is a third of all rows."""

    rows: Rows
    share: float = 1.0


class RowBatches(Iterator[list[Row]]):
    """The batches of one process, without end.

    A batch is one of all processes together: each takes every `world_size`-th of its rows, so that a step trains on
    the same rows whatever the number of processes.

    Args:
        sources: at least one.
        batch_seconds: the most that a batch may last as it is padded: its rows times the longest, in whole windows of
            30 s (`Row.batch_seconds`).
        batch_rows: the most rows of a batch.
        seed: decides every order.
        rank, world_size: this process among how many.
        buckets: groups of durations that a round is sorted into.
        drop_longer_than: seconds; longer rows are left out, and counted in `dropped`.

    Raises:
        OptionError: neither bound is given, a bound cannot hold the longest row once for each process, or a share, a
            rank or a number of buckets is out of range.
        ManifestError: a source has no row that is short enough.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_seconds: float | None = None,
        batch_rows: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buckets: int = 10,
        drop_longer_than: float | None = None,
    ):
        self.sources = list(sources)
        self.batch_seconds, self.batch_rows = batch_seconds, batch_rows
        self.seed, self.rank, self.world_size, self.buckets = seed, rank, world_size, buckets
        self.limit = float("inf") if drop_longer_than is None else drop_longer_than
        self._check()
        self._epochs: dict[tuple[int, int], Sequence[Row]] = {}
        # How many rows of an epoch are trained on, and how many are too long.
        lengths = [len(self._epoch(source, 0)) for source in range(len(self.sources))]
        self.dropped = sum(int((own.rows.durations() > self.limit).sum()) for own in self.sources)
        self.epoch_rows = sum(lengths) - self.dropped
        # An epoch is so many whole rounds, as nearly as it can be divided.
        self._round_rows = -(-self.epoch_rows // -(-self.epoch_rows // ROUND_ROWS))
        self._state: dict[str, Any] = {
            "round": 0,
            "batch": 0,
            "rows": 0,
            "places": [[0, 0] for _ in self.sources],
            "drawn": [0] * len(self.sources),
            "carried": [],
            "sizes": lengths,
        }
        self._batches: list[list[Row]] | None = None
        self._next: dict[str, Any] = {}

    def _check(self) -> None:
        if not self.sources:
            raise OptionError("There is nothing to train on: name at least one source of rows.")
        if self.batch_seconds is None and self.batch_rows is None:
            raise OptionError("A batch has no bound: give batch_seconds or batch_rows.")
        if not 0 <= self.rank < self.world_size:
            raise OptionError(
                f"Process {self.rank} of {self.world_size} is not possible: ranks count from 0 below the processes."
            )
        if self.buckets < 1:
            raise OptionError(f"{self.buckets} buckets are not possible: give 1 or more.")
        for source in self.sources:
            if not 0 < source.share < float("inf"):
                raise OptionError(
                    f"{source.rows.name}: a share of {source.share} is not possible: give more than 0, or leave the "
                    "source out."
                )
            durations = source.rows.durations()
            if not (durations <= self.limit).any():
                raise ManifestError(
                    f"{source.rows.name}: every row is longer than the {self.limit:g} s that are allowed; raise "
                    "max_seconds, or leave the source out."
                )
        self._check_room()

    def _check_room(self) -> None:
        """Make sure that the longest row fits a batch, once for each process."""
        shared = "" if self.world_size == 1 else f", and {self.world_size} processes take at least one each"
        if self.batch_rows is not None and self.batch_rows < self.world_size:
            raise OptionError(
                f"batch_rows is {self.batch_rows}{shared or ', and a batch holds at least 1'}: raise it to at least "
                f"{self.world_size}."
            )
        if self.batch_seconds is None:
            return
        kept = [own.rows.durations() for own in self.sources]
        longest = [float(seconds[seconds <= self.limit].max()) for seconds in kept]
        which = int(np.argmax(longest))
        name = self.sources[which].rows.name
        # In whole windows, as `Row.batch_seconds` counts them.
        needed = window_count(round(longest[which] * SAMPLE_RATE)) * WINDOW_SECONDS
        if needed * self.world_size > self.batch_seconds:
            raise OptionError(
                f"batch_seconds is {self.batch_seconds:g}, but the longest row of {name} takes "
                f"{needed} s, whole windows counted{shared}: raise batch_seconds to at least "
                f"{needed * self.world_size}, or leave long rows out by max_seconds."
            )

    @property
    def epochs(self) -> float:
        """How often as many rows as all sources hold together were handed out, to all processes."""
        return self._state["rows"] / self.epoch_rows

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is, the same in every process. It is plain JSON."""
        return {**self._state, "places": [list(place) for place in self._state["places"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` says, with any number of processes.

        Raises:
            OptionError: it belongs to other data.
        """
        if state["sizes"] != self._state["sizes"]:
            raise OptionError(
                f"The state belongs to sources of {state['sizes']} rows, and these have {self._state['sizes']}: give "
                "the data of the run that is to go on, or start anew."
            )
        self._state = {**state, "places": [list(place) for place in state["places"]]}
        self._batches = None

    def __next__(self) -> list[Row]:
        """This process's rows of the next batch, the longest first."""
        while self._batches is None or self._state["batch"] >= len(self._batches):
            if self._batches is not None:
                self._state = {**self._next, "rows": self._state["rows"]}
            self._batches, self._next = self._round(self._state)
        batch = self._batches[self._state["batch"]]
        self._state = {
            **self._state,
            "batch": self._state["batch"] + 1,
            "rows": self._state["rows"] + len(batch),
        }
        return batch[self.rank :: self.world_size]

    def _epoch(self, source: int, number: int) -> Sequence[Row]:
        if (source, number) not in self._epochs:
            for old in [key for key in self._epochs if key[0] == source and key[1] < number - 1]:
                del self._epochs[old]
            self._epochs[source, number] = self.sources[source].rows.epoch([self.seed, source], number)
        return self._epochs[source, number]

    def _round(self, state: dict[str, Any]) -> tuple[list[list[Row]], dict[str, Any]]:
        """The batches of the round that begins at `state`, and the state that the next one begins at."""
        places = [list(place) for place in state["places"]]
        drawn = list(state["drawn"])
        rows = [(tuple(key), self._epoch(key[0], key[1])[key[2]]) for key in state["carried"]]
        for _ in range(self._round_rows):
            source = self._next_source(drawn)
            drawn[source] += 1
            rows.append(self._draw(source, places[source]))
        rng = np.random.default_rng([self.seed, len(self.sources), state["round"]])
        batches, left = self._cut([rows[i] for i in rng.permutation(len(rows))], rng)
        after = {
            **state,
            "round": state["round"] + 1,
            "batch": 0,
            "places": places,
            "drawn": drawn,
            "carried": [list(key) for key, _ in left],
        }
        return batches, after

    def _next_source(self, drawn: Sequence[int]) -> int:
        """The source that is the furthest behind its share."""
        total = sum(source.share for source in self.sources)
        behind = [
            source.share / total * (sum(drawn) + 1) - own for source, own in zip(self.sources, drawn, strict=True)
        ]
        return int(np.argmax(behind))

    def _draw(self, source: int, place: list[int]) -> tuple[tuple[int, int, int], Row]:
        """The next row of a source that is short enough. `place` (epoch, position) moves behind it."""
        while True:
            epoch, position = place
            rows = self._epoch(source, epoch)
            if position >= len(rows):
                place[:] = [epoch + 1, 0]
                continue
            place[1] += 1
            row = rows[position]
            if (row.seconds if row.windows else row.batch_seconds) <= self.limit:
                return (source, epoch, position), row

    def _cut(
        self, rows: list[tuple[tuple[int, int, int], Row]], rng: np.random.Generator
    ) -> tuple[list[list[Row]], list[tuple[tuple[int, int, int], Row]]]:
        """Full batches of shuffled rows, in random order, and the rows that fill none."""
        # Stable: rows of one length stay shuffled. From the longest down, so that a bucket's rest joins shorter rows.
        rows = sorted(rows, key=lambda keyed: (keyed[1].batch_seconds, keyed[1].seconds), reverse=True)
        batches: list[list[Row]] = []
        batch: list[tuple[tuple[int, int, int], Row]] = []
        longest = 0.0
        for bucket in np.array_split(np.arange(len(rows)), min(self.buckets, len(rows))):
            for index in rng.permutation(bucket):
                row = rows[index][1]
                if batch and not self._fits(len(batch) + 1, max(longest, row.batch_seconds)):
                    batches.append([own for _, own in batch])
                    batch, longest = [], 0.0
                batch.append(rows[index])
                longest = max(longest, row.batch_seconds)
        if batch and not self._fits(len(batch) + 1, longest):
            batches.append([own for _, own in batch])
            batch = []
        for own in batches:
            own.sort(key=lambda row: row.seconds, reverse=True)
        return [batches[i] for i in rng.permutation(len(batches))], batch

    def _fits(self, rows: int, longest: float) -> bool:
        in_time = self.batch_seconds is None or rows * longest <= self.batch_seconds
        return in_time and (self.batch_rows is None or rows <= self.batch_rows)

"""Batches: within their bound, the same on any number of processes, and resumable at any of them."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE, window_count
from fastslm.data import batches as module
from fastslm.data.batches import RowBatches, Source
from fastslm.data.rows import InOrder, Row
from fastslm.errors import ManifestError, OptionError


class Made:
    """Rows of given lengths, without any sound."""

    def __init__(self, seconds: Sequence[float], name: str = "made"):
        self.name = name
        self.rows = [
            Row(f"{name}{i}", "transcribe", None, "a", "en", own, window_count(round(own * SAMPLE_RATE)), name)
            for i, own in enumerate(seconds)
        ]

    def durations(self) -> np.ndarray:
        return np.array([row.seconds for row in self.rows])

    def epoch(self, seed: Sequence[int], number: int) -> Sequence[Row]:
        return InOrder(self.rows, np.random.default_rng([*seed, number]).permutation(len(self.rows)), number)


def lengths(count: int, seed: int = 0, most: float = 95.0) -> list[float]:
    return np.random.default_rng(seed).uniform(0.5, most, count).round(3).tolist()


def taken(batches: RowBatches, count: int) -> list[list[tuple[str, int]]]:
    return [[(row.id, row.epoch) for row in batch] for batch in islice(batches, count)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 200), min_size=1, max_size=60), st.floats(0, 600), st.integers(1, 9), st.integers(1, 12))
def test_a_batch_is_never_longer_than_its_bound_and_never_has_too_few_rows_for_the_processes(
    seconds: list[float], more: float, rows: int, buckets: int
) -> None:
    needed = max(row.batch_seconds for row in Made(seconds).rows)
    bound = 2 * needed + more
    batches = RowBatches(
        [Source(Made(seconds))], batch_seconds=bound, batch_rows=rows + 1, world_size=2, buckets=buckets
    )
    other = RowBatches(
        [Source(Made(seconds))], batch_seconds=bound, batch_rows=rows + 1, world_size=2, rank=1, buckets=buckets
    )
    for one, two in zip(islice(batches, 12), islice(other, 12), strict=True):
        both = [*one, *two]
        assert len(both) * max(row.batch_seconds for row in both) <= bound
        assert len(both) <= rows + 1
        assert min(len(one), len(two)) >= 1
        assert abs(len(one) - len(two)) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_step_has_the_same_rows_whatever_the_number_of_processes(world_size: int) -> None:
    sources = [Source(Made(lengths(70), "a"), 2.0), Source(Made(lengths(11, 1), "b"), 1.0)]
    alone = taken(RowBatches(sources, batch_seconds=600, seed=5), 40)
    shares = [
        taken(RowBatches(sources, batch_seconds=600, seed=5, rank=rank, world_size=world_size), 40)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        assert Counter(whole) == Counter(row for share in shares for row in share[step])


def test_a_step_costs_each_process_about_as_much() -> None:
    batches = [RowBatches([Source(Made(lengths(400)))], batch_seconds=1200, rank=i, world_size=2) for i in range(2)]
    costs = [[sum(row.windows for row in own) for own in islice(one, 30)] for one in batches]
    assert sum(costs[0]) == pytest.approx(sum(costs[1]), rel=0.1)


@given(st.integers(0, 60))
@settings(max_examples=8, deadline=None)
def test_resumed_after_any_batch_on_any_number_of_processes_the_next_ones_are_those_that_would_have_come(
    done: int,
) -> None:
    sources = [Source(Made(lengths(50), "a"), 0.3), Source(Made(lengths(9, 1), "b"), 0.7)]
    first = RowBatches(sources, batch_rows=4, seed=3)
    taken(first, done)
    state = json.loads(json.dumps(first.state_dict()))
    wanted = taken(first, 25)
    again = RowBatches(sources, batch_rows=4, seed=3)
    again.load_state_dict(state)
    assert taken(again, 25) == wanted
    shared = [RowBatches(sources, batch_rows=4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for one in shared:
        one.load_state_dict(state)
    parts = [taken(one, 25) for one in shared]
    for step, whole in enumerate(wanted):
        assert Counter(whole) == Counter(parts[0][step] + parts[1][step])


def test_resumed_across_many_rounds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_ROWS", 16)
    sources = [Source(Made(lengths(50)))]
    first = RowBatches(sources, batch_rows=5)
    taken(first, 37)
    again = RowBatches(sources, batch_rows=5)
    again.load_state_dict(first.state_dict())
    assert first.state_dict()["round"] > 3
    assert taken(again, 30) == taken(first, 30)


def test_every_row_comes_once_before_any_comes_again_and_epochs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = RowBatches([Source(Made(lengths(40)))], batch_rows=4)
    epochs = [taken(batches, 10), taken(batches, 10)]
    for number, own in enumerate(epochs):
        rows = [row for batch in own for row in batch]
        assert len({name for name, _ in rows}) == 40
        assert {epoch for _, epoch in rows} == {number}
    assert [[name for name, _ in batch] for batch in epochs[0]] != [[name for name, _ in batch] for batch in epochs[1]]
    assert batches.epochs == 2.0
    # In rounds that are smaller than the source too.
    monkeypatch.setattr(module, "ROUND_ROWS", 12)
    small = RowBatches([Source(Made(lengths(40)))], batch_rows=4)
    assert max(Counter(name for batch in taken(small, 10) for name, _ in batch).values()) == 1


def test_seeds_give_other_orders() -> None:
    found = [taken(RowBatches([Source(Made(lengths(30)))], batch_rows=5, seed=seed), 6) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_rows_of_a_batch_are_of_like_length() -> None:
    batches = RowBatches([Source(Made(lengths(800)))], batch_rows=8, buckets=10)
    spread = [max(r.seconds for r in own) - min(r.seconds for r in own) for own in islice(batches, 90)]
    assert np.median(spread) < 12, "a tenth of 95 s, where rows by chance are 75 s apart"


@pytest.mark.parametrize("shares", [(0.5, 0.5), (3.0, 1.0), (0.05, 0.95)])
def test_sources_have_their_shares_however_many_rows_they_hold(shares: tuple[float, float]) -> None:
    sources = [Source(Made(lengths(30), "a"), shares[0]), Source(Made(lengths(300, 1), "b"), shares[1])]
    rows = [name[0] for batch in taken(RowBatches(sources, batch_rows=6), 220) for name, _ in batch]
    assert rows.count("a") / len(rows) == pytest.approx(shares[0] / sum(shares), abs=0.02)


def test_long_rows_are_left_out_on_request_and_counted() -> None:
    seconds = [10.0] * 10 + [40.0, 50.0]
    batches = RowBatches([Source(Made(seconds))], batch_seconds=60, drop_longer_than=30)
    assert batches.dropped == 2
    assert batches.epoch_rows == 10
    assert {row.seconds for batch in islice(batches, 20) for row in batch} == {10.0}


def test_a_batch_of_more_rows_than_there_are_is_filled_by_later_epochs() -> None:
    batches = taken(RowBatches([Source(Made([5.0] * 3))], batch_rows=8), 3)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert len({row for batch in batches for row in batch}) == 24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_seconds": 60}, r"longest row of made takes 90 s, whole windows counted: .* at least 90, or leave"),
        ({"batch_seconds": 100, "world_size": 2}, r"90 s, .*, and 2 processes take at least one each: .* least 180"),
        ({"batch_rows": 1, "world_size": 2}, r"batch_rows is 1, and 2 processes take .*: raise it to at least 2"),
        ({"batch_rows": 0}, "raise it to at least 1"),
        ({}, "give batch_seconds or batch_rows"),
        ({"batch_rows": 2, "rank": 2, "world_size": 2}, "Process 2 of 2 is not possible"),
        ({"batch_rows": 2, "buckets": 0}, "0 buckets are not possible"),
    ],
)
def test_a_batch_that_cannot_hold_its_rows_is_one_sentence_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        RowBatches([Source(Made([3.0, 61.0]))], **options)


def test_sources_that_give_nothing_are_one_sentence() -> None:
    with pytest.raises(OptionError, match="name at least one source"):
        RowBatches([], batch_rows=2)
    with pytest.raises(OptionError, match=r"made: a share of 0\.0"):
        RowBatches([Source(Made([3.0]), 0.0)], batch_rows=2)
    with pytest.raises(ManifestError, match="made: every row is longer than the 2 s"):
        RowBatches([Source(Made([3.0]))], batch_rows=2, drop_longer_than=2)


def test_the_state_of_other_data_is_refused() -> None:
    state = RowBatches([Source(Made([3.0] * 4))], batch_rows=2).state_dict()
    with pytest.raises(OptionError, match=r"sources of \[4\] rows, and these have \[5\]"):
        RowBatches([Source(Made([3.0] * 5))], batch_rows=2).load_state_dict(state)

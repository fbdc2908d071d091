"""Batching: every clip once an epoch, within the budget, in an order that only the seed decides, from any clip on."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastslm.data.batching import Batching, DurationBatches, MixedBatches, Sample
from fastslm.errors import ManifestError, OptionError

DURATIONS = st.lists(st.floats(0.1, 30.0), min_size=1, max_size=60)
BATCHINGS = st.builds(
    Batching, max_seconds=st.floats(30.0, 200.0), max_clips=st.integers(1, 12), buckets=st.integers(1, 80)
)
SEEDS = st.integers(0, 2**31)


@settings(deadline=None)
@given(durations=DURATIONS, batching=BATCHINGS, seed=SEEDS, epoch=st.integers(0, 5))
def test_every_clip_is_in_exactly_one_batch_of_an_epoch(durations: Any, batching: Any, seed: int, epoch: int) -> None:
    batches = batching.epoch(durations, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(durations)))
    assert all(batches)


@settings(deadline=None)
@given(durations=DURATIONS, batching=BATCHINGS, seed=SEEDS)
def test_no_batch_is_longer_padded_or_larger_than_allowed(durations: Any, batching: Any, seed: int) -> None:
    for batch in batching.epoch(durations, seed, 0):
        assert len(batch) * max(durations[i] for i in batch) <= batching.max_seconds + 1e-9
        assert len(batch) <= batching.max_clips


@settings(deadline=None)
@given(durations=DURATIONS, batching=BATCHINGS, seed=SEEDS, data=st.data())
def test_resumed_at_any_clip_what_follows_is_what_would_have_followed(
    durations: Any, batching: Any, seed: int, data: Any
) -> None:
    position = data.draw(st.integers(0, len(durations)))
    straight = DurationBatches(durations, batching, seed)
    resumed = DurationBatches(durations, batching, seed)
    resumed.load_state_dict({"epoch": 0, "position": position})
    count = 2 * len(durations)

    def indices(batches: DurationBatches, wanted: int) -> list[tuple[int, int]]:
        samples = ((s.epoch, s.index) for batch in batches for s in batch)
        return list(islice(samples, wanted))

    assert indices(straight, count)[position:] == indices(resumed, count - position)


@settings(deadline=None)
@given(durations=DURATIONS, batching=BATCHINGS, seed=SEEDS, steps=st.integers(1, 30))
def test_the_state_after_a_batch_leads_to_the_next(durations: Any, batching: Any, seed: int, steps: int) -> None:
    seen = list(islice(DurationBatches(durations, batching, seed), steps + 1))
    resumed = DurationBatches(durations, batching, seed)
    resumed.load_state_dict(resumed.state_dict(seen[-2][-1]))
    assert next(iter(resumed)) == seen[-1]


@settings(deadline=None)
@given(durations=DURATIONS, batching=BATCHINGS, seed=SEEDS, processes=st.integers(1, 5))
def test_the_shares_of_processes_make_up_the_batches_of_one(
    durations: Any, batching: Any, seed: int, processes: int
) -> None:
    alone = list(islice(DurationBatches(durations, batching, seed), 20))
    shared = [
        list(islice(DurationBatches(durations, batching, seed, rank=rank, processes=processes), 20))
        for rank in range(processes)
    ]
    for step, batch in enumerate(alone):
        joined: list[Sample | None] = [None] * len(batch)
        for rank in range(processes):
            joined[rank::processes] = shared[rank][step]
        assert joined == batch


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_with_workers_gives_the_same_as_one_without() -> None:
    durations = np.random.default_rng(0).uniform(1, 20, 50).tolist()

    class Keys:
        """A data set that answers with what it is asked for."""

        def __getitem__(self, sample: Sample) -> Sample:
            return sample

    def first(workers: int) -> list[list[Sample]]:
        batches = DurationBatches(durations, Batching(60.0), seed=3)
        loader = DataLoader(Keys(), batch_sampler=batches, num_workers=workers, collate_fn=list)  # type: ignore[arg-type]
        return list(islice(loader, 12))

    alone = first(0)
    assert first(2) == alone
    # However far a loader has fetched, the last batch trained on says where to go on.
    resumed = DurationBatches(durations, Batching(60.0), seed=3)
    resumed.load_state_dict(resumed.state_dict(alone[4][0]))
    assert list(islice(resumed, 7)) == alone[5:]


def test_epochs_and_seeds_differ_in_order() -> None:
    durations = [1.0 + i / 10 for i in range(40)]
    batching = Batching(30.0)
    assert batching.epoch(durations, 0, 0) != batching.epoch(durations, 0, 1)
    assert batching.epoch(durations, 0, 0) != batching.epoch(durations, 1, 0)


def test_buckets_save_most_of_the_padding() -> None:
    durations = np.random.default_rng(0).lognormal(1.5, 0.7, 2000).clip(0.5, 30)

    def padding(buckets: int) -> float:
        batches = Batching(120.0, buckets=buckets).epoch(durations.tolist(), 0, 0)
        return sum(len(b) * durations[b].max() - durations[b].sum() for b in batches) / durations.sum()

    # Ten buckets of such durations leave a tenth of padding, where none leave more than a clip's length again.
    assert padding(1) > 0.8
    assert padding(10) < 0.25 * padding(1)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_clip_does_not_always_meet_the_same_ones(seed: int) -> None:
    durations = [5.0] * 40
    batching = Batching(20.0, buckets=4)
    neighbours = {frozenset(b) for e in range(6) for b in batching.epoch(durations, seed, e) if 0 in b}
    assert len(neighbours) > 1


def test_what_cannot_be_batched_is_one_sentence() -> None:
    with pytest.raises(ManifestError, match=r"Clip 1 lasts 31\.0 s, and a batch 30\.0 s"):
        Batching(30.0).epoch([3.0, 31.0], 0, 0)
    for wrong in ({"max_seconds": 0.0}, {"max_seconds": 9.0, "max_clips": 0}, {"max_seconds": 9.0, "buckets": 0}):
        with pytest.raises(OptionError, match="are not possible"):
            Batching(**wrong)
    with pytest.raises(OptionError, match="Process 2 of 2"):
        DurationBatches([1.0], Batching(9.0), 0, rank=2, processes=2)
    with pytest.raises(OptionError, match="has no position 2 in 1 clips"):
        DurationBatches([1.0], Batching(9.0), 0).load_state_dict({"epoch": 0, "position": 2})


SOURCES = st.lists(st.lists(st.floats(0.1, 30.0), min_size=1, max_size=20), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(sources=SOURCES, batching=BATCHINGS, seed=SEEDS, indices=st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_a_mixed_batch_is_of_its_index_alone_and_within_the_budget(
    sources: Any, batching: Any, seed: int, indices: list[int]
) -> None:
    weights = [1.0 + i for i in range(len(sources))]
    mixed = MixedBatches(sources, weights, batching, seed, round_rows=24)
    for index in indices:
        batch = mixed.batch(index)
        assert batch == MixedBatches(sources, weights, batching, seed, round_rows=24).batch(index)
        assert 0 < len(batch) <= batching.max_clips
        assert len(batch) * max(sources[source][row] for source, row in batch) <= batching.max_seconds + 1e-9


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, batching=BATCHINGS)
def test_every_round_of_mixed_batches_has_the_exact_shares(seed: int, batching: Any) -> None:
    mixed = MixedBatches([[1.0, 9.0, 30.0], [2.0] * 30], [3, 1], batching, seed, round_rows=40)
    drawn: list[tuple[int, int]] = []
    index = 0
    while len(drawn) < 80:
        drawn += mixed.batch(index)
        index += 1
        if len(drawn) in (40, 80):
            assert sum(source == 0 for source, _ in drawn) == len(drawn) * 3 / 4
    assert len(drawn) == 80, "a round ends inside a batch"
    # The first source's three rows come 60 times in all, none before the others have come as often.
    assert [sum(row == (0, i) for row in drawn) for i in range(3)] == [20, 20, 20]
    assert len({row for row in drawn if row[0] == 1}) == 20

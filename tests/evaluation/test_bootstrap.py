"""Intervals and differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.evaluation.bootstrap import Measure, difference, measure

CLIPS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12)


def named(pairs: list[tuple[int, int]]) -> Measure:
    return measure((str(index), pair) for index, pair in enumerate(pairs))


@given(CLIPS)
def test_the_figure_is_a_ratio_of_sums_and_its_interval_holds_no_more_than_its_clips(pairs) -> None:
    own = named(pairs)
    assert own.value == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs))
    each = [a / b for a, b in pairs]
    assert own.interval is not None
    low, high = own.interval
    assert min(each) - 1e-9 <= low <= high <= max(each) + 1e-9


def test_the_interval_of_a_share_is_about_that_of_the_normal_approximation() -> None:
    own = named([(1, 1)] * 300 + [(0, 1)] * 100)
    assert own.interval is not None
    # 0.75 ± 1.96 × √(0.75 × 0.25 / 400) = 0.75 ± 0.042; a thousand resamples leave each end a few thousandths.
    assert own.interval == pytest.approx((0.708, 0.792), abs=0.01)


def test_answers_about_one_clip_are_drawn_together() -> None:
    apart = measure((str(index), (index % 2, 1)) for index in range(40))
    together = measure((str(index % 2), (index % 2, 1)) for index in range(40))
    assert apart.value == together.value == 0.5
    assert together.interval == (0.0, 1.0)
    assert apart.interval is not None
    assert apart.interval[0] > 0.3
    assert (apart.samples, together.samples) == (40, 40)


def test_the_difference_of_equals_is_exactly_nothing() -> None:
    pairs = [(1, 4), (0, 3), (2, 5)]
    assert difference(named(pairs), named(pairs)) == (0.0, (0.0, 0.0))


def test_pairing_shows_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 50, 200)
    first = measure((str(i), (int(e) + 2, 60)) for i, e in enumerate(hard))
    second = measure((str(i), (int(e), 60)) for i, e in reversed(list(enumerate(hard))))
    assert first.interval is not None
    assert second.interval is not None
    assert first.interval[0] < second.interval[1]
    value, interval = difference(first, second)
    assert value == pytest.approx(-2 / 60)
    assert interval == pytest.approx((-2 / 60, -2 / 60))


def test_a_figure_of_nothing_is_none() -> None:
    own = measure([("a", (0, 0)), ("b", (0, 0))], samples=0)
    assert (own.value, own.interval, own.samples) == (None, None, 0)
    assert difference(own, own) == (None, None)

"""Where a text says the same again and again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastslm.model.loops import COPIES, LOOP_TOKENS, PERIOD, RATIO, compression, repeated


@given(st.lists(st.integers(0, 50_000), unique=True, max_size=400))
def test_a_text_that_says_nothing_twice_has_no_loop(ids: list[int]) -> None:
    assert not repeated(ids).any()


@given(
    st.lists(st.integers(0, 9), max_size=20),
    st.lists(st.integers(100, 50_000), unique=True, min_size=1, max_size=PERIOD),
    st.integers(0, 20),
    st.lists(st.integers(10, 19), unique=True, max_size=9),
)
def test_a_loop_is_all_copies_but_the_first(before: list[int], phrase: list[int], more: int, after: list[int]) -> None:
    before = list(dict.fromkeys(before))
    copies = max(COPIES, -(-LOOP_TOKENS // len(phrase))) + more
    ids = [*before, *phrase * copies, *after]
    kept = [token for token, again in zip(ids, repeated(ids), strict=True) if not again]
    assert kept == [*before, *phrase, *after]


def test_a_word_said_five_times_is_no_loop() -> None:
    assert not repeated([1, 2, 3, *[7] * 5, 4, 5, 6]).any()
    assert not repeated([*[1, 2, 3, 4, 5] * 3, 6]).any()


def test_a_loop_that_changes_a_word_each_time_is_seen_by_its_compression() -> None:
    ids = [token for number in range(16) for token in (1, 2, 3, 4, 5, 6, 7, 1000 + number)]
    assert compression(np.array(ids)) > RATIO
    found = repeated(ids)
    assert found.any()
    assert not found[:8].any()


def test_what_stands_outside_a_varying_loop_is_kept() -> None:
    loop = [token for number in range(16) for token in (1, 2, 3, 4, 5, 6, 7, 1000 + number)]
    before = list(range(5000, 5256))
    assert not repeated([*before, *loop])[: len(before)].any()

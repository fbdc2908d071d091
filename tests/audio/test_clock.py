"""Where sound lies on one clock, whatever the timestamps do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio.clock import CONFIRMING_SECONDS, SUSPECT_SECONDS, TOLERANCE_SECONDS, Clock, Placed, confirmed

FRAME = 0.02


def _begun(end: float | None = None) -> Clock:
    clock = Clock()
    clock.begin(0.0, end)
    return clock


def _run(clock: Clock, first: float, count: int, length: float = FRAME) -> list[Placed]:
    return [clock.place(first + index * length, length) for index in range(count)]


@settings(deadline=None)
@given(
    origin=st.floats(-5, 90_000),
    shakes=st.lists(st.floats(-0.9 * TOLERANCE_SECONDS, 0.9 * TOLERANCE_SECONDS), min_size=1, max_size=300),
)
def test_jitter_within_the_tolerance_inserts_and_drops_nothing(origin: float, shakes: list[float]) -> None:
    clock = Clock()
    clock.begin(origin, None)
    for index, shake in enumerate(shakes):
        assert clock.place(origin + index * FRAME + shake, FRAME) == Placed()
    assert clock.position == pytest.approx(len(shakes) * FRAME)


@settings(deadline=None)
@given(lost=st.lists(st.integers(0, 30), min_size=1, max_size=100))
def test_however_many_packets_are_lost_sound_is_where_its_timestamp_says(lost: list[int]) -> None:
    clock, second = _begun(), 0.0
    for packets in lost:
        second += packets * FRAME
        clock.place(second, FRAME)
        second += FRAME
        assert abs(clock.position - second) <= TOLERANCE_SECONDS + 1e-9
    assert clock.gaps == pytest.approx(sum(lost) * FRAME - (second - clock.position) - (clock._first or 0))


def test_rounded_timestamps_of_hours_change_nothing() -> None:
    clock = _begun()
    for index in range(200_000):
        assert clock.place(round(index * 1024 / 44_100, 3), 1024 / 44_100) == Placed()


def test_what_overlaps_is_dropped_up_to_the_place_that_was_reached() -> None:
    clock = _begun()
    _run(clock, 0.0, 500)  # 10 s
    places = _run(clock, 6.99, 500)
    assert sum(place.drop for place in places) == pytest.approx(3.01)
    assert clock.position == pytest.approx(16.99)
    assert clock.dropped == pytest.approx(3.01)


@pytest.mark.parametrize("start", [0.0, 4.0])
def test_a_clock_that_begins_anew_is_no_overlap(start: float) -> None:
    clock = _begun()
    _run(clock, start, 500)
    assert set(_run(clock, start, 500)) == {Placed()}
    assert clock.dropped == 0
    assert clock.position == pytest.approx(start + 20)


def test_sound_that_comes_faster_than_its_timestamps_is_never_cut() -> None:
    clock = _begun()
    for index in range(5000):
        assert clock.place(index * FRAME * 0.99, FRAME).drop == 0


def test_a_timestamp_that_cannot_be_true_costs_nothing() -> None:
    for false in (5_000.0, 13.0, 4e9):  # behind the stated end, and where none is stated a century
        clock = _begun(end=11.0 if false < 1e9 else None)
        _run(clock, 0.0, 400)
        _run(clock, false, 10)
        _run(clock, 8.2, 90)
        assert clock.position == pytest.approx(10.0)
        assert clock.jumps == 1
        assert clock.dropped == 0


def test_a_stated_end_that_was_passed_is_believed_no_more() -> None:
    clock = _begun(end=2.0)
    _run(clock, 0.0, 500)
    assert clock.place(30.0, FRAME).gap == pytest.approx(20)


def test_sound_without_a_timestamp_follows_what_was_before() -> None:
    clock = _begun()
    clock.place(3.0, FRAME)
    assert clock.place(None, FRAME) == Placed()
    assert clock.place(3.0 + 2 * FRAME, FRAME) == Placed()
    assert clock.position == pytest.approx(3.0 + 3 * FRAME)
    assert np.isclose(clock.place(10.0, FRAME).gap, 10 - 3 - 3 * FRAME)


def _line(*stretches: tuple[float, int]) -> list[tuple[int, float | None, float]]:
    """Frames from a second on, so many of them: number, second, length."""
    seconds = [start + index * FRAME for start, count in stretches for index in range(count)]
    return [(number, second, FRAME) for number, second in enumerate(seconds)]


@pytest.mark.parametrize("false", [5, 49])
def test_a_far_timestamp_that_nothing_confirms_is_taken_away(false: int) -> None:
    sounds = _line((0.0, 100), (5000.0, false), (2.0 + false * FRAME, 400))
    found = list(confirmed(sounds))
    assert [number for number, _, _ in found] == list(range(len(sounds)))
    assert [second for _, second, _ in found[100 : 100 + false]] == [None] * false
    assert found[100 + false :] == sounds[100 + false :]


@pytest.mark.parametrize("behind", [1, 400, 2000])
@pytest.mark.parametrize("gap", [SUSPECT_SECONDS - 1, 5000.0])
def test_a_gap_that_is_confirmed_or_the_last_is_left_as_it_is(behind: int, gap: float) -> None:
    sounds = _line((0.0, 100), (2.0 + gap, behind), (9000.0, 1))
    assert list(confirmed(sounds)) == sounds


def test_no_more_is_held_than_confirms_a_gap() -> None:
    taken: list[int] = []

    def sounds():
        for sound in _line((0.0, 100), (5000.0, 3000)):
            taken.append(sound[0])
            yield sound

    for number, _, _ in confirmed(sounds()):
        assert len(taken) - number <= CONFIRMING_SECONDS / FRAME + 2

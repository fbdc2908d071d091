"""Where windows end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_fastslm import noise

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, window_count
from fastslm.errors import OptionError
from fastslm.longform.cuts import CUTS, PAUSE_STEPS, SEARCH_SAMPLES, STEP_SAMPLES, check_cuts, cut

RECORDING = noise(130, 3)


def _blocks(samples: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(samples, np.cumsum(sizes)[np.cumsum(sizes) < len(samples)]) if len(samples) else []


@pytest.mark.parametrize("cuts", CUTS)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, len(RECORDING)), sizes=st.lists(st.integers(1, WINDOW_SAMPLES), max_size=6))
def test_concatenating_all_windows_gives_the_recording_exactly(cuts, length: int, sizes: list[int]) -> None:
    recording = RECORDING[:length]
    blocks = [
        part for block in _blocks(recording, sizes) for part in np.split(block, range(160_000, len(block), 160_000))
    ]
    windows = list(cut(blocks, cuts))
    assert np.array_equal(np.concatenate(windows), recording)
    assert all(0 < len(window) <= WINDOW_SAMPLES for window in windows)
    least = WINDOW_SAMPLES if cuts == "fixed" else WINDOW_SAMPLES - SEARCH_SAMPLES
    assert all(len(window) >= least for window in windows[:-1])
    if cuts == "fixed":
        assert len(windows) == window_count(length)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1000, WINDOW_SAMPLES))
def test_the_blocks_in_which_a_recording_comes_move_no_cut(size: int) -> None:
    blocks = np.split(RECORDING, range(size, len(RECORDING), size))
    expected = [len(window) for window in cut(np.split(RECORDING, 5), "quiet")]
    assert [len(window) for window in cut(blocks, "quiet")] == expected


@pytest.mark.parametrize("pause", [25.5, 27.0, 29.5])
def test_a_quiet_cut_falls_into_the_pause(pause: float) -> None:
    recording = noise(40)
    start = round(pause * SAMPLE_RATE)
    recording[start : start + 5000] = 0
    first, second = cut([recording[:300_000], recording[300_000:]], "quiet")
    middle = PAUSE_STEPS * STEP_SAMPLES // 2
    assert start + middle <= len(first) <= start + 5000 - middle + STEP_SAMPLES
    assert len(first) + len(second) == len(recording)


@pytest.mark.parametrize("recording", [RECORDING, np.zeros(len(RECORDING), np.float32)], ids=["noise", "silence"])
def test_where_nothing_is_a_pause_windows_stay_whole(recording: np.ndarray) -> None:
    lengths = [len(window) for window in cut(np.split(recording, 5), "quiet")]
    assert lengths == [WINDOW_SAMPLES] * 4 + [len(recording) - 4 * WINDOW_SAMPLES]
    assert [len(window) for window in cut([recording[:WINDOW_SAMPLES]], "quiet")] == [WINDOW_SAMPLES]


@pytest.mark.parametrize(
    ("cuts", "mode", "words"), [("quite", "window", "did you mean 'quiet'"), ("quiet", "authors", "use fixed cuts")]
)
def test_cuts_that_are_unknown_or_impossible_are_refused(cuts: str, mode: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_cuts(cuts, mode)

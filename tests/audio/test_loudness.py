"""A quiet window is judged against its own noise floor, and its speech is raised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE, at_level, coloured, decibels, hum, recorded, speech_like

from fastslm.audio.loudness import QUIET_DBFS, SPEECH_DBFS, is_silent, levelled, levelled_file
from fastslm.features import extract_features, window_mel

WINDOW = 30 * RATE
SPEECH = speech_like(8)

NOISES = {
    "zeros": np.zeros(WINDOW, np.float32),
    "a constant": np.full(WINDOW, 0.1, np.float32),
    "dither of 16 bits": recorded(np.zeros(WINDOW)),
    "dither of 8 bits": recorded(np.zeros(WINDOW), bits=8),
    "steps now and then": recorded(coloured(WINDOW, 0) * decibels(-106), dither=False),
    "zeros, then dither": np.concatenate([np.zeros(WINDOW // 2), recorded(np.zeros(WINDOW // 2))]).astype(np.float32),
    "white": at_level(coloured(WINDOW, 0), -50),
    "pink": at_level(coloured(WINDOW, 1), -65),
    "brown": at_level(coloured(WINDOW, 2), -80),
    "hum": at_level(hum(WINDOW), -45),
    "hum in 16 bits": recorded(at_level(hum(WINDOW, 60), -85)),
}


@pytest.mark.fault
@pytest.mark.parametrize("gain", [-25, -30, -40, -50, -60, -70])
@pytest.mark.parametrize("seed", range(3))
def test_speech_is_no_silence_however_quiet_it_was_recorded(gain: int, seed: int) -> None:
    quiet = speech_like(5, seed) * decibels(gain)
    assert not is_silent(quiet)
    assert not is_silent(recorded(quiet, bits=24))
    assert gain < -60 or not is_silent(recorded(quiet))


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_what_does_not_move_is_silence_and_is_not_raised(noise: np.ndarray) -> None:
    for length in (RATE // 10, RATE // 2, 3 * RATE, WINDOW):
        window = noise[:length]
        assert is_silent(window)
        assert levelled(window) is window


@pytest.mark.fault
@pytest.mark.parametrize("slope", [0, 1, 2], ids=["white", "pink", "brown"])
@pytest.mark.parametrize("below", [-5, 5, 20])
def test_quiet_speech_is_heard_in_the_noise_of_its_room(slope: float, below: int) -> None:
    noise = at_level(coloured(len(SPEECH), slope), -60 - below)
    assert not is_silent(at_level(SPEECH, -60) + noise)
    assert is_silent(noise)


@pytest.mark.fault
def test_one_quiet_word_in_half_a_minute_of_dither_is_no_silence() -> None:
    window = np.zeros(WINDOW)
    window[20 * RATE : 20 * RATE + RATE // 2] = speech_like(0.5, 3) * decibels(-45)
    assert not is_silent(recorded(window))


def test_a_loud_window_is_the_models_to_judge() -> None:
    assert not is_silent(at_level(coloured(WINDOW, 0), QUIET_DBFS + 1))


def test_loud_and_ordinary_windows_are_handed_on_untouched() -> None:
    for gain in (10, 0, -15):
        window = recorded(SPEECH * decibels(gain))
        assert levelled(window) is window
        assert levelled_file(window) is window
    noise = at_level(coloured(WINDOW, 0), -35)
    assert levelled(noise) is noise


@pytest.mark.fault
@settings(max_examples=15, deadline=None)
@given(gain=st.floats(-100, -25), offset=st.floats(-0.1, 0.1))
def test_a_quiet_window_becomes_the_same_whatever_its_level_and_its_offset(gain: float, offset: float) -> None:
    expected = levelled(SPEECH * decibels(-40))
    quiet = (SPEECH.astype(np.float64) * 10 ** (gain / 20)).astype(np.float32)
    error = levelled(quiet) - expected
    assert np.abs(error).max() < 1e-3 * np.abs(expected).max()
    # An offset leaves few digits to what is quiet.
    shifted = levelled((SPEECH * decibels(-40)).astype(np.float32) + np.float32(offset))
    assert np.abs(shifted - expected).max() < 1e-2 * np.abs(expected).max()


def test_the_loudest_half_second_of_a_raised_window_has_the_level_of_speech() -> None:
    raised = levelled(SPEECH * decibels(-50))
    stretches = raised[: len(raised) // 8000 * 8000].reshape(-1, 8000)
    assert 10 * np.log10(stretches.var(axis=1).max()) == pytest.approx(SPEECH_DBFS, abs=0.01)


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["window", "authors"])
@pytest.mark.parametrize("gain", [-40, -60])
def test_the_log_mel_of_quiet_speech_is_that_of_loud_speech(mode, gain: int) -> None:
    loud = SPEECH * decibels(-30)  # raised, too: so the levels are alike
    quiet = extract_features(recorded(SPEECH * decibels(gain), bits=24), 80, mode)
    there = extract_features(loud, 80, mode)
    speaking = there > there.max() - 1
    assert speaking.float().mean() > 0.02
    assert (quiet - there)[speaking].abs().max() < 0.1


# Somebody quiet after somebody loud


@pytest.mark.fault
@pytest.mark.parametrize("gain", [-45, -55])
@pytest.mark.parametrize("order", [1, -1], ids=["after", "before"])
def test_a_quiet_speaker_beside_a_loud_one_is_raised_and_the_loud_one_is_not_touched(gain: int, order: int) -> None:
    near, far = speech_like(8, 1), speech_like(8, 2)
    window = recorded(np.concatenate([near, far * decibels(gain)][::order]))
    raised = levelled(window)
    loud, quiet = (slice(0, 8 * RATE), slice(8 * RATE, None))[::order]
    assert np.array_equal(raised[loud], window[loud])
    middle = raised[quiet][RATE:-RATE]
    assert 10 * np.log10(np.mean(np.square(middle))) > SPEECH_DBFS - 6
    assert np.corrcoef(middle, far[RATE:-RATE])[0, 1] > 0.9


def test_raising_a_passage_makes_no_click() -> None:
    window = np.concatenate([speech_like(8, 1), speech_like(8, 2) * decibels(-50), speech_like(8, 3)])
    window += at_level(coloured(len(window), 0), -75)
    raised = levelled(window)
    assert raised is not window
    assert np.abs(np.diff(raised)).max() <= 1.2 * max(
        np.abs(np.diff(window)).max(), np.abs(np.diff(speech_like(8, 2))).max()
    )


@pytest.mark.parametrize(
    "pause",
    [
        np.zeros(5 * RATE),
        coloured(5 * RATE, 1) * decibels(-60),
        coloured(5 * RATE, 0) * decibels(-60) * np.exp(-np.arange(5 * RATE) / RATE),
        np.where(np.arange(5 * RATE) % (2 * RATE) < 800, coloured(5 * RATE, 0) * decibels(-55), 0),
        hum(5 * RATE) * decibels(-55),
    ],
    ids=["zeros", "noise", "a tone that fades", "clicks", "hum"],
)
def test_a_pause_is_not_raised(pause: np.ndarray) -> None:
    window = recorded(np.concatenate([speech_like(8, 1), pause, speech_like(8, 2)]))
    assert levelled(window) is window


@pytest.mark.fault
def test_a_quiet_speaker_has_windows_of_his_own_after_a_loud_one() -> None:
    loud, quiet = window_mel([SPEECH, speech_like(8, 2) * decibels(-50)], 80)
    alone = window_mel([levelled(speech_like(8, 2) * decibels(-40))], 80)[0]
    assert (quiet - alone).abs().max() < 1e-2
    assert abs(float(quiet.max() - loud.max())) < 0.3


def test_a_whole_file_is_raised_by_one_factor_and_only_if_all_of_it_is_quiet() -> None:
    quiet = np.concatenate([speech_like(8, 1), np.zeros(WINDOW), speech_like(8, 2) * decibels(-20)]) * decibels(-45)
    raised = levelled_file(quiet)
    assert np.corrcoef(raised, quiet)[0, 1] == pytest.approx(1)
    assert 20 * np.log10(raised.std() / quiet.std()) > 30
    assert levelled_file(np.zeros(WINDOW, np.float32)).max() == 0
    half = np.concatenate([speech_like(8, 1), quiet])
    assert levelled_file(half) is half

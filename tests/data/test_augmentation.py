"""Augmentation: each effect does what its figure says, and a sample's own generator decides alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE
from fastslm.data.augmentation import (
    Augmentation,
    AugmentedRows,
    Effects,
    coded,
    reverberated,
    room_response,
    sample_generator,
    sound_level,
    with_noise,
)
from fastslm.data.manifest import read_manifest
from fastslm.data.rows import ManifestRows, Row

ALL = Augmentation(speeds=(0.9, 1.0, 1.1), reverberation=0.5, noise=0.5, codec=0.5)


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise below 3 kHz in bursts of a third of a second: (samples,) float32."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[np.fft.rfftfreq(samples, 1 / SAMPLE_RATE) > 3000] = 0
    bursts = np.sin(np.arange(samples) / SAMPLE_RATE * 2 * np.pi * 1.5) > 0
    wave = np.fft.irfft(spectrum, samples) * bursts
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 100), name=st.text(min_size=1, max_size=20))
def test_a_sample_is_augmented_alike_whatever_came_before_it(seed: int, epoch: int, name: str) -> None:
    drawn = ALL.draw(sample_generator((seed, epoch), name))
    ALL.draw(sample_generator((seed, epoch), "another"))
    assert ALL.draw(sample_generator((seed, epoch), name)) == drawn
    assert ALL.draw(sample_generator((seed, epoch + 1), name)) != drawn
    assert ALL.draw(sample_generator((seed, epoch), name + "x")) != drawn


@settings(deadline=None)
@given(seed=st.integers(0, 2**31))
def test_switching_one_effect_on_leaves_the_others_as_they_were(seed: int) -> None:
    with_all = ALL.draw(np.random.default_rng(seed))
    without = ALL.model_copy(update={"codec": 0.0}).draw(np.random.default_rng(seed))
    assert without.codec is None
    for name in ("speed", "decay_seconds", "reverberation_db", "noise_db", "seed"):
        assert getattr(without, name) == getattr(with_all, name)


def test_shares_are_about_what_is_asked_for() -> None:
    drawn = [
        Augmentation(reverberation=0.2, noise=0.4, codec=0.6).draw(sample_generator((0, 0), str(i)))
        for i in range(3000)
    ]
    # Three standard deviations of a share of 3,000 are under 0.03.
    assert np.mean([d.decay_seconds is not None for d in drawn]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([d.noise_db is not None for d in drawn]) == pytest.approx(0.4, abs=0.03)
    assert np.mean([d.codec is not None for d in drawn]) == pytest.approx(0.6, abs=0.03)
    assert {d.codec for d in drawn} == {None, "opus", "mp3", "mu-law"}


def test_nothing_asked_for_changes_nothing() -> None:
    wave = speech_like(2.0)
    np.testing.assert_array_equal(Augmentation().draw(np.random.default_rng(0)).apply(wave), wave)


def test_a_faster_recording_is_shorter_by_the_speed() -> None:
    assert len(Effects(speed=1.25).apply(speech_like(5.0))) == 4 * SAMPLE_RATE


@pytest.mark.parametrize("noise", [None, speech_like(0.7, seed=5)])
@pytest.mark.parametrize("snr", [0.0, 12.0])
def test_noise_is_as_far_below_the_speech_as_its_figure(noise: np.ndarray | None, snr: float) -> None:
    wave = speech_like(3.0)
    added = with_noise(wave, noise, snr, np.random.default_rng(0)) - wave
    # Levels are of what is not silent; float32 rounds the difference.
    assert 20 * np.log10(sound_level(wave) / sound_level(added)) == pytest.approx(snr, abs=0.3)


def test_noise_under_silence_stays_silent() -> None:
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    assert not with_noise(silence, None, 10.0, np.random.default_rng(0)).any()


@pytest.mark.parametrize("decay", [0.2, 0.8])
def test_a_room_falls_by_60_db_in_its_decay_time(decay: float) -> None:
    energies = np.mean([room_response(decay, 5.0, np.random.default_rng(i))[1:] ** 2 for i in range(300)], axis=0)
    tenth = len(energies) // 10
    first, last = energies[:tenth].mean(), energies[-tenth:].mean()
    # From the middle of the first tenth to the middle of the last are nine tenths of the fall: 54 dB.
    assert 10 * np.log10(first / last) == pytest.approx(54, abs=1.5)


def test_a_room_is_as_far_below_the_direct_sound_as_its_figure() -> None:
    response = room_response(0.4, 7.0, np.random.default_rng(0))
    assert response[0] == 1.0
    assert 10 * np.log10(1.0 / (response[1:] ** 2).sum()) == pytest.approx(7.0, abs=0.01)


def lag(before: np.ndarray, after: np.ndarray) -> int:
    """By how many samples `after` comes later, from the peak of their correlation."""
    size = 2 * len(before)
    product = np.fft.irfft(np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size)), size)
    peak = int(np.argmax(product))
    return peak if peak < len(before) else peak - size


def test_a_room_moves_nothing_in_time_and_keeps_length_and_level() -> None:
    wave = speech_like(3.0)
    wet = reverberated(wave, 0.5, 3.0, np.random.default_rng(1))
    assert len(wet) == len(wave)
    assert lag(wave, wet) == 0
    assert sound_level(wet) == pytest.approx(sound_level(wave), rel=1e-3)
    assert not np.allclose(wet, wave, atol=0.01)


@pytest.mark.parametrize(("codec", "bit_rate"), [("opus", 24_000), ("mp3", 32_000), ("mu-law", None)])
@pytest.mark.parametrize("seconds", [0.4, 3.01])
def test_a_codec_keeps_the_length_moves_nothing_and_is_heard(codec: Any, bit_rate: int | None, seconds: float) -> None:
    wave = speech_like(seconds)
    heard = coded(wave, codec, bit_rate)
    assert heard.dtype == np.float32
    assert len(heard) == len(wave)
    assert abs(lag(wave, heard)) <= 2
    assert 0.8 < np.corrcoef(wave, heard)[0, 1] < 0.99999


def test_what_comes_out_never_clips_and_is_the_same_again() -> None:
    wave = speech_like(1.0) * 3
    for index in range(8):
        effects = ALL.model_copy(update={"codec": 1.0}).draw(sample_generator((0, 0), str(index)))
        out = effects.apply(wave)
        assert np.abs(out).max() <= 1.0
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(effects.apply(wave), out)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_db": (30.0, 5.0)},
        {"decay_seconds": (0.0, 0.5)},
        {"speeds": ()},
        {"speeds": (1.0, -1.0)},
        {"codec": 0.5, "codecs": ()},
        {"codecs": ("gsm",)},
        {"noise": 1.5},
        {"nois": 0.5},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Augmentation(**wrong)


def test_augmented_rows_differ_by_epoch_and_by_nothing_else(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest([2.0, 3.0, 29.0])
    augmentation = Augmentation(speeds=(0.9, 1.0, 1.1), noise=0.5, reverberation=0.5)

    def epoch(number: int, variants: int = 0) -> dict[str, Row]:
        rows = AugmentedRows(ManifestRows(manifest), augmentation, read_manifest(manifest)[:1], variants)
        return {row.id: row for row in rows.epoch([3, 0], number)}

    def digests(rows: dict[str, Row]) -> dict[str, str]:
        return {name: row.sound.digest() for name, row in rows.items() if row.sound is not None}

    first = epoch(0)
    assert digests(first) == digests(epoch(0))
    assert all(digests(first)[name] != own for name, own in digests(epoch(1)).items())
    assert digests(epoch(2, variants=2)) == digests(first)
    for row in first.values():
        assert sum(1 for _ in row.waveforms()) == row.windows, "as long as it says, in whole windows"
    longest = AugmentedRows(ManifestRows(manifest), augmentation).durations()
    assert longest.max() == pytest.approx(29 / 0.9)


def test_a_row_that_is_played_slowly_takes_the_windows_that_it_then_needs(make_manifest: Callable[..., Path]) -> None:
    rows = AugmentedRows(ManifestRows(make_manifest([28.0])), Augmentation(speeds=(0.9,)))
    (row,) = rows.epoch([0, 0], 0)
    assert (row.windows, row.seconds) == (2, pytest.approx(28 / 0.9))
    assert len(list(row.waveforms())) == 2

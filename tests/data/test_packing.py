"""Packing: no clip is lost, doubled, cut or laid over another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data.augmentation import Augmentation
from fastslm.data.manifest import Clip, read_manifest
from fastslm.data.packing import PackedRows, PackedSound, Packing, pack, render
from fastslm.errors import ManifestError


class Tone(Clip):
    """A clip that needs no file: a sine as long as it says, or as `really` says."""

    really: float | None = None

    def read(self) -> np.ndarray:
        samples = round((self.really or self.duration) * SAMPLE_RATE)
        return (0.9 * np.sin(np.arange(samples) * 0.2)).astype(np.float32)


def clips_of(durations: list[float]) -> list[Clip]:
    return [
        Tone.model_validate({"id": f"c{i}", "audio": "none", "duration": seconds, "text": f"word{i}"})
        for i, seconds in enumerate(durations)
    ]


DURATIONS = st.lists(st.floats(0.2, 30.0), min_size=1, max_size=40)
AUGMENTATIONS = st.none() | st.builds(
    Augmentation,
    speeds=st.sampled_from([(1.0,), (0.9, 1.0, 1.1)]),
    reverberation=st.floats(0, 1),
    noise=st.floats(0, 1),
)
PACKINGS = st.builds(
    Packing,
    gap=st.tuples(st.floats(0, 0.5), st.floats(0.5, 2.0)),
    silent_ends=st.floats(0, 1),
    without_speech=st.floats(0, 1),
    speeds=st.lists(st.sampled_from([0.9, 1.0, 1.1]), min_size=1, max_size=3).map(tuple),
    noise=st.floats(0, 1),
)


@settings(deadline=None)
@given(durations=DURATIONS, packing=PACKINGS, seed=st.integers(0, 2**31))
def test_every_clip_lies_in_exactly_one_window(durations: list[float], packing: Packing, seed: int) -> None:
    clips = clips_of(durations)
    placed = [p.clip.id for window in pack(clips, [], packing, (seed, 0)) for p in window.placements]
    assert sorted(placed) == sorted(clip.id for clip in clips)


@settings(deadline=None)
@given(durations=DURATIONS, packing=PACKINGS, seed=st.integers(0, 2**31))
def test_placements_never_overlap_nor_pass_the_windows_end(durations: list[float], packing: Packing, seed: int) -> None:
    for window in pack(clips_of(durations), [], packing, (seed, 0)):
        end = 0
        for p in window.placements:
            assert p.start >= end
            assert abs(p.samples - p.clip.duration / p.speed * SAMPLE_RATE) <= 1, "a clip is cut"
            end = p.start + p.samples
        assert end <= WINDOW_SAMPLES


@settings(deadline=None)
@given(durations=DURATIONS, augmentation=AUGMENTATIONS, seed=st.integers(0, 2**31))
def test_an_augmented_clip_is_as_long_as_its_placement_says(
    durations: list[float], augmentation: Augmentation | None, seed: int
) -> None:
    for window in pack(clips_of(durations), [], Packing(augmentation=augmentation), (seed, 0)):
        end = 0
        for p in window.placements:
            assert p.start >= end
            assert abs(p.samples - p.clip.duration / p.speed * SAMPLE_RATE) <= 1, "a clip is cut"
            end = p.start + p.samples
        assert end <= WINDOW_SAMPLES


def test_what_becomes_of_a_clip_is_its_own_whatever_stands_beside_it_and_other_in_another_variant() -> None:
    packing = Packing(augmentation=Augmentation(speeds=(0.9, 1.1), reverberation=0.5, noise=0.5, codec=0.5))
    clips, sounds = clips_of([2.0] * 30), clips_of([0.7])

    def drawn(clips: list[Clip], variant: int) -> dict[str, Any]:
        windows = pack(clips, sounds, packing, (5, variant))
        return {p.clip.id: (p.speed, p.effects) for window in windows for p in window.placements}

    whole = drawn(clips, 0)
    assert {name: whole[name] for name in drawn(clips[7:19], 0)} == drawn(clips[7:19], 0)
    other = drawn(clips, 1)
    assert sum(whole[name] != other[name] for name in whole) == len(clips)


def test_an_augmented_clip_sounds_otherwise_and_its_neighbour_without_effects_as_before() -> None:
    plain = Packing(silent_ends=0, without_speech=0, gain_db=0)
    every = plain.model_copy(update={"augmentation": Augmentation(noise=1.0, noise_db=(10.0, 10.0))})
    clips = clips_of([3.0, 4.0])
    (one,), (two,) = pack(clips, [], plain, (3, 0)), pack(clips, [], every, (3, 0))
    assert [p.start for p in one.placements] == [p.start for p in two.placements]
    before, after = render(one), render(two)
    for p in one.placements:
        own = slice(p.start, p.start + p.samples)
        noise = after[own] / np.abs(after[own]).max() - before[own] / np.abs(before[own]).max()
        # A sine of 0.9 has a level of 0.64, and white noise 10 dB below it of 0.2.
        assert 0.1 < np.sqrt(np.mean(noise**2)) < 0.4
    quiet = np.ones(WINDOW_SAMPLES, dtype=bool)
    for p in two.placements:
        quiet[p.start : p.start + p.samples] = False
    assert not after[quiet].any(), "noise of a clip is laid outside of it"


def test_a_packing_without_augmentation_is_described_as_before_there_was_any() -> None:
    # The names of caches that were made then depend on it.
    assert Packing().described() == {
        "gap": [0.05, 0.6],
        "silent_ends": 0.25,
        "without_speech": 0.03,
        "speeds": [1.0],
        "noise": 0.0,
        "noise_db": [8.0, 30.0],
        "gain_db": 6.0,
    }
    assert Packing(augmentation=Augmentation(codec=0.5)).described()["augmentation"]["codec"] == 0.5


@settings(deadline=None)
@given(durations=DURATIONS, packing=PACKINGS, seed=st.integers(0, 2**31))
def test_a_windows_text_is_in_order_of_placement(durations: list[float], packing: Packing, seed: int) -> None:
    for window in pack(clips_of(durations), [], packing, (seed, 0)):
        ordered = sorted(window.placements, key=lambda p: p.start)
        assert window.text == " ".join(p.clip.text or "" for p in ordered)


@settings(deadline=None)
@given(packing=PACKINGS, seed=st.integers(0, 2**31))
def test_the_seed_alone_decides_the_plan(packing: Packing, seed: int) -> None:
    clips = clips_of([1.0 + i / 10 for i in range(20)])
    assert pack(clips, [], packing, (seed, 0)) == pack(clips, [], packing, (seed, 0))
    assert pack(clips, [], packing, (seed, 0)) != pack(clips, [], packing, (seed, 1))


@settings(max_examples=15, deadline=None)
@given(packing=PACKINGS, gain=st.floats(0, 30), seed=st.integers(0, 2**31))
def test_rendering_is_deterministic_and_never_clips(packing: Packing, gain: float, seed: int) -> None:
    packing = packing.model_copy(update={"gain_db": gain})
    sounds = clips_of([0.7])
    for window in pack(clips_of([3.0, 29.5, 4.0]), sounds, packing, (seed, 0))[:2]:
        wave = render(window)
        assert wave.shape == (WINDOW_SAMPLES,)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() <= 1.0
        np.testing.assert_array_equal(wave, render(window))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_clip_that_nearly_fills_a_window_is_whole_and_at_its_own_speed(seed: int) -> None:
    packing = Packing(gap=(0.5, 0.6), speeds=(0.9,), silent_ends=0, without_speech=0)
    (window,) = pack(clips_of([29.5]), [], packing, (seed,))
    (placement,) = window.placements
    assert (placement.start, placement.samples, placement.speed) == (0, 29.5 * SAMPLE_RATE, 1.0)


def test_sound_lies_where_the_plan_says_and_nowhere_else() -> None:
    packing = Packing(silent_ends=0, without_speech=0, gap=(0.5, 0.6))
    (window,) = pack(clips_of([2.0, 3.0]), [], packing, (1,))
    wave = render(window)
    quiet = np.ones(WINDOW_SAMPLES, dtype=bool)
    for p in window.placements:
        quiet[p.start : p.start + p.samples] = False
        assert np.abs(wave[p.start : p.start + p.samples]).max() > 0.3
    assert not wave[quiet].any()


def test_a_faster_clip_is_shorter_and_higher() -> None:
    packing = Packing(silent_ends=0, without_speech=0, speeds=(1.25,), gain_db=0)
    (window,) = pack(clips_of([5.0]), [], packing, (1,))
    (p,) = window.placements
    assert p.samples == 4 * SAMPLE_RATE
    sound = render(window)[p.start : p.start + p.samples]
    crossings = int((np.diff(np.signbit(sound)) != 0).sum())
    assert crossings == pytest.approx(5 * SAMPLE_RATE * 0.2 / np.pi, rel=0.01)


def test_shares_of_windows_are_about_what_the_packing_says() -> None:
    packing = Packing(silent_ends=0.3, without_speech=0.1, noise=0.4)
    windows = pack(clips_of([2.0] * 4000), clips_of([5.0]), packing, (3,))
    spoken = [window for window in windows if window.placements]
    assert len(windows) - len(spoken) == round(0.1 * len(spoken))
    # Full windows hold about a dozen clips of 2 s.
    assert np.mean([len(w.placements) <= 3 for w in spoken]) == pytest.approx(0.3, abs=0.06)
    assert np.mean([w.noise_db is not None for w in spoken]) == pytest.approx(0.4, abs=0.06)


def test_a_window_without_speech_has_no_text_but_sounds() -> None:
    windows = pack(clips_of([2.0] * 60), clips_of([5.0]), Packing(without_speech=1.0), (3,))
    silent = [window for window in windows if not window.placements]
    assert silent
    assert all(window.text == "" for window in silent)
    assert any(render(window).any() for window in silent if window.noise is not None)


def test_noise_is_as_far_below_the_speech_as_it_is_told() -> None:
    packing = Packing(silent_ends=0, without_speech=0, noise=1.0, noise_db=(20.0, 20.0), gain_db=0, gap=(1.0, 1.0))
    (window,) = pack(clips_of([10.0]), [], packing, (3,))
    wave = render(window)
    speech = np.sqrt(np.mean(wave[SAMPLE_RATE : 11 * SAMPLE_RATE] ** 2))
    noise = np.sqrt(np.mean(wave[12 * SAMPLE_RATE :] ** 2))
    assert 20 * np.log10(speech / noise) == pytest.approx(20, abs=0.5)


def test_a_clip_longer_than_a_window_is_refused_not_cut() -> None:
    with pytest.raises(ManifestError, match=r"c1 lasts 31\.0 s.*1 of 3 clips"):
        pack(clips_of([4.0, 31.0, 5.0]), [], Packing(), (0,))


def test_a_recording_that_outlasts_its_duration_is_refused_before_it_covers_the_next() -> None:
    row = {"id": "lying", "audio": "none", "duration": 2.0, "text": "x", "really": 4.0}
    (window,) = pack([Tone.model_validate(row)], [], Packing(silent_ends=0, without_speech=0), (0,))
    with pytest.raises(ManifestError, match=r"lying lasts 4\.00 s, but its manifest says 2\.00 s"):
        render(window)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gap": (-0.5, 0.2)},
        {"gap": (0.6, 0.2)},
        {"noise_db": (30.0, 8.0)},
        {"speeds": ()},
        {"speeds": (0.0,)},
        {"silent_ends": 1.5},
        {"noise": -0.1},
        {"speeds": (0.9, 1.1), "augmentation": {"speeds": (0.9, 1.1)}},
        {"augmentation": {"codec": 1.5}},
    ],
)
def test_ranges_and_shares_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Packing(**wrong)


def test_packed_windows_are_rows_whose_answer_is_what_is_said_in_them(make_manifest: Callable[..., Path]) -> None:
    clips = read_manifest(make_manifest([4.0, 9.0, 11.0, 3.0, 20.0]))
    rows = PackedRows("short clips", clips, [], Packing(without_speech=0.0))
    found = rows.epoch([5, 0], 0)
    assert sorted(" ".join(row.answer for row in found).split()) == sorted(
        " ".join(clip.text or "" for clip in clips).split()
    )
    assert {(row.windows, row.seconds, row.task, row.language) for row in found} == {(1, 30.0, "transcribe", "en")}
    (wave,) = found[0].waveforms()
    assert isinstance(found[0].sound, PackedSound)
    assert np.array_equal(wave, render(found[0].sound.window))


def test_packed_rows_are_laid_out_anew_each_epoch_until_the_variants_are_used_up(
    make_manifest: Callable[..., Path],
) -> None:
    clips = read_manifest(make_manifest([4.0, 9.0, 11.0, 3.0]))

    def digests(number: int, variants: int = 0) -> list[str]:
        rows = PackedRows("m", clips, [], Packing(), variants).epoch([5, 0], number)
        return [row.sound.digest() for row in rows if row.sound is not None]

    assert digests(0) == digests(0)
    assert not set(digests(0)) & set(digests(1))
    assert not set(digests(0)) & set(digests(2))
    assert digests(2, variants=2) == digests(0)


def test_clips_without_text_cannot_be_packed_into_rows(make_manifest: Callable[..., Path]) -> None:
    clips = read_manifest(make_manifest([4.0], text=None))
    with pytest.raises(ManifestError, match="m: no clip has a text to pack"):
        PackedRows("m", clips, [], Packing())

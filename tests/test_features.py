"""Both mel modes against references of other making: float64 NumPy, Whisper's extractor, the authors' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.errors import AudioError, OptionError
from fastslm.features import WINDOW_FRAMES, extract_features, file_mel, whole_mel, window_mel

PARITY = Path(__file__).parents[2] / "shared" / "parity"
TOLERANCE = 2e-5  # to what was computed in float32, whose FFT is another on every kind of processor
ROUNDING = 5e-7  # to what was computed in float64: values reach 2, and are stored as float32
BINS = [80, 128]


def slaney_filters(n_mels: int) -> np.ndarray:
    """(n_mels, 201) triangles of unit area, by the formula of Slaney's Auditory Toolbox."""

    def to_mel(hertz):
        return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4))

    def to_hertz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    corners = to_hertz(np.linspace(0, to_mel(np.array(8000.0)), n_mels + 2))
    bins = np.linspace(0, 8000, 201)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (corners[2:] - corners[:-2]))[:, None]


def reference_mel(waveform: np.ndarray, n_mels: int) -> np.ndarray:
    """Whisper's log-mel (n_mels, samples // 160) in float64, from its definition."""
    mirrored = np.pad(waveform.astype(np.float64), 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, 400)[::160][: len(waveform) // 160]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    log_mel = np.log10(np.maximum(slaney_filters(n_mels) @ power.T, 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness wanders over 60 dB, so that clamps differ between windows."""
    generator = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    loudness = np.interp(np.arange(samples), np.linspace(0, samples, 12), generator.uniform(-7, 0, 12))
    return (0.3 * generator.standard_normal(samples) * np.exp(loudness)).astype(np.float32)


# Against references


@pytest.mark.parametrize("n_mels", BINS)
@pytest.mark.parametrize("seconds", [1.0, 2.345, 30.0, 61.7])
def test_the_log_mel_of_a_file_is_the_definition_s(n_mels, seconds):
    waveform = sound(seconds)
    mel = whole_mel(waveform, n_mels)
    assert mel.shape == (n_mels, len(waveform) // 160)
    np.testing.assert_allclose(mel.numpy(), reference_mel(waveform, n_mels), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("n_mels", BINS)
def test_windows_are_what_whisper_s_extractor_gives_by_default(n_mels):
    windows = [sound(30), sound(12.3, 1), sound(0.4, 2)]
    expected = WhisperFeatureExtractor(feature_size=n_mels)(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    torch.testing.assert_close(window_mel(windows, n_mels), expected.input_features, rtol=0, atol=1e-6)
    silent_end = np.pad(windows[1], (0, WINDOW_SAMPLES - len(windows[1])))
    np.testing.assert_allclose(window_mel(windows, n_mels)[1], reference_mel(silent_end, n_mels), atol=1e-4)


def parity_clips() -> list[tuple[str, str]]:
    if not PARITY.is_dir():
        return []
    return [
        (path.parent.name, clip)
        for path in sorted(PARITY.glob("*/config.json"))
        for clip in json.loads(path.read_text())["clips"]
    ]


@pytest.mark.skipif(not PARITY.is_dir(), reason="the authors' recorded vectors are not beside this checkout")
@pytest.mark.parametrize(("case", "clip"), parity_clips())
def test_the_authors_mode_gives_the_authors_numbers(case, clip):
    vectors = load_file(PARITY / case / "vectors.safetensors")
    facts = json.loads((PARITY / case / "config.json").read_text())["clips"][clip]
    integers = load_file(PARITY / "waveforms.safetensors")[facts["source"]][: facts["samples"]]
    waveform = (integers.float() / 32768).numpy()
    parts = {"full": slice(None), "first50": slice(50), "last50": slice(-50, None), "at2990_3010": slice(2990, 3010)}
    recorded = {part: vectors[f"{clip}.mel.{part}"] for part in parts if f"{clip}.mel.{part}" in vectors}
    assert recorded
    n_mels = next(iter(recorded.values())).shape[0]
    mel = whole_mel(waveform, n_mels)
    assert mel.shape[1] == facts["mel_frames"]
    for part, expected in recorded.items():
        torch.testing.assert_close(mel[:, parts[part]], expected, rtol=0, atol=TOLERANCE)
    windows = file_mel(waveform, n_mels)
    assert len(windows) == facts["windows"]
    stats = [[window.mean(), window.std(correction=0), window.abs().max(), window.min()] for window in windows]
    torch.testing.assert_close(torch.tensor(stats), vectors[f"{clip}.mel_windows.stats"], rtol=0, atol=TOLERANCE)


# `window` mode


def test_a_window_s_log_mel_does_not_depend_on_its_neighbours_to_the_last_bit():
    windows = [sound(30, seed) for seed in range(3)]
    together = window_mel(windows, 80)
    for window, expected in zip(windows, together, strict=True):
        torch.testing.assert_close(window_mel([window], 80)[0], expected, rtol=0, atol=0)
    whole = extract_features(np.concatenate(windows), 80, "window")
    torch.testing.assert_close(whole, together, rtol=0, atol=0)


def test_less_than_a_second_is_the_same_as_padded_to_a_second():
    padded = np.pad(sound(0.4), (0, SAMPLE_RATE - round(0.4 * SAMPLE_RATE)))
    for mode in ("window", "authors"):
        torch.testing.assert_close(
            extract_features(sound(0.4), 80, mode), extract_features(padded, 80, mode), rtol=0, atol=0
        )


def test_a_window_longer_than_30_s_is_refused_and_not_cut():
    with pytest.raises(AudioError, match=r"30\.01 s of sound, at most 30 s"):
        window_mel([np.zeros(WINDOW_SAMPLES + 160, np.float32)], 80)


def test_no_windows_give_no_rows():
    assert window_mel([], 128).shape == (0, 128, WINDOW_FRAMES)


# `authors` mode


def test_the_last_window_is_padded_with_zeros_of_the_mel_domain():
    windows = file_mel(sound(41.7), 80)
    assert windows.shape == (2, 80, WINDOW_FRAMES)
    assert (windows[1, :, 1170:] == 0).all()
    assert (windows[1, :, :1170] != 0).all()


def test_the_clamp_is_the_whole_file_s():
    quiet_then_loud = np.concatenate([1e-3 * sound(30, 1), sound(30, 2)])
    quiet, loud = file_mel(quiet_then_loud, 80)
    assert quiet.min().item() == pytest.approx(loud.max().item() - 8 / 4, abs=1e-6)
    assert extract_features(quiet_then_loud, 80, "window")[0].min() < quiet.min() - 0.1


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3 * WINDOW_SAMPLES), st.integers(0, 100))
def test_a_file_in_pieces_has_the_log_mel_of_the_file_at_once(samples, seed):
    waveform = sound(samples / SAMPLE_RATE, seed)
    at_once = reference_mel(np.pad(waveform, (0, max(0, SAMPLE_RATE - samples))), 80)
    np.testing.assert_allclose(whole_mel(waveform, 80), at_once, rtol=0, atol=ROUNDING)


def test_a_piece_whose_mirrored_edge_is_the_loudest_does_not_raise_the_clamp():
    waveform = np.zeros(2 * WINDOW_SAMPLES, np.float32)
    waveform[WINDOW_SAMPLES - 2 * 160 + 40] = 1  # the second piece begins 40 samples before, and mirrors it
    np.testing.assert_allclose(whole_mel(waveform, 80), reference_mel(waveform, 80), rtol=0, atol=ROUNDING)


# Counts and refusals


@pytest.mark.parametrize(
    ("seconds", "own", "authors"),
    [(0.1, 1, 1), (1, 1, 1), (30, 1, 1), (30.005, 2, 1), (30.01, 2, 2), (60, 2, 2), (61, 3, 3)],
)
def test_no_second_is_lost_between_the_windows(seconds, own, authors):
    waveform = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    assert extract_features(waveform, 80, "window").shape == (own, 80, WINDOW_FRAMES)
    assert extract_features(waveform, 80, "authors").shape == (authors, 80, WINDOW_FRAMES)


def test_silence_gives_finite_features():
    for mode in ("window", "authors"):
        assert extract_features(np.zeros(SAMPLE_RATE, np.float32), 80, mode).isfinite().all()


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="window, authors"):
        extract_features(sound(1), 80, "whole")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("shape", [(0,), (2, 16_000)])
def test_what_is_not_one_channel_of_samples_is_refused(shape):
    for compute in (file_mel, lambda waveform, n_mels: window_mel([waveform], n_mels), extract_features):
        with pytest.raises(AudioError, match="load_audio"):
            compute(np.zeros(shape, np.float32), 80)

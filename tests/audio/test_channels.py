"""Channels are averaged, unless they cancel or one of them is only noise; then the result says so."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import RATE, at_level, coloured, decibels, hum, speech_like

from fastslm.audio import load_audio, probe_duration, stream_audio, stream_chunks
from fastslm.audio.channels import BLOCK_SECONDS, Mixer

VOICE = speech_like(6, 1)
OTHER = speech_like(6, 2)
NOTHING = np.zeros_like(VOICE)


def late(sound: np.ndarray, samples: int) -> np.ndarray:
    """The same, so much later."""
    return np.concatenate([np.zeros(samples, np.float32), sound])[: len(sound)]


def likeness(mixed: np.ndarray, voice: np.ndarray = VOICE) -> float:
    """1 for the same sound at any level, 0 for another."""
    return float(np.corrcoef(mixed, voice)[0, 1])


CANCELLING = {
    "opposed": np.stack([VOICE, -VOICE]),
    "opposed, one weaker": np.stack([VOICE, -0.7 * VOICE]),
    "opposed, with noise of their own": np.stack([VOICE, -VOICE])
    + 0.01 * np.random.default_rng(0).standard_normal((2, len(VOICE))),
    "opposed, with the same hum": np.stack([VOICE, -VOICE]) + at_level(hum(len(VOICE)), -14),
    "opposed, with the same noise": np.stack([VOICE, -VOICE]) + at_level(coloured(len(VOICE), 1), -30),
    "opposed and a little late": np.stack([VOICE, -late(VOICE, 1)]),
    "opposed, with an offset": np.stack([VOICE + 0.2, -VOICE]),
    "opposed, and quiet": np.stack([VOICE, -VOICE]) * decibels(-50),
    "four channels in pairs": np.stack([VOICE, -VOICE, VOICE, -VOICE]),
    "centre and left of six": np.stack([-VOICE, NOTHING, VOICE, NOTHING, NOTHING, NOTHING]),
    "the second half only": np.stack([VOICE, np.where(np.arange(len(VOICE)) < len(VOICE) // 2, VOICE, -VOICE)]),
}


@pytest.mark.fault
@pytest.mark.parametrize("channels", CANCELLING.values(), ids=CANCELLING)
def test_channels_that_cancel_lose_no_speech_and_it_is_said(channels: np.ndarray) -> None:
    channels = channels.astype(np.float32)
    said: list[str] = []
    mixed = load_audio(channels, on_warning=said.append)
    spectrum = np.fft.rfft(mixed)
    spectrum[: 380 * len(mixed) // RATE] = 0  # the hum and the offset that both channels had
    voice = np.fft.rfft(VOICE)
    voice[: 380 * len(mixed) // RATE] = 0
    heard, there = np.fft.irfft(spectrum, len(mixed)), np.fft.irfft(voice, len(mixed))
    assert abs(likeness(heard, there)) > 0.9
    assert heard.std() > 0.6 * np.fft.irfft(np.fft.rfft(channels[0]) * (voice != 0), len(mixed)).std()
    assert len(said) == 1
    assert "cancel one another" in said[0]
    assert "taken alone" in said[0]


@pytest.mark.fault
@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.m4a", "aac")])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_files_whose_channels_cancel_are_read(tmp_path, encode, name: str, codec: str, rate: int) -> None:
    voice = speech_like(4, 1, rate)
    said: list[str] = []
    mixed = load_audio(encode(tmp_path / name, np.stack([voice, -voice]), rate, codec), on_warning=said.append)
    assert mixed.std() > 0.5 * voice.std()
    (warning,) = said
    assert warning.startswith(f"The channels of {tmp_path / name} cancel one another in 4.")


@pytest.mark.fault
@pytest.mark.parametrize("centre", [0, 2, 5])
def test_six_channels_of_which_two_cancel_keep_what_is_in_them(tmp_path, encode, centre: int) -> None:
    channels = np.zeros((6, len(VOICE)), np.float32)
    channels[centre], channels[1] = VOICE, -VOICE
    channels[3] = at_level(coloured(len(VOICE), 1), -45)
    mixed = load_audio(encode(tmp_path / "six.wav", channels, RATE, "pcm_s24le"), on_warning=lambda _: None)
    assert abs(likeness(mixed)) > 0.9


ORDINARY = {
    "twice the same": np.stack([VOICE, VOICE]),
    "to one side": np.stack([VOICE, 0.3 * VOICE]),
    "a silent channel": np.stack([NOTHING, VOICE]),
    "two speakers": np.stack([VOICE, OTHER]),
    "two speakers with crosstalk": np.stack([VOICE + 0.3 * OTHER, OTHER + 0.3 * VOICE]),
    "two speakers in turn": np.stack([np.concatenate([VOICE, 0.1 * OTHER]), np.concatenate([0.1 * VOICE, OTHER])]),
    "inverted crosstalk": np.stack([VOICE, -0.2 * VOICE]),
    "a few metres apart": np.stack([VOICE, 0.3 * late(VOICE, 160)]),
    "a quiet noise": np.stack([VOICE, at_level(coloured(len(VOICE), 1), -55)]),
    "a little offset": np.stack([NOTHING + 1e-4, np.concatenate([NOTHING[: 2 * RATE], VOICE[2 * RATE :]])]),
    "noise everywhere": np.stack([VOICE, VOICE]) + 0.02 * np.random.default_rng(1).standard_normal((2, len(VOICE))),
    "noise alone": 0.02 * np.random.default_rng(2).standard_normal((2, len(VOICE))),
    "six": np.stack([0.3 * OTHER, 0.3 * late(OTHER, 700), VOICE, NOTHING, 0.1 * OTHER, 0.1 * late(OTHER, 900)]),
    "eight, interleaved": np.stack([VOICE * level for level in np.linspace(0.1, 1, 8)], axis=1).T,
}


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("channels", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_channels_are_averaged_to_the_bit_without_a_word(channels: np.ndarray, rate: int) -> None:
    channels = channels.astype(np.float32, order="K")
    mixer = Mixer(rate)
    mixed = np.concatenate([*mixer.mix(channels), *mixer.end()])
    np.testing.assert_array_equal(mixed, channels.mean(axis=0))
    assert mixer.remarks("it") == mixer.news("it") == []


NOISY = {
    "white noise": at_level(coloured(len(VOICE), 0), -22),
    "pink noise": at_level(coloured(len(VOICE), 1), -20),
    "hum": at_level(hum(len(VOICE)), -10),
    "an offset": np.full(len(VOICE), 0.5, np.float32),
}


@pytest.mark.fault
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("noise", NOISY.values(), ids=NOISY)
def test_an_unplugged_channel_does_not_drown_the_other(noise: np.ndarray, side: int) -> None:
    said: list[str] = []
    mixed = load_audio(np.stack([VOICE, noise][:: 1 - 2 * side]), on_warning=said.append)
    after = slice(2 * RATE, None)  # what is noise shows when something else moves
    np.testing.assert_allclose(mixed[after], VOICE[after], atol=1e-6)
    assert [f"Channel {2 - side} of the array is only noise" in sentence for sentence in said] == [True]


@pytest.mark.fault
def test_a_channel_that_was_left_out_comes_back_as_soon_as_somebody_speaks_in_it() -> None:
    noise = at_level(coloured(2 * len(VOICE), 1), -25)
    channels = np.stack([np.concatenate([VOICE, OTHER]), noise])
    channels[1, len(VOICE) :] += speech_like(6, 3)
    mixed = load_audio(channels, on_warning=lambda _: None)
    spoken = slice(len(VOICE), None)
    np.testing.assert_array_equal(mixed[spoken][RATE // 2 :], channels[:, spoken].mean(axis=0)[RATE // 2 :])


@pytest.mark.fault
def test_of_two_speakers_who_cancel_the_one_who_speaks_is_taken() -> None:
    first, second = VOICE, OTHER
    left = np.concatenate([first, -0.8 * second])
    right = np.concatenate([-0.8 * first, second])
    mixed = load_audio(np.stack([left, right]), on_warning=lambda _: None)
    assert likeness(mixed[: len(first)], first) > 0.95
    assert abs(likeness(mixed[len(first) :], second)) > 0.95


def test_the_seconds_and_the_channels_are_said() -> None:
    channels = np.stack([np.concatenate([OTHER, VOICE, OTHER]), np.concatenate([OTHER, -VOICE, OTHER])])
    said: list[str] = []
    load_audio(channels, on_warning=said.append)
    assert said == [
        "The channels of the array cancel one another in 6.0 s of it, first at 6.0 s: there, channel 1 was taken alone."
    ]


def test_nothing_clicks_where_the_weights_change() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(8 * RATE) / RATE).astype(np.float32)
    opposed = np.where((np.arange(len(tone)) // (2 * RATE)) % 2, -1, 1)
    other = np.sin(2 * np.pi * 90 * np.arange(8 * RATE) / RATE)
    mixed = load_audio(np.stack([tone, tone * opposed + 0.3 * other]).astype(np.float32), on_warning=lambda _: None)
    step = np.abs(np.diff(tone + 0.3 * other)).max() + 2 / (0.01 * RATE)
    assert np.abs(np.diff(mixed)).max() < step


# How it comes changes nothing


@pytest.mark.fault
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=12),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    kind=st.sampled_from([*CANCELLING, *ORDINARY]),
)
def test_in_what_chunks_channels_come_changes_nothing(sizes: list[int], rate: int, kind: str) -> None:
    channels = {**CANCELLING, **ORDINARY}[kind].astype(np.float32)[:, : 3 * RATE]
    ends = np.cumsum(np.resize(sizes, len(channels[0])))
    pieces = np.split(channels, ends[ends < channels.shape[1]][:400], axis=1)
    expected = load_audio(channels, rate, on_warning=lambda _: None)
    streamed = stream_chunks(pieces, rate, 1600, channel_axis=0, on_warning=lambda _: None)
    np.testing.assert_array_equal(np.concatenate(list(streamed)), expected)


@pytest.mark.fault
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_chunks_of_one_or_two_samples_are_right(size: int, axis: int) -> None:
    channels = np.stack([VOICE, 0.5 * OTHER])[:, : RATE // 2]
    pieces = np.split(channels, range(size, channels.shape[1], size), axis=1)
    chunks = [piece if axis == 0 else piece.T for piece in pieces]
    streamed = list(stream_chunks(chunks, channel_axis=axis))
    np.testing.assert_array_equal(np.concatenate(streamed), load_audio(channels))


def test_half_a_second_is_held_and_no_more() -> None:
    mixer = Mixer(RATE)
    channels = np.stack([VOICE, OTHER])
    given = taken = 0
    for start, stop in pairwise(range(0, channels.shape[1], 400)):
        taken += sum(map(len, mixer.mix(channels[:, start:stop])))
        given += stop - start
        assert 0 <= given - taken < BLOCK_SECONDS * RATE
    assert sum(map(len, mixer.end())) == given - taken


def test_a_stream_says_at_once_that_its_channels_cancel() -> None:
    said: list[str] = []
    read = 0

    def chunks():
        nonlocal read
        for piece in np.split(CANCELLING["opposed"], 60, axis=1):
            read += 1
            yield piece

    blocks = stream_chunks(chunks(), channel_axis=0, block_samples=1600, on_warning=said.append)
    next(blocks)
    assert read == 5
    assert said == ["The channels of the stream cancel one another at 0.0 s: where they do, one is taken alone."]


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.T], ids=["channels first", "samples first"])
def test_whole_arrays_need_no_axis_for_no_recording_has_as_few_samples_as_channels(
    make: Callable[[np.ndarray], np.ndarray],
) -> None:
    few = make(np.tile(VOICE[:100], (64, 1)))
    assert probe_duration(few, 1_000) == 0.1
    assert len(np.concatenate(list(stream_audio(few, 1_000)))) == 1600

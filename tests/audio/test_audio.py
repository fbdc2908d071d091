"""Recordings of every kind become 16 kHz mono, in bounded memory, and what is lost is said."""

import io
import math
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    AudioWarning,
    load_audio,
    probe_duration,
    stream_audio,
    window_count,
)
from fastslm.errors import AudioError, FastSLMError

FORMATS = [
    ("u8.wav", 8_000, "pcm_u8", 1),
    ("s16.wav", 22_050, "pcm_s16le", 2),
    ("s24.wav", 44_100, "pcm_s24le", 2),
    ("s32.wav", 48_000, "pcm_s32le", 1),
    ("s64.wav", 16_000, "pcm_s64le", 1),
    ("f32.wav", 44_100, "pcm_f32le", 2),
    ("f64.wav", 16_000, "pcm_f64le", 1),
    ("mu-law.wav", 8_000, "pcm_mulaw", 1),
    ("many.wav", 192_000, "pcm_s24le", 8),
    ("a.flac", 44_100, "flac", 2),
    ("six.flac", 48_000, "flac", 6),
    ("a.mp3", 44_100, "libmp3lame", 2),
    ("a.m4a", 44_100, "aac", 2),
    ("a.aac", 44_100, "aac", 1),
    ("a.opus", 48_000, "libopus", 2),
    ("a.ogg", 48_000, "libopus", 1),
    ("a.webm", 48_000, "libopus", 1),
    ("a.mkv", 44_100, "flac", 1),
    ("a.mp4", 44_100, "aac", 2),
    ("a.aiff", 22_050, "pcm_s16be", 1),
]


def amplitude_at(samples: np.ndarray, frequency: float) -> float:
    """The amplitude of one sine in the middle of the samples."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    time = np.arange(len(middle)) / SAMPLE_RATE
    window = np.hanning(len(middle))
    return float(2 * abs(np.sum(middle * window * np.exp(-2j * np.pi * frequency * time))) / window.sum())


def wav_bytes(samples: np.ndarray, rate: int = SAMPLE_RATE, extra: bytes = b"") -> bytes:
    """A float32 mono wav file as bytes, written by hand so that FFmpeg is not both writer and judge."""
    data = samples.astype("<f4").tobytes()
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, rate, rate * 4, 4, 32) + extra
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Every kind of recording


@pytest.mark.parametrize(("name", "rate", "codec", "channels"), FORMATS, ids=[row[0] for row in FORMATS])
def test_every_format_gives_the_tone_at_its_level_and_length_without_a_warning(
    tmp_path, encode, tone, name, rate, codec, channels
):
    path = encode(tmp_path / name, np.tile(tone(2.0, rate), (channels, 1)), rate, codec, picture=name == "a.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = load_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.06)  # codecs without a stated length add a frame
    assert amplitude_at(samples, 440) == pytest.approx(0.25, rel=0.05)
    assert probe_duration(path) == pytest.approx(2.0, abs=0.1)


def test_a_lossless_file_gives_exactly_what_its_samples_give_as_an_array(tmp_path, tone):
    samples = tone(2.5, 44_100)
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(samples, 44_100))
    np.testing.assert_array_equal(load_audio(path), load_audio(samples, 44_100))


def test_a_file_at_16_khz_is_not_touched(tone):
    samples = tone(1.0)
    np.testing.assert_array_equal(load_audio(wav_bytes(samples)), samples)


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)", "hexagonal"])
def test_each_channel_counts_alike_whatever_the_layout_says(tmp_path, encode, tone, layout):
    for channel in range(6):
        channels = np.zeros((6, 48_000), np.float32)
        channels[channel] = tone(1.0, 48_000, amplitude=0.6)
        path = encode(tmp_path / "six.wav", channels, 48_000, "pcm_s24le", layout=layout)
        assert amplitude_at(load_audio(path), 440) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "codec", ["alac", "flac"]
)  # FFmpeg hands over the first plane by plane, the second interleaved
def test_none_of_eight_channels_is_lost(tmp_path, encode, tone, codec):
    frequencies = range(300, 1_100, 100)
    channels = np.stack([tone(1.0, 48_000, frequency) for frequency in frequencies])
    layout = "7.1(wide)" if codec == "alac" else "7.1"
    samples = load_audio(encode(tmp_path / "eight.mkv", channels, 48_000, codec, layout=layout))
    for frequency in frequencies:
        assert amplitude_at(samples, frequency) == pytest.approx(0.25 / 8, rel=1e-2)


def test_what_lies_above_8_khz_does_not_fold_down(tone):
    assert np.abs(load_audio(tone(1.0, 48_000, frequency=11_000), 48_000)[1000:-1000]).max() < 1e-4


def test_a_rate_that_changes_inside_a_file_is_followed(tmp_path, encode, tone):
    first = encode(tmp_path / "a.aac", tone(1.0, 44_100), 44_100, "aac").read_bytes()
    second = encode(tmp_path / "b.aac", tone(1.0, 16_000), 16_000, "aac").read_bytes()
    samples = load_audio(first + second, on_warning=lambda _: None)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.2)
    assert amplitude_at(samples[: len(samples) // 2], 440) == pytest.approx(0.25, rel=0.05)
    assert amplitude_at(samples[-len(samples) // 2 :], 440) == pytest.approx(0.25, rel=0.05)


def test_tags_in_no_known_encoding_do_not_matter(tone):
    artist = b"\xe9\xff\xfe\x80 Caf\xe9\x00"
    tags = b"INFOIART" + struct.pack("<I", len(artist)) + artist
    extra = b"LIST" + struct.pack("<I", len(tags)) + tags
    assert len(load_audio(wav_bytes(tone(1.0), extra=extra))) == SAMPLE_RATE


# Paths, bytes, file objects, arrays


def test_path_string_bytes_and_file_object_give_the_same(tmp_path, tone):
    path = tmp_path / "talk: 12:30.wav"
    path.write_bytes(wav_bytes(tone(1.0, 8_000), 8_000))
    expected = load_audio(path)
    np.testing.assert_array_equal(load_audio(str(path)), expected)
    np.testing.assert_array_equal(load_audio(path.read_bytes()), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file), expected)
        assert not file.closed


def test_a_pipe_that_cannot_be_rewound_is_read(tone):
    content = wav_bytes(tone(0.9))
    reader, writer = os.pipe()
    with open(reader, "rb") as source:
        with open(writer, "wb", buffering=0) as sink:
            os.set_blocking(sink.fileno(), False)
            assert sink.write(content) == len(content)  # a pipe holds it, so that no second thread is needed
        assert probe_duration(source) is None
        samples = load_audio(source)
    np.testing.assert_array_equal(samples, tone(0.9))


def test_probing_leaves_a_file_object_where_it_stood(tone):
    file = io.BytesIO(wav_bytes(tone(1.0)))
    assert probe_duration(file) == pytest.approx(1.0)
    assert file.tell() == 0


def test_probing_an_array_counts_its_longer_axis():
    assert probe_duration(np.zeros((2, 44_100), np.float32), 44_100) == 1.0


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"), [("i1", 2**7, 0), ("i2", 2**15, 0), ("i4", 2**31, 0), ("u1", 2**7, 2**7)]
)
def test_integers_are_scaled_by_their_full_range(dtype, scale, offset):
    integers = np.tile(np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, offset], dtype), SAMPLE_RATE)
    samples = load_audio(integers)
    np.testing.assert_allclose(samples[:3], [-1, 1 - 1 / scale, 0], atol=1e-7)
    np.testing.assert_array_equal(load_audio(torch.from_numpy(integers)), samples)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_are_taken(dtype, tone):
    tensor = torch.from_numpy(tone(1.0)).to(dtype).requires_grad_()
    np.testing.assert_allclose(load_audio(tensor), tone(1.0), atol=2e-3)


def test_the_longer_axis_is_time(tone):
    stereo = np.stack([tone(1.0), tone(1.0, frequency=600)])
    np.testing.assert_array_equal(load_audio(stereo), load_audio(stereo.T))
    np.testing.assert_allclose(load_audio(stereo), stereo.mean(axis=0), atol=1e-7)


def test_the_caller_s_array_is_neither_changed_nor_handed_back(tone):
    samples = tone(1.0)
    block = next(stream_audio(samples))
    block[:] = 7
    np.testing.assert_array_equal(samples, tone(1.0))


# Blocks and windows


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(6_000, 60_000),
    rate=st.sampled_from([8_000, 11_025, 16_000, 44_100]),
    block=st.integers(1, 40_000) | st.just(WINDOW_SAMPLES),
)
def test_concatenating_all_blocks_gives_load_audio_exactly(samples, rate, block):
    block = max(block, samples // 200)  # thousands of tiny blocks show nothing more
    waveform = np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)
    blocks = list(stream_audio(waveform, rate, block))
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(waveform, rate))
    assert all(len(piece) == block for piece in blocks[:-1])
    assert 0 < len(blocks[-1]) <= block


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(("seconds", "windows"), [(0.1, 1), (1, 1), (29.99, 1), (30, 1), (30.01, 2), (31, 2), (61, 3)])
def test_no_second_is_lost_between_the_windows(rate, seconds, windows):
    samples = np.full(round(seconds * rate), 0.1, np.float32)
    lengths = [len(window) for window in stream_audio(samples, rate)]
    assert len(lengths) == windows == window_count(sum(lengths))
    assert sum(lengths) == pytest.approx(seconds * SAMPLE_RATE, abs=1)


@given(st.integers(0, 10**10))
def test_window_count_is_the_quotient_rounded_up_and_at_least_1(samples):
    assert window_count(samples) == max(1, math.ceil(samples / WINDOW_SAMPLES))


def test_ten_minutes_stream_in_the_memory_of_four_windows(tmp_path):
    path = tmp_path / "long.wav"
    seconds, rate = 600, 44_100
    with path.open("wb") as file:
        head = wav_bytes(np.zeros(0), rate)
        size = 4 * seconds * rate
        file.write(head[:4] + struct.pack("<I", len(head) - 8 + size) + head[8:-4] + struct.pack("<I", size))
        file.truncate(len(head) + size)  # silence
    tracemalloc.start()
    try:
        total = sum(len(window) for window in stream_audio(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == seconds * SAMPLE_RATE
    assert peak < 4 * WINDOW_SAMPLES * np.float32().itemsize


# What is refused


def expect_refusal(source, *words: str, rate: float | None = None) -> None:
    with pytest.raises(AudioError) as refusal:
        load_audio(source, rate)
    message = str(refusal.value)
    assert isinstance(refusal.value, FastSLMError)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message


def test_a_missing_file_a_folder_and_an_address_are_named(tmp_path):
    expect_refusal(tmp_path / "no.mp3", "no.mp3", "does not exist")
    expect_refusal(tmp_path, tmp_path.name, "is a folder")
    expect_refusal("https://example.org/a.mp3", "download it")
    expect_refusal("a\0b.wav", "cannot be opened")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_read_permission_is_named(tmp_path):
    path = tmp_path / "mine.wav"
    path.touch(mode=0)
    expect_refusal(path, "mine.wav", "permissions")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    expect_refusal(tmp_path / "a.wav", "a.wav", "empty")
    expect_refusal(b"", "empty")


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.m4a", "a.txt", "a.nfo", "a.srt", "a.aac", "a"])
def test_text_under_any_name_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\nThis is no sound at all.\n\n" * 200)
    expect_refusal(path, name, "no so")


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac", "a"])
@pytest.mark.parametrize("content", [np.random.default_rng(1).bytes(300_000), bytes(300_000)], ids=["noise", "zeros"])
def test_bytes_that_are_no_media_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    expect_refusal(tmp_path / name, name)


def test_a_playlist_cannot_make_us_read_other_files(tmp_path, encode, tone):
    encode(tmp_path / "a.aac", tone(1.0, 44_100), 44_100, "aac")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile a.aac\n")
    expect_refusal(tmp_path / "list.ffconcat", "list.ffconcat")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.aac\n#EXT-X-ENDLIST\n")
    expect_refusal(tmp_path / "list.m3u8", "list.m3u8")


def test_a_video_without_sound_is_refused(tmp_path, encode):
    expect_refusal(encode(tmp_path / "mute.mp4", None, picture=True), "mute.mp4", "no sound", "video")


def test_a_file_cut_before_its_first_sound_is_refused(tmp_path, encode, tone):
    for name, rate, codec, _ in FORMATS:
        content = encode(tmp_path / name, tone(0.5, rate), rate, codec).read_bytes()
        (tmp_path / name).write_bytes(content[:40])
        expect_refusal(tmp_path / name, name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_samples_that_are_no_numbers_are_refused_with_their_time(tone, value, dtype):
    samples = np.stack([tone(3.0), tone(3.0)]).astype(dtype)
    samples[1, 40_000] = value
    expect_refusal(samples, "2.500 s", "NaN or infinite")
    expect_refusal(torch.from_numpy(samples), "2.500 s")
    expect_refusal(wav_bytes(samples[1]), "2.500 s")


@pytest.mark.parametrize(
    "array",
    [np.zeros(9_000, dtype) for dtype in (complex, object, bool, np.int64)] + [torch.zeros(9_000, dtype=torch.cfloat)],
    ids=lambda array: str(array.dtype),
)
def test_samples_of_other_types_are_refused(array):
    expect_refusal(array, str(array.dtype), "convert")
    with pytest.raises(AudioError):
        probe_duration(array)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 2, 9_000)])
def test_arrays_of_other_shapes_are_refused(shape):
    expect_refusal(np.zeros(shape, np.float32), "The array")


def test_float_samples_on_an_integer_s_scale_are_refused(tone):
    expect_refusal(tone(1.0) * 32768, "-1…1", "divide")


@pytest.mark.parametrize("rate", [0, -16_000, math.nan, math.inf, 16, True, "16000"])
def test_a_sampling_rate_that_is_none_is_refused(rate):
    expect_refusal(np.zeros(20_000, np.float32), "sampling rate", rate=rate)


def test_a_sampling_rate_beside_a_file_is_refused_and_not_ignored(tone):
    expect_refusal(wav_bytes(tone(1.0)), "states its own", rate=8_000)


@pytest.mark.parametrize(
    "source", [None, [0.0] * 16_000, 7, io.StringIO("text")], ids=lambda value: type(value).__name__
)
def test_a_source_of_another_type_is_refused(source):
    expect_refusal(source, "binary")


def test_a_block_without_samples_is_refused(tone):
    with pytest.raises(AudioError):
        next(stream_audio(tone(1.0), block_samples=0))


@pytest.mark.parametrize("block", [100, WINDOW_SAMPLES])
def test_less_than_a_tenth_of_a_second_is_refused_before_anything_is_yielded(tmp_path, tone, block):
    (tmp_path / "blip.wav").write_bytes(wav_bytes(tone(0.05)))
    for source in (tmp_path / "blip.wav", tone(0.05), np.zeros(MIN_SAMPLES - 1, np.float32)):
        with pytest.raises(AudioError, match=r"holds 0\.\d+ s of sound, at least 0\.1 s"):
            next(stream_audio(source, block_samples=block))
    assert len(load_audio(np.zeros(MIN_SAMPLES, np.float32))) == MIN_SAMPLES


# What is lost is said


def warnings_of(path: Path) -> tuple[np.ndarray, list[str]]:
    heard: list[str] = []
    return load_audio(path, on_warning=heard.append), heard


def test_damage_inside_a_file_costs_only_the_damaged_packets_and_is_said(tmp_path, encode, tone):
    path = encode(tmp_path / "a.m4a", tone(8.0, 44_100), 44_100, "aac")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1_000] = np.random.default_rng(0).bytes(1_000)
    path.write_bytes(content)
    samples, heard = warnings_of(path)
    assert 7 < len(samples) / SAMPLE_RATE <= 8.05
    assert len(heard) == 1
    assert "a.m4a is damaged" in heard[0]


def test_sound_that_a_container_skips_over_without_an_error_is_silence_and_said_too(tmp_path, encode, tone):
    path = encode(tmp_path / "a.mkv", tone(20.0, 44_100), 44_100, "pcm_s16le")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2_000] = np.random.default_rng(0).bytes(2_000)
    path.write_bytes(content)
    samples, heard = warnings_of(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(20, abs=0.01)
    lost = np.count_nonzero(samples == 0) / SAMPLE_RATE
    assert lost > 1
    assert f"{lost:.0f}." in heard[-1] or f"{lost:.1f}" in heard[-1]
    assert "s without sound, in one place, are taken as silence" in heard[-1]


def test_without_a_listener_the_loss_is_a_python_warning(tmp_path, encode, tone):
    path = encode(tmp_path / "a.m4a", tone(8.0, 44_100), 44_100, "aac")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1_000] = np.random.default_rng(0).bytes(1_000)
    path.write_bytes(content)
    with pytest.warns(AudioWarning, match=r"a\.m4a is damaged"):
        load_audio(path)


def test_the_guessed_duration_of_an_mp3_without_a_header_is_no_reason_for_a_warning(tmp_path, encode, tone):
    quiet_then_loud = np.concatenate(
        [np.zeros(44_100 * 6, np.float32), np.random.default_rng(0).uniform(-1, 1, 44_100 * 3)]
    )
    path = encode(
        tmp_path / "vbr.mp3", quiet_then_loud.astype(np.float32), 44_100, "libmp3lame",
        container_options={"write_xing": "0"}, global_quality="236", flags="+qscale",
    )  # fmt: skip
    samples, heard = warnings_of(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(9, abs=0.1)
    assert abs((probe_duration(path) or 0) - 9) > 1, "the guess is right, and this test shows nothing"
    assert heard == []

"""Samples in arrays and bytes: what they hold is known or stated, and chunks may end anywhere."""

import re
import struct
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.audio import load_audio, stream_chunks
from fastslm.audio.arrays import MOST_CHANNELS, SAMPLE_FORMATS, channels_first, stream_samples
from fastslm.errors import AudioError, OptionError

FRAMES = 4_000
# Two channels that have nothing in common: which is which shows.
SOUND = np.stack([np.random.default_rng(seed).uniform(-0.5, 0.5, FRAMES) for seed in range(2)]).astype(np.float32)


def as_bytes(sound: np.ndarray, sample_format: str) -> bytes:
    """(channels, samples) as interleaved bytes, by `struct` and not by what is tested."""
    kind, bits, order = sample_format[0], int(re.sub(r"\D", "", sample_format)), sample_format[-2:]
    values = sound.T.ravel().astype(np.float64)
    mark = ">" if order == "be" else "<"
    if kind == "f":
        return struct.pack(f"{mark}{len(values)}{'f' if bits == 32 else 'd'}", *values)
    integers = np.round(values * 2 ** (bits - 1)).astype(np.int64) + (2 ** (bits - 1) if kind == "u" else 0)
    size, name = bits // 8, "big" if order == "be" else "little"
    return b"".join(int(value).to_bytes(size, name, signed=kind != "u") for value in integers)


def cut(content: bytes, sizes: list[int]) -> list[bytes]:
    """In chunks of these sizes, over and over."""
    ends = np.cumsum(np.resize(np.maximum(sizes, 1), len(content)))
    bounds = [0, *ends[ends < len(content)].tolist(), len(content)]
    return [content[start:stop] for start, stop in pairwise(bounds)]


# Bytes


@pytest.mark.fault
@pytest.mark.parametrize("sample_format", SAMPLE_FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_bytes_of_every_format_give_the_samples_that_an_array_gives(sample_format: str, channels: int) -> None:
    content = as_bytes(SOUND[:channels], sample_format)
    streamed = np.concatenate(
        list(stream_chunks(cut(content, [1_000]), sample_format=sample_format, channels=channels))
    )
    bits = int(re.sub(r"\D", "", sample_format))
    assert np.abs(streamed - load_audio(SOUND[:channels])).max() <= 2.0 ** -min(bits, 24)


@pytest.mark.fault
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=8),
    sample_format=st.sampled_from(list(SAMPLE_FORMATS)),
    channels=st.integers(1, 3),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_bytes_may_be_cut_anywhere(sizes: list[int], sample_format: str, channels: int, kind: Callable) -> None:
    content = np.random.default_rng(0).integers(0, 120, 24 * 600, np.uint8).tobytes()  # finite in every format
    whole = np.concatenate(list(stream_samples([content], sample_format=sample_format, channels=channels)), axis=1)
    chunks = [kind(chunk) for chunk in cut(content, sizes)]
    pieces = stream_samples(chunks, sample_format=sample_format, channels=channels)
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), whole)


@pytest.mark.fault
def test_int16_of_pyaudio_is_read_as_the_array_is() -> None:
    integers = np.round(SOUND.ravel() * 2**15).astype(np.int16)
    streamed = stream_chunks(cut(integers.tobytes(), [1024]), 44_100, sample_format="s16le", channels=1)
    np.testing.assert_array_equal(np.concatenate(list(streamed)), load_audio(integers, 44_100))


def test_a_stream_that_ends_inside_a_sample_says_so() -> None:
    said: list[str] = []
    content = as_bytes(SOUND, "s16le")[:-1]
    pieces = list(stream_samples([content], sample_format="s16le", channels=2, on_warning=said.append))
    assert sum(piece.shape[1] for piece in pieces) == FRAMES - 1
    assert said == ["The stream ends inside a sample: its last bytes (3 of 4) were left out."]


# Arrays


@pytest.mark.fault
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=8), channels=st.integers(1, 4), tensor=st.booleans())
def test_interleaved_arrays_may_be_cut_anywhere(sizes: list[int], channels: int, tensor: bool) -> None:
    flat = np.random.default_rng(1).integers(-9_000, 9_000, 1_200 * channels).astype(np.int16)
    ends = np.cumsum(np.resize(np.maximum(sizes, 1), len(flat)))
    chunks = np.split(flat, ends[ends < len(flat)])
    given = [torch.from_numpy(chunk) for chunk in chunks] if tensor else chunks
    pieces = list(stream_samples(given, channels=channels))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), flat.reshape(-1, channels).T)


@pytest.mark.fault
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 70), min_size=1, max_size=8), channels=st.integers(1, 3), axis=st.integers(-2, 1))
def test_the_axis_that_was_stated_is_the_axis(sizes: list[int], channels: int, axis: int) -> None:
    sound = np.random.default_rng(2).standard_normal((channels, 900)).astype(np.float32)
    ends = np.cumsum(np.resize(np.maximum(sizes, 1), 900))
    pieces = np.split(sound, ends[ends < 900], axis=1)
    chunks = [piece if axis in (0, -2) else np.ascontiguousarray(piece.T) for piece in pieces]
    streamed = list(stream_samples(chunks, channel_axis=axis))
    np.testing.assert_array_equal(np.concatenate(streamed, axis=1), sound)


@pytest.mark.fault
@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.T], ids=["channels first", "samples first"])
def test_a_first_chunk_that_leaves_no_doubt_tells_the_axis_of_short_ones_after_it(make: Callable) -> None:
    pieces = np.split(SOUND, [100, 101, 103, 104], axis=1)
    streamed = list(stream_samples([make(piece) for piece in pieces]))
    np.testing.assert_array_equal(np.concatenate(streamed, axis=1), SOUND)


@pytest.mark.fault
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (1, 1), (30, 2), (64, 64), (65, 65), (1600, 100)])
def test_chunks_that_leave_their_axis_in_doubt_are_asked_for_it(shape: tuple[int, int]) -> None:
    with pytest.raises(AudioError, match="state channel_axis=0"):
        list(stream_samples([np.zeros(shape, np.float32)]))


def test_whole_arrays_that_leave_their_axis_in_doubt_are_asked_for_it() -> None:
    many = np.zeros((MOST_CHANNELS + 1, 1_600), np.float32)
    with pytest.raises(AudioError, match="channel_axis=0 or 1"):
        channels_first(many)
    assert channels_first(many, 0).shape == (65, 1_600)
    assert channels_first(many, 1).shape == (1_600, 65)
    assert len(load_audio(many, channel_axis=0)) == 1_600


def test_chunks_without_samples_are_passed_over() -> None:
    chunks = [np.zeros(0, np.float32), SOUND[:, :500], np.zeros((2, 0)), np.zeros((0, 2)), SOUND[:, 500:]]
    assert sum(piece.shape[1] for piece in stream_samples(chunks)) == FRAMES
    assert list(stream_samples([b"", b""], sample_format="s16le")) == []


@pytest.mark.parametrize(
    ("chunks", "options", "error", "words"),
    [
        ([b"\0" * 4_000], {}, AudioError, 'state it, such as sample_format="s16le"'),
        ([SOUND[0]], {"sample_format": "s16le"}, AudioError, "leave sample_format out, or give bytes"),
        ([b"\0\0"], {"sample_format": "int16"}, OptionError, "paInt16 is s16le"),
        ([b"\0\0"], {"sample_format": "s16le", "channels": 0}, OptionError, "whole number of 1 or more"),
        ([b"\0\0"], {"sample_format": "s16le", "channels": True}, OptionError, "whole number of 1 or more"),
        ([b"\0\0"], {"sample_format": "s16le", "channel_axis": 1}, OptionError, "bytes have no axes"),
        ([SOUND], {"channel_axis": 2}, OptionError, r"0 for \(channels, samples\)"),
        ([SOUND], {"channels": 3}, AudioError, "has 2 channels, where 3 were stated"),
        ([SOUND, SOUND[0]], {}, AudioError, "has 1 channels, where 2"),
        ([SOUND[0], SOUND], {}, AudioError, "has 2 channels, where 1"),
        ([[0.0, 0.1]], {}, AudioError, "of type list"),
        (b"\0\0\0\0", {}, AudioError, "of type int"),
        ([None], {"sample_format": "s16le"}, AudioError, "of type NoneType"),
        ([np.zeros((2, 2, 2))], {}, AudioError, "3 axes"),
        ([np.zeros(3, np.int64)], {}, AudioError, "of type int64"),
        ([np.zeros(3, np.int16), np.zeros(3, np.float32)], {"channels": 2}, AudioError, "give one type"),
    ],
)
def test_what_a_stream_does_not_state_or_does_not_keep_to_is_a_sentence(chunks, options, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        list(stream_samples(chunks, **options))
    assert str(caught.value).count(". ") == 0

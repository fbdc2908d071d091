"""Text of sound that is still coming."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.audio import load_audio, stream_chunks
from fastslm.errors import AudioError, OptionError
from fastslm.loading import load
from fastslm.longform.cuts import CUTS, Cuts
from fastslm.longform.live import PARTIAL_SHARE
from fastslm.speech import FastSLM

RECORDING = noise(95.03)
RECORDING[27 * 16_000 : 28 * 16_000] = 0


def _chunks(samples: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from np.split(samples, range(size, len(samples), size))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("size", [1000, 7777, 2_000_000])
def test_the_final_texts_together_are_the_transcript_of_the_file(tiny: FastSLM, cuts: Cuts, size: int) -> None:
    live = list(tiny.transcribe_stream(_chunks(RECORDING, size), cuts=cuts, update_seconds=20))
    expected = tiny.transcribe(RECORDING, cuts=cuts)
    final = [text.segment for text in live if text.final]
    assert [(s.start, s.end, s.text) for s in final] == [(s.start, s.end, s.text) for s in expected.segments]
    for own, other in zip(final, expected.segments, strict=True):
        assert [w.text for w in own.words] == [w.text for w in other.words]
        assert np.allclose([w.start for w in own.words], [w.start for w in other.words])
    assert " ".join(segment.text for segment in final if segment.text) == expected.text


def test_partial_texts_come_while_a_window_fills_and_are_replaced(tiny: FastSLM) -> None:
    live = list(tiny.transcribe_stream(_chunks(RECORDING[: 16_000 * 40], 1600), update_seconds=10))
    assert [text.final for text in live].count(True) == 2
    assert not live[0].final
    for text in live:
        assert text.segment.end == pytest.approx(text.heard_seconds, abs=0.11)
        assert text.segment.start in (0, 30)
    partial = [text for text in live if not text.final and text.segment.start == 0]
    assert partial[0].heard_seconds == pytest.approx(10, abs=0.11)


def test_a_text_comes_before_the_next_chunk_is_asked_for(tiny: FastSLM) -> None:
    given: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        for index, chunk in enumerate(_chunks(RECORDING, 16_000)):
            given.append(index)
            yield chunk

    first = next(tiny.transcribe_stream(chunks(), update_seconds=3))
    assert given == [0, 1, 2]
    assert first.heard_seconds == 3


def test_a_slow_machine_reads_partial_texts_less_often(tiny: FastSLM, monkeypatch) -> None:
    clock = iter(range(0, 100_000, 5))  # each look at it is 5 s later
    monkeypatch.setattr("fastslm.longform.live.monotonic", lambda: float(next(clock)))
    live = list(tiny.transcribe_stream(_chunks(RECORDING[: 16_000 * 29], 1600), update_seconds=1))
    partial = [text.heard_seconds for text in live if not text.final]
    assert partial == pytest.approx([1, 1 + 5 / PARTIAL_SHARE, 1 + 10 / PARTIAL_SHARE], abs=0.11)


def test_silence_is_not_read(tiny: FastSLM) -> None:
    live = list(tiny.transcribe_stream(_chunks(np.zeros(16_000 * 5, np.float32), 1600)))
    assert {text.segment.finish_reason for text in live} == {"silence"}
    assert {text.segment.text for text in live} == {""}


def test_only_a_window_of_sound_is_held(tiny: FastSLM) -> None:
    held: list[int] = []
    ordinary = tiny.encoder.tokens

    def counting(features):
        held.append(features.shape[0])
        return ordinary(features)

    tiny.encoder.tokens = counting  # type: ignore[method-assign]
    try:
        texts = list(tiny.transcribe_stream(_chunks(RECORDING, 160_000), update_seconds=1000))
    finally:
        del tiny.encoder.tokens
    assert held == [1] * len(texts)


@settings(max_examples=15, deadline=None)
@given(rate=st.sampled_from([8_000, 16_000, 44_100]), size=st.integers(1, 30_000), block=st.integers(1, 20_000))
def test_the_chunks_in_which_sound_comes_change_nothing(rate: int, size: int, block: int) -> None:
    samples = RECORDING[:40_000]
    expected = load_audio(samples, rate)
    blocks = list(stream_chunks(_chunks(samples, size), rate, block))
    assert np.array_equal(np.concatenate(blocks), expected)
    assert {len(own) for own in blocks[:-1]} <= {block}


@pytest.mark.fault
@pytest.mark.parametrize("size", [640, 1_001, 2_048])
def test_bytes_of_a_microphone_give_the_texts_that_their_samples_give(tiny: FastSLM, size: int) -> None:
    integers = np.round(RECORDING[: 16_000 * 4] * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    content = integers.tobytes()
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    (text,) = tiny.transcribe_stream(chunks, sampling_rate=16_000, sample_format="s16le", channels=1, update_seconds=9)
    assert text.segment.text == tiny.transcribe(integers).text
    assert text.segment.end == 4


@pytest.mark.fault
@pytest.mark.parametrize("size", [1, 2, 1_600])
def test_stereo_in_chunks_of_any_size_gives_the_text_of_the_file(tiny: FastSLM, size: int) -> None:
    stereo = np.stack([RECORDING[:8_000], RECORDING[16_000:24_000]], axis=1)
    chunks = [stereo[start : start + size] for start in range(0, len(stereo), size)]
    (text,) = tiny.transcribe_stream(chunks, channel_axis=1)
    assert text.segment.text == tiny.transcribe(stereo).text


@pytest.mark.fault
def test_a_stream_whose_channels_cancel_is_read_and_says_so(tiny: FastSLM) -> None:
    opposed = np.stack([RECORDING[:80_000], -RECORDING[:80_000]])
    live = list(tiny.transcribe_stream(np.split(opposed, 50, axis=1), update_seconds=1))
    assert live[-1].segment.text == tiny.transcribe(RECORDING[:80_000]).text
    said = [sentence for text in live for sentence in text.warnings]
    assert ["cancel one another at 0.0 s" in said[0], "cancel one another in 5.0 s" in said[-1]] == [True, True]
    assert len(said) == 2
    assert live[0].warnings == (said[0],)


@pytest.mark.fault
def test_bytes_of_no_stated_format_are_a_sentence(tiny: FastSLM) -> None:
    with pytest.raises(AudioError, match="do not tell what they hold"):
        next(tiny.transcribe_stream([bytes(64_000)]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample_format": "s16"}, "There is no sample format"),
        ({"channel_axis": 3}, "channel_axis is 3"),
        ({"update_seconds": 0}, "is 0, more than 0"),
        ({"update_seconds": "2"}, "is '2', more than 0"),
        ({"update_seconds": None}, "is None, more than 0"),
        ({"update_seconds": float("nan")}, "is nan, more than 0"),
        ({"cuts": "quit"}, "did you mean 'quiet'"),
        ({"method": "whole", "reader": "llm"}, "it is window"),
        ({"reader": "cct"}, "did you mean 'ctc'"),
        ({"sampling_rate": 10}, "1000 Hz or more"),
    ],
)
def test_what_a_stream_cannot_have_is_refused_at_once(tiny: FastSLM, options: dict, words: str) -> None:
    with pytest.raises((OptionError, AudioError), match=words):
        next(tiny.transcribe_stream(_chunks(RECORDING, 1000), **options))


def test_a_whole_files_mel_is_no_streams(make_checkpoint: MakeCheckpoint) -> None:
    model = load(make_checkpoint(mel_mode="authors"), quiet=True)
    with pytest.raises(OptionError, match="transcribe the file"):
        next(model.transcribe_stream(_chunks(RECORDING, 1000)))


def test_a_stream_without_sound_is_a_sentence(tiny: FastSLM) -> None:
    with pytest.raises(AudioError, match=r"at least 0\.1 s"):
        list(tiny.transcribe_stream(iter([])))

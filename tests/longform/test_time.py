"""What is made of a recording lies where its container's clock has it, and what is silent costs nothing."""

import io
from collections.abc import Iterator, Sequence

import av
import numpy as np
import pytest
import torch
from timed_sound import Move, timed
from tiny_fastslm import noise

from fastslm.audio import LiveChunk, TimedSamples, load_audio, stream_chunks
from fastslm.features import window_mel
from fastslm.longform.cuts import CUTS, Cuts
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.memory import SpeechMemory, place_of
from fastslm.longform.plan import most_windows
from fastslm.longform.subtitles import cues
from fastslm.speech import FastSLM

MOVES: list[list[Move]] = [[(-1, 4.0)], [(3.0, 40.0)], [(-1, 7.0), (2.0, 31.0), (5.0, 95.0)]]


def _sounding(moves: Sequence[Move], windows: int) -> list[bool]:
    """Which windows of 30 s have a tone in them."""
    starts = [second + 0.5 + sum(by for since, by in moves if second + 0.5 >= since) for second in range(6)]
    return [any(30 * index - 0.3 < start < 30 * index + 30 for start in starts) for index in range(windows)]


@pytest.mark.fault
@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize(("form", "codec"), [("matroska", "aac"), ("mp4", "aac"), ("webm", "libopus")])
def test_memory_segments_words_and_cues_are_by_one_clock(
    tiny: FastSLM, form: str, codec: str, moves: list[Move]
) -> None:
    content = timed(form, 48_000, codec, moves)
    memory = tiny.encode(content, cuts="fixed")
    length = 6 + sum(by for _, by in moves)
    assert memory.duration == pytest.approx(length, abs=0.1)
    assert len(memory.tokens) == most_windows(length, "fixed")
    sounding = _sounding(moves, len(memory.tokens))
    assert memory.silent.tolist() == [not own for own in sounding]
    transcript = tiny.transcribe(content, cuts="fixed", reader="ctc")
    assert [[s.start, s.end] for s in transcript.segments] == memory.times.tolist()
    for segment, own in zip(transcript.segments, sounding, strict=True):
        assert own == (segment.finish_reason != "silence")
        assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)
        within = [cue for cue in cues(transcript) if segment.start <= cue.start < segment.end]
        assert bool(within) == bool(segment.text)


@pytest.mark.fault
@pytest.mark.parametrize("cuts", CUTS)
def test_windows_without_sound_are_known_without_encoding_them(
    tiny: FastSLM, monkeypatch: pytest.MonkeyPatch, cuts: Cuts
) -> None:
    encoder, passed = WindowEncoder(tiny.model, workers=1), 0
    ordinary = encoder.tokens

    def counting(features: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += len(features)
        return ordinary(features)

    monkeypatch.setattr(encoder, "tokens", counting)
    memory = encoder.encode(timed("matroska", 16_000, "aac", [(3.0, 3600.0)]), cuts=cuts)
    assert len(memory.tokens) > 120
    assert passed <= 3  # at both ends of the gap, and one for all windows without sound
    # They are what encoding gives.
    mels = tiny.model.config.audio_config.num_mel_bins
    silent = ordinary(window_mel([np.zeros(480_000, np.float32)], mels))[0]
    for tokens in memory.tokens[memory.silent][::40]:
        assert torch.allclose(tokens, silent, atol=1e-4, rtol=0)
    assert memory.times[-1, 1] == pytest.approx(3606, abs=0.1)


def test_a_recording_of_nothing_but_silence_has_a_memory(tiny: FastSLM) -> None:
    memory = tiny.encode(np.zeros(16_000 * 65, np.float32))
    assert memory.silent.all()
    assert memory.times[-1].tolist() == [60, 65]
    assert tiny.transcribe(memory).text == ""


def test_a_stopped_encoding_goes_on_over_a_gap_to_the_same_bits(tiny: FastSLM, tmp_path) -> None:
    sound = np.concatenate([noise(65), np.zeros(16_000 * 200, np.float32), noise(100, 1)])
    expected, kept = tiny.encode(sound), tmp_path / "kept"

    class Stop(Exception):
        pass

    def stop(progress) -> None:
        if progress.seconds > 60:
            raise Stop

    with pytest.raises(Stop):
        tiny.encode(sound, kept_at=kept, on_progress=stop)
    assert kept.exists()
    assert torch.equal(tiny.encode(sound, kept_at=kept).tokens, expected.tokens)


@pytest.mark.fault
def test_a_part_of_a_memory_s_recording_keeps_its_clock_beside_others(tiny: FastSLM) -> None:
    whole, part = tiny.encode(noise(40)), tiny.encode(noise(70, 1), start=5, duration=40)
    assert part.times.tolist() == [[5, 35], [35, 45]]
    assert (part.start, part.end, part.duration) == (5, 45, 40)
    together = SpeechMemory.concatenate([whole, part])
    assert together.times[-1, 1] == 80
    assert place_of(50.0, [whole, part]) == (1, 15.0)
    answer = tiny.ask([whole, part], "Who?", max_new_tokens=2)
    assert [(span.start, span.end) for span in answer.spans] == [(0, 40), (5, 45)]


# Live


def _frames(content: bytes) -> Iterator[av.AudioFrame]:
    with av.open(io.BytesIO(content)) as container:
        yield from container.decode(audio=0)


def _packets(samples: np.ndarray, size: int, lost: Sequence[int] = (), late: float = 0.0) -> Iterator[LiveChunk]:
    for index, start in enumerate(range(0, len(samples), size)):
        if index not in lost:
            yield TimedSamples(samples[start : start + size], late + start / 16_000)


@pytest.mark.fault
@pytest.mark.parametrize("moves", [[(-1, 4.0)], [(3.0, 40.0)], [(-1, 7.0), (2.0, 31.0)]])
def test_frames_with_timestamps_are_heard_as_the_file_is(tiny: FastSLM, moves: list[Move]) -> None:
    content = timed("matroska", 48_000, "libopus", moves)
    live = list(tiny.transcribe_stream(_frames(content), cuts="fixed", update_seconds=1000))
    expected = tiny.transcribe(content, cuts="fixed")
    final = [text.segment for text in live if text.final]
    assert [(s.start, s.end, s.text) for s in final] == [(s.start, s.end, s.text) for s in expected.segments]


@pytest.mark.fault
def test_packets_that_were_lost_are_silence_and_those_that_come_twice_are_heard_once(tiny: FastSLM) -> None:
    sound = noise(40)
    lost = [*range(50, 250), 400]
    heard = sound.copy()
    heard[16_000 : 5 * 16_000] = 0
    expected = tiny.transcribe(heard)

    def packets() -> Iterator[LiveChunk]:
        for number, packet in enumerate(_packets(sound, 320, lost[:-1])):
            yield packet
            if number == 500:  # the last second once more
                yield from list(_packets(sound, 320))[650:701]

    final = [text for text in tiny.transcribe_stream(packets(), update_seconds=1000) if text.final]
    assert [(t.segment.start, t.segment.end, t.segment.text) for t in final] == [
        (s.start, s.end, s.text) for s in expected.segments
    ]


def test_a_live_clock_that_began_long_before_is_that_of_the_stream(tiny: FastSLM) -> None:
    expected = tiny.transcribe(noise(3))
    for late in (3600.0, 1.7e9):
        (text,) = tiny.transcribe_stream(_packets(noise(3), 1600, late=late), update_seconds=1000)
        assert (text.segment.start, text.segment.text) == (0, expected.text)


def test_a_live_gap_of_an_hour_passes_no_encoder(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def packets() -> Iterator[LiveChunk]:
        yield from _packets(noise(2), 1600)
        yield from _packets(noise(2), 1600, late=3600.0)

    passed: list[int] = []
    ordinary = tiny.encoder.tokens
    assert tiny.encoder.blank_tokens is not None
    monkeypatch.setattr(tiny.encoder, "tokens", lambda features: passed.append(len(features)) or ordinary(features))
    final = [text for text in tiny.transcribe_stream(packets(), update_seconds=1e6) if text.final]
    assert len(final) == 121
    assert len(passed) == 2


def test_live_samples_are_those_of_the_file_where_no_time_is_missing() -> None:
    shaken = (TimedSamples(chunk.samples, chunk.second + 0.03 * (-1) ** i) for i, chunk in enumerate(_timed(noise(5))))
    np.testing.assert_array_equal(np.concatenate(list(stream_chunks(shaken))), load_audio(noise(5)))


def _timed(samples: np.ndarray) -> list[TimedSamples]:
    return [packet for packet in _packets(samples, 320) if isinstance(packet, TimedSamples)]

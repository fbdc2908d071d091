"""Sound has the clock of its container: a cue lies where the player plays it."""

import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from timed_sound import TIMED, Move, expected, names, onsets, timed

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, load_audio, probe_duration, stream_audio
from fastslm.audio.ending import JOINED_SECONDS

FROM_ZERO = [kind for kind in TIMED if kind[0] not in ("asf", "mpegts", "mpeg")]
# What a codec puts before its sound: up to 1,105 samples of MP3, and a container may or may not count them.
PRIMING = 0.06


def _heard(content: bytes) -> tuple[np.ndarray, list[str]]:
    told: list[str] = []
    return load_audio(content, on_warning=told.append), told


def _check(content: bytes, moves: Sequence[Move], seconds: float = 6.0) -> list[str]:
    samples, told = _heard(content)
    assert onsets(samples) == pytest.approx(expected(moves, seconds), abs=PRIMING)
    assert probe_duration(content) == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.15)
    return told


@pytest.mark.parametrize("kind", TIMED, ids=names(TIMED))
def test_sound_in_order_has_nothing_inserted_dropped_or_said(kind) -> None:
    content = timed(*kind)
    assert _check(content, []) == []
    assert len(_heard(content)[0]) / SAMPLE_RATE == pytest.approx(6, abs=PRIMING)


@pytest.mark.fault
@pytest.mark.parametrize("kind", FROM_ZERO, ids=names(FROM_ZERO))
@pytest.mark.parametrize("late", [4.0, 7.25])
def test_sound_that_starts_late_is_heard_late(kind, late: float) -> None:
    assert _check(timed(*kind, [(-1, late)]), [(-1, late)]) == []


@pytest.mark.fault
@pytest.mark.parametrize("form", ["matroska", "mp4", "mov", "mpegts", "nut"])
def test_sound_that_starts_later_than_the_picture_is_heard_when_it_plays(form: str) -> None:
    samples, told = _heard(timed(form, 44_100, "aac", [(-1, 3.5)], picture=True))
    assert onsets(samples) == pytest.approx(expected([(-1, 3.5)]), abs=PRIMING)
    assert told == []


@pytest.mark.fault
@pytest.mark.parametrize("kind", TIMED, ids=names(TIMED))
def test_a_gap_is_silence_of_its_length_and_is_said(kind) -> None:
    moves = [(3.0, 20.0)]
    (sentence,) = _check(timed(*kind, moves), moves)
    assert "20.0 s without sound, in one place, are taken as silence" in sentence


@pytest.mark.fault
@pytest.mark.parametrize("kind", [kind for kind in TIMED if kind[0] != "ogg"], ids=lambda kind: kind[0])
def test_gaps_add_up_and_so_does_a_late_start(kind) -> None:
    moves = [(-1.0, 0.5 if kind in FROM_ZERO else 0.0), (2.0, 1.3), (4.0, 0.5), (5.0, 31.0)]
    (sentence,) = _check(timed(*kind, moves), moves)
    assert "32.8 s without sound, in 3 places" in sentence


@pytest.mark.fault
@pytest.mark.parametrize("kind", [("matroska", 48_000, "libopus"), ("mpegts", 44_100, "aac"), ("mp4", 44_100, "aac")])
def test_many_packets_lost_one_by_one_are_no_drift(kind) -> None:
    moves = [(second / 10, 0.04) for second in range(1, 120)]  # 4.8 s in 12
    samples, _ = _heard(timed(*kind, moves, seconds=12.0))
    # The tones themselves are torn: the last one counts.
    assert onsets(samples)[-1] == pytest.approx(expected(moves, 12.0)[-1], abs=0.2)


@pytest.mark.fault
@pytest.mark.parametrize("kind", [("matroska", 16_000, "aac"), ("webm", 48_000, "libopus"), ("mpegts", 44_100, "aac")])
def test_what_overlaps_is_heard_once_and_the_seconds_are_said(kind) -> None:
    # A recorder that connects again sends the last seconds once more.
    first, again = timed(*kind), timed(*kind, [(-1, 4.0)])
    samples, told = _heard(first + again)
    assert onsets(samples)[:6] == pytest.approx(expected(), abs=PRIMING)
    assert onsets(samples)[-4:] == pytest.approx([6.5, 7.5, 8.5, 9.5], abs=PRIMING)
    assert len(samples) / SAMPLE_RATE == pytest.approx(10, abs=0.1)
    assert "2.0 s twice" in told[0] or "2.1 s twice" in told[0]


@pytest.mark.parametrize("kind", [("matroska", 44_100, "aac"), ("matroska", 48_000, "libopus"), ("flv", 44_100, "aac")])
def test_jitter_of_timestamps_changes_no_sample(kind) -> None:
    shake = random.Random(0)
    # Packets stay in order, as muxers want them, and none is moved by more than one packet.
    moves, at = [], 0.0
    for packet in range(1, 250):
        target = shake.uniform(0, 0.019)
        moves.append((packet * 0.024, target - at))
        at = target
    plain, shaken = timed(*kind), timed(*kind, moves)
    assert plain != shaken
    np.testing.assert_array_equal(_heard(plain)[0], _heard(shaken)[0])


@pytest.mark.fault
@pytest.mark.parametrize("kind", [("matroska", 16_000, "aac"), ("mp4", 44_100, "aac"), ("mpegts", 48_000, "mp2")])
def test_a_gap_of_hours_costs_no_memory(kind) -> None:
    content = timed(*kind, [(3.0, 3 * 3600.0)])
    tracemalloc.start()
    try:
        total = sum(len(block) for block in stream_audio(content, on_warning=lambda _: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total / SAMPLE_RATE == pytest.approx(3 * 3600 + 6, abs=0.1)
    assert peak < 4 * WINDOW_SAMPLES * np.float32().itemsize


@pytest.mark.parametrize(("form", "rate", "codec"), [("mpegts", 44_100, "aac"), ("mpeg", 48_000, "mp2")])
def test_a_broadcast_begins_when_it_was_joined(form: str, rate: int, codec: str) -> None:
    assert _check(timed(form, rate, codec, [(-1, 3000.0)]), []) == []


@pytest.mark.parametrize(("form", "rate", "codec"), [("ogg", 48_000, "libopus"), ("flv", 44_100, "aac")])
def test_a_stream_that_was_joined_later_begins_when_it_was_joined(form: str, rate: int, codec: str) -> None:
    assert _check(timed(form, rate, codec, [(-1, JOINED_SECONDS + 3000)]), []) == []


@pytest.mark.parametrize("block", [1_000, 100_000, WINDOW_SAMPLES])
def test_blocks_are_the_same_whatever_their_size_with_gaps_too(block: int) -> None:
    content = timed("matroska", 44_100, "aac", [(-1, 3.0), (2.0, 40.0)])
    blocks = list(stream_audio(content, block_samples=block, on_warning=lambda _: None))
    np.testing.assert_array_equal(np.concatenate(blocks), _heard(content)[0])
    assert all(len(piece) == block for piece in blocks[:-1])

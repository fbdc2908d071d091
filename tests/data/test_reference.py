"""Compositions sound as their segments say, and a window costs only what sounds in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.data import reference
from fastslm.data.manifest import Clip, read_manifest
from fastslm.errors import ManifestError, OptionError

FREQUENCIES = (200.0, 300.0, 500.0, 800.0)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: Any, encode: Any, tone: Any) -> Path:
    """A folder with tones of 1, 4, 9 and 25 s, as 0.wav to 3.wav."""
    folder = tmp_path_factory.mktemp("pieces")
    for index, seconds in enumerate((1.0, 4.0, 9.0, 25.0)):
        encode(folder / f"{index}.wav", tone(seconds, frequency=FREQUENCIES[index]))
    return folder


SECONDS = (1.0, 4.0, 9.0, 25.0)


def composition(folder: Path, order: list[int], pauses: list[float], stretch: float = 0.0) -> Clip:
    """The pieces in this order, after these pauses; each stated `stretch` longer than it is."""
    at, segments = 0.0, []
    for index, pause in zip(order, pauses, strict=True):
        at += pause
        end = at + SECONDS[index] + stretch
        segments.append({"start": at, "end": end, "id": f"p{index}", "text": f"w{index}", "audio": f"{index}.wav"})
        at = end
    path = folder / "composed.jsonl"
    path.write_text(json.dumps({"id": "c", "audio": None, "duration": at, "segments": segments}) + "\n")
    return read_manifest(path)[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), order=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_concatenating_all_windows_gives_read_exactly(pieces: Path, data: Any, order: list[int]) -> None:
    pauses = data.draw(st.lists(st.floats(0, 40), min_size=len(order), max_size=len(order)))
    clip = composition(pieces, order, pauses)
    windows = list(clip.windows())
    assert all(len(window) == WINDOW_SAMPLES for window in windows[:-1])
    whole = clip.read()
    np.testing.assert_array_equal(np.concatenate(windows), whole)
    assert len(whole) == round(clip.duration * SAMPLE_RATE)
    for index, window in enumerate(windows):
        np.testing.assert_array_equal(clip.window(index), window)


def test_a_piece_sounds_in_its_segment_and_pauses_are_silent(pieces: Path) -> None:
    clip = composition(pieces, [1, 3, 0], [0.5, 2.0, 3.0])
    wave = clip.read()
    heard = np.zeros(len(wave), dtype=bool)
    for segment, index in zip(clip.pieces, (1, 3, 0), strict=True):
        first, last = round(segment.start * SAMPLE_RATE), round(segment.end * SAMPLE_RATE)
        heard[first:last] = True
        crossings = int((np.diff(np.signbit(wave[first:last])) != 0).sum())
        assert crossings == pytest.approx(2 * FREQUENCIES[index] * SECONDS[index], rel=0.02)
    assert not wave[~heard].any()


def test_a_window_decodes_only_the_pieces_that_sound_in_it(pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 900 s: window 20 holds the pieces that reach into 600 s to 630 s.
    clip = composition(pieces, [3] * 30, [5.0] * 30)
    decoded = []
    load = reference.load_audio
    monkeypatch.setattr(reference, "load_audio", lambda source: decoded.append(source) or load(source))
    clip.window(20)
    assert 1 <= len(decoded) <= 2
    decoded.clear()
    assert sum(len(window) for window in clip.windows()) == 900 * SAMPLE_RATE
    assert len(decoded) <= 60, "a piece is in two windows at most"


def test_a_piece_that_outlasts_its_segment_is_refused_before_it_covers_the_next(pieces: Path) -> None:
    with pytest.raises(ManifestError, match=r"line 1: c: its piece p1 lasts 4\.00 s, but its manifest says 3\.50 s"):
        composition(pieces, [1, 0], [0.0, 0.1], stretch=-0.5).read()


def test_what_a_decoder_adds_never_sounds_under_the_next_piece(pieces: Path) -> None:
    # Stated 0.2 s too short, and the next piece starts right there: what is over is cut.
    clip = composition(pieces, [1, 0], [0.0, 0.0], stretch=-0.2)
    second = clip.read()[round(3.8 * SAMPLE_RATE) :]
    crossings = int((np.diff(np.signbit(second[: SAMPLE_RATE // 2])) != 0).sum())
    assert crossings == pytest.approx(FREQUENCIES[0], rel=0.03)
    assert np.abs(second).max() <= 0.26, "both sound at once"


def test_a_window_that_is_not_there_is_refused(pieces: Path) -> None:
    clip = composition(pieces, [3, 2], [0.0, 0.0])
    assert len(clip.window(1)) == 4 * SAMPLE_RATE
    for wrong in (-1, 2):
        with pytest.raises(OptionError, match=f"has no window {wrong}"):
            clip.window(wrong)


def test_a_plain_recording_has_windows_too(tmp_path: Path, encode: Any, tone: Any) -> None:
    encode(tmp_path / "a.wav", tone(31.0))
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "audio": "a.wav", "duration": 31.0}) + "\n")
    (clip,) = read_manifest(path)
    assert [len(window) for window in clip.windows()] == [WINDOW_SAMPLES, SAMPLE_RATE]
    np.testing.assert_array_equal(clip.window(1), clip.read()[WINDOW_SAMPLES:])
    with pytest.raises(OptionError, match="has no window 2"):
        clip.window(2)


def test_a_shard_that_ends_too_early_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"x" * 100)
    path = tmp_path / "m.jsonl"
    row = {"id": "a", "audio": {"path": "s.tar", "offset": 90, "length": 20}, "duration": 1.0}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ManifestError, match=r"s\.tar ends before the 20 bytes from 90"):
        read_manifest(path)[0].read()


def test_what_a_decoder_adds_does_not_sound_after_a_short_next_piece_either(
    tmp_path: Path, encode: Any, tone: Any
) -> None:
    encode(tmp_path / "long.wav", tone(2.0))
    encode(tmp_path / "short.wav", tone(0.1))
    segments = [
        {"start": 0.0, "end": 1.8, "id": "long", "audio": "long.wav"},
        {"start": 1.8, "end": 1.9, "id": "short", "audio": "short.wav"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "c", "audio": None, "duration": 2.5, "segments": segments}) + "\n")
    wave = read_manifest(path)[0].read()
    assert wave[round(1.8 * SAMPLE_RATE) : round(1.9 * SAMPLE_RATE)].any()
    assert not wave[round(1.9 * SAMPLE_RATE) :].any()

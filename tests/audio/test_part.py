"""A part of a recording: a track, from a second on, for so many seconds."""

import math

import numpy as np
import pytest
from timed_sound import expected, onsets, timed

from fastslm.audio import SAMPLE_RATE, load_audio, probe_duration, stream_audio
from fastslm.audio.part import WHOLE, Part
from fastslm.errors import AudioError, OptionError

FAST = {"movflags": "faststart"}


def _loud(content: object, part: Part) -> np.ndarray:
    return load_audio(content, part=part, on_warning=lambda _: None)  # type: ignore[arg-type]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("kind", "moves"),
    [
        (("matroska", 44_100, "aac"), [(-1, 2.0), (3.0, 4.0)]),
        (("webm", 48_000, "libopus"), []),
        (("mp4", 44_100, "aac"), [(3.0, 4.0)]),
        (("mpegts", 44_100, "aac"), []),
        (("mp3", 44_100, "libmp3lame"), []),
        (("flac", 16_000, "flac"), []),
        (("wav", 22_050, "pcm_s16le"), []),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_parts_that_follow_one_another_are_the_whole_to_the_sample(kind, moves) -> None:
    content = timed(*kind, moves)
    whole = _loud(content, WHOLE)
    parts = [_loud(content, Part(start=start, duration=1.7)) for start in (0.0, 1.7, 3.4)]
    parts.append(_loud(content, Part(start=5.1)))
    assert len(parts[0]) == round(1.7 * SAMPLE_RATE)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_parts_of_an_array_are_slices_of_it() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 3 * SAMPLE_RATE).astype(np.float32)
    np.testing.assert_array_equal(_loud(samples, Part(start=0.5, duration=1.0)), samples[8_000:24_000])
    with pytest.raises(OptionError, match="tracks are a file's"):
        _loud(samples, Part(track=1))


@pytest.mark.fault
@pytest.mark.parametrize("form", ["matroska", "mp4", "mpegts"])
def test_each_track_is_read_by_its_number_and_that_others_are_not_is_said(form: str) -> None:
    content = timed(form, 44_100, "aac", tracks=("eng", "fra", "deu"), frequencies=(500.0, 1000.0, 2000.0))
    for number, frequency in enumerate((500, 1000, 2000), 1):
        told: list[str] = []
        samples = load_audio(content, part=Part(track=number), on_warning=told.append)
        assert onsets(samples) == pytest.approx(expected(), abs=0.06)
        spectrum = np.abs(np.fft.rfft(samples))
        assert np.argmax(spectrum) * SAMPLE_RATE / len(samples) == pytest.approx(frequency, abs=20)
        assert told == []
    load_audio(content, on_warning=told.append)
    assert "has 3 audio tracks, of which 1 (eng, aac, mono) was read: choose another one with --track" in told[0]


@pytest.mark.fault
def test_a_track_that_is_not_there_is_a_sentence_that_names_those_that_are() -> None:
    content = timed("matroska", 44_100, "aac", tracks=("eng", "fra"), frequencies=(500.0, 1000.0))
    for read in (lambda part: next(stream_audio(content, part=part)), lambda part: probe_duration(content, part=part)):
        with pytest.raises(OptionError, match=r"no audio track 3, its tracks are 1 \(eng, aac, mono\); 2 \(fra, aac"):
            read(Part(track=3))


@pytest.mark.fault
def test_a_start_behind_the_end_is_a_sentence() -> None:
    content = timed("matroska", 44_100, "aac", [(3.0, 4.0)])
    with pytest.raises(AudioError, match=r"ends at 10\.0 s, and what is asked for starts at 11 s: give an earlier"):
        _loud(content, Part(start=11.0))
    assert onsets(_loud(content, Part(start=9.0))) == pytest.approx([0.5], abs=0.06)


def test_damage_within_a_part_is_said_and_that_the_file_breaks_off_only_if_the_part_does(
    tmp_path, encode, tone
) -> None:
    content = bytearray(
        encode(tmp_path / "a.m4a", tone(10.0, 44_100), 44_100, "aac", container_options=FAST).read_bytes()
    )
    content[len(content) // 3 : len(content) // 3 + 2_000] = np.random.default_rng(0).bytes(2_000)
    cut = bytes(content[: len(content) * 9 // 10])
    for part, words, partial in (
        (Part(duration=2.0), [], []),
        (Part(duration=5.0), ["is damaged"], []),
        (Part(start=5.0, duration=3.5), ["is damaged"], []),
        (Part(start=5.0, duration=4.5), [], [0.5]),
        (Part(start=5.0), [], [1.0]),
    ):
        told: list[str] = []
        missing: list[float | None] = []
        load_audio(cut, part=part, on_warning=told.append, on_partial=lambda _, lacking, m=missing: m.append(lacking))
        assert len(told) == len(words), told
        assert all(word in sentence for word, sentence in zip(words, told, strict=True))
        assert missing == pytest.approx(partial, abs=0.3)


def test_what_lies_behind_the_part_is_not_read() -> None:
    content = timed("matroska", 44_100, "aac", [(3.0, 4.0)])
    told: list[object] = []
    cut = content[: len(content) * 3 // 4]
    load_audio(cut, part=Part(duration=1.0), strict=True, on_warning=told.append)
    assert told == []
    assert len(_loud(timed("mp4", 44_100, "aac", [(3.0, 20_000.0)]), Part(start=7.0, duration=40.0))) == 640_000


def test_the_seconds_of_a_part_are_known_beforehand() -> None:
    content = timed("matroska", 44_100, "aac", [(-1, 4.0)])
    assert probe_duration(content, part=Part(start=3.0, duration=2.0)) == 2.0
    assert probe_duration(content, part=Part(start=3.0, duration=200.0)) == pytest.approx(7, abs=0.1)
    assert probe_duration(content, part=Part(start=20.0)) == 0


@pytest.mark.parametrize(
    ("value", "seconds"), [(90, 90), ("90", 90), ("1:30", 90), ("0:01:30.5", 90.5), (" 2:00:00 ", 7200), (".5", 0.5)]
)
def test_seconds_are_numbers_or_read_like_a_clock(value: object, seconds: float) -> None:
    assert Part.of(start=value, duration=value) == Part(None, seconds, seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, "-1", "-0:01", math.nan, math.inf, "soon", "", "1:2:3:4", True, [3], "1:-2"])
def test_seconds_that_are_none_are_a_sentence(value: object) -> None:
    for option in ("start", "duration"):
        with pytest.raises(OptionError, match=f"The {option} is .*, seconds or H:MM:SS from 0 on are allowed"):
            Part.of(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("track", [0, -1, 1.5, "1", True])
def test_tracks_are_counted_from_1(track: object) -> None:
    with pytest.raises(OptionError, match="a number from 1 on is allowed"):
        Part.of(track=track)  # type: ignore[arg-type]


def test_a_part_of_no_length_is_a_sentence() -> None:
    with pytest.raises(OptionError, match="The duration is 0"):
        Part.of(duration="0:00")

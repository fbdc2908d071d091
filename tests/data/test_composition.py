"""Compositions: as long as asked, of pieces that are whole, in an order that the seed decides."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet

from fastslm.data.composition import GROUPINGS, PAUSE_RANGE, Composing, compose, compose_cuts, minutes_range
from fastslm.data.conversion import manifest_to_cuts, write_cuts
from fastslm.data.cut_audio import CutSound, duration_of, known_of, sounding
from fastslm.data.cuts import read_rows, read_sounds
from fastslm.data.manifest import Clip, read_manifest, write_manifest
from fastslm.errors import ManifestError, OptionError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: Any) -> list[Clip]:
    """120 clips of 2 to 28 s, half an hour, of three speakers; the audio is a file that nobody decodes."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.wav").write_bytes(b"x")
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"c{i:03d}",
            "audio": {"path": "a.wav", "offset": i, "length": 1},
            "duration": round(float(rng.uniform(2, 28)), 3),
            "text": f"{'red' if i % 2 else 'blue'} {i}",
            "speaker": f"s{i % 3}",
            "language": "en",
        }
        for i in range(120)
    ]
    write_manifest(folder / "m.jsonl", rows)
    return read_manifest(folder / "m.jsonl")


def by_first_word(texts: Any) -> np.ndarray:
    """Meaning is the first word."""
    return np.array([[1.0, 0.0] if text.startswith("red") else [0.0, 1.0] for text in texts], dtype=np.float32)


@settings(max_examples=40, deadline=None)
@given(by=st.sampled_from(GROUPINGS), low=st.floats(0.2, 4), width=st.floats(0.6, 4), seed=st.integers(0, 2**31))
def test_compositions_are_as_long_as_asked_and_of_whole_pieces(
    corpus: list[Clip], by: str, low: float, width: float, seed: int
) -> None:
    durations = {clip.id: clip.duration for clip in corpus}
    composing = Composing(by, (low, low + width), count=3, seed=seed)
    for row in compose(corpus, composing, corpus[0]._folder, embed=by_first_word):
        clip = Clip.model_validate(row)
        assert low * 60 <= clip.duration <= (low + width) * 60 + 1e-6
        assert len({piece.id for piece in clip.pieces}) == len(clip.pieces), "a piece comes twice"
        assert clip.text == " ".join(piece.text or "" for piece in clip.pieces)
        assert clip.pieces[0].start == 0
        assert clip.pieces[-1].end == clip.duration
        for piece in clip.pieces:
            # Times are whole samples.
            assert piece.end - piece.start == pytest.approx(durations[str(piece.id)], abs=1 / 16000)
        for before, after in pairwise(clip.pieces):
            assert PAUSE_RANGE[0] - 1e-6 <= after.start - before.end <= PAUSE_RANGE[1] + 1e-6


@pytest.mark.parametrize("by", GROUPINGS)
def test_the_seed_alone_decides(corpus: list[Clip], by: str) -> None:
    def made(seed: int) -> str:
        return json.dumps(compose(corpus, Composing(by, (1, 3), 4, seed), Path("/"), embed=by_first_word))

    assert made(1) == made(1)
    assert made(1).replace("-1-", "-2-") != made(2)


@pytest.mark.parametrize("by", GROUPINGS)
def test_the_first_compositions_do_not_depend_on_how_many_follow(corpus: list[Clip], by: str) -> None:
    few, more = (compose(corpus, Composing(by, (1, 3), n, 5), Path("/"), embed=by_first_word) for n in (2, 6))
    assert more[:2] == few


def test_no_clip_comes_again_before_all_have_come(corpus: list[Clip]) -> None:
    rows = compose(corpus, Composing("random", (2, 4), 6, 0), Path("/"))
    pieces = [segment["id"] for row in rows for segment in row["segments"]]
    assert 60 < len(pieces) < 120
    assert len(set(pieces)) == len(pieces)


def test_by_speaker_one_speaks_and_in_the_manifests_order(corpus: list[Clip]) -> None:
    for row in compose(corpus, Composing("speaker", (1, 3), 3, 7), Path("/")):
        assert {segment["speaker"] for segment in row["segments"]} == {row["speaker"]}
        numbers = [int(segment["id"][1:]) for segment in row["segments"]]
        assert sum(b < a for a, b in pairwise(numbers)) <= 2, "only where it wraps or fills up"


def test_by_meaning_alike_texts_stand_together(corpus: list[Clip]) -> None:
    for row in compose(corpus, Composing("semantic", (1, 3), 4, 7), Path("/"), embed=by_first_word):
        assert len({segment["text"].split()[0] for segment in row["segments"]}) == 1
    mixed = compose(corpus, Composing("random", (1, 3), 4, 7), Path("/"))
    assert any(len({segment["text"].split()[0] for segment in row["segments"]}) == 2 for row in mixed)


def test_a_needle_is_in_every_composition_and_lends_its_slots(corpus: list[Clip]) -> None:
    needle = corpus[0].model_copy(update={"id": "needle", "text": None, "slots": {"size": "large"}, "duration": 5.0})
    places = set()
    for row in compose(corpus, Composing("random", (1, 3), 8, 2), Path("/"), needles=[needle]):
        ids = [segment["id"] for segment in row["segments"]]
        assert ids.count("needle") == 1
        places.add(ids.index("needle") / len(ids))
        assert row["slots"] == {"size": "large"}
        assert "text" not in row, "what the needle says is unknown"
        assert 60 <= row["duration"] <= 180
    assert len(places) > 3


def test_a_composition_is_worth_what_its_weakest_label_is(corpus: list[Clip]) -> None:
    kinds = ["human", "pseudo"] * 60
    clips = [clip.model_copy(update={"label_kind": kind}) for clip, kind in zip(corpus, kinds, strict=True)]
    assert {row["label_kind"] for row in compose(clips, Composing("random", (2, 3), 3, 0), Path("/"))} == {"pseudo"}
    human = compose(clips[::2], Composing("random", (2, 3), 1, 0), Path("/"))
    assert human[0]["label_kind"] == "human"


def test_sound_without_speech_adds_no_words(corpus: list[Clip]) -> None:
    clips = [c.model_copy(update={"text": None, "label": "rain"}) if i % 2 else c for i, c in enumerate(corpus)]
    (row,) = compose(clips, Composing("random", (3, 4), 1, 0), Path("/"))
    assert any(segment.get("label") == "rain" for segment in row["segments"])
    assert row["text"].count("blue") == sum("text" in segment for segment in row["segments"])
    assert "red" not in row["text"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": None}, r"line 1: c000 has no text"),
        ({"audio": None, "translation": "rouge"}, r"c000 is text without sound"),
        ({"duration": 31.0}, r"c000 lasts 31\.0 s, and a window 30 s"),
    ],
)
def test_a_clip_that_cannot_be_a_piece_is_named(corpus: list[Clip], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        compose([corpus[0].model_copy(update=change), *corpus[1:]], Composing(), Path("/"))


def test_too_little_speech_is_said_with_how_much_there_is(corpus: list[Clip]) -> None:
    with pytest.raises(ManifestError, match=r"last 0\.\d minutes, and a composition is to last at least 1"):
        compose(corpus[:2], Composing(), Path("/"))
    with pytest.raises(ManifestError, match="clips of any one speaker last"):
        compose(corpus, Composing("speaker", (12, 15)), Path("/"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "mood"},
        {"minutes": (0.0, 3.0)},
        {"minutes": (3.0, 1.0)},
        {"minutes": (1.0, 1.2)},
        {"minutes": (1.0, float("inf"))},
        {"minutes": (float("nan"), 3.0)},
        {"count": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Composing(**wrong)


def test_minutes_are_read_from_words() -> None:
    assert minutes_range("1-15") == (1.0, 15.0)
    assert minutes_range("0.5-2.5") == (0.5, 2.5)
    for wrong in ("15", "a-b", "1-", ""):
        with pytest.raises(OptionError, match="no range of minutes"):
            minutes_range(wrong)


@pytest.fixture
def cuts(make_manifest: Any, tmp_path: Path) -> list[CutSound]:
    """Eight cuts of two speakers, of 4 to 11 s, each with a translation of its own."""
    manifest = make_manifest([4.0 + i for i in range(8)], translation="salut", target_language="fr")
    manifest_to_cuts(manifest, tmp_path / "cuts.jsonl")
    return read_sounds(tmp_path / "cuts.jsonl")


@pytest.mark.parametrize("by", GROUPINGS)
def test_cuts_are_composed_as_their_clips_are(cuts: list[CutSound], tmp_path: Path, by: str) -> None:
    composing = Composing(by, (0.1, 0.7), count=2, seed=3)
    made = compose_cuts(cuts, composing, embed=by_first_word)
    wanted = compose(read_manifest(tmp_path / "m.jsonl"), composing, tmp_path, embed=by_first_word)
    for cut, row in zip(made, wanted, strict=True):
        assert cut["id"] == row["id"]
        assert [own["id"] for _, own in sounding(cut)] == [segment["id"] for segment in row["segments"]]
        assert [start for start, _ in sounding(cut)] == pytest.approx([s["start"] for s in row["segments"]], abs=1e-3)
        assert duration_of(cut) == pytest.approx(row["duration"], abs=1e-3)
        assert known_of(cut)["text"] == row["text"]
        assert "translation" not in known_of(cut), "which is that of one piece"
    assert compose_cuts(cuts, composing, embed=by_first_word) == made


def test_a_composed_cut_refers_to_its_audio_and_sounds_like_the_composition_of_the_clips(
    cuts: list[CutSound], tmp_path: Path
) -> None:
    composing = Composing("random", (0.5, 1.1), count=1, seed=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    write_cuts(tmp_path / "long.jsonl", compose_cuts(cuts, composing))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "long.jsonl"])
    (row,) = read_rows(tmp_path / "long.jsonl").epoch([0, 0], 0)
    (wanted,) = compose(read_manifest(tmp_path / "m.jsonl"), composing, tmp_path)
    clip = Clip.model_validate(wanted)
    clip._folder = tmp_path
    wave = np.concatenate(list(row.waveforms()))[: row.samples]
    assert np.abs(wave - clip.read()[: len(wave)]).max() < 1e-4
    found = CutSet.from_file(tmp_path / "long.jsonl")[0]
    assert found.load_audio().shape == (1, row.samples)


def test_what_cannot_be_composed_of_cuts_is_one_sentence(cuts: list[CutSound], make_manifest: Any) -> None:
    composing = Composing("random", (0.1, 0.7), count=1)
    with pytest.raises(ManifestError, match="Two cuts have the same id"):
        compose_cuts([*cuts, cuts[0]], composing)
    long = [CutSound(own, cuts[0].folder) for own in compose_cuts(cuts, composing)]
    with pytest.raises(ManifestError, match="is a composition already"):
        compose_cuts(long, composing)

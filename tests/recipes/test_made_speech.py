"""Speech made of texts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_speech import Document, make, read_documents, windows
from made_speech import main as made_speech

from fastslm.data.manifest import read_manifest
from fastslm.errors import ManifestError, OptionError


class Hum:
    """A voice that hums a tenth of a second for each letter."""

    sample_rate = 24_000

    def __call__(self, text: str, speed: float = 1.0, seed: int | None = None) -> np.ndarray:
        samples = int(len(text) * 2_400 / speed)
        return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


SENTENCES = [f"{word} ships sail past the old stone harbour." for word in ("Two", "Three", "Seven", "Some", "Few")] * 3
LONG = Document(id="harbour", sentences=SENTENCES, kind="prose", source="written for this test")
SHORT = Document(id="hut", sentences=["Nobody lives here.", "...", "It is cold."], kind="prose")

SHED = Document(id="shed", sentences=["Seven ships sail past."], kind="dialogue")


def test_windows_hold_every_sentence_once_and_in_order_and_at_most_30_s() -> None:
    made = list(windows(LONG, Hum(), seed=1))
    assert len(made) > 1
    assert [segment["text"] for window in made for segment in window.segments] == SENTENCES
    for window in made:
        assert len(window.wave) <= 480_000
        assert np.abs(window.wave).max() <= 1
        ends = [segment["end"] for segment in window.segments]
        assert all(end <= s["start"] for end, s in zip(ends, window.segments[1:], strict=False))


def test_what_is_drawn_depends_on_seed_and_id_alone() -> None:
    def heard(document: Document, seed: int) -> np.ndarray:
        return np.concatenate([window.wave for window in windows(document, Hum(), seed)])

    first = heard(SHORT, 1)
    heard(LONG, 1)
    assert np.array_equal(first, heard(SHORT, 1))
    assert not np.array_equal(first, heard(SHORT, 2))
    assert not np.array_equal(first, heard(SHORT.model_copy(update={"id": "cabin"}), 1))


def test_a_dialogue_is_spoken_by_the_people_that_it_names() -> None:
    dialogue = Document(id="talk", sentences=["Good day.", "Who is there?", "It is me."], speakers=[0, 1, 0])
    assert [s["person"] for window in windows(dialogue, Hum(), 3) for s in window.segments] == [0, 1, 0]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("made_speech.PART_DOCUMENTS", 2)

    class Stopping(Hum):
        def __call__(self, text: str, speed: float = 1.0, seed: int | None = None) -> np.ndarray:
            if "Stop" in text:
                raise KeyboardInterrupt
            return super().__call__(text, speed, seed)

    documents = [Document(id=f"text-{i}", sentences=["It is cold here."]) for i in range(5)]
    whole = make(tmp_path / "whole", documents, Hum(), 1, np.inf)
    last = whole[-1]["document"]
    stopping = [d.model_copy(update={"sentences": ["Stop."]}) if d.id == last else d for d in documents]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "made", stopping, Stopping(), 1, np.inf)
    shard = tmp_path / "made" / "part-00000-000.tar"
    before = shard.read_bytes()
    resumed = make(tmp_path / "made", documents, Hum(), 1, np.inf)
    assert shard.read_bytes() == before

    def told(rows: list[dict]) -> list[tuple]:
        return [(row["id"], row["text"], row["duration"], row["segments"]) for row in rows]

    assert told(resumed) == told(whole)
    with pytest.raises(OptionError, match="seed 1"):
        make(tmp_path / "made", documents, Hum(), 2, np.inf)


def test_hours_end_the_work(tmp_path: Path) -> None:
    documents = [Document(id=f"text-{i}", sentences=["It is cold here."]) for i in range(5)]
    rows = make(tmp_path, documents, Hum(), 1, 3 / 3600)
    assert 1 <= len(rows) < 5
    assert sum(row["duration"] for row in rows[:-1]) < 3 <= sum(row["duration"] for row in rows)
    assert len(make(tmp_path, documents, Hum(), 1, np.inf)) == 5


def test_lines_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"id": "a", "sentences": ["One."], "speakers": [0, 1]}))
    with pytest.raises(ManifestError, match=r"line 1.*as many speakers"):
        read_documents([texts])
    texts.write_text(2 * (json.dumps({"id": "a", "sentences": ["One."]}) + "\n"))
    with pytest.raises(ManifestError, match=r"line 2.*twice"):
        read_documents([texts])


def test_a_voice_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    assert made_speech([str(tmp_path / "made"), str(tmp_path / "texts.jsonl")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install hibari-tts" in said
    assert not (tmp_path / "made").exists()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(document.model_dump_json() + "\n" for document in (SHORT, SHED)))
    return path


def test_two_short_texts_are_spoken_and_read_back(tmp_path: Path, texts: Path) -> None:
    pytest.importorskip("hibari")
    assert made_speech([str(tmp_path / "made"), str(texts), "--seed", "4"]) == 0
    clips = read_manifest(tmp_path / "made" / "train.jsonl")
    assert {clip.speaker for clip in clips} == {"hut", "shed"}
    assert all(clip.label_kind == "synthetic" for clip in clips)
    for clip in clips:
        assert abs(len(clip.read()) / 16_000 - clip.duration) < 0.05
    hut = [clip for clip in clips if clip.speaker == "hut"]
    assert " ".join(clip.text or "" for clip in hut) == "Nobody lives here. It is cold."

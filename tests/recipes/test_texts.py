"""Texts to be spoken, gathered from clones."""

import json
import subprocess
from pathlib import Path
from random import Random

import pytest
from held_out import HeldOut
from scenes import SCENES, scene
from sentences import clean, documents, sentences
from texts import main as texts

PLANTED = "The grey heron stood quite still beside the mill"
STORY = [f"On day number {i} the miller walked slowly down to his old mill by the river." for i in range(12)]


def clone(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Texts"]):
        subprocess.run([*git, *command], check=True)
    return folder


def test_a_planted_sentence_of_a_test_is_dropped_and_its_neighbours_stay(tmp_path: Path) -> None:
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"id": "a", "text": f"She saw it: {PLANTED.upper()}, waiting!"}))
    told = " ".join([*STORY[:6], f"{PLANTED} all day long.", *STORY[6:]])
    fairy = clone(
        tmp_path / "fairy", {"data-by-train-split/section-stories/train/mill-story.csv": f'section,text\n1,"{told}"\n'}
    )
    out = tmp_path / "texts.jsonl"
    assert texts([str(out), "--held-out", str(held_out), "--sources", f"fairytales={fairy}", "names=3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["source"] for row in rows] == ["fairytales", "names", "names", "names"]
    assert rows[0]["sentences"] == STORY
    assert all(row["licence"] for row in rows)


def test_a_shared_run_may_span_two_sentences_and_six_words_are_no_run() -> None:
    held_out = HeldOut(["one two three four five six seven eight"])
    assert held_out.kept(["Zero. One two three.", "Four five six seven.", "Nine."]) == [2]
    assert held_out.kept(["One two three four five six."]) == [0]
    assert HeldOut(["Where is it?"]).kept(["Where is it", "Where is it now?"]) == [1]


def test_dialogues_keep_a_speaker_for_each_sentence(tmp_path: Path) -> None:
    turns = [
        {
            "speaker": who,
            "utterance": f"This is what number {i} has to say about the matter of the trains to the north.",
        }
        for i, who in enumerate(["USER", "SYSTEM"] * 6)
    ]
    turns[3]["utterance"] = f"{PLANTED}."
    dialogues = [{"dialogue_id": "1_0", "services": ["Trains_1"], "turns": turns}]
    sgd = clone(tmp_path / "sgd", {"train/dialogues_001.json": json.dumps(dialogues)})
    held_out, out = tmp_path / "test.jsonl", tmp_path / "texts.jsonl"
    held_out.write_text(json.dumps({"text": PLANTED}))
    assert texts([str(out), "--held-out", str(held_out), "--sources", f"sgd={sgd}"]) == 0
    row = json.loads(out.read_text())
    assert row["speakers"] == [0, 1, 0] + [0, 1] * 4
    assert len(row["sentences"]) == 11


def test_sentences_are_neither_long_nor_cut_at_a_title() -> None:
    long = "and then the boat went on down the river, " * 12
    found = sentences([clean(f"Mr. Hall met Dr. J. Reed at the “old” station. It was raining {long}until it stopped.")])
    assert found[0] == 'Mr. Hall met Dr. J. Reed at the "old" station.'
    assert all(len(sentence.split()) <= 35 for sentence in found)
    assert " ".join(found).count("boat") == 12
    parts = documents(STORY * 20)
    assert [sentence for part in parts for sentence in part] == STORY * 20
    assert all(120 <= sum(len(s.split()) for s in part) <= 950 for part in parts)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_scenes_are_filled_in_and_derive_from_their_seed(name: str) -> None:
    made = {tuple(scene(name, Random(seed))) for seed in range(20)}
    assert len(made) == 20
    assert not any("{" in sentence for told in made for sentence in told)
    assert tuple(scene(name, Random(3))) in made


def test_a_source_that_is_none_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out, out = tmp_path / "test.jsonl", tmp_path / "texts.jsonl"
    held_out.write_text(json.dumps({"text": PLANTED}))
    for source in ("reviews=x", f"books={tmp_path / 'none'}", "names=many"):
        assert texts([str(out), "--held-out", str(held_out), "--sources", source]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()

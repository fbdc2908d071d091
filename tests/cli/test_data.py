"""`fastslm data` on the command line: from recordings to a mixture, and one sentence for what is at fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastslm.cli import run
from fastslm.data.manifest import read_manifest


@pytest.fixture
def manifest(tmp_path: Path, encode: Any, tone: Any) -> Path:
    """Ten clips of 9 s and one of silence with a label, in a folder of their own."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = []
    for index in range(10):
        encode(folder / f"{index}.wav", tone(9.0, frequency=200.0 + 50 * index))
        text = " ".join(f"word{index}x{i}" for i in range(20))
        rows.append({"id": str(index), "audio": f"{index}.wav", "duration": 9.0, "text": text, "speaker": "ann"})
    rows.append({"id": "rain", "audio": "0.wav", "duration": 9.0, "text": None, "label": "rain"})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def data(*arguments: object) -> int:
    return run(["data", *map(str, arguments)])


def test_faults_are_lines_on_standard_error_and_counts_on_standard_output(manifest: Path, capsys: Any) -> None:
    assert data("validate", manifest) == 0
    assert capsys.readouterr().out == f"{manifest}: 11 clips, 0.03 hours, no faults\n"
    wrong = manifest.with_name("wrong.jsonl")
    wrong.write_text(
        manifest.read_text().replace('"9.wav"', '"none.wav"').replace('"duration": 9.0', '"duration": 8.0', 1)
    )
    assert data("validate", manifest, wrong) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == f"{wrong}: 11 clips, 0.03 hours, 1 × wrong duration, 1 × missing audio"
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{wrong}, line 1", f"{wrong}, line 10"]
    assert data("validate", wrong, "--json") == 2
    out, err = capsys.readouterr()
    (report,) = json.loads(out)
    assert (report["faults"], report["kinds"]) == (2, {"wrong duration": 1, "missing audio": 1})
    assert [fault["line"] for fault in report["details"]] == [1, 10]
    assert err == ""


def test_without_decoding_what_the_files_state_is_compared(manifest: Path, capsys: Any) -> None:
    assert data("validate", "--quick", manifest) == 0
    manifest.write_text(manifest.read_text().replace('"duration": 9.0', '"duration": 8.0', 1))
    assert data("validate", "--quick", manifest) == 2
    assert "lasts 9.00 s" in capsys.readouterr().err


def test_from_clips_to_compositions_to_tasks_to_a_mixture(manifest: Path, tmp_path: Path, capsys: Any) -> None:
    composed, tasks, short, mixed = (tmp_path / f"{name}.jsonl" for name in ("composed", "tasks", "short", "mixed"))
    assert data("compose", manifest, composed, "--minutes", "0.5-1.5", "--count", 3, "--seed", 4, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["compositions"] == 3
    assert data("validate", composed) == 0
    assert data("synthesize", composed, tasks, "--tasks", "transcribe,ask") == 0
    assert data("synthesize", manifest, short, "--tasks", "transcribe") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{short}: 11 rows: transcribe 11 (11 human)"
    assert data("mix", mixed, f"{tasks}=1", f"{short}=2", "--count", 12, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sources"] == {"tasks": 4, "short": 8}
    clips = read_manifest(mixed)
    assert len(clips) == 12
    assert all(len(window) <= 480_000 for clip in clips for window in clip.windows())


def test_the_same_command_writes_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    commands = {
        "compose": ["compose", manifest, None, "--minutes", "0.5-1.5", "--count", 3],
        "synthesize": ["synthesize", manifest, None],
        "mix": ["mix", None, manifest, "--count", 30],
    }
    for name, command in commands.items():
        made = []
        for seed in (1, 1, 2):
            out = tmp_path / f"{name}.jsonl"
            assert data(*(out if part is None else part for part in command), "--seed", seed) == 0
            made.append(out.read_bytes())
        assert made[0] == made[1]
        assert made[0] != made[2]


def test_a_corpus_is_imported_and_faults_can_be_left_out(tmp_path: Path, encode: Any, tone: Any, capsys: Any) -> None:
    chapter = tmp_path / "part" / "1" / "2"
    chapter.mkdir(parents=True)
    encode(chapter / "1-2-0.wav", tone(1.0))
    (chapter / "1-2.trans.txt").write_text("1-2-0 HELLO\n1-2-1 GONE\n")
    out = tmp_path / "out.jsonl"
    assert data("import", tmp_path / "part", out, "--kind", "librispeech") == 2
    assert "1-2.trans.txt, line 2: the audio of 1-2-1 is not beside it" in capsys.readouterr().err
    assert not out.exists()
    assert data("import", tmp_path / "part", out, "--kind", "librispeech", "--skip-faulty") == 0
    said, err = capsys.readouterr()
    assert said == f"{out}: 1 clips, 0.00 hours, 1 left out\n"
    assert err.startswith("fastslm: left out: ")
    assert data("import", tmp_path / "part", out, "--kind", "librispeech", "--skip-faulty") == 2
    assert "exists already" in capsys.readouterr().err


def test_text_is_spoken(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("hibari")
    (tmp_path / "t.txt").write_text("Two small coffees.\n")
    assert data("synthesize", tmp_path / "t.txt", tmp_path / "spoken.jsonl", "--tts", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clips"] == 1
    assert report["speech_seconds_a_second"] > 0
    assert data("validate", tmp_path / "spoken.jsonl") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compose", "M", "O", "--by", "mood"], "There is no grouping 'mood'"),
        (["compose", "M", "O", "--minutes", "15"], "'15' is no range of minutes"),
        (["compose", "M", "O", "--minutes", "4-9"], "last 1.6 minutes"),
        (["compose", "M", "O", "--by", "speaker", "--minutes", "2-9"], "of any one speaker"),
        (["compose", "none.jsonl", "O"], "there is no such manifest"),
        (["synthesize", "M", "O", "--tasks", "sing"], "There is no task 'sing'"),
        (["synthesize", "M", "O", "--tasks", ","], "No task is asked for"),
        (["synthesize", "M", "O", "--tasks", "translate"], "m.jsonl, line 1: 0: neither it nor any other clip"),
        (["synthesize", "M", "O", "--tts", "--questions", "3"], "--tts only speaks text"),
        (["synthesize", "M", "M"], "is read and would be written over"),
        (["compose", "M", "M"], "is read and would be written over"),
        (["compose", "M", "O", "--needles", "O"], "is read and would be written over"),
        (["mix", "M", "M=2"], "is read and would be written over"),
        (["mix", "O", "M=x"], "the weight 'x' is no number"),
        (["mix", "O", "M", "--count", "0"], "greater than or equal to 1"),
        (["import", "none", "O", "--kind", "hf"], "none does not exist"),
        (["import", ".", "O"], "Missing option"),
        (["validate", "none.jsonl"], "there is no such manifest"),
    ],
)
def test_what_is_at_fault_is_one_sentence_and_nothing_is_written(
    manifest: Path, tmp_path: Path, capsys: Any, arguments: list[str], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    replaced = [part.replace("M", str(manifest)) if part[:1] == "M" else part for part in arguments]
    assert data(*(out if part == "O" else part for part in replaced)) == 2
    said_out, err = capsys.readouterr()
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert said_out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_a_folder_that_is_not_there_is_one_sentence(manifest: Path, tmp_path: Path, capsys: Any) -> None:
    assert data("synthesize", manifest, tmp_path / "none" / "out.jsonl") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_labels_that_have_no_place_are_refused_before_anything_is_heard(
    manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastslm.evaluation.baselines.load_whisper", lambda *_: pytest.fail("it was loaded"))
    assert data("label", manifest, tmp_path / "none" / "out.jsonl") == 2
    assert "choose another place" in capsys.readouterr().err


def test_a_manifest_becomes_cuts_which_are_composed_given_tasks_and_become_a_manifest(
    manifest: Path, tmp_path: Path, capsys: Any
) -> None:
    assert data("convert", manifest, tmp_path / "cuts.jsonl.gz") == 0
    assert (
        data("compose", tmp_path / "cuts.jsonl.gz", tmp_path / "long.jsonl", "--minutes", "0.5-1.5", "--count", 2) == 0
    )
    assert data("synthesize", tmp_path / "long.jsonl", tmp_path / "tasks.jsonl", "--tasks", "transcribe,ask") == 0
    assert data("convert", tmp_path / "tasks.jsonl", tmp_path / "back.jsonl", "--json") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path / 'cuts.jsonl.gz'}: 11 cuts"
    assert said[1].startswith(f"{tmp_path / 'long.jsonl'}: 2 compositions of ")
    assert said[2].startswith(f"{tmp_path / 'tasks.jsonl'}: 6 rows: ask 4 (4 synthetic)")
    assert json.loads(said[3]) == {"out": str(tmp_path / "back.jsonl"), "kind": "manifest", "rows": 6}
    clips = read_manifest(tmp_path / "back.jsonl")
    assert {clip.task for clip in clips} == {"transcribe", "ask"}
    assert len(clips[0].pieces) > 1
    assert data("validate", "--quick", tmp_path / "back.jsonl") == 0


def test_a_shar_folder_is_written_and_read(manifest: Path, tmp_path: Path, capsys: Any) -> None:
    assert data("convert", manifest, tmp_path / "shar", "--shar") == 0
    assert sorted(path.name for path in (tmp_path / "shar").iterdir()) == [
        "cuts.000000.jsonl.gz",
        "recording.000000.tar",
    ]
    assert data("convert", tmp_path / "shar", tmp_path / "back.jsonl") == 0
    assert [clip.id for clip in read_manifest(tmp_path / "back.jsonl")] == [str(i) for i in range(10)] + ["rain"]
    capsys.readouterr()
    assert data("convert", tmp_path / "shar", tmp_path / "again", "--shar") == 2
    assert "holds cuts, which lhotse writes as Shar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "none.jsonl", "out.jsonl"], "there is no such manifest"),
        (["convert", "nowhere/cuts.jsonl.gz", "out.jsonl"], "does not exist"),
        (["compose", "nowhere/cuts.jsonl.gz", "out.jsonl"], "does not exist"),
    ],
)
def test_a_corpus_that_is_not_there_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert data(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

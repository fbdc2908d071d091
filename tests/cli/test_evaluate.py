"""`fastslm evaluate asr` on the command line."""

import json
from pathlib import Path

import pytest
from tiny_fastslm import noise

from fastslm.cli import run


@pytest.fixture
def manifest(tmp_path: Path, encode) -> Path:
    rows = []
    for index, seconds in enumerate((1.0, 31.0, 2.5)):
        encode(tmp_path / f"{index}.wav", noise(seconds, index))
        rows.append({"id": str(index), "audio": f"{index}.wav", "duration": seconds, "text": "Mr. Smith, said I!"})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "test.jsonl"


def test_the_json_object_holds_what_is_needed_to_get_it_again(manifest: Path, tiny_checkpoint: Path, capsys) -> None:
    predictions = manifest.parent / "predictions.jsonl"
    command = [
        "evaluate",
        "asr",
        "--manifest",
        manifest,
        "--model",
        tiny_checkpoint,
        "--predictions",
        predictions,
        "--json",
    ]
    assert run([str(part) for part in command]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["words"], report["clips"], report["reader"]) == (12, 3, "ctc")
    assert report["wer"] == pytest.approx(
        (report["substitutions"] + report["deletions"] + report["insertions"]) / 12, abs=1e-5
    )
    low, high = report["wer_interval_95"]
    assert low <= report["wer"] <= high
    assert {
        "cer",
        "real_time_factor",
        "fingerprint",
        "scorer",
        "normalizer",
        "versions",
        "manifest_sha256",
    } <= report.keys()
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["normalized"]["reference"] == "mister smith said i"
    assert sum(row["normalized"]["substitutions"] for row in rows) == report["substitutions"]


def test_without_json_a_person_reads_it(manifest: Path, tiny_checkpoint: Path, capsys) -> None:
    assert run(["evaluate", "asr", "--manifest", str(manifest), "--model", str(tiny_checkpoint), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("words wrong (WER)")
    assert "of 4 words in 1 clips" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--system", "whispr"], "did you mean 'whisper'"),
        (["--system", "whisper", "--reader", "ctc"], "leave them out"),
        (["--limit", "0"], "greater than or equal to 1"),
        (["--reader", "tcc"], "did you mean 'ctc'"),
    ],
)
def test_a_wrong_option_is_one_sentence(manifest: Path, tiny_checkpoint: Path, capsys, arguments, words: str) -> None:
    named = [] if "whisper" in arguments else ["--model", str(tiny_checkpoint)]
    assert run(["evaluate", "asr", "--manifest", str(manifest), *named, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_a_clip_without_text_is_refused_before_the_model_is_loaded(manifest: Path, capsys) -> None:
    row = {"id": "x", "audio": "0.wav", "duration": 1.0, "text": None}
    manifest.write_text(manifest.read_text() + json.dumps(row) + "\n")
    assert run(["evaluate", "asr", "--manifest", str(manifest), "--model", "nothing"]) == 2
    assert "the clip x has no text" in capsys.readouterr().err


def test_a_missing_manifest_is_one_sentence(capsys) -> None:
    assert run(["evaluate", "asr", "--manifest", "none.jsonl"]) == 2
    assert "there is no such manifest" in capsys.readouterr().err

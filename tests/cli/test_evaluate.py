"""`fastslm evaluate` on the command line."""

import json
import re
import resource
import subprocess
import sys
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
    run_facts, *rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert run_facts["fingerprint"] == report["fingerprint"]
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["text"] == "Mr. Smith, said I!"
    assert run(["evaluate", "rescore", str(predictions), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_a_decoder_that_the_model_lacks_is_said_before_it_is_loaded(
    manifest: Path, tiny_checkpoint: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.evaluate.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    command = ["evaluate", "asr", "--manifest", str(manifest), "--model", str(tiny_checkpoint), "--decoder"]
    for reader, words in (("wisper", "did you mean 'whisper'"), ("whisper", "The model has no Whisper decoder")):
        assert run([*command, reader]) == 2
        assert words in capsys.readouterr().err


def test_without_json_a_person_reads_it(manifest: Path, tiny_checkpoint: Path, capsys) -> None:
    assert run(["evaluate", "asr", "--manifest", str(manifest), "--model", str(tiny_checkpoint), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("words wrong (WER)")
    assert "of 4 words in 1 clips" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--system", "whispr"], "did you mean 'whisper'"),
        (["--system", "whisper", "--decoder", "ctc"], "leave them out"),
        (["--limit", "0"], "greater than or equal to 1"),
        (["--reader", "tcc"], "did you mean 'ctc'"),
        (["--system", "cascade"], "cannot transcribe: choose fastslm or whisper"),
    ],
)
def test_a_wrong_option_is_one_sentence(manifest: Path, tiny_checkpoint: Path, capsys, arguments, words: str) -> None:
    named = [] if "--system" in arguments else ["--model", str(tiny_checkpoint)]
    assert run(["evaluate", "asr", "--manifest", str(manifest), *named, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_a_clip_without_text_is_refused_before_the_model_is_loaded(manifest: Path, capsys) -> None:
    row = {"id": "x", "audio": "0.wav", "duration": 1.0, "text": None}
    manifest.write_text(manifest.read_text() + json.dumps(row) + "\n")
    assert run(["evaluate", "asr", "--manifest", str(manifest), "--model", "nothing"]) == 2
    assert "line 4: x has no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/predictions.jsonl", "choose another place"),
        (".", "is a folder"),
        ("test.jsonl", "would be written over"),
    ],
)
def test_predictions_that_have_no_place_are_refused_before_the_model_is_loaded(
    manifest: Path, capsys, name: str, words: str
) -> None:
    before = manifest.read_bytes()
    place = str(manifest.parent / name)
    assert run(["evaluate", "asr", "--manifest", str(manifest), "--model", "nothing", "--predictions", place]) == 2
    assert words in capsys.readouterr().err
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("form", ["--json", "for people"])
def test_a_disk_that_is_full_at_the_end_costs_the_predictions_and_not_the_figures(
    manifest: Path, tiny_checkpoint: Path, capsys, form: str
) -> None:
    place = manifest.parent / "predictions.jsonl"
    command = ["evaluate", "asr", "--manifest", manifest, "--model", tiny_checkpoint, "--predictions", place]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A real limit: the kernel refuses to write beyond it, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        status = run([*map(str, command), *(["--json"] if form == "--json" else [])])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capsys.readouterr()
    assert status == 2
    assert (json.loads(out)["words"] == 12) if form == "--json" else out.startswith("words wrong (WER)")
    assert re.search(rf"fastslm: {place} cannot be written .*\n$", err)
    assert "Traceback" not in err
    assert not place.exists()
    assert not list(manifest.parent.glob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_figures_that_standard_output_cannot_take_go_to_standard_error(
    manifest: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fastslm", "evaluate", "asr", "--manifest", manifest, "--model", tiny_checkpoint]
    with open("/dev/full", "w") as full:
        done = subprocess.run(list(map(str, command)), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "words wrong (WER)" in done.stderr
    assert "The result cannot be written" in done.stderr.splitlines()[-1]


def test_a_missing_manifest_is_one_sentence(capsys) -> None:
    assert run(["evaluate", "asr", "--manifest", "none.jsonl"]) == 2
    assert "there is no such manifest" in capsys.readouterr().err


def test_questions_are_asked_and_two_models_are_compared(
    tmp_path: Path, encode, make_checkpoint, tiny_checkpoint: Path, capsys
) -> None:
    encode(tmp_path / "order.wav", noise(2.0))
    rows = [
        {"task": "ask", "instruction": f"Which {kind}?", "answer": answer, "kind": kind}
        for kind, answer in (("fruit", "pear"), ("size", "not mentioned"), ("colour", "not mentioned"))
    ]
    shared = {"audio": "order.wav", "duration": 2.0}
    lines = [json.dumps({"id": str(i)} | shared | row) + "\n" for i, row in enumerate(rows)]
    (tmp_path / "orders.jsonl").write_text("".join(lines))
    files = []
    for index, model in enumerate((tiny_checkpoint, make_checkpoint(1))):
        files.append(str(tmp_path / f"{index}.jsonl"))
        asked = ["--manifest", str(tmp_path / "orders.jsonl"), "--kind", "fruit", "--kind", "size"]
        options = ["--model", str(model), "--max-new-tokens", "4", "--predictions", files[-1]]
        assert run(["evaluate", "sqqa", *asked, *options]) == 0
        assert "2 questions about 1 clips" in capsys.readouterr().out
    assert run(["evaluate", "compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["fingerprint"] != found["second"]["fingerprint"]
    assert found["figures"]["exact_match"]["samples"] == found["figures"]["not_mentioned"]["samples"] == 1
    assert run(["evaluate", "compare", *files]) == 0
    assert "exact answers" in capsys.readouterr().out


def test_silence_is_measured_on_clips_without_text(tmp_path: Path, encode, tiny_checkpoint: Path, capsys) -> None:
    encode(tmp_path / "rain.wav", noise(2.0))
    row = {"id": "a", "audio": "rain.wav", "duration": 2.0, "label": "rain"}
    (tmp_path / "rain.jsonl").write_text(json.dumps(row) + "\n")
    command = ["evaluate", "silence", "--manifest", str(tmp_path / "rain.jsonl"), "--model", str(tiny_checkpoint)]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["no_words"] == (report["words_per_minute"] == 0)
    assert report["by_label"]["rain"]["no_words_samples"] == 1


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        (0, "model", "line 1: there is no model"),
        (0, "suite", "holds no predictions"),
        (1, "text", "line 2: there is no text"),
    ],
)
def test_predictions_that_lack_what_figures_need_are_one_sentence(
    tmp_path: Path, capsys, line: int, key: str, words: str
) -> None:
    rows = [
        {"suite": "asr", "model": "m", "reader": "r", "seconds": 1, "processing_seconds": 1, "real_time_factor": 1},
        {"id": "0", "clip": "0.wav", "language": "en", "text": "a", "hypothesis": "a", "finish_reason": "stop"},
    ]
    whole, lacking = tmp_path / "whole.jsonl", tmp_path / "lacking.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["evaluate", "rescore", str(whole)]) == 0
    del rows[line][key]
    lacking.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["rescore", str(lacking)], ["compare", str(whole), str(lacking)]):
        assert run(["evaluate", *command]) == 2
        assert words in capsys.readouterr().err


RUN = {"model": "m", "reader": "r", "seconds": 1, "processing_seconds": 1, "real_time_factor": 1}
ROW = {"id": "0", "clip": "0.wav", "language": None, "hypothesis": "a", "finish_reason": "stop", "duration": 1.5}
RIGHT = {
    "asr": {"text": "a"},
    "ast": {"request": {"to": "ko"}, "translation": "a"},
    "ssum": {"summary": "a"},
    "sqqa": {"answer": "a"},
    "silence": {},
}


@pytest.mark.parametrize(
    ("suite", "line", "changed", "words"),
    [
        ("asr", 2, {"text": None}, "text is null, but text is needed"),
        ("asr", 2, {"hypothesis": 3}, "hypothesis is 3, but text"),
        ("asr", 2, {"language": ["en"]}, 'language is ["en"], but a code or null'),
        ("asr", 2, {"clip": {}}, "clip is {}, but text"),
        ("asr", 1, {"seconds": None}, "seconds is null, but a number"),
        ("asr", 1, {"real_time_factor": "fast"}, 'real_time_factor is "fast", but a number'),
        ("asr", 1, {"model": 3}, "model is 3, but text"),
        ("silence", 2, {"duration": None}, "duration is null, but a number"),
        ("silence", 2, {"duration": True}, "duration is true, but a number"),
        ("silence", 2, {"duration": 10**400}, "duration is 1000"),
        ("silence", 2, {"duration": float("nan")}, "duration is NaN, but a number"),
        ("ast", 2, {"request": {}}, "there is no request.to"),
        ("ast", 2, {"request": None}, "there is no request.to"),
        ("ast", 2, {"request": {"to": None}}, "request.to is null, but text"),
        ("ast", 2, {"translation": []}, "translation is [], but text"),
        ("ssum", 2, {"summary": 0}, "summary is 0, but text"),
        ("sqqa", 2, {"answer": None}, "answer is null, but text"),
    ],
)
def test_predictions_with_what_no_figure_can_be_computed_from_are_one_sentence(
    tmp_path: Path, capsys, suite: str, line: int, changed: dict[str, object], words: str
) -> None:
    rows: list[dict[str, object]] = [{"suite": suite, **RUN}, {**ROW, **RIGHT[suite]}]
    whole, wrong = tmp_path / "whole.jsonl", tmp_path / "wrong.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["evaluate", "rescore", str(whole)]) == 0
    rows[line - 1] |= changed
    wrong.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in (["rescore", str(wrong)], ["compare", str(whole), str(wrong)]):
        assert run(["evaluate", *command]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"fastslm: {wrong}, line {line}: {words}")
        assert err.count("\n") == 1


def test_a_file_that_holds_no_predictions_is_one_sentence(manifest: Path, capsys) -> None:
    assert run(["evaluate", "rescore", str(manifest)]) == 2
    assert "holds no predictions" in capsys.readouterr().err
    assert run(["evaluate", "compare", "none.jsonl", "none.jsonl"]) == 2
    assert "none.jsonl cannot be read" in capsys.readouterr().err

"""What all suites share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rote_system import Rote

from fastslm.errors import FastSLMError, ManifestError, OptionError
from fastslm.evaluation.predictions import Predictions
from fastslm.evaluation.suite import evaluate, read_requests, report, summary
from fastslm.evaluation.suites import SUITES, suite_of

ASR = SUITES["asr"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "asr": [{"text": "Green apples fall."}, {"text": "Softly they fall.", "language": "en"}],
    "ast": [{"translation": "초록 사과가 나무에서 떨어진다.", "target_language": "ko"}] * 2,
    "ssum": [
        {"summary": "Green apples fall softly."},
        {"answer": "They fall.", "task": "summarize", "instruction": "Say it in short."},
    ],
    "sqqa": [
        *(
            {"audio": "0.wav", "task": "ask", "instruction": f"{kind}?", "answer": answer, "kind": kind}
            for kind, answer in (
                ("fruit", "pear"),
                ("size", "large"),
                ("tree", "not mentioned"),
                ("cost", "not mentioned"),
            )
        ),
        {"task": "ask", "instruction": "Who?", "answer": "not mentioned"},
    ],
    "silence": [{"label": "rain"}, {"label": "wind"}],
}
TEXTS = {
    "asr": ["green apples", "softly they all fall -"],
    "ast": ["초록 사과가 하늘에서 떨어진다.", "사과 -"],
    "ssum": ["Apples fell softly.", "They fall down."],
    "sqqa": ["A pear.", "small", "not mentioned", "dark roast", "Not mentioned."],
    "silence": ["", "hmm (wind)"],
}


@pytest.mark.parametrize("name", SUITES)
def test_figures_are_the_same_when_they_are_computed_again_from_the_raw_predictions(
    name: str, make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    suite, out = SUITES[name], tmp_path / "predictions.jsonl"
    found = evaluate(suite, Rote(*TEXTS[name]), make_manifest(*ROWS[name]), predictions=out)
    predictions = Predictions.load(out)
    assert report(suite_of(predictions.facts["suite"]), predictions) == found
    assert [row["hypothesis"] for row in predictions.rows] == TEXTS[name]
    assert summary(suite, found)


@pytest.mark.parametrize("name", SUITES)
def test_every_figure_has_its_interval_and_samples_and_says_what_it_belongs_to(
    name: str, make_manifest: Callable[..., Path]
) -> None:
    found = evaluate(SUITES[name], Rote(*TEXTS[name]), make_manifest(*ROWS[name]))
    for figure in SUITES[name].titles:
        low, high = found[f"{figure}_interval_95"]
        assert low <= found[figure] <= high
        assert found[f"{figure}_samples"] > 0
    named = {"scorer", "normalizer", "versions", "manifest_sha256", "fingerprint", "reader", "threads", "date"}
    assert named <= found.keys()


def test_a_text_may_hold_what_other_programs_take_for_the_end_of_a_line(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    text, out = "one\u2028two\u2029three\x85four\x0bfive\r\nsix", tmp_path / "predictions.jsonl"
    evaluate(ASR, Rote(text, "b"), make_manifest(*ROWS["asr"]), predictions=out)
    assert Predictions.load(out).rows[0]["hypothesis"] == text


def test_what_is_right_is_never_shown_to_the_system(make_manifest: Callable[..., Path]) -> None:
    system = Rote(*TEXTS["sqqa"])
    evaluate(SUITES["sqqa"], system, make_manifest(*ROWS["sqqa"]))
    assert [list(request) for request in system.asked] == [["question"]] * 5


def test_predictions_are_whole_or_not_there(make_manifest: Callable[..., Path], tmp_path: Path) -> None:
    manifest = make_manifest(*ROWS["asr"])
    with pytest.raises(FastSLMError, match="cannot be written"):
        evaluate(ASR, Rote("a", "b"), manifest, predictions=tmp_path / "no" / "folder" / "p.jsonl")

    class Fails(Rote):
        def reply(self, task, recordings):
            yield from super().reply(task, list(recordings)[:1])
            raise OptionError("The context is full.")

    with pytest.raises(OptionError, match="context is full"):
        evaluate(ASR, Fails("a", "b"), manifest, predictions=tmp_path / "p.jsonl")
    assert not list(tmp_path.glob("*p.jsonl*"))


def test_cut_texts_are_counted(make_manifest: Callable[..., Path]) -> None:
    found = evaluate(ASR, Rote(*TEXTS["asr"]), make_manifest(*ROWS["asr"]))
    assert (found["cut_clips"], found["clips"]) == (1, 2)
    assert "1 of 2 clips" in summary(ASR, found)


def test_a_limit_takes_the_first_clips_and_other_tasks_are_left_out(make_manifest: Callable[..., Path]) -> None:
    rows = [{"task": task, "instruction": "Do.", "answer": "it"} for task in ("ask", "transcribe", "transcribe")]
    manifest = make_manifest(*rows)
    assert [clip.id for clip, _ in read_requests(ASR, manifest)] == ["1", "2"]
    assert [clip.id for clip, _ in read_requests(ASR, manifest, 1)] == ["1"]
    with pytest.raises(ManifestError, match="no clip has the task summarize"):
        read_requests(SUITES["ssum"], manifest)


def test_missing_audio_is_found_before_anything_is_heard(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest(*ROWS["asr"])
    (manifest.parent / "1.wav").unlink()
    with pytest.raises(ManifestError, match="1: its audio"):
        read_requests(ASR, manifest)


def test_text_that_nobody_speaks_is_refused_before_anything_is_heard(make_manifest: Callable[..., Path]) -> None:
    row = {"audio": None, "text": "a cup", "translation": "une tasse", "target_language": "fr"}
    with pytest.raises(ManifestError, match="0 is text without sound"):
        read_requests(SUITES["ast"], make_manifest(row))


def test_a_task_that_the_system_lacks_is_refused(make_manifest: Callable[..., Path]) -> None:
    class Deaf(Rote):
        tasks = ("ask",)

    with pytest.raises(OptionError, match="rote cannot transcribe, only ask"):
        evaluate(ASR, Deaf("a", "b"), make_manifest(*ROWS["asr"]))


ANSWER = {"id": "0", "clip": "0", "hypothesis": "a", "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "holds no predictions"),
        ([{"id": "0", "hypothesis": "a"}, {"id": "1"}], "holds no predictions"),
        ([{"suite": "asr"}, {"id": "0", "clip": "0", "finish_reason": "stop"}], "line 2: there is no hypothesis"),
        (
            [{"suite": "asr"}, ANSWER, {**ANSWER, "label_kind": ["human"]}],
            r'line 3: label_kind is \["human"\], but text',
        ),
        ([{"suite": "asr"}, {**ANSWER, "label_kind": None}], "line 2: label_kind is null, but text"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, lines: list[dict], words: str) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManifestError, match=words):
        Predictions.load(tmp_path / "p.jsonl")


def test_labels_that_people_did_not_make_are_counted(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest({"text": "a", "label_kind": "pseudo"}, {"text": "b", "label_kind": "human"})
    assert evaluate(ASR, Rote("a", "b"), manifest)["label_kinds"] == {"pseudo": 1, "human": 1}


def test_compositions_are_heard_whole_and_once_and_questions_about_one_are_drawn_together(
    make_manifest: Callable[..., Path],
) -> None:
    pieces = [{"start": 2.0 * index, "end": 2.0 * index + 1.5, "audio": f"{index}.wav"} for index in range(2)]
    row = {"audio": None, "segments": pieces, "duration": 3.5, "task": "ask", "answer": "Anna"}
    manifest = make_manifest({**row, "instruction": "Who was first?"}, {**row, "instruction": "Who was last?"})
    found = evaluate(SUITES["sqqa"], Rote("Anna", "Ben"), manifest)
    assert (found["seconds"], found["clips"], found["questions"]) == (3.5, 1, 2)
    assert (found["exact_match"], found["exact_match_interval_95"]) == (0.5, [0.5, 0.5])
    (manifest.parent / "1.wav").unlink()
    with pytest.raises(ManifestError, match=r"its audio 1\.wav"):
        read_requests(SUITES["sqqa"], manifest)

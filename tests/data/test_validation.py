"""Validation: every fault of every line, once, with its line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastslm.data import validation
from fastslm.data.validation import Report, validate
from fastslm.errors import ManifestError


@pytest.fixture
def folder(tmp_path: Path, encode: Any, tone: Any) -> Path:
    """A folder with a.wav of 2 s, b.wav, and bad.wav, which is no sound."""
    encode(tmp_path / "a.wav", tone(2.0))
    encode(tmp_path / "b.wav", tone(3.0))
    (tmp_path / "bad.wav").write_bytes(b"RIFF" + b"nonsense" * 40)
    return tmp_path


GOOD = {"id": "a", "audio": "a.wav", "duration": 2.0, "text": "hello", "language": "en"}


def found(folder: Path, *rows: Any, **options: Any) -> tuple[Report, list[tuple[int, str]]]:
    path = folder / "m.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    report = validate(path, **options)
    return report, [(fault.line, fault.kind) for fault in report.faults]


def test_a_manifest_without_faults_has_none(folder: Path) -> None:
    sound = {"id": "s", "audio": "b.wav", "duration": 3.0, "text": "", "label": "rain"}
    task = {**GOOD, "id": "t", "task": "transcribe", "instruction": "Write.", "answer": ""}
    text = {**task, "id": "v", "audio": None, "answer": "hello"}
    report, faults = found(folder, GOOD, sound, {**GOOD, "id": "u", "text": None, "language": None}, task, text)
    assert faults == []
    assert (report.clips, report.seconds) == (5, 11.0)
    assert report.summary().endswith("5 clips, 0.00 hours, no faults")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"audio": "none.wav"}, "missing audio", r"none\.wav is neither in"),
        ({"audio": "bad.wav"}, "unreadable audio", r"bad\.wav"),
        ({"audio": {"path": "a.wav", "offset": 10, "length": 10**6}}, "missing audio", "ends before the 1000000 bytes"),
        ({"duration": 2.4}, "wrong duration", r"lasts 2\.00 s, but the manifest says 2\.40 s"),
        ({"duration": 1.6}, "wrong duration", r"lasts 2\.00 s"),
        ({"text": "  "}, "empty text", "its text is empty"),
        ({"language": "xx"}, "unknown language", "There is no language 'xx'"),
        ({"target_language": "kroean"}, "unknown language", "target_language: .* did you mean 'korean'"),
        ({"task": "ask", "instruction": "What?", "answer": " "}, "empty text", "its answer is empty"),
        ({"task": "ask", "instruction": "", "answer": "x"}, "empty text", "its instruction is empty"),
        ({"segments": [{"start": 0, "end": 1}, {"start": 0.5, "end": 2}]}, "wrong segment", "starts before"),
        ({"segments": [{"start": 0, "end": 2.5}]}, "wrong segment", r"ends at 2\.5 s, after the clip"),
        ({"id": "a"}, "duplicate id", "the id a is that of line 1 too"),
        ({"duration": -1}, "unreadable line", "duration"),
    ],
)
def test_each_fault_is_found_once_with_its_line(folder: Path, change: dict[str, Any], kind: str, said: str) -> None:
    last = {**GOOD, "id": "c"}
    report, faults = found(folder, GOOD, {**GOOD, "id": "b", **change}, last)
    assert faults == [(2, kind)]
    (fault,) = report.faults
    assert re.search(said, fault.sentence)
    assert f"{folder / 'm.jsonl'}, line 2" in fault.sentence
    assert fault.sentence.endswith(".")


def test_all_faults_of_a_line_and_of_all_lines_are_told(folder: Path) -> None:
    told = []
    worst = {"id": "a", "audio": "none.wav", "duration": 2.0, "text": "", "language": "xx"}
    report, faults = found(folder, GOOD, "{not json", worst, on_fault=told.append)
    assert faults == [
        (2, "unreadable line"),
        (3, "duplicate id"),
        (3, "empty text"),
        (3, "unknown language"),
        (3, "missing audio"),
    ]
    assert told == report.faults
    assert report.as_json()["kinds"]["duplicate id"] == 1
    assert report.clips == 2


def test_damage_inside_a_recording_shows_only_when_it_is_decoded(folder: Path, encode: Any, tone: Any) -> None:
    whole = encode(folder / "long.wav", tone(4.0)).read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    row = {**GOOD, "id": "cut", "audio": "cut.wav", "duration": 2.0}
    assert found(folder, row)[1] == [(1, "unreadable audio")]
    assert found(folder, row, decode=False)[1] == []
    assert found(folder, {**row, "duration": 9.0}, decode=False)[1] == [(1, "wrong duration")]


def test_pieces_are_looked_at_and_each_recording_only_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measure = validation._Audio._measure
    monkeypatch.setattr(
        validation._Audio, "_measure", lambda self, source: measured.append(source) or measure(self, source)
    )
    pieces = [
        {"start": 0.0, "end": 2.0, "id": "p", "audio": "a.wav"},
        {"start": 2.5, "end": 4.5, "id": "q", "audio": "a.wav"},
        {"start": 5.0, "end": 7.0, "id": "r", "audio": "b.wav"},
        {"start": 7.0, "end": 8.0, "id": "s", "audio": "none.wav"},
    ]
    report, faults = found(folder, {"id": "c", "audio": None, "duration": 8.0, "segments": pieces})
    assert faults == [(1, "wrong duration"), (1, "missing audio")]
    assert "its piece r lasts 3.00 s" in report.faults[0].sentence
    assert len(measured) == 2


def test_an_empty_manifest_is_a_fault_and_a_missing_one_an_error(folder: Path) -> None:
    assert found(folder, "")[1] == [(0, "empty manifest")]
    with pytest.raises(ManifestError, match="no such manifest"):
        validate(folder / "none.jsonl")

"""Rows: what is asked, what is right, and sound in whole windows."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastslm.audio import WINDOW_SAMPLES, load_audio
from fastslm.data.cuts import read_rows
from fastslm.data.rows import ManifestRows, asked_of
from fastslm.errors import ManifestError, OptionError


@pytest.mark.parametrize(
    ("known", "task", "wanted"),
    [
        ({"text": " Hello. ", "language": "English"}, None, ("transcribe", None, "Hello.", "en")),
        ({"text": "안녕하세요", "language": "ko"}, None, ("transcribe", None, "안녕하세요", "ko")),
        ({"text": None, "label": "rain"}, None, ("transcribe", None, "", None)),
        (
            {"text": "hallo", "language": "de", "translation": "Hello.", "target_language": "English"},
            "translate",
            ("translate", None, "Hello.", "en"),
        ),
        ({"summary": "A talk.", "language": "en"}, "summarize", ("summarize", None, "A talk.", "en")),
        (
            {"text": "x", "task": "ask", "instruction": "Who?", "answer": "Anna", "language": "en"},
            None,
            ("ask", "Who?", "Anna", "en"),
        ),
        (
            {"task": "translate", "instruction": "Auf Deutsch", "answer": "Ja", "target_language": "de"},
            "translate",
            ("translate", "Auf Deutsch", "Ja", "de"),
        ),
        ({"text": "x", "language": "Klingon"}, None, ("transcribe", None, "x", "Klingon")),
        ({"text": "x", "language": "ko_kr"}, None, ("transcribe", None, "x", "ko")),
        ({"text": "x", "language": "English-Nigerian"}, None, ("transcribe", None, "x", "en")),
    ],
)
def test_a_row_asks_for_what_is_known(known: dict[str, Any], task: str | None, wanted: tuple) -> None:
    assert asked_of(known, "here", task) == wanted


@pytest.mark.parametrize(
    ("known", "task", "said"),
    [
        ({"text": None}, None, "here has no text, .* transcribe it first"),
        ({"text": "  "}, None, "here has no text"),
        ({"text": "x"}, "translate", "here has no translation"),
        ({"text": "x", "translation": "y"}, "translate", "here: its translation has no target_language"),
        ({"text": "x"}, "summarize", "here has no summary"),
        ({"label": "rain"}, "summarize", "here has no summary"),
        ({"text": "x"}, "ask", "here has no answer"),
        ({"text": "x", "task": "ask", "instruction": "?"}, None, "here has the task ask but no answer"),
    ],
)
def test_what_has_no_answer_is_one_sentence(known: dict[str, Any], task: str | None, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        asked_of(known, "here", task)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(OptionError, match="There is no task 'sing'"):
        asked_of({"text": "x"}, "here", "sing")


def test_waveforms_are_whole_windows_and_hold_the_recording(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest([2.0, 30.0, 61.5])
    for row, windows in zip(ManifestRows(manifest).rows, (1, 1, 3), strict=True):
        found = list(row.waveforms())
        assert [wave.shape for wave in found] == [(WINDOW_SAMPLES,)] * windows == [(WINDOW_SAMPLES,)] * row.windows
        whole = np.concatenate(found)
        assert np.array_equal(whole[: row.samples], load_audio(manifest.with_name(f"{row.id}.wav")))
        assert not whole[row.samples :].any()
        assert row.batch_seconds == 30 * windows


def test_a_recording_of_another_length_is_one_sentence(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest([4.0])
    manifest.write_text(manifest.read_text().replace('"duration": 4.0', '"duration": 5.0'))
    with pytest.raises(ManifestError, match=r"m0 lasts 4\.00 s, but 5\.00 s are stated"):
        list(ManifestRows(manifest).rows[0].waveforms())


def test_text_alone_has_no_windows_and_takes_what_it_would_last_if_spoken(tmp_path: Path) -> None:
    row = {"id": "a", "audio": None, "duration": 3.0, "text": "hello there", "translation": "salut"}
    row |= {"target_language": "fr", "language": "en"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    rows = ManifestRows(tmp_path / "m.jsonl", "translate")
    (found,) = rows.rows
    assert (found.answer, found.language, found.windows, found.text) == ("salut", "fr", 0, "hello there")
    assert list(found.waveforms()) == []
    assert rows.durations() == pytest.approx([16 / 15])


def test_an_epoch_is_all_rows_in_an_order_of_its_own_wherever_the_manifest_lies(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_manifest([1.0] * 12)
    rows = read_rows(manifest)
    orders = [[row.id for row in rows.epoch([1, 0], number)] for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(f"m{i}" for i in range(12))
    assert orders[0] != orders[1]
    assert {row.epoch for row in rows.epoch([1, 0], 7)} == {7}
    (tmp_path / "deep").mkdir()
    moved = tmp_path / "deep" / "m.jsonl"
    moved.write_text(manifest.read_text())  # the audio is in the folder above
    assert [row.id for row in read_rows(moved).epoch([1, 0], 0)] == orders[0]
    assert [row.id for row in rows.epoch([2, 0], 0)] != orders[0]


def test_equal_sounds_have_equal_digests_and_rows_travel_to_other_processes(
    make_manifest: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = ManifestRows(make_manifest([1.0, 1.0])).rows
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "m.jsonl").write_text((tmp_path / "m.jsonl").read_text())
    again = ManifestRows(tmp_path / "deep" / "m.jsonl").rows[0]
    assert one.sound
    assert two.sound
    assert again.sound
    assert one.sound.digest() == again.sound.digest() != two.sound.digest()
    there = pickle.loads(pickle.dumps(one))
    assert np.array_equal(next(there.waveforms()), next(one.waveforms()))


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz", "folder"])
def test_a_corpus_that_is_not_there_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=r"there is no such manifest|does not exist"):
        read_rows(tmp_path / name)


def test_missing_audio_is_found_before_anything_is_decoded(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest([1.0, 1.0])
    manifest.with_name("m1.wav").unlink()
    with pytest.raises(ManifestError, match=r"line 2: m1: its audio m1\.wav is neither"):
        read_rows(manifest)

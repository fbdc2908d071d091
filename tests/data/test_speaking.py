"""Text spoken by a small voice: audible, reproducible, with all that was known of the text."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastslm.data.manifest import read_manifest
from fastslm.data.shards import sharded_manifest
from fastslm.data.speaking import SPEEDS, read_passages, speak
from fastslm.errors import ManifestError, OptionError

ORDER = '{"id": "o", "text": "A large latte, please.", "slots": {"size": "large"}}\n{"text": "A small mocha."}\n'


def spoken(folder: Path, text: Path, seed: int = 0) -> Path:
    out = folder / "spoken.jsonl"
    with sharded_manifest(out) as writer:
        writer.rows += speak(read_passages(text), writer, seed)
    return out


def test_what_is_spoken_is_a_manifest_that_keeps_what_was_known(tmp_path: Path) -> None:
    pytest.importorskip("hibari")
    (tmp_path / "orders.jsonl").write_text(ORDER)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first, second = read_manifest(spoken(tmp_path / "a", tmp_path / "orders.jsonl"))
    assert (first.id, first.slots, first.label_kind) == ("o", {"size": "large"}, "synthetic")
    assert second.id == "orders-00002"
    wave = first.read()
    assert len(wave) / 16_000 == pytest.approx(first.duration, abs=0.02)
    assert 1.0 < first.duration < 4.0
    assert np.abs(wave).max() > 0.1
    assert SPEEDS[0] <= (first.model_extra or {})["voice_speed"] <= SPEEDS[1]
    again, _ = read_manifest(spoken(tmp_path / "b", tmp_path / "orders.jsonl"))
    np.testing.assert_array_equal(again.read(), wave)
    other, _ = read_manifest(spoken(tmp_path / "c", tmp_path / "orders.jsonl", seed=1))
    assert other.duration != first.duration


def test_plain_text_is_a_passage_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("One.\n\n  Two.\n")
    assert read_passages(tmp_path / "t.txt") == [
        {"id": "t-00001", "text": "One."},
        {"id": "t-00003", "text": "Two."},
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{no", r"a\.jsonl, line 1: this is not JSON"),
        ("a.jsonl", '{"text": "x"}\n{"text": " "}', r"line 2: there is no text to speak"),
        ("a.jsonl", '["x"]', r"line 1: there is no text to speak"),
        ("a.jsonl", '{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}', r"line 2: the id 1 occurs twice"),
        ("a.txt", "\n", "no text to speak in it"),
    ],
)
def test_text_that_cannot_be_spoken_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=said):
        read_passages(tmp_path / name)
    with pytest.raises(ManifestError, match="no such file"):
        read_passages(tmp_path / "none.txt")


def test_without_the_voice_it_says_what_to_install_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("One.\n")
    (tmp_path / "out").mkdir()
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(OptionError, match="pip install hibari-tts"):
        spoken(tmp_path / "out", tmp_path / "t.txt")
    assert list((tmp_path / "out").iterdir()) == []

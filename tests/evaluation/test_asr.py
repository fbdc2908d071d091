"""The recognition suite with a system that answers by rote."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_fastslm import noise

from fastslm.errors import FastSLMError, ManifestError
from fastslm.evaluation.suites.asr import FastSLMSystem, evaluate_asr, read_clips
from fastslm.speech import FastSLM


class Rote:
    """Says what it was told to, clip after clip."""

    facts: dict[str, Any] = {"system": "rote", "model": "rote", "reader": "rote"}  # noqa: RUF012

    def __init__(self, *texts: str):
        self.texts = texts

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        for _, text in zip(waveforms, self.texts, strict=True):
            yield text, "length" if text.endswith(" -") else "stop"


@pytest.fixture
def manifest(tmp_path: Path, encode) -> Path:
    texts = {"a": "green apples fall", "b": "softly they fall"}
    rows = []
    for name, text in texts.items():
        encode(tmp_path / f"{name}.wav", noise(1.5))
        rows.append({"id": name, "audio": f"{name}.wav", "duration": 1.5, "text": text})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "test.jsonl"


def test_a_perfect_system_has_no_errors(manifest: Path) -> None:
    report = evaluate_asr(Rote("Green apples fall.", "Softly, they fall."), read_clips(manifest), manifest)
    assert (report["wer"], report["cer"], report["words"], report["clips"]) == (0, 0, 6, 2)
    assert report["seconds"] == 3.0


def test_a_system_that_mixes_up_the_order_is_caught(manifest: Path) -> None:
    report = evaluate_asr(Rote("softly they fall", "green apples fall"), read_clips(manifest), manifest)
    assert report["wer"] > 0.5


def test_cut_texts_are_counted(manifest: Path) -> None:
    report = evaluate_asr(Rote("green apples fall", "softly -"), read_clips(manifest), manifest)
    assert (report["cut_clips"], report["deletions"]) == (1, 2)


def test_predictions_are_whole_or_not_there(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(FastSLMError, match="cannot be written"):
        evaluate_asr(Rote("a", "b"), read_clips(manifest), manifest, tmp_path / "no" / "folder" / "p.jsonl")
    evaluate_asr(Rote("a", "b"), read_clips(manifest), manifest, tmp_path / "p.jsonl")
    assert [json.loads(line)["hypothesis"] for line in (tmp_path / "p.jsonl").open()] == ["a", "b"]


def test_a_limit_takes_the_first_clips(manifest: Path) -> None:
    assert [clip.id for clip in read_clips(manifest, 1)] == ["a"]


def test_missing_audio_is_found_before_anything_is_heard(manifest: Path) -> None:
    (manifest.parent / "b.wav").unlink()
    with pytest.raises(ManifestError, match="b: its audio"):
        read_clips(manifest)


def test_fastslm_is_measured_on_the_texts_that_each_clip_alone_gives(manifest: Path, tiny: FastSLM) -> None:
    clips = read_clips(manifest)
    texts = [text for text, _ in FastSLMSystem(tiny).hear(clip.read() for clip in clips)]
    assert texts == [tiny.transcribe(clip.audio_file()).text for clip in clips]

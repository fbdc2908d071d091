"""Whisper's own decoder on real speech, through the same suite as FastSLM."""

from pathlib import Path

import pytest

from fastslm.evaluation.baselines import load_whisper
from fastslm.evaluation.suites.asr import evaluate_asr, read_clips

pytestmark = pytest.mark.slow

MANIFEST = Path(__file__).parents[3] / "shared" / "data" / "librispeech" / "test.jsonl"


@pytest.mark.skipif(not MANIFEST.is_file(), reason="the speech corpus is not beside the checkout")
def test_whisper_gets_nearly_every_word_of_read_speech() -> None:
    report = evaluate_asr(load_whisper(), read_clips(MANIFEST, 8), MANIFEST)
    assert report["wer"] < 0.08
    assert report["cut_clips"] == 0

"""Whisper's own decoder on real speech, through the same suite as FastSLM."""

from pathlib import Path

import pytest

from fastslm.evaluation.baselines import load_whisper
from fastslm.evaluation.suite import evaluate, read_requests
from fastslm.evaluation.suites import SUITES

pytestmark = pytest.mark.slow

MANIFEST = Path(__file__).parents[3] / "shared" / "data" / "librispeech" / "test.jsonl"


@pytest.mark.skipif(not MANIFEST.is_file(), reason="the speech corpus is not beside the checkout")
def test_whisper_gets_nearly_every_word_of_read_speech() -> None:
    suite = SUITES["asr"]
    report = evaluate(suite, load_whisper(), MANIFEST, read_requests(suite, MANIFEST, 8))
    assert report["wer"] < 0.08
    assert report["cut_clips"] == 0

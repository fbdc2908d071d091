"""Two systems on the same clips."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rote_system import Rote

from fastslm.errors import ManifestError
from fastslm.evaluation.compare import compare, summary
from fastslm.evaluation.predictions import Predictions
from fastslm.evaluation.suite import evaluate
from fastslm.evaluation.suites import SUITES

ROWS = [{"text": "green apples fall"}, {"text": "softly they fall"}, {"text": "we go home"}]


def predicted(manifest: Path, *texts: str) -> Predictions:
    out = manifest.parent / f"{len(texts)}.predictions.jsonl"
    evaluate(SUITES["asr"], Rote(*texts), manifest, predictions=out)
    return Predictions.load(out)


def test_the_difference_is_second_less_first_and_signed(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest(*ROWS)
    worse = predicted(manifest, "green apples", "softly they", "we go")
    better = predicted(manifest, "green apples fall", "softly they fall", "we go home")
    found = compare(SUITES["asr"], worse, better)["figures"]["wer"]
    assert (found["first"], found["second"], found["samples"]) == (pytest.approx(1 / 3, abs=1e-5), 0, 3)
    # Every clip has the same error less, so every resample does.
    assert found["difference"] == pytest.approx(-1 / 3, abs=1e-5)
    assert found["difference_interval_95"] == pytest.approx([-1 / 3, -1 / 3], abs=1e-5)
    assert "difference -33.3%" in summary(SUITES["asr"], compare(SUITES["asr"], worse, better))


def test_the_order_of_the_rows_does_not_matter(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest(*ROWS)
    first, second = predicted(manifest, "green", "they fall", "we go home"), predicted(manifest, "a", "softly", "we")
    turned = Predictions(second.facts, second.rows[::-1])
    assert compare(SUITES["asr"], first, turned) == compare(SUITES["asr"], first, second)


def test_predictions_of_other_clips_or_suites_are_refused(make_manifest: Callable[..., Path]) -> None:
    manifest = make_manifest(*ROWS)
    first, fewer = predicted(manifest, "a", "b", "c"), predicted(make_manifest(*ROWS[:2], name="two.jsonl"), "a", "b")
    with pytest.raises(ManifestError, match="1 of them are only in one, such as 2"):
        compare(SUITES["asr"], first, fewer)
    with pytest.raises(ManifestError, match="suites asr and ssum"):
        compare(SUITES["asr"], first, Predictions({"suite": "ssum"}, first.rows))

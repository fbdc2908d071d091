"""Recognition: the word error rate of transcripts over a manifest.

fastslm evaluate asr --manifest FILE.jsonl --json
"""

from collections.abc import Sequence
from typing import Any

from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import Measure
from fastslm.evaluation.metrics import SCORER, ErrorRates, error_rates, normalizer_name
from fastslm.evaluation.suite import Row, Suite


class Recognition(Suite):
    """Errors in the words and characters of what is said, over those of the reference."""

    name = "asr"
    task = "transcribe"
    needs = ("text", "language")
    titles = {"wer": ("words wrong (WER)", ".1%"), "cer": ("characters wrong (CER)", ".1%")}  # noqa: RUF012

    def rows(self, clip: Clip) -> list[Row]:
        """As `Suite`."""
        text = clip.text or clip.answer
        if not text or not text.strip():
            raise ManifestError(f"{clip.place} has no text to compare with: leave such clips out.")
        return [{"request": {}, "text": text}]

    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """As `Suite`."""
        rates = _rates(rows)
        return {"wer": rates.wer, "cer": rates.cer}

    def counts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Words of the references, and the kinds of errors in them."""
        rates = _rates(rows)
        return {kind: rates.total(kind) for kind in ("words", "substitutions", "deletions", "insertions")}

    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """As `Suite`."""
        return {"scorer": SCORER, "normalizer": normalizer_name([row["language"] for row in rows])}

    def remarks(self, report: dict[str, Any]) -> list[str]:
        """As `Suite`."""
        kinds = (
            f"{report['substitutions']} substituted, {report['deletions']} left out, {report['insertions']} inserted"
        )
        return [f"of {report['words']} words in {report['clips']} clips: {kinds}"]


def _rates(rows: Sequence[Row]) -> ErrorRates:
    return error_rates(
        [row["text"] for row in rows],
        [row["hypothesis"] for row in rows],
        [row["language"] for row in rows],
        [row["clip"] for row in rows],
    )

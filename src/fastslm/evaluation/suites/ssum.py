"""Summaries: ROUGE-L over a manifest.

fastslm evaluate ssum --manifest FILE.jsonl --json

A clip brings its `summary`, or an `answer` with the `instruction` that it follows.
"""

from collections.abc import Sequence
from importlib.metadata import version

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import Measure, measure
from fastslm.evaluation.metrics import ENGLISH, normalize, normalizer_name
from fastslm.evaluation.suite import Row, Suite


class Summarization(Suite):
    """The F-measure of ROUGE-L, 0 to 1, a clip's mean."""

    name = "ssum"
    task = "summarize"
    needs = ("summary", "language")
    titles = {"rouge_l": ("ROUGE-L", ".3f")}  # noqa: RUF012
    group_by = "kind"

    def rows(self, clip: Clip) -> list[Row]:
        """As `Suite`."""
        right = clip.answer or clip.summary
        if not right or not right.strip():
            raise ManifestError(f"{clip.place} has no summary to compare with: leave such clips out.")
        request = {} if clip.instruction is None else {"instruction": clip.instruction}
        return [{"request": request, "summary": right, "kind": getattr(clip, "kind", None)}]

    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """As `Suite`."""
        return {"rouge_l": measure((row["clip"], (_rouge_l(row), 1)) for row in rows)}

    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """As `Suite`."""
        others = [row["language"] for row in rows if row["language"] not in ENGLISH]
        kinds = ["English words stemmed"] * (len(others) < len(rows)) + ["other words not"] * bool(others)
        return {
            "scorer": f"rouge-score {version('rouge-score')} rougeL, {', '.join(kinds)}",
            "normalizer": normalizer_name(others) if others else None,
        }


class _Words(Tokenizer):
    """rouge-score's own tokenizer knows a to z only."""

    def __init__(self, language: str):
        self.language = language

    def tokenize(self, text: str) -> list[str]:
        return normalize(text, self.language).split()


def _rouge_l(row: Row) -> float:
    language = row["language"]
    tokenizer = None if language in ENGLISH else _Words(language)
    scorer = RougeScorer(["rougeL"], use_stemmer=tokenizer is None, tokenizer=tokenizer)
    return float(scorer.score(row["summary"], row["hypothesis"])["rougeL"].fmeasure)

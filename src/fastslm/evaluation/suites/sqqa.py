"""Questions about recordings: right answers, and "not mentioned" where nobody said it.

fastslm evaluate sqqa --manifest FILE.jsonl --json

A clip brings its `instruction` and `answer`, and its `kind`, to get figures of each kind. Questions whose answer is in
the recording and those whose answer is not are scored apart: a system that always says "not mentioned" is perfect in
the second figure, and has nothing in the first.
"""

from collections.abc import Sequence
from typing import Any

from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import Measure, measure
from fastslm.evaluation.metrics import normalize_answer, normalizer_name, token_f1
from fastslm.evaluation.suite import Row, Suite
from fastslm.prompts import NOT_MENTIONED


class QuestionAnswering(Suite):
    """Exact match and token F1 of answers that are there, and how often an absent one is told as such.

    Args:
        kinds: of the questions that are asked, as their rows' `kind` says; all by default.
    """

    name = "sqqa"
    task = "ask"
    needs = ("answer", "language")
    titles = {  # noqa: RUF012
        "exact_match": ("exact answers", ".1%"),
        "token_f1": ("token F1", ".3f"),
        "not_mentioned": ("rightly not mentioned", ".1%"),
        "missed": ("wrongly not mentioned", ".1%"),
    }
    group_by = "kind"

    def __init__(self, kinds: Sequence[str] = ()):
        self.kinds = tuple(kinds)

    def wants(self, clip: Clip) -> bool:
        """As `Suite`."""
        return not self.kinds or getattr(clip, "kind", None) in self.kinds

    def rows(self, clip: Clip) -> list[Row]:
        """As `Suite`."""
        if clip.instruction is None:
            raise ManifestError(
                f"{clip.place} has no instruction with its answer; make questions with fastslm data synthesize, or "
                "leave such clips out."
            )
        return [{"request": {"question": clip.instruction}, "answer": clip.answer, "kind": getattr(clip, "kind", None)}]

    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """As `Suite`."""
        there = [not _absent(row["answer"], row) for row in rows]
        # What a row is no sample of adds nothing to either sum, but its clip stays among those that are drawn.
        return {
            "exact_match": _over(rows, there, [_exact(row) for row in rows]),
            "token_f1": _over(rows, there, [token_f1(r["answer"], r["hypothesis"], r["language"]) for r in rows]),
            "not_mentioned": _over(rows, [not t for t in there], [_absent(row["hypothesis"], row) for row in rows]),
            "missed": _over(rows, there, [_absent(row["hypothesis"], row) for row in rows]),
        }

    def counts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """As `Suite`."""
        return {"questions": len(rows)}

    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """As `Suite`."""
        names = normalizer_name([row["language"] for row in rows])
        return {
            "scorer": "exact match and token F1 as in SQuAD",
            "normalizer": f"{names}, English articles left out",
        }

    def remarks(self, report: dict[str, Any]) -> list[str]:
        """As `Suite`."""
        return [f"{report['questions']} questions about {report['clips']} clips"]


def _exact(row: Row) -> bool:
    return normalize_answer(row["hypothesis"], row["language"]) == normalize_answer(row["answer"], row["language"])


def _absent(text: str, row: Row) -> bool:
    return normalize_answer(text, row["language"]) == normalize_answer(NOT_MENTIONED, row["language"])


def _over(rows: Sequence[Row], counted: Sequence[bool], values: Sequence[float]) -> Measure:
    parts = [(row["clip"], (value * own, own)) for row, own, value in zip(rows, counted, values, strict=True)]
    return measure(parts, samples=sum(counted))

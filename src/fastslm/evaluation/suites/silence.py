"""Silence: what is written about recordings in which nobody speaks.

fastslm evaluate silence --manifest FILE.jsonl --json

The right transcript is empty. A word is whatever holds a letter or a digit, counted as it was written: a normaliser
would drop "hmm" and "(birds)", which a reader would have to read.
"""

from collections.abc import Sequence

from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import Measure, measure
from fastslm.evaluation.suite import Row, Suite


class Silence(Suite):
    """How many clips without speech get no words, and how many words a minute the others get."""

    name = "silence"
    task = "transcribe"
    needs = ("duration",)
    titles = {  # noqa: RUF012
        "no_words": ("clips without words", ".1%"),
        "words_per_minute": ("words a minute", ".2f"),
    }
    group_by = "label"

    def rows(self, clip: Clip) -> list[Row]:
        """As `Suite`."""
        if (clip.text or clip.answer or "").strip():
            raise ManifestError(f"{clip.place} has a text, but here nobody may speak: leave such clips out.")
        return [{"request": {}, "label": clip.label}]

    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """As `Suite`."""
        return {
            "no_words": measure((row["clip"], (count_words(row["hypothesis"]) == 0, 1)) for row in rows),
            "words_per_minute": measure(
                (row["clip"], (count_words(row["hypothesis"]), row["duration"] / 60)) for row in rows
            ),
        }

    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """As `Suite`."""
        return {"scorer": "words that hold a letter or a digit", "normalizer": None}


def count_words(text: str) -> int:
    """Words that hold a letter or a digit."""
    return sum(any(character.isalnum() for character in word) for word in text.split())

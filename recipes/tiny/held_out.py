"""Texts of test and validation sets, which nothing that is trained on may repeat (`texts.py`)."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastslm.data.manifest import manifest_lines
from fastslm.errors import ManifestError

SHARED_WORDS = 7
KEYS = ("text", "summary", "question", "instruction", "answer", "answers")


def plain_words(text: str) -> list[str]:
    """Words in small letters, without accents, marks and digits."""
    folded = unicodedata.normalize("NFKD", text.lower())
    folded = "".join(char for char in folded if not unicodedata.combining(char) and char not in "'’‘")
    return re.findall("[a-z]+", folded)


class HeldOut:
    """Finds sentences that share 7 words in a row with a held-out text, or are one of 3 to 6 words."""

    def __init__(self, texts: Iterable[str]):
        self._runs: set[tuple[str, ...]] = set()
        self._short: set[tuple[str, ...]] = set()
        for text in texts:
            words = plain_words(text)
            self._runs.update(_runs(words))
            if 3 <= len(words) < SHARED_WORDS:
                self._short.add(tuple(words))

    @classmethod
    def of(cls, manifests: Iterable[Path]) -> "HeldOut":
        """The texts, questions and answers of these manifests.

        Raises:
            ManifestError: one is missing, or a line is not JSON.
        """
        return cls(text for manifest in manifests for text in _texts(manifest))

    def kept(self, sentences: Sequence[str]) -> list[int]:
        """Which of `sentences`, in running order, hold no word of a shared run. A run may span sentences."""
        words = [(word, index) for index, sentence in enumerate(sentences) for word in plain_words(sentence)]
        shared = {i for i, sentence in enumerate(sentences) if tuple(plain_words(sentence)) in self._short}
        for start, run in enumerate(_runs([word for word, _ in words])):
            if run in self._runs:
                shared.update(index for _, index in words[start : start + SHARED_WORDS])
        return [index for index in range(len(sentences)) if index not in shared]


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1))


def _texts(manifest: Path) -> Iterator[str]:
    for number, line in manifest_lines(manifest):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            raise ManifestError(f"{manifest}, line {number}: this is not JSON; correct the line.") from None
        for key in KEYS:
            value = row.get(key)
            yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))

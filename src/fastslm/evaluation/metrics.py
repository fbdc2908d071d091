"""Word and character error rates over a corpus, with their intervals and the names of what computed them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from fastslm.errors import OptionError

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
SCORER = f"jiwer {version('jiwer')}"
NORMALIZER = f"whisper-normalizer {version('whisper-normalizer')} EnglishTextNormalizer"


@dataclass(frozen=True)
class ClipErrors:
    """One clip after normalisation, and its word errors."""

    reference: str
    hypothesis: str
    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class ErrorRates:
    """Errors of all clips over words, or characters, of all references.

    wer_interval: 95 % percentile bootstrap over clips, of a fixed seed.
    """

    wer: float
    cer: float
    wer_interval: tuple[float, float]
    clips: tuple[ClipErrors, ...]

    def total(self, name: str) -> int:
        """The sum of a field of `ClipErrors` over all clips."""
        return sum(getattr(clip, name) for clip in self.clips)


def normalize(text: str) -> str:
    """Text as Whisper's English normaliser leaves it: no case, punctuation or fillers, numbers as digits."""
    return _normalizer()(text).strip()


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Corpus-level error rates of normalised texts, one reference and hypothesis a clip.

    What is written for a clip whose normalised reference is empty counts as inserted.

    Raises:
        OptionError: no reference holds a word.
    """
    expected = [normalize(text) for text in references]
    heard = [normalize(text) for text in hypotheses]
    if not any(expected):
        raise OptionError("No reference holds a word after normalisation: give clips with text.")
    words = jiwer.process_words(expected, heard)
    clips = tuple(
        _clip_errors(reference, hypothesis, alignment)
        for reference, hypothesis, alignment in zip(expected, heard, words.alignments, strict=True)
    )
    return ErrorRates(float(words.wer), float(jiwer.cer(expected, heard)), _interval(clips), clips)


def _clip_errors(reference: str, hypothesis: str, alignment: Sequence[jiwer.AlignmentChunk]) -> ClipErrors:
    counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in alignment:
        length = (
            chunk.hyp_end_idx - chunk.hyp_start_idx
            if chunk.type == "insert"
            else chunk.ref_end_idx - chunk.ref_start_idx
        )
        counts[chunk.type] += length
    return ClipErrors(
        reference, hypothesis, len(reference.split()), counts["substitute"], counts["delete"], counts["insert"]
    )


def _interval(clips: Sequence[ClipErrors]) -> tuple[float, float]:
    errors = np.array([clip.errors for clip in clips])
    words = np.array([clip.words for clip in clips])
    drawn = np.random.default_rng(0).integers(len(clips), size=(RESAMPLES, len(clips)))
    sums = words[drawn].sum(1)
    rates = errors[drawn].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.percentile(rates, INTERVAL)
    return float(low), float(high)


@lru_cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()

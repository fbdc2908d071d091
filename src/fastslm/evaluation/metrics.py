"""What right means for a text: normalised words, their errors, answers that match; and who says so."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from fastslm.errors import OptionError
from fastslm.evaluation.bootstrap import Measure, measure

SCORER = f"jiwer {version('jiwer')}"
ENGLISH = ("en", None)
# Written without spaces: a letter is taken for a word, as in Whisper's paper.
UNSPACED = ("zh", "yue", "ja", "th", "lo", "my")
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class ClipErrors:
    """One clip after normalisation, its word errors, and its errors in characters."""

    reference: str
    hypothesis: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class ErrorRates:
    """Errors of all clips over words, or characters, of all references."""

    wer: Measure
    cer: Measure
    clips: tuple[ClipErrors, ...]

    def total(self, name: str) -> int:
        """The sum of a field of `ClipErrors` over all clips."""
        return sum(getattr(clip, name) for clip in self.clips)


def normalize(text: str, language: str | None = None) -> str:
    """Text without case and punctuation.

    English, which is also what no language means, goes through Whisper's English normaliser: no fillers, numbers as
    digits, American spelling. Other languages go through its basic one, which sets the letters of those without spaces
    apart.
    """
    return " ".join(_normalizer(language in ENGLISH, language in UNSPACED)(text).split())


def normalizer_name(languages: Sequence[str | None] = (None,)) -> str:
    """What normalises texts of these languages."""
    kinds = {language in ENGLISH for language in languages}
    names = ["EnglishTextNormalizer"] * (True in kinds) + ["BasicTextNormalizer"] * (False in kinds)
    return f"whisper-normalizer {version('whisper-normalizer')} {' and '.join(names)}"


def error_rates(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> ErrorRates:
    """Corpus-level error rates of normalised texts, one reference and hypothesis a clip.

    What is written for a clip whose normalised reference is empty counts as inserted.

    Args:
        languages: of the clips, English where not given.
        names: of the clips, by default their numbers.

    Raises:
        OptionError: no reference holds a word.
    """
    spoken = languages or [None] * len(references)
    expected = [normalize(text, language) for text, language in zip(references, spoken, strict=True)]
    heard = [normalize(text, language) for text, language in zip(hypotheses, spoken, strict=True)]
    if not any(expected):
        raise OptionError("No reference holds a word after normalisation: give clips with text.")
    by_word = jiwer.process_words(expected, heard).alignments
    by_character = jiwer.process_characters(expected, heard).alignments
    clips = tuple(_clip_errors(*texts) for texts in zip(expected, heard, by_word, by_character, strict=True))
    named = list(zip(names or [str(index) for index in range(len(clips))], clips, strict=True))
    return ErrorRates(
        wer=measure((name, (clip.errors, clip.words)) for name, clip in named),
        cer=measure((name, (clip.character_errors, clip.characters)) for name, clip in named),
        clips=clips,
    )


def normalize_answer(text: str, language: str | None = None) -> str:
    """As `normalize`, in English without articles, as SQuAD's scorer has it: "A pear." and "pear" are the same."""
    plain = normalize(text, language)
    return " ".join(ARTICLES.sub(" ", plain).split()) if language in ENGLISH else plain


def token_f1(expected: str, given: str, language: str | None = None) -> float:
    """How well the words of an answer agree with the right ones, whatever their order: SQuAD's F1, 0 to 1."""
    right, written = normalize_answer(expected, language).split(), normalize_answer(given, language).split()
    if not right or not written:
        return float(right == written)
    shared = sum((Counter(right) & Counter(written)).values())
    return 2 * shared / (len(right) + len(written)) if shared else 0.0


def _clip_errors(
    reference: str,
    hypothesis: str,
    by_word: Sequence[jiwer.AlignmentChunk],
    by_character: Sequence[jiwer.AlignmentChunk],
) -> ClipErrors:
    words, characters = _counts(by_word), _counts(by_character)
    return ClipErrors(
        reference,
        hypothesis,
        len(reference.split()),
        words["substitute"],
        words["delete"],
        words["insert"],
        len(reference),
        characters["substitute"] + characters["delete"] + characters["insert"],
    )


def _counts(alignment: Sequence[jiwer.AlignmentChunk]) -> dict[str, int]:
    counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in alignment:
        length = (
            chunk.hyp_end_idx - chunk.hyp_start_idx
            if chunk.type == "insert"
            else chunk.ref_end_idx - chunk.ref_start_idx
        )
        counts[chunk.type] += length
    return counts


@lru_cache
def _normalizer(english: bool, unspaced: bool) -> EnglishTextNormalizer | BasicTextNormalizer:
    return EnglishTextNormalizer() if english else BasicTextNormalizer(split_letters=unspaced)

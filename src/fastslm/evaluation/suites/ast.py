"""Translation: BLEU over a manifest, by sacrebleu, with its signature.

fastslm evaluate ast --manifest FILE.jsonl --json

A clip brings its `translation`, or an `answer`, and the `target_language` of it.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError, OptionError
from fastslm.evaluation.bootstrap import Measure, measure
from fastslm.evaluation.suite import Row, Suite
from fastslm.prompts import language_code

# sacrebleu's own tokenizers of Japanese and Korean need a dictionary that has to be fetched.
TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}


class Translation(Suite):
    """BLEU, 0 to 100, of one language a manifest."""

    name = "ast"
    task = "translate"
    needs = ("request.to", "translation")
    titles = {"bleu": ("BLEU", ".1f")}  # noqa: RUF012

    def rows(self, clip: Clip) -> list[Row]:
        """As `Suite`."""
        right = clip.answer or clip.translation
        if not right or not right.strip() or clip.target_language is None:
            raise ManifestError(
                f"{clip.place} has no translation (or answer) with its target_language: leave such clips out."
            )
        try:
            code = language_code(clip.target_language)
        except OptionError as error:
            raise ManifestError(f"{clip.place}: target_language: {error}") from error
        return [{"request": {"to": code}, "translation": right}]

    def measures(self, rows: Sequence[Row]) -> dict[str, Measure]:
        """As `Suite`."""
        bleu = _bleu(rows)
        parts = []
        for row in rows:
            own = bleu.sentence_score(row["hypothesis"], [row["translation"]])
            parts.append((row["clip"], (*own.counts, *own.totals, own.sys_len, own.ref_len)))
        return {"bleu": measure(parts, _corpus(bleu))}

    def scored_by(self, rows: Sequence[Row]) -> dict[str, str | None]:
        """As `Suite`."""
        bleu = _bleu(rows)
        # The signature counts the references that a corpus was given.
        bleu.corpus_score([row["hypothesis"] for row in rows], [[row["translation"] for row in rows]])
        return {"scorer": f"sacrebleu {version('sacrebleu')} {bleu.get_signature()}", "normalizer": None}


def _bleu(rows: Sequence[Row]) -> BLEU:
    languages = sorted({row["request"]["to"] for row in rows})
    if len(languages) > 1:
        raise ManifestError(
            f"The translations are into {', '.join(languages)}, but BLEU is of one language: give a manifest for each."
        )
    return BLEU(tokenize=TOKENIZERS.get(languages[0], "13a"))


def _corpus(bleu: BLEU) -> Callable[[np.ndarray], np.ndarray]:
    """sacrebleu's score of summed counts, (…, 2 × order + 2) → (…)."""
    order = bleu.max_ngram_order

    def of(sums: np.ndarray) -> np.ndarray:
        scores = [
            bleu.compute_bleu(
                list(own[:order]),
                list(own[order : 2 * order]),
                int(own[-2]),
                int(own[-1]),
                bleu.smooth_method,
                bleu.smooth_value,
                bleu.effective_order,
                order,
            ).score
            for own in sums.reshape(-1, sums.shape[-1])
        ]
        return np.array(scores).reshape(sums.shape[:-1])

    return of

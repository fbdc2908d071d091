"""What is measured, one file a suite."""

from pathlib import Path

from fastslm.errors import ManifestError
from fastslm.evaluation.predictions import NEEDED_FACTS, Predictions
from fastslm.evaluation.suite import Suite
from fastslm.evaluation.suites.asr import Recognition
from fastslm.evaluation.suites.ast import Translation
from fastslm.evaluation.suites.silence import Silence
from fastslm.evaluation.suites.sqqa import QuestionAnswering
from fastslm.evaluation.suites.ssum import Summarization

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (Recognition(), Translation(), Summarization(), QuestionAnswering(), Silence())
}


def suite_of(name: str) -> Suite:
    """The suite that predictions name.

    Raises:
        ManifestError: there is none of that name.
    """
    if name not in SUITES:
        raise ManifestError(f"The predictions are of the suite {name!r}, which is none of {', '.join(SUITES)}.")
    return SUITES[name]


def load_predictions(path: Path) -> tuple[Suite, Predictions]:
    """Predictions that were written before, and the suite that they are of.

    Raises:
        ManifestError: there is no such file, or it lacks something that the figures are computed from.
    """
    found = Predictions.load(path)
    suite = suite_of(found.facts["suite"])
    found.require(path, suite.needs, NEEDED_FACTS)
    return suite, found

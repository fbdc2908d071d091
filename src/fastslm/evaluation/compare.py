"""Two systems on the same clips: how much better the second is, and how sure that is."""

import json
from typing import Any

from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import difference
from fastslm.evaluation.predictions import Predictions
from fastslm.evaluation.suite import Row, Suite

WRITTEN = ("hypothesis", "finish_reason")
WHICH = ("system", "model", "fingerprint", "reader")


def compare(suite: Suite, first: Predictions, second: Predictions) -> dict[str, Any]:
    """Every figure of both, and the difference, second less first, by a paired bootstrap over clips.

    Raises:
        ManifestError: they are not of the same suite, or do not answer the same requests.
    """
    a, b = _paired(first, second)
    measures = suite.measures(a), suite.measures(b)
    figures: dict[str, Any] = {}
    for name in measures[0]:
        own, other = measures[0][name], measures[1][name]
        value, interval = difference(own, other)
        figures[name] = {
            "first": _rounded(own.value),
            "second": _rounded(other.value),
            "difference": _rounded(value),
            "difference_interval_95": None if interval is None else [round(end, 5) for end in interval],
            "samples": own.samples,
        }
    return {
        "suite": suite.name,
        "figures": figures,
        "clips": len({row["clip"] for row in a}),
        "first": {key: first.facts.get(key) for key in WHICH},
        "second": {key: second.facts.get(key) for key in WHICH},
        **suite.scored_by(a),
    }


def summary(suite: Suite, found: dict[str, Any]) -> str:
    """A comparison for a person."""
    lines = [f"{key:24}{found[key]['model']}, {found[key]['reader']}" for key in ("first", "second")]
    for name, (title, form) in suite.titles.items():
        own = found["figures"][name]
        if own["difference"] is None:
            lines.append(f"{title:24}nothing to measure it on")
            continue
        low, high = own["difference_interval_95"]
        lines.append(
            f"{title:24}{own['first']:{form}} and {own['second']:{form}}, difference {own['difference']:+{form}}  "
            f"(95 % interval {low:+{form}} to {high:+{form}}, {own['samples']} samples)"
        )
    return "\n".join(lines)


def _paired(first: Predictions, second: Predictions) -> tuple[list[Row], list[Row]]:
    """The rows of both in the same order."""
    if first.facts["suite"] != second.facts["suite"]:
        raise ManifestError(
            f"The predictions are of the suites {first.facts['suite']} and {second.facts['suite']}: give two of one."
        )
    by_request = {_asked(row): row for row in second.rows}
    keys = [_asked(row) for row in first.rows]
    if by_request.keys() != set(keys):
        differing = sorted(by_request.keys() ^ set(keys))
        raise ManifestError(
            f"The predictions are not of the same requests, {len(differing)} of them are only in one, such as "
            f"{json.loads(differing[0])['id']}: run both on the same manifest and with the same options."
        )
    return list(first.rows), [by_request[key] for key in keys]


def _asked(row: Row) -> str:
    return json.dumps({key: value for key, value in row.items() if key not in WRITTEN}, sort_keys=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)

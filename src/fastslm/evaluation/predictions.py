"""Raw predictions as JSONL: a line about the run, then for each answer what was asked, is right, and was written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslm.errors import ManifestError
from fastslm.writing import write_text

NEEDED = ("id", "clip", "hypothesis", "finish_reason")
# Of the run: what every report says.
NEEDED_FACTS = ("model", "reader", "seconds", "processing_seconds", "real_time_factor")


@dataclass(frozen=True)
class Predictions:
    """What one system wrote.

    facts: of the run, `suite` among them. rows: one an answer.
    """

    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        """Write them, whole or not at all.

        Raises:
            FastSLMError: they cannot be written.
        """
        lines = (json.dumps(row, ensure_ascii=False) for row in (self.facts, *self.rows))
        write_text(path, "".join(f"{line}\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            ManifestError: there is no such file, or it is something else.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ManifestError(f"{path} cannot be read ({reason}): name a file of --predictions.") from error
        found: list[Any] = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ManifestError(
                    f"{path}, line {number}: this is not JSON ({error.msg}); write the predictions again."
                ) from error
        if len(found) < 2 or not isinstance(found[0], dict) or not isinstance(found[0].get("suite"), str):
            raise ManifestError(f"{path} holds no predictions of `fastslm evaluate`: name a file of --predictions.")
        predictions = cls(found[0], found[1:])
        predictions.require(path, NEEDED)
        return predictions

    def require(self, path: Path, keys: Sequence[str], facts: Sequence[str] = ()) -> None:
        """Make sure that every row has these keys, and the run's line these facts.

        Raises:
            ManifestError: one is missing; `path` and its line are named.
        """
        for number, row in enumerate((self.facts, *self.rows), 1):
            needed = keys if number > 1 else facts
            if missing := [key for key in needed if not isinstance(row, dict) or key not in row]:
                raise ManifestError(f"{path}, line {number}: there is no {missing[0]}; write the predictions again.")

"""Raw predictions as JSONL: a line about the run, then for each answer what was asked, is right, and was written."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslm.errors import ManifestError
from fastslm.writing import json_text, write_text

NEEDED = ("id", "clip", "hypothesis", "finish_reason")
# Of the run: what every report says.
NEEDED_FACTS = ("model", "reader", "seconds", "processing_seconds", "real_time_factor")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    # JSON's numbers may be infinite, none at all, or integers beyond all floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


Kind = tuple[str, Callable[[object], bool]]
TEXT: Kind = ("text", _is_text)
# What is no text.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        ("duration", "seconds", "processing_seconds", "real_time_factor"), ("a number from 0 on", _is_number)
    ),
    "language": ("a code or null", lambda value: value is None or _is_text(value)),
}


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
        lines = (json_text(row) for row in (self.facts, *self.rows))
        write_text(path, "".join(f"{line}\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            ManifestError: there is no such file, or it is something else.
        """
        try:
            # Not `splitlines`, which also takes for ends of lines what texts may hold, such as U+2028.
            with path.open(encoding="utf-8") as file:
                lines = list(file)
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
        for number, row in enumerate(predictions.rows, 2):
            if not _is_text(row.get("label_kind", "")):
                raise _wrong_kind(path, number, "label_kind", row["label_kind"], TEXT[0])
        return predictions

    def require(self, path: Path, keys: Sequence[str], facts: Sequence[str] = ()) -> None:
        """Make sure that every row has these keys, and the run's line these facts, each of its kind.

        Args:
            path: of the file, for the sentence.
            keys, facts: `a.b` is the key `b` of what `a` holds. All are texts but those of `KINDS`.

        Raises:
            ManifestError: one is missing or of another kind; `path` and its line are named.
        """
        for number, row in enumerate((self.facts, *self.rows), 1):
            for key in keys if number > 1 else facts:
                value: Any = row
                for part in key.split("."):
                    if not isinstance(value, dict) or part not in value:
                        raise ManifestError(f"{path}, line {number}: there is no {key}; write the predictions again.")
                    value = value[part]
                kind, is_of_kind = KINDS.get(key, TEXT)
                if not is_of_kind(value):
                    raise _wrong_kind(path, number, key, value, kind)


def _wrong_kind(path: Path, number: int, key: str, value: object, kind: str) -> ManifestError:
    return ManifestError(
        f"{path}, line {number}: {key} is {json.dumps(value)[:40]}, but {kind} is needed; write the predictions again."
    )

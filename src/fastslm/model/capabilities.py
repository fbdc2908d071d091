"""What a checkpoint says of itself: its languages and tasks, and the way that its answers come by."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from numbers import Real
from typing import Any

from fastslm.audio import WINDOW_SECONDS

DECODERS = ("ctc", "whisper", "llm")
VIAS = ("speech", "transcript")
ANSWERING_TASKS = ("translate", "summarize", "ask")


@dataclass(frozen=True)
class Capabilities:
    """What was learnt, and what that was measured to be good for. No weight depends on it; results and warnings do.

    Attributes:
        languages: codes of what the model was trained to transcribe, the default first.
        decoder: what writes the best transcripts, `ctc`, `whisper` or `llm`; `None`: the CTC head, if there is one,
            else the language model.
        via: what the language model answers from: `speech`, the embeddings that the projector makes of the tokens (the
            paper's), or `transcript`, the words that Whisper's decoder writes (`fastslm.inference.cascade`).
        tasks: the tasks that the language model has learnt; `None` is all of them. Results of others say so; with none,
            results say that it does not read speech.
        translates_into: codes of the languages that it has learnt to translate into; `None` is all. Results in others
            say so.
        taught_with: of a task, what alone it was taught with, in words that end a sentence: "The language model has
            learnt to translate from …". Its results say so.
        taught_seconds: of `translate`, `summarize` and `ask`, the longest recording that answers were taught from,
            counted in windows of 30 s. Longer ones are read in parts of that length by default. `None`, or a task that
            is not in it, is any length that the language model has positions for.

    Raises:
        ValueError: a value that cannot be.
    """

    languages: tuple[str, ...] = ("en",)
    decoder: str | None = None
    via: str = "speech"
    tasks: tuple[str, ...] | None = ()
    translates_into: tuple[str, ...] | None = None
    taught_with: Mapping[str, str] | None = None
    taught_seconds: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name in ("languages", "tasks", "translates_into"):
            given = getattr(self, name)
            if given is not None:  # JSON has lists
                object.__setattr__(self, name, tuple(given))
        if not self.languages:
            raise ValueError("languages is empty; it must name at least one code, such as en.")
        if self.decoder not in (None, *DECODERS):
            raise ValueError(f"decoder is {self.decoder!r}; it must be null or one of {', '.join(DECODERS)}.")
        if self.via not in VIAS:
            raise ValueError(f"via is {self.via!r}; it must be one of {', '.join(VIAS)}.")
        if not isinstance(self.taught_seconds, Mapping | None):
            raise ValueError(f"taught_seconds is {self.taught_seconds!r}; it must give each task its seconds, or null.")
        for task, seconds in (self.taught_seconds or {}).items():
            number = isinstance(seconds, Real) and not isinstance(seconds, bool)
            if task not in ANSWERING_TASKS or not number or not WINDOW_SECONDS <= seconds < math.inf:
                raise ValueError(
                    f"taught_seconds has {task!r}: {seconds!r}; it must give {', '.join(ANSWERING_TASKS)} seconds, "
                    f"{WINDOW_SECONDS} or more."
                )

    @classmethod
    def of(cls, given: "Capabilities | Mapping[str, Any] | None") -> "Capabilities":
        """From the mapping of a `config.json`.

        Raises:
            ValueError: an unknown key, with the nearest known one, or a value that cannot be.
        """
        if isinstance(given, Capabilities):
            return given
        known = [field.name for field in fields(cls)]
        for key in (key for key in given or {} if key not in known):
            near = get_close_matches(key, known, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise ValueError(f"capabilities has {key!r}{hint}; {', '.join(known)} are allowed.")
        return cls(**(given or {}))

    def as_dict(self) -> dict[str, Any]:
        """The mapping of a `config.json`."""
        return asdict(self)

"""What is known of a recording before it is read: a prompt and hotwords, which tell how words are spelled."""

from dataclasses import dataclass

from fastslm.errors import OptionError
from fastslm.prompts import TASKS, without_control_tokens


@dataclass(frozen=True)
class Hints:
    """Text that the reader has before it writes. None of it is part of the transcript.

    Attributes:
        prompt: what might stand before the transcript: its names, words and style are taken up.
        hotwords: words and names that may be said, as they are spelled.
    """

    prompt: str | None = None
    hotwords: str | None = None

    def __bool__(self) -> bool:
        return self.prompt is not None or self.hotwords is not None

    @property
    def instruction(self) -> str | None:
        """The language model's instruction to transcribe, with the hints; `None`, its own, where there are none."""
        if not self:
            return None
        lines = [TASKS["transcribe"].phrasing]
        lines += [f"Context: {self.prompt}"] if self.prompt else []
        lines += [f"Words that may be said: {self.hotwords}"] if self.hotwords else []
        return "\n".join(map(str, lines))


def checked_hint(option: str, text: object) -> str | None:
    """A hint without the space around it; `None` where nothing else is in it.

    Raises:
        OptionError: it is no text, or holds control tokens or what is no Unicode.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise OptionError(f"{option} is {text!r}, a text is allowed: give one, with all words in it.")
    return without_control_tokens(text) or None

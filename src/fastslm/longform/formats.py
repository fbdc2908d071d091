"""The forms in which a transcript can be written."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from fastslm.errors import OptionError
from fastslm.longform.results import Transcript
from fastslm.longform.subtitles import CUT_MARK, write_srt, write_vtt
from fastslm.writing import json_text


@dataclass(frozen=True)
class Format:
    """A form of transcripts. suffix: of its files. has_marks: its text is a whole file, which another cannot follow."""

    name: str
    suffix: str
    write: Callable[[Transcript], str]
    has_marks: bool = False


FORMATS = {
    form.name: form
    for form in (
        Format("text", ".txt", lambda transcript: marked(transcript.text, transcript.partial) + "\n"),
        Format("json", ".json", lambda transcript: json_text(transcript.as_dict()) + "\n"),
        Format("srt", ".srt", write_srt, has_marks=True),
        Format("vtt", ".vtt", write_vtt, has_marks=True),
    )
}


def marked(text: str, partial: bool) -> str:
    """A text as it is for people to read: one of a recording that breaks off ends with a line that says so."""
    return f"{text}\n{CUT_MARK}" if partial else text


def format_named(name: str) -> Format:
    """The form of that name.

    Raises:
        OptionError: there is none; the nearest is named.
    """
    if name in FORMATS:
        return FORMATS[name]
    near = get_close_matches(name.lower(), FORMATS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise OptionError(f"There is no format {name!r}{hint}: choose one of {', '.join(FORMATS)}.")

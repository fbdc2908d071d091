"""What the command prints, on streams of any encoding: no name and no text ends it with an error.

Results go to standard output, everything else to standard error. A character that standard output cannot encode is
escaped in JSON (`\\u4f1a`), and replaced in other text. Standard error escapes it as Python does.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unicodedata import category

from fastslm.writing import json_text

REPLACE = "fastslm.replace"
# What raises, or writes bytes that the encoding does not have: every other handler is the user's choice.
STRICT = ("strict", "surrogateescape")
LINE_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
# Unicode's categories of what moves a terminal's cursor or worse: control characters, line and paragraph separators.
CONTROL = ("Cc", "Zl", "Zp")


@contextmanager
def any_text() -> Iterator[None]:
    """Let no text fail on the standard streams for its characters, whoever prints it; afterwards they are as before."""
    codecs.register_error(REPLACE, _replacement)
    changed = [
        (stream, errors)
        for stream, handler in ((sys.stdout, REPLACE), (sys.stderr, "backslashreplace"))
        if (errors := getattr(stream, "errors", None)) in STRICT and _set_errors(stream, handler)
    ]
    try:
        yield
    finally:
        for stream, errors in changed:
            _set_errors(stream, errors)


def print_text(text: object, end: str = "\n") -> None:
    """A result, to standard output at once.

    Raises:
        OSError: nobody reads it, or there is no room for it.
    """
    _write(sys.stdout, f"{text}{end}")


def print_json(value: Any, indent: int | None = None) -> None:
    """A result as JSON, to standard output. Errors: those of `print_text`."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print_text(json_text(value, encoding, indent))


def say(sentence: str) -> None:
    """A sentence to standard error, on one line, from `fastslm`."""
    tell(f"fastslm: {LINE_BREAK.sub(' ', sentence.strip())}")


def tell(text: str) -> None:
    """Lines to standard error."""
    _write(sys.stderr, "\n".join(map(_escaped, text.split("\n"))) + "\n")


def shown(path: str | Path) -> str:
    """A name for people to read, on one line: a line break or another control character in it is escaped."""
    return _escaped(as_unicode(path))


def as_unicode(text: str | Path) -> str:
    """What the user meant, where the locale's encoding took the bytes of a name or an argument apart.

    Bytes that are UTF-8 are read as such. Others stay as Python has them, a lone surrogate for each.
    """
    text = str(text)
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        with suppress(UnicodeError):
            return os.fsencode(text).decode("utf-8")
        return text


def _write(stream: Any, text: str) -> None:
    if stream is not None:  # None where it was closed before Python started
        stream.write(text)
        stream.flush()


def _set_errors(stream: Any, errors: str) -> bool:
    """Whether the stream took the handler; one that is closed, or cannot be flushed, does not."""
    with suppress(AttributeError, OSError, ValueError):
        stream.reconfigure(errors=errors)
        return True
    return False


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """U+FFFD in UTF-8, where only half characters can fail, and a question mark in what has no U+FFFD."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # Of text, Python's UTF-8 takes only ASCII from here.
    mark = "\ufffd".encode() if error.encoding.lower().replace("-", "") == "utf8" else "?"
    return mark * (error.end - error.start), error.end


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if category(c) in CONTROL else c for c in text)

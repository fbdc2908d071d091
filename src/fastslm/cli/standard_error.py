"""Standard error, where progress and warnings go, and which never ends the work: what it cannot take is forgotten."""

import io
import os
import sys
from contextlib import suppress
from typing import Any


class Forgiving(io.RawIOBase):
    """Writes where it can: a closed terminal, a full disk or a pipe that nobody reads takes the rest without a word.

    Args:
        raw: what is written to, an `io.RawIOBase`.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def write(self, data: Any) -> int:
        """As all streams; what cannot be written counts as written."""
        try:
            written = self.raw.write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written  # what would block is forgotten as well

    def writable(self) -> bool:
        """As all streams."""
        return True

    def fileno(self) -> int:
        """As all streams."""
        return self.raw.fileno()

    def isatty(self) -> bool:
        """As all streams."""
        return self.raw.isatty()


def forgive_standard_error() -> None:
    """Let no write to `sys.stderr` raise from now on. What is no stream of the process's own is left alone."""
    if sys.stderr is None:
        _fill_descriptor()
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return
    buffer: Any = getattr(sys.stderr, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # unbuffered by `python -u`, there is nothing between
    if sys.stderr is not sys.__stderr__ or not isinstance(raw, io.RawIOBase):
        return
    with suppress(OSError):
        sys.stderr.flush()
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(Forgiving(raw)),
        encoding=sys.stderr.encoding,
        errors=sys.stderr.errors,
        line_buffering=True,
        write_through=True,
    )


def _fill_descriptor() -> None:
    """Put nothing where standard error was closed: else the next file opened gets what libraries write there."""
    try:
        os.fstat(2)
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        if nothing != 2:
            os.dup2(nothing, 2)
            os.close(nothing)

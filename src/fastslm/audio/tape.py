"""A recording's bytes, wherever they come from, as FFmpeg reads them: rewound where that is possible, and bounded."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fastslm.errors import AudioError

# Bytes that opening may read, by how a file begins: an index of 20 hours of sound is smaller, and so is what FFmpeg
# looks at to know a codec; zeros behind a header may be longer.
OPENING_BYTES = 1 << 26
OPENING_BYTES_OF: dict[bytes, int] = dict.fromkeys((b"RIFF", b"RF64", b"BW64", b"caff"), 1 << 24)
# In which the headers of a stream lie.
HEADER_BYTES = 1 << 18
# Of what cannot be rewound so much is kept, to go on behind the end that a header states.
KEPT_BYTES = 1 << 22


def source_name(source: object) -> str:
    """What messages call a recording: its path or its file's name."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "The recording"


def is_seekable(file: BinaryIO) -> bool:
    """Whether a file object can be rewound."""
    return hasattr(file, "seek") and hasattr(file, "tell") and (not hasattr(file, "seekable") or file.seekable())


@contextmanager
def opened(source: object) -> Iterator[BinaryIO]:
    """A binary file object; what was opened here is closed again, the caller's own file is not."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if os.path.isdir(name):
            raise AudioError(f"{name} is a folder, a sound or video file is allowed: name a file inside it.")
        try:
            file = open(name, "rb")  # noqa: SIM115
        except FileNotFoundError:
            remedy = "download it and give the file" if "://" in name else "check the path"
            if name == "-":
                remedy = "for standard input give /dev/stdin"
            raise AudioError(f"{name} does not exist as a file: {remedy}.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{name} cannot be opened ({reason}): check the path and its permissions.") from None
        with file:
            yield file
    elif isinstance(source, io.TextIOBase):
        raise AudioError(f"{source_name(source)} was opened as text, a recording is binary: open it with mode 'rb'.")
    elif hasattr(source, "read"):
        yield source  # pyright: ignore[reportReturnType]
    else:
        raise AudioError(
            f"A recording was given as {type(source).__name__}, but a path, bytes, a binary file object, a NumPy array "
            "or a tensor is allowed: convert it."
        )


class Tape:
    """The bytes of a file from where it stands, numbered from 0.

    Attributes:
        seekable: whether any of them can be read at any time; else only what comes next, and the last `KEPT_BYTES`.
        size: how many they are, `None` of what is not seekable.
    """

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.seekable = is_seekable(file)
        self._start = file.tell() if self.seekable else 0
        self.size = file.seek(0, io.SEEK_END) - self._start if self.seekable else None
        self._kept, self._kept_from = bytearray(), 0
        if self.seekable:
            file.seek(self._start)

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset` on; none only at the end."""
        if self.seekable:
            self.file.seek(self._start + offset)
            return self.file.read(count)
        if offset < self._kept_from:
            return b""
        while (lacking := offset + count - self._kept_from - len(self._kept)) > 0:
            content = self.file.read(lacking)
            self._kept += content
            # A pipe gives what it has.
            if not content or self._kept_from + len(self._kept) > offset:
                break
        found = bytes(self._kept[offset - self._kept_from :][:count])
        surplus = len(self._kept) - 2 * KEPT_BYTES
        if surplus > 0:
            surplus += KEPT_BYTES
            del self._kept[:surplus]
            self._kept_from += surplus
        return found

    def peek(self, offset: int, count: int) -> bytes:
        """All of these bytes, as far as there are so many, and a pipe's only as far as they are kept."""
        if self.size is not None:
            count = min(count, self.size - offset)  # so much is allocated, even where nothing is left
        found = b""
        while len(found) < count and (content := self.read(offset + len(found), count - len(found))):
            found += content
        return found

    def rest(self, offset: int) -> int:
        """How many bytes there are from `offset` on; a pipe is read to its end."""
        if self.size is not None:
            return max(0, self.size - offset)
        count = 0
        while content := self.read(offset + count, 1 << 16):
            count += len(content)
        return count


class View:
    """A tape from one of its bytes on, as a file object that can only be read: PyAV asks for no more.

    Attributes:
        offset: of the tape, at which the view begins.
        budget: bytes that may still be read before the view pretends to end; `None` for any number.
    """

    def __init__(self, tape: Tape, offset: int = 0):
        self.tape, self.offset, self.position = tape, offset, 0
        self.budget: int | None = OPENING_BYTES_OF.get(tape.peek(offset, 4), OPENING_BYTES)  # type: ignore[call-overload]
        self.name = tape.name  # FFmpeg knows some formats by the name alone

    def read(self, size: int = -1) -> bytes:
        """As that of a file."""
        count = size if size >= 0 else 1 << 16
        content = self.tape.read(self.offset + self.position, count if self.budget is None else min(count, self.budget))
        self.position += len(content)
        if self.budget is not None:
            self.budget -= len(content)
        return content


class SeekableView(View):
    """The same of a tape that is seekable."""

    def tell(self) -> int:
        """As that of a file."""
        return self.position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """As that of a file."""
        self.position = position + {io.SEEK_SET: 0, io.SEEK_CUR: self.position}.get(whence, self.end())
        return self.position

    def end(self) -> int:
        """How many bytes the view has."""
        return self.tape.rest(self.offset)


class EndlessView(SeekableView):
    """The beginning of a tape, without its size: of it FFmpeg says what a header counts, and not what is there."""

    def read(self, size: int = -1) -> bytes:
        """As that of a file."""
        return super().read(size) if self.position < HEADER_BYTES else b""

    def end(self) -> int:
        """More than any header counts."""
        return 1 << 61

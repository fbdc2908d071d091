"""Files that are found whole under their name, or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastslm.errors import FastSLMError

if TYPE_CHECKING:
    import torch

# Characters that JSON leaves as they are and readers of lines take for the end of one.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


@contextlib.contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the context ends without an error.

    Raises:
        FastSLMError: the folder is missing, not writable, or its disk is full.
    """
    target = Path(path)
    scratch: Path | None = None
    try:
        # The beginning says what it is, and leaves room for the rest where the name is as long as names can be.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:50]}.", suffix=".partial")
        os.close(handle)
        scratch = Path(name)
        yield scratch
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, target)
    except OSError as error:
        raise FastSLMError(
            f"{target} cannot be written ({error.strerror or error}): choose another place, or free some room."
        ) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def write_tensors(tensors: "dict[str, torch.Tensor]", path: str | os.PathLike, metadata: dict[str, str]) -> Path:
    """Write a safetensors file, whole or not at all, and return its path.

    Raises:
        FastSLMError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with beside(path) as scratch:
        try:
            save_file(tensors, scratch, metadata=metadata)
        except SafetensorError as error:  # it has words for the system's error, but not its number
            raise FastSLMError(
                f"{os.fspath(path)} cannot be written ({error}): choose another place, or free some room."
            ) from error
    return Path(path)


@contextlib.contextmanager
def utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """The path, or that of a link to it where it is no UTF-8, which safetensors and tokenizers need to read a file."""
    name = os.fspath(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link"
            link.symlink_to(os.path.abspath(name))
            yield str(link)
    else:
        yield name


def require_place(path: str | os.PathLike) -> None:
    """Make sure, before work that takes long, that there is a place for its result. Nothing is left there.

    Raises:
        FastSLMError: `path` is a folder, or its own is missing or not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise FastSLMError(f"{target} is a folder, and a file is to be written: name one.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise FastSLMError(
            f"{target} cannot be written ({error.strerror or error}): choose another place, or free some room."
        ) from error


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file, whole or not at all.

    Raises:
        FastSLMError: as `beside`.
    """
    with beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return Path(path)


def json_text(value: Any, encoding: str = "utf-8", indent: int | None = None) -> str:
    """JSON on one line, unless it is indented, with its characters as they are.

    Where `encoding` lacks one of them, or one is half of a character, as in names that are no UTF-8, all but ASCII is
    escaped.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent).translate(_LINE_ENDS)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

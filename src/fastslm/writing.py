"""Files that are found whole under their name, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastslm.errors import FastSLMError

if TYPE_CHECKING:
    import torch


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

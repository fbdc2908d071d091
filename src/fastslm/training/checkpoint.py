"""Checkpoints of a run: everything that a resumed run needs to give the same bits, written beside and renamed."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from fastslm.errors import TrainingError
from fastslm.training.disk import writing

KEPT = 2


def save_checkpoint(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Write `state` as folder/name.pt, then remove all but the newest few.

    A run that is killed here leaves the checkpoint before, whole, and at most a file that ends in .partial.

    Raises:
        TrainingError: the disk is full or the folder cannot be written; nothing that was there is lost.
    """
    final = folder / f"{name}.pt"
    partial = folder / f"{name}.pt.partial"
    with writing(final, "the checkpoint"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as out:
                torch.save(state, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, final)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    for left in folder.glob("*.partial"):
        left.unlink() if left.is_file() else shutil.rmtree(left)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint, `None` where there is none.

    Raises:
        TrainingError: it cannot be read.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return torch.load(found[-1], map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{found[-1]}: this checkpoint cannot be read ({type(error).__name__}); "
            "remove it to go on from the one before."
        ) from None

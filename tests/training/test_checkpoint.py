"""Checkpoints: whole or not there, and the newest few of them."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslm.errors import TrainingError
from fastslm.training.checkpoint import checkpoints, load_newest, save_checkpoint


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, f"step-{step:07}", {"step": step, "weights": torch.full((3,), float(step))})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000010.pt", "step-0000100.pt"]
    state = load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 100
    assert torch.equal(state["weights"], torch.full((3,), 100.0))


def test_what_a_kill_left_half_written_is_never_loaded_and_later_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-0000001", {"step": 1})
    (tmp_path / "step-0000002.pt.partial").write_bytes(b"PK half of it")
    assert (load_newest(tmp_path) or {})["step"] == 1
    save_checkpoint(tmp_path, "step-0000003", {"step": 3})
    assert not list(tmp_path.glob("*.partial"))


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, "step-0000001", {"weights": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"not a checkpoint", "empty": b""}[damage])
    with pytest.raises(TrainingError, match=r"step-0000001\.pt: this checkpoint cannot be read .*remove it"):
        load_newest(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "step-0000001", {"step": 1})
    # Large and small ones fail at different places of torch's writer.
    for size in (10, 1_000_000):
        os.symlink("/dev/full", tmp_path / "step-0000002.pt.partial")
        with pytest.raises(TrainingError, match=r"step-0000002\.pt: the checkpoint could not be written \(the disk is"):
            save_checkpoint(tmp_path, "step-0000002", {"weights": torch.zeros(size)})
        assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]
    assert (load_newest(tmp_path) or {})["step"] == 1


def test_a_disk_that_fills_up_on_the_last_write_loses_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, "step-0000001", {"step": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="the disk is full"):
        save_checkpoint(tmp_path, "step-0000002", {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        save_checkpoint(tmp_path, "step-0000001", {"broken": Broken()})
    assert not list(tmp_path.iterdir())


def test_torchs_own_words_of_a_full_disk_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As seen on a file system of 1 MB, where the system's own error does not come through.
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="the disk is full"):
        save_checkpoint(tmp_path, "step-0000002", {"step": 2})
    assert not list(tmp_path.iterdir())

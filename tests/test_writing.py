"""Files that are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from fastslm.errors import FastSLMError
from fastslm.writing import beside, require_place, write_text


def test_what_fails_leaves_the_file_of_before_and_nothing_else(tmp_path: Path) -> None:
    target = write_text(tmp_path / "a.txt", "before")

    def stopped() -> None:
        with beside(target) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FastSLMError, match="No space left"), beside(tmp_path / "a.txt"):
        raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FastSLMError, match="cannot be written"):
        write_text(tmp_path / "none" / "a.txt", "x")


def test_a_place_is_looked_for_before_the_work_and_nothing_is_left_there(tmp_path: Path) -> None:
    kept = write_text(tmp_path / "a.txt", "before")
    require_place(kept)
    require_place(tmp_path / "b.txt")
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "before"
    for bad in (tmp_path, tmp_path / "none" / "a.txt", kept / "a.txt"):
        with pytest.raises(FastSLMError, match=r"name one|choose another place"):
            require_place(bad)


def test_the_file_has_the_users_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    target = write_text(tmp_path / "a.txt", "x")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path, letter: str) -> None:
    target = tmp_path / (letter * (251 // len(letter.encode())) + ".txt")
    assert write_text(target, "x").read_text() == "x"
    assert list(tmp_path.iterdir()) == [target]

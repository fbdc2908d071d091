"""Where the results of files go, and what becomes of those that are there already: nothing, unless it is asked for."""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastslm.cli.printing import say, shown
from fastslm.errors import FastSLMError, OptionError


@dataclass(frozen=True)
class Outputs:
    """The files that results are written to.

    Attributes:
        targets: the result of each file; empty where results go to standard output.
        there: files whose result existed at the start.
        overwrite: whether a result may take the place of what is there.
        skip_existing: whether a file is left out whose result is there.
    """

    targets: dict[Path, Path]
    there: frozenset[Path] = frozenset()
    overwrite: bool = False
    skip_existing: bool = False

    def left_out(self) -> list[Path]:
        """The files that need not be read; each is said on standard error."""
        left = [file for file in self.targets if file in self.there] if self.skip_existing else []
        for file in left:
            self._say_skipped(file)
        return left

    def may_write(self, file: Path) -> bool:
        """Whether the result of a file is wanted and has its place free; one that is skipped now is said.

        Raises:
            FastSLMError: another process has written it since the start.
        """
        if self.overwrite or file not in self.targets or not self.targets[file].exists():
            return True
        if self.skip_existing:
            self._say_skipped(file)
            return False
        raise FastSLMError(
            f"{self.targets[file]} was written by another process meanwhile, and is left as it is: run this again with "
            "--overwrite to replace it."
        )

    def _say_skipped(self, file: Path) -> None:
        say(f"{shown(file)} is skipped: {shown(self.targets[file])} is there.")


def outputs(
    files: Sequence[Path],
    folder: Path | None,
    suffix: str,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    read: Sequence[Path] = (),
    kept: Path | None = None,
) -> Outputs:
    """Where the result of each file goes, all of it checked before anything is read.

    Args:
        folder: `None` is standard output.
        read: all files that are read, where they are more than those that have a result.
        kept: a file beside them that is read or written, whether it is there yet or not.

    Raises:
        OptionError: two results would go to the same place, or one to that of a file that is read, or kept; a result is
            there, and neither `overwrite` nor `skip_existing` was given; both were, or one without a folder.
        FastSLMError: the folder cannot be made or written to, a folder is where a result is to go, or its name is too
            long.
    """
    if overwrite and skip_existing:
        raise OptionError("--overwrite and --skip-existing were both given: choose one of them.")
    if folder is None:
        for option in (name for name, given in _named(overwrite, skip_existing) if given):
            raise OptionError(f"{option} was given, but results go to standard output: give --output-dir as well.")
        return Outputs({})
    _make(folder)
    targets, there = _targets(files, folder, suffix, read or files, kept)
    if there and not (overwrite or skip_existing):
        first, others = targets[there[0]], len(there) - 1
        more = f" and {others} other result{'s' if others > 1 else ''}" if others else ""
        are, them = ("are", "them") if others else ("is", "it")
        raise OptionError(
            f"{first}{more} {are} there already: give --overwrite to replace {them}, or --skip-existing to keep {them}."
        )
    return Outputs(targets, frozenset(there), overwrite, skip_existing)


def _named(overwrite: bool, skip_existing: bool) -> list[tuple[str, bool]]:
    return [("--overwrite", overwrite), ("--skip-existing", skip_existing)]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastSLMError(
            f"The folder {folder} cannot be made ({error.strerror}): choose another --output-dir."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FastSLMError(f"The folder {folder} cannot be written to: choose another --output-dir.")


def _targets(
    files: Sequence[Path], folder: Path, suffix: str, read: Sequence[Path], kept: Path | None
) -> tuple[dict[Path, Path], list[Path]]:
    """The result of each file, and the files whose result is there. Errors: those of `outputs`."""
    from fastslm.longform.memory import SUFFIX

    # Of thousands of files on a server each look counts, so each is looked at once. A memory may be written anew.
    recordings = [own for own in read if own.suffix.lower() != SUFFIX]
    sources = {(found.st_dev, found.st_ino): own for own in recordings if (found := _found(own)) is not None}
    makers: dict[Path, Path] = {}
    there: list[Path] = []
    for file in files:
        target = folder / f"{file.stem}{suffix}"
        if target in makers:
            raise OptionError(f"{makers[target]} and {file} would both be written to {target}: run them apart.")
        if kept is not None and target.resolve() == kept.resolve():
            raise OptionError(f"The result of {file} would be written over {kept}: give them different names.")
        found = _found(target, f"the result of {file}")
        if found is not None and (overwritten := sources.get((found.st_dev, found.st_ino))) is not None:
            raise OptionError(f"The result of {file} would be written over {overwritten}: choose another --output-dir.")
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise FastSLMError(f"{target} is a folder, and the result of {file} is to go there: move it away.")
        if found is not None:
            there.append(file)
        makers[target] = file
    return {file: target for target, file in makers.items()}, there


def _found(path: Path, result: str | None = None) -> os.stat_result | None:
    """What is there, `None` if nothing is.

    Raises:
        FastSLMError: nothing can ever be there, where a `result` is to go.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if result is not None and error.errno == errno.ENAMETOOLONG:
            raise FastSLMError(
                f"{path}, where {result} is to go, is too long a name for the disk: shorten the file's name."
            ) from None
        return None

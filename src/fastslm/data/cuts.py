"""Lhotse cuts and Shar folders → rows. A corpus of thousands of hours is a file of cuts, and its audio stays in place.

Of a file only each cut's duration and place are kept in memory (compressed files are held whole), and of a Shar folder
one shard at a time; cuts are read when they are drawn, and decoded by whoever reads their rows.
"""

import gzip
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastslm.audio import SAMPLE_RATE, window_count
from fastslm.data.cut_audio import Cut, CutSound, duration_of, known_of, of_shar, sounding
from fastslm.data.rows import ManifestRows, Row, Rows, asked_of
from fastslm.errors import AudioError, ManifestError, OptionError

CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut")
# Of how many cuts, evenly spread, the audio is looked for before training starts.
LOOKED_FOR = 64


def require_lhotse() -> None:
    """Make sure that Lhotse is there.

    Raises:
        OptionError: it is not.
    """
    if find_spec("lhotse") is None:
        raise OptionError("Cuts are read by lhotse, which is not installed: pip install 'fastslm[train]'.")


def read_rows(path: Path, task: str | None = None) -> Rows:
    """The rows of a JSONL manifest, a file of Lhotse cuts or a Shar folder, whichever `path` is.

    Raises:
        ManifestError: it is none of them, is not there, or a row has nothing to learn.
        OptionError: cuts are to be read, and Lhotse is not installed.
    """
    return CutRows(path, task) if holds_cuts(path) else ManifestRows(path, task)


def read_sounds(path: Path) -> list[CutSound]:
    """All cuts of a file or a Shar folder, whether or not there is anything to learn from them.

    Errors are those of `CutRows`.
    """
    return list(CutRows(path, lenient=True).sounds())


def holds_cuts(path: Path) -> bool:
    """Whether `path` is a Shar folder or a file of cuts, as far as its first line shows; false where nothing is."""
    if path.is_dir():
        return True
    if path.suffix == ".gz":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and first.get("type") in CUT_TYPES


class CutRows:
    """The rows of a file of cuts (.jsonl or .jsonl.gz) or of a Shar folder, in a new order every epoch.

    Of a Shar folder the order is that of its shards, so that they are read one after another.

    Args:
        task: as of `fastslm.data.rows.asked_of`.
        lenient: whether cuts may have nothing to learn, for those who only want `sounds`.

    Raises:
        ManifestError: there are no cuts, a line is no cut with a recording, a cut has nothing to learn, or its audio
            is missing.
        OptionError: Lhotse is not installed.
    """

    def __init__(self, path: Path, task: str | None = None, lenient: bool = False):
        require_lhotse()
        self.name, self.path, self.task = str(path), path, task
        self.shards = _shards(path)
        self.lines: list[_Lines] = [_Lines(shard.cuts, keep=not path.is_dir()) for shard in self.shards]
        seconds = array("d")
        for shard, lines in zip(self.shards, self.lines, strict=True):
            for number, line in lines.scan():
                try:
                    cut = _parsed(line, shard.cuts, number)
                    if not lenient:
                        self._row(cut, shard, 0)
                    seconds.append(duration_of(cut))
                except (KeyError, TypeError, ValueError) as error:
                    raise ManifestError(
                        f"{shard.cuts}, line {number}: this cut is not as lhotse writes it ({error!r}); write it again."
                    ) from None
        if not seconds:
            raise ManifestError(f"{path}: there is no cut in it; make some, for example by lhotse cut simple.")
        self._seconds = np.array(seconds)
        # The first row of each shard.
        self.starts = np.cumsum([0, *(len(lines) for lines in self.lines)])
        for index in np.unique(np.linspace(0, len(seconds) - 1, min(LOOKED_FOR, len(seconds))).astype(int)):
            _check_audio(*self._cut(int(index)))

    def durations(self) -> np.ndarray:
        """As `fastslm.data.rows.Rows`."""
        return self._seconds

    def epoch(self, seed: Sequence[int], number: int) -> "CutsInOrder":
        """As `fastslm.data.rows.Rows`."""
        rng = np.random.default_rng([*seed, number])
        if len(self.shards) == 1:
            order = rng.permutation(len(self._seconds))
        else:
            spans = list(pairwise(self.starts.tolist()))
            order = np.concatenate([np.arange(*spans[shard]) for shard in rng.permutation(len(spans))])
        return CutsInOrder(self, order, number)

    def row(self, index: int, epoch: int) -> Row:
        """The index-th cut as a row."""
        cut, shard = self._cut(index)
        return self._row(cut, shard, epoch)

    def sounds(self) -> Iterator[CutSound]:
        """All cuts with their audio, in the order of the file."""
        for index in range(len(self._seconds)):
            cut, shard = self._cut(index)
            yield CutSound(cut, shard.folder, shard.recordings)

    def _cut(self, index: int) -> tuple[Cut, "_Shard"]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        shard, line = self.shards[number], index - int(self.starts[number])
        return _parsed(self.lines[number][line], shard.cuts, line + 1), shard

    def _row(self, cut: Cut, shard: "_Shard", epoch: int) -> Row:
        known = known_of(cut)
        asked = asked_of(known, f"{shard.cuts}: the cut {cut['id']}", self.task)
        seconds = duration_of(cut)
        sound = CutSound(cut, shard.folder, shard.recordings)
        windows = window_count(round(seconds * SAMPLE_RATE))
        return Row(cut["id"], *asked, seconds, windows, self.name, sound, known.get("text"), epoch)


class CutsInOrder(Sequence[Row]):
    """The rows of an epoch of `CutRows`."""

    def __init__(self, rows: CutRows, order: np.ndarray, epoch: int):
        self.rows, self.order, self.number = rows, order, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        return self.rows.row(int(self.order[index]), self.number)


@dataclass(frozen=True)
class _Shard:
    """A file of cuts, and where their audio is if it is one of a Shar folder."""

    cuts: Path
    recordings: Path | None

    @property
    def folder(self) -> Path:
        return self.cuts.parent


def _shards(path: Path) -> list[_Shard]:
    if not path.exists():
        raise ManifestError(f"{path} does not exist: name a file of cuts, a Shar folder or a JSONL manifest.")
    if not path.is_dir():
        return [_Shard(path, None)]
    found = sorted(path.glob("cuts.*.jsonl.gz")) + sorted(path.glob("cuts.*.jsonl"))
    if not found:
        raise ManifestError(
            f"{path} holds no cuts.000000.jsonl.gz, which a Shar folder has: name one, or a file of cuts."
        )
    shards = []
    for cuts in found:
        recordings = path / f"recording.{cuts.name.split('.')[1]}.tar"
        shards.append(_Shard(cuts, recordings if recordings.is_file() else None))
    return shards


class _Lines:
    """The lines of a file, found by their places, or of a compressed file kept or read anew."""

    def __init__(self, path: Path, keep: bool):
        self.path, self.packed = path, path.suffix == ".gz"
        self._kept: list[bytes] | None = [] if self.packed and keep else None
        self._places = array("q")
        self._count = 0

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """All lines with their numbers; to be run through once before any other use."""
        place = 0
        try:
            with gzip.open(self.path) if self.packed else self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        self._count += 1
                        if self._kept is not None:
                            self._kept.append(line)
                        elif not self.packed:
                            self._places.append(place)
                        yield number, line
                    place += len(line)
        except (OSError, EOFError, zlib.error) as error:
            raise ManifestError(f"{self.path} cannot be read ({error}); copy or write the file again.") from None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        if self._kept is not None:
            return self._kept[index]
        if self.packed:
            return _unpacked(self.path)[index]
        with self.path.open("rb") as file:
            file.seek(self._places[index])
            return file.readline()


@lru_cache(maxsize=4)
def _unpacked(path: Path) -> list[bytes]:
    """The lines of a shard: its cuts are drawn one after another."""
    with gzip.open(path) as file:
        return [line for line in file if line.strip()]


def _parsed(line: bytes, path: Path, number: int) -> Cut:
    where = f"{path}, line {number}"
    try:
        cut = json.loads(line)
    except ValueError:
        raise ManifestError(f"{where}: this is not JSON; correct the line.") from None
    if not isinstance(cut, dict) or cut.get("type") not in CUT_TYPES:
        raise ManifestError(
            f"{where}: this is no cut; make cuts by lhotse cut simple, or by fastslm data convert of a JSONL manifest."
        )
    if not isinstance(cut.get("id"), str):
        raise KeyError("id")
    if not sounding(cut) or any(own.get("recording") is None for _, own in sounding(cut)):
        raise ManifestError(f"{where}: the cut {cut['id']} has no recording; give it one, or leave it out.")
    for _, own in sounding(cut):
        if not own["recording"]["sources"]:
            raise KeyError("sources")
    return cut


def _check_audio(cut: Cut, shard: _Shard) -> None:
    try:
        CutSound(cut, shard.folder, shard.recordings).by_reference()
    except AudioError as error:
        raise ManifestError(f"{shard.cuts}: {error}") from None
    for _, own in sounding(cut):
        if shard.recordings is None and of_shar(own):
            name = shard.cuts.name.split(".")[1]
            raise ManifestError(
                f"{shard.cuts}: the audio of its cuts is in recording.{name}.tar, which is not beside it; put it there."
            )

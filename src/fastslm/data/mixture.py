"""Several manifests mixed by weights: exact shares, an order by seed, nothing twice before its manifest was used up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastslm.data.manifest import Clip, read_manifest
from fastslm.errors import OptionError


@dataclass(frozen=True)
class Source:
    """A manifest and how much it weighs beside the others."""

    path: Path
    weight: float

    def __post_init__(self) -> None:
        if not (0 < self.weight < float("inf")):
            raise OptionError(
                f"{self.path}: a weight of {self.weight} is not possible: give more than 0, or leave it out."
            )

    @classmethod
    def named(cls, text: str) -> "Source":
        """From PATH=WEIGHT, or PATH for a weight of 1.

        Raises:
            OptionError: the weight is no number above 0.
        """
        path, separator, weight = text.rpartition("=")
        if not separator:
            return cls(Path(text), 1.0)
        try:
            return cls(Path(path), float(weight))
        except ValueError:
            raise OptionError(f"{text}: the weight {weight!r} is no number; write {path}=0.5, for example.") from None


def quotas(weights: Sequence[float], count: int) -> list[int]:
    """How many of `count` fall to each weight: the exact share rounded, the largest remainders up. They add up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * count
    whole = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(-(exact - whole), kind="stable")[: count - int(whole.sum())]:
        whole[index] += 1
    return whole.tolist()


def epoch_indices(sizes: Sequence[int], weights: Sequence[float], count: int, seed: int, epoch: int) -> np.ndarray:
    """Which row of which source comes when in an epoch of `count` rows: (count, 2), source and row.

    A source's rows follow one another through the epochs as permutations without end: its next epoch goes on where the
    last one stopped, and a row comes for the n-th time only when all of its source have come n - 1 times.
    """
    drawn = []
    for source, (size, quota) in enumerate(zip(sizes, quotas(weights, count), strict=True)):
        places = np.arange(epoch * quota, (epoch + 1) * quota)
        rounds = {
            int(turn): np.random.default_rng([seed, source, int(turn)]).permutation(size)
            for turn in set(places // size)
        }
        rows = [rounds[int(place // size)][place % size] for place in places]
        drawn += [(source, int(row)) for row in rows]
    order = np.random.default_rng([seed, len(sizes), epoch]).permutation(len(drawn))
    return np.array(drawn, dtype=np.int64).reshape(-1, 2)[order]


def mix(
    sources: Sequence[Source], folder: Path, count: int | None = None, seed: int = 0, epoch: int = 0
) -> list[dict[str, Any]]:
    """Rows of a manifest in `folder`, from several.

    Args:
        count: of rows; without it as many as can be had without any row twice.
        epoch: a later one goes on with what the ones before it left.

    Returns:
        Rows whose `id` is MANIFEST/id, with /2 and so on where a row comes again; `mixed_from` is the manifest.

    Raises:
        OptionError: no source, a manifest named twice, or a count below 1.
        ManifestError: a manifest or its audio cannot be found or read.
    """
    if not sources:
        raise OptionError("There is nothing to mix: name at least one manifest.")
    if count is not None and count < 1:
        raise OptionError(f"{count} rows are not possible: ask for at least 1.")
    if epoch < 0:
        raise OptionError(f"There is no epoch {epoch}: count them from 0.")
    names = _names([source.path for source in sources])
    manifests: list[list[Clip]] = [read_manifest(source.path) for source in sources]
    weights = [source.weight for source in sources]
    if count is None:
        count = whole_count([len(clips) for clips in manifests], weights)
    rows, times = [], dict[str, int]()
    for source, index in epoch_indices([len(clips) for clips in manifests], weights, count, seed, epoch).tolist():
        clip = manifests[source][index]
        name = f"{names[source]}/{clip.id}"
        times[name] = times.get(name, 0) + 1
        again = f"/{times[name]}" if times[name] > 1 else ""
        rows.append(clip.row(folder) | {"id": name + again, "mixed_from": names[source]})
    return rows


def whole_count(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """How many rows the weights allow, exactly followed, without any of them twice."""
    return int(min(size * sum(weights) / weight for size, weight in zip(sizes, weights, strict=True)) + 1e-9)


def _names(paths: Sequence[Path]) -> list[str]:
    """The manifests' names without suffix, with their folders' where two are alike."""
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}-{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"Two manifests are called {name}: name each once, and give them different names.")
    return names

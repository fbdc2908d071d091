"""From a recipe to rows: manifests, cuts, packed windows; a sample of them, and how many steps an epoch is."""

from collections.abc import Sequence

import numpy as np

from fastslm.data.augmentation import AugmentedRows
from fastslm.data.batches import RowBatches, Source
from fastslm.data.cuts import read_rows
from fastslm.data.manifest import read_manifest
from fastslm.data.packing import PackedRows
from fastslm.data.rows import Row, Rows
from fastslm.training.recipe import Recipe


def sources_of(recipe: Recipe) -> list[Source]:
    """The rows that a recipe trains on.

    Raises:
        FastSLMError: a manifest cannot be read, or a row has nothing to learn.
    """
    data = recipe.data
    sounds = [] if data.sounds is None else read_manifest(data.sounds)
    found: list[Source] = []
    for own in data.train:
        rows: Rows
        if data.packing is not None:
            clips = read_manifest(own.place)
            rows = PackedRows(str(own.place), clips, sounds, data.packing, data.variants)
        else:
            rows = read_rows(own.place, own.task)
            if data.augmentation is not None:
                rows = AugmentedRows(rows, data.augmentation, sounds, data.variants)
        found.append(Source(rows, own.share))
    return found


def sample(sources: Sequence[Source], count: int, max_seconds: float | None) -> list[Row]:
    """About `count` rows, evenly spread over the first epoch of all sources, those that are too long left out."""
    epochs = [own.rows.epoch((0,), 0) for own in sources]
    total = sum(map(len, epochs))
    found = []
    for rows in epochs:
        share = max(1, round(count * len(rows) / total))
        places = np.unique(np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int))
        found += [rows[int(place)] for place in places]
    return [row for row in found if max_seconds is None or row.seconds <= max_seconds]


def steps_of(batches: RowBatches, epochs: float, accumulate: int) -> int:
    """Steps until so many epochs were handed out; `batches` is used up."""
    count = 0
    while batches.epochs < epochs:
        next(batches)
        count += 1
    return max(1, count // accumulate)

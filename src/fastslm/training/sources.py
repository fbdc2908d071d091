"""From a recipe to rows: manifests, cuts, packed windows; a sample of them, and how many steps an epoch is."""

from collections.abc import Sequence

import numpy as np

from fastslm.data.batches import RowBatches, Source
from fastslm.data.manifest import read_manifest
from fastslm.data.rows import Row, read_rows
from fastslm.training.recipe import Recipe


def sources_of(recipe: Recipe) -> list[Source]:
    """The rows that a recipe trains on.

    Raises:
        FastSLMError: a manifest cannot be read, or a row has nothing to learn.
    """
    data = recipe.data
    if data.packing is None:
        return [Source(read_rows(own.place, own.task), own.share) for own in data.train]
    from fastslm.data.packed_rows import PackedRows

    sounds = [] if data.sounds is None else read_manifest(data.sounds)
    return [
        Source(PackedRows(read_manifest(own.place), sounds, data.packing, str(own.place)), own.share)
        for own in data.train
    ]


def sample(sources: Sequence[Source], count: int, max_seconds: float | None) -> list[Row]:
    """About `count` rows, evenly spread over the first epoch of all sources, those that are too long left out."""
    total = sum(len(own.rows.durations()) for own in sources)
    found = []
    for own in sources:
        rows = own.rows.epoch((0,), 0)
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

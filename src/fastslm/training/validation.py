"""What a run has learnt: losses of rows that it is not trained on, and the share of words wrong that it writes."""

from contextlib import nullcontext

import jiwer
import numpy as np
import torch
from accelerate import Accelerator

from fastslm.data.cuts import read_rows
from fastslm.data.feature_cache import FeatureCache
from fastslm.data.loading import RowBatch, _Reading
from fastslm.data.rows import Row
from fastslm.training.losses import Loss
from fastslm.training.recipe import Recipe
from fastslm.training.starts import Start

# Transcripts that are written each time: of a language model, a pass a token.
WRITTEN_ROWS = 20


class Validation:
    """The validation rows of a recipe, in batches.

    Raises:
        FastSLMError: they cannot be read, or not be learnt from either.
    """

    def __init__(self, recipe: Recipe, start: Start, loss: Loss, accelerator: Accelerator, cache: FeatureCache | None):
        self.recipe, self.loss, self.accelerator = recipe, loss, accelerator
        self.reading = _Reading(start.audio_config.num_mel_bins, recipe.model.mel_mode, cache)
        self.batches: list[list[Row]] = []
        source = recipe.data.validation
        if source is None:
            return
        every = read_rows(source.place, source.task).epoch((0,), 0)
        limit = recipe.data.max_seconds or float("inf")
        places = np.unique(np.linspace(0, len(every) - 1, min(len(every), recipe.data.validation_rows)).astype(int))
        rows = [row for place in places if (row := every[int(place)]).seconds <= limit]
        loss.check_rows(rows, start.processor, recipe)
        rows.sort(key=lambda row: row.batch_seconds)
        for row in rows:
            if self.batches and self._fits([*self.batches[-1], row]):
                self.batches[-1].append(row)
            else:
                self.batches.append([row])

    def _fits(self, rows: list[Row]) -> bool:
        data = self.recipe.data
        longest = max(row.batch_seconds for row in rows)
        in_time = data.batch_seconds is None or len(rows) * longest <= data.batch_seconds
        return in_time and (data.batch_rows is None or len(rows) <= data.batch_rows)

    @torch.no_grad()
    def measure(self, sharded: bool) -> dict[str, float]:
        """Mean losses, and `wer` of transcripts that the model writes. Without validation rows, nothing.

        The main process measures for all; where weights are shared out, all compute and nothing is written.
        """
        if not self.batches or not (self.accelerator.is_main_process or sharded):
            return {}
        device = self.accelerator.device
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        written: list[tuple[str, str]] = []
        self.loss.eval()
        half = torch.autocast(device.type, torch.bfloat16) if self.recipe.precision == "bf16" else nullcontext()
        with half:
            for rows in self.batches:
                batch = self.reading.read(rows, {})
                prepared = self.loss.prepare(batch).to(device)
                for name, (total, count) in self.loss.losses(prepared).items():
                    sums[name], counts[name] = sums.get(name, 0.0) + float(total), counts.get(name, 0.0) + count
                if not sharded and len(written) < WRITTEN_ROWS and all(row.task == "transcribe" for row in rows):
                    written += self._written(prepared.batch)
        self.loss.train()
        found = {name: round(own / max(counts[name], 1.0), 5) for name, own in sums.items()}
        known = [(plain(right), plain(text)) for right, text in written if plain(right)]
        if known:
            found["wer"] = round(jiwer.wer([right for right, _ in known], [text for _, text in known]), 5)
        return found

    def _written(self, batch: RowBatch) -> list[tuple[str, str]]:
        texts = self.loss.write(batch)
        return [] if texts is None else [(row.answer, text) for row, text in zip(batch.rows, texts, strict=True)]


def plain(text: str) -> str:
    """Small letters and digits of any script, single spaces."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower())
    return " ".join(kept.split())

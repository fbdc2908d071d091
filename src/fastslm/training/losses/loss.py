"""What every loss is: rows → tensors → sums of named losses, and what each sum is to be divided by."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastslm.data.feature_cache import FeatureCache
from fastslm.data.loading import RowBatch
from fastslm.data.rows import Row
from fastslm.model.ctc_head import BLANK, ctc_ids, unwritten
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.recipe import Recipe

IGNORED = -100
# CTC's loss of a shorter text is divided by this, so that two letters do not weigh as much as a sentence.
FEWEST_LETTERS = 20


@dataclass(frozen=True)
class Prepared:
    """A micro-batch as a loss reads it.

    Attributes:
        inputs: what the loss made of the rows: tensors, and lists that stay where they are.
        counts: what each named loss is a mean over, in this micro-batch.
    """

    batch: RowBatch
    inputs: Mapping[str, Any]
    counts: Mapping[str, float]

    @property
    def ids(self) -> list[str]:
        """Of the rows."""
        return [row.id for row in self.batch.rows]

    @property
    def tokens(self) -> int:
        """That the language model reads, padding included; 0 where it is not asked."""
        ids = self.inputs.get("input_ids")
        return 0 if ids is None else ids.numel()

    def to(self, device: torch.device) -> "Prepared":
        """The same on a device."""
        moved = {key: own.to(device) if isinstance(own, torch.Tensor) else own for key, own in self.inputs.items()}
        return replace(self, batch=self.batch.to(device), inputs=moved)


class Loss(nn.Module):
    """A loss as a module whose forward pass DDP and FSDP can wrap.

    Losses are sums, not means: a step's mean is over all its micro-batches and processes, however rows fall into them.

    Args:
        model: with the parts that are trained.
        cache: of the frozen encoder's frames.

    Attributes:
        weights: of the named losses that are added up.
    """

    def __init__(
        self,
        model: FastSLMForConditionalGeneration,
        processor: FastSLMProcessor,
        recipe: Recipe,
        cache: FeatureCache | None = None,
    ):
        super().__init__()
        # Of transformers' mixins, which type checkers cannot follow.
        self.model: Any = model
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.recipe = recipe
        self.cache = cache
        self.weights: dict[str, float] = {self.name: 1.0, **recipe.loss.beside}

    name = "loss"

    @classmethod
    def check_rows(cls, rows: Iterable[Row], processor: FastSLMProcessor, recipe: Recipe) -> None:
        """Make sure, before a model is loaded, that rows such as these can be learnt from.

        Raises:
            RecipeError: they cannot.
        """

    def start(self, rows: Sequence[Row], batches: Iterable[RowBatch], fresh: set[str]) -> str | None:
        """What is done once, before the first step of a run that starts anew.

        Args:
            rows: some of the rows that are trained on. batches: of them.
            fresh: parts of the state dict that were not taken over from a checkpoint.

        Returns:
            a sentence of what was done, `None` where nothing was.
        """
        return None

    def prepare(self, batch: RowBatch) -> Prepared:
        """Rows → tensors and counts, on the CPU.

        Raises:
            TrainingError: a row cannot be learnt from; it is named.
        """
        raise NotImplementedError

    def forward(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        """Sums of the named losses over the rows of a micro-batch, to be divided by `Prepared.counts`."""
        raise NotImplementedError

    def losses(self, prepared: Prepared) -> dict[str, tuple[torch.Tensor, float]]:
        """Sum and count of each named loss."""
        return {name: (total, prepared.counts[name]) for name, total in self(prepared).items()}

    def write(self, batch: RowBatch) -> list[str] | None:
        """The greedy text of each row, `None` of a loss that has no text to show."""
        return None

    def frames(self, prepared: Prepared, masked: bool = True) -> torch.Tensor:
        """The frozen encoder's frames: (windows, frames, hidden), in training with stretches blanked if the recipe
        says so."""
        batch = prepared.batch
        found = batch.frames(self.model.encode, self.cache)
        assert found is not None
        mask = self.recipe.data.mask
        if mask is None or not masked or not self.training:
            return found
        kept = [
            blanked(row_generator(self.recipe.seed, row, window), found.shape[1], mask.share, mask.frames)
            for row, windows in zip(batch.rows, batch.windows_per_row, strict=True)
            for window in range(windows)
        ]
        keep = torch.from_numpy(np.stack(kept)).to(found.device)
        return torch.where(keep[..., None], found, found.mean(1, keepdim=True))


def row_generator(seed: int, row: Row, *more: int) -> np.random.Generator:
    """What is drawn for a row is a function of (seed, epoch, id) and of what it is drawn for."""
    own = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, row.epoch, own, *more])


def blanked(rng: np.random.Generator, length: int, share: float, longest: int) -> np.ndarray:
    """Which of `length` frames are kept, (length,) of bool: about `share` of them are blanked, in stretches."""
    keep = np.ones(length, bool)
    for _ in range(round(length * share / ((longest + 1) / 2))):
        first = int(rng.integers(length))
        keep[first : first + int(rng.integers(1, longest + 1))] = False
    return keep


def spelt(row: Row) -> str | None:
    """What is said in a row, where that is known and the CTC head has letters for all of it."""
    text = row.text if row.text is not None else row.answer if row.task == "transcribe" else None
    return None if text is None or unwritten(text) or not row.windows else text


def letters_sum(letters: torch.Tensor, rows: Sequence[Row], windows: Sequence[int]) -> torch.Tensor:
    """CTC of the letters of each row that has any, divided by their number, summed over the rows.

    The windows of a row are one sequence, so it need not be known which words are in which.

    Args:
        letters: (windows of all rows, steps, classes) of log-probabilities.
    """
    parts = [own.flatten(0, 1) for own in letters.split(list(windows))]
    chosen = [(part, ctc_ids(text)) for part, row in zip(parts, rows, strict=True) if (text := spelt(row)) is not None]
    return ctc_sum(chosen, letters, FEWEST_LETTERS)


def ctc_sum(rows: Sequence[tuple[torch.Tensor, Sequence[int]]], like: torch.Tensor, fewest: int) -> torch.Tensor:
    """CTC by class of each row, summed; 0 of a row whose steps cannot write it.

    Args:
        rows: log-probabilities (steps, classes) and the classes to be written. like: on whose device.
    """
    if not rows:
        return like.sum() * 0
    scores = nn.utils.rnn.pad_sequence([own for own, _ in rows])
    lengths = torch.tensor([len(ids) for _, ids in rows], device=like.device)
    targets = torch.tensor([kind for _, ids in rows for kind in ids], dtype=torch.long, device=like.device)
    steps = torch.tensor([len(own) for own, _ in rows], device=like.device)
    found = F.ctc_loss(scores, targets, steps, lengths, blank=BLANK, reduction="none", zero_infinity=True)
    return (found / lengths.clamp(min=fewest)).sum()

"""The four tasks from text alone: the language model answers from heard words in the places of speech tokens (ours).

What it reads of a recording are the embeddings of its words (`fastslm.inference.cascade`), so no sound is needed to
teach it: a row's `text` is what the reader would hear. Of a recording of several windows, each window's words lie in
its own places, as where the model hears them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.batching import Batching, MixedBatches
from fastslm.data.manifest import Clip, read_manifest
from fastslm.data.spoken import clip_windows
from fastslm.errors import ManifestError
from fastslm.model.lora import lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.answers import Answers
from fastslm.training.recipe import Phase, Recipe

JUDGED_ROWS = 120


@dataclass(frozen=True)
class InstructionBatch:
    """Rows of one step, and their names for a report."""

    rows: Sequence[Clip]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: range) -> "InstructionBatch":
        """Some of the rows, one after another."""
        return InstructionBatch(self.rows[rows.start : rows.stop])

    @property
    def clips(self) -> list[str]:
        """Ids of the rows."""
        return [row.id for row in self.rows]


def read_instructions(path: Path, max_minutes: float = WINDOW_SECONDS / 60) -> list[Clip]:
    """The rows of an instruction manifest.

    Raises:
        ManifestError: a row is no task, or lasts longer than `max_minutes`.
    """
    rows = read_manifest(path)
    for row in rows:
        if row.task is None or row.instruction is None or row.answer is None:
            raise ManifestError(
                f"{path}: {row.id} has no task with its answer; make such rows with fastslm data synthesize."
            )
        if row.duration > max_minutes * 60:
            raise ManifestError(
                f"{path}: {row.id} lasts {row.duration:.1f} s, and this phase takes up to {max_minutes * 60:g} s; "
                "leave such rows out, or raise its max_minutes."
            )
    return rows


def check_instructions(recipe: Recipe) -> None:
    """Make sure that every phase can be taught all rows of the recipe, and be judged by them.

    Raises:
        ManifestError: as `read_instructions`.
    """
    phases = [phase for phase in recipe.phases if phase.objective == "instructions"]
    paths = [source.path for source in recipe.data.instructions]
    paths += [recipe.data.instructions_validation] if recipe.data.instructions_validation else []
    for path in paths if phases else ():
        read_instructions(path, min(phase.max_minutes for phase in phases))


class InstructionTuning(Answers):
    """Cross-entropy of the answer's tokens, and of the end token, after the prompt with its heard words.

    Labels cover the answer only. The loss is a mean over tokens or over rows, as the phase says. Rows are padded on the
    left, so that the answers end together. The projection becomes zero: a model taught so reads the words alone.

    Raises:
        ManifestError: as `read_instructions`.
    """

    def __init__(
        self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor, recipe: Recipe, phase: Phase
    ):
        super().__init__(model, processor)
        self.phase = phase
        # A later phase draws other rows.
        earlier = [own.name for own in recipe.phases].index(phase.name)
        self.seed = [recipe.seed, earlier] if earlier else [recipe.seed]
        self.weights: dict[str, float] = {"loss": 1.0}
        self.parts: dict[str, nn.Module] = {"lora": nn.ParameterList(lora_parameters(model.language_model))}
        if phase.gradient_checkpointing:
            self.model.language_model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.language_model.activation_checkpointing_disable()
        # Without sound it cannot be taught, and what is not taught must not disturb the words.
        for parameter in model.projector.parameters():
            nn.init.zeros_(parameter)
        limit = phase.max_minutes
        self.sources = [(read_instructions(source.path, limit), source.share) for source in recipe.data.instructions]
        validation = recipe.data.instructions_validation
        self.judged = read_instructions(validation, limit)[:JUDGED_ROWS] if validation else []
        self.mixed = None if phase.batch_seconds is None else self._by_length(phase.batch_seconds)

    def _by_length(self, batch_seconds: float) -> MixedBatches:
        """Batches of rows of about the same length.

        Raises:
            ManifestError: a row is longer than a batch may be.
        """
        seconds = [[self.seconds(row) for row in rows] for rows, _ in self.sources]
        longest, row = max(
            (own, row)
            for (rows, _), lengths in zip(self.sources, seconds, strict=True)
            for own, row in zip(lengths, (row.id for row in rows), strict=True)
        )
        if longest > batch_seconds:
            raise ManifestError(
                f"{row} takes {longest:.0f} s of a batch, its text included, and batch_seconds is {batch_seconds:g}: "
                "raise it, or leave such rows out."
            )
        (seed,) = np.random.SeedSequence([*self.seed, 11]).generate_state(1).tolist()
        return MixedBatches(seconds, [share for _, share in self.sources], Batching(batch_seconds), seed)

    def seconds(self, row: Clip) -> float:
        """How much of a batch a row takes: its windows and its text, as if that was spoken at the tokens' rate."""
        text = len(self.tokenizer.encode(f"{row.instruction}{row.answer}", add_special_tokens=False))
        return (clip_windows(row) + text / self.processor.tokens_per_window) * WINDOW_SECONDS

    def batch(self, index: int) -> InstructionBatch:
        """The `index`-th batch: by `batch_windows` every row is drawn by itself, its source by the shares."""
        if self.mixed is not None:
            return InstructionBatch([self.sources[source][0][row] for source, row in self.mixed.batch(index)])
        generator = np.random.default_rng([*self.seed, index, 11])
        shares = np.array([share for _, share in self.sources])
        chosen = generator.choice(len(self.sources), size=self.phase.batch_windows, p=shares / shares.sum())
        rows = [self.sources[source][0] for source in chosen]
        return InstructionBatch([own[int(generator.integers(len(own)))] for own in rows])

    def losses(self, batch: InstructionBatch) -> dict[str, torch.Tensor]:
        total, amount = self.answer_loss(batch.rows, self.phase.mean_over)
        return {"loss": total / amount}

    def amounts(self, batches: Sequence[InstructionBatch]) -> dict[str, float]:
        rows = [row for batch in batches for row in batch.rows]
        if self.phase.mean_over == "rows":
            return {"loss": len(rows)}
        answers = [self.tokenizer.encode(row.answer, add_special_tokens=False) for row in rows]
        return {"loss": sum(len(answer) + 1 for answer in answers)}

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """What the CTC head hears, which this objective leaves as it is."""
        return self.model.letters(self.model.hfq_former(frames))

    def judge(self) -> dict[str, float]:
        """What `judged_by` finds of the validation rows."""
        return self.judged_by(self.judged)

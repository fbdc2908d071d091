"""The four tasks from text alone: the language model answers from heard words in the places of speech tokens (ours).

What it reads of a recording are the embeddings of its words (`fastslm.model.heard_words`), so no sound is needed to
teach it: a row's `text` is what the reader would hear. Of a recording of several windows, each window's words lie in
its own places, as where the model hears them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.batching import Batching, MixedBatches
from fastslm.data.manifest import Clip, read_manifest
from fastslm.data.spoken import clip_windows, window_texts
from fastslm.errors import ManifestError
from fastslm.model.lora import lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.recipe import Phase, Recipe
from fastslm.training.transcript import IGNORED

JUDGED_ROWS = 120
# Rows that are judged together, and their windows as they are padded.
JUDGED_TOGETHER = 24
JUDGED_WINDOWS = 96
ANSWER_TOKENS = 24


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


class InstructionTuning:
    """Cross-entropy of the answer's tokens, and of the end token, after the prompt with its heard words.

    Labels cover the answer only. Rows are padded on the left, so that the answers end together. The projection becomes
    zero: a model that is taught so reads the words alone.

    Raises:
        ManifestError: as `read_instructions`.
    """

    def __init__(
        self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor, recipe: Recipe, phase: Phase
    ):
        # Of transformers' mixins, which type checkers cannot follow.
        self.model: Any = model
        self.tokenizer: Any = processor.tokenizer
        self.processor, self.phase = processor, phase
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
        nn.init.zeros_(model.projector.weight)
        nn.init.zeros_(model.projector.bias)
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

    def prompt(self, row: Clip) -> list[int]:
        """Ids of a row's prompt, its placeholders included."""
        assert row.task is not None
        said = {"question": row.instruction} if row.task == "ask" else {"instruction": row.instruction}
        text = self.processor.expand([self.processor.build_prompt(row.task, **said)], [clip_windows(row)])[0]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded on the left."""
        longest = max(map(len, sequences))
        ids = [[self.tokenizer.pad_token_id] * (longest - len(own)) + list(own) for own in sequences]
        mask = [[0] * (longest - len(own)) + [1] * len(own) for own in sequences]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def words(self, rows: Sequence[Clip]) -> torch.Tensor:
        """What the language model reads of the rows' recordings, window by window: (windows, places, text hidden)."""
        texts = [text for row in rows for text in window_texts(row)]
        return self.model.heard_words.embed(texts, self.model.get_input_embeddings())

    def losses(self, batch: InstructionBatch) -> dict[str, torch.Tensor]:
        total, tokens = self.answer_loss(batch.rows)
        return {"loss": total / tokens}

    def amounts(self, batches: Sequence[InstructionBatch]) -> dict[str, float]:
        rows = [row for batch in batches for row in batch.rows]
        answers = [self.tokenizer.encode(row.answer, add_special_tokens=False) for row in rows]
        return {"loss": sum(len(answer) + 1 for answer in answers)}

    def answer_loss(self, rows: Sequence[Clip]) -> tuple[torch.Tensor, int]:
        """Summed cross-entropy of the rows' answers and end tokens, and how many tokens these are."""
        end = self.tokenizer.eos_token_id
        answers = [[*self.tokenizer.encode(row.answer, add_special_tokens=False), end] for row in rows]
        prompts = [self.prompt(row) for row in rows]
        ids, mask = self.padded([a + b for a, b in zip(prompts, answers, strict=True)])
        labels = torch.full_like(ids, IGNORED)
        for row, answer in enumerate(answers):
            labels[row, -len(answer) :] = torch.tensor(answer)
        # Each of these places has its next token among the labels. As places, not as a number: of a slice of its input
        # torch would copy the output embedding for every row.
        length = ids.shape[1]
        places = torch.arange(length - max(map(len, answers)) - 1, length - 1, device=ids.device)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            speech_tokens=self.words(rows).flatten(0, 1),
            logits_to_keep=places,
            use_cache=False,
        ).logits
        wanted = labels[:, places + 1].flatten()
        total = F.cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
        return total, sum(map(len, answers))

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """What the CTC head hears, which this objective leaves as it is."""
        return self.model.letters(self.model.hfq_former(frames))

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Of the validation rows: each task's loss, and the share of right answers, case and marks aside."""
        if not self.judged:
            return {}
        totals: dict[str, list[float]] = {}
        right: list[bool] = []
        for rows in _together(self.judged):
            for row in rows:
                total, tokens = self.answer_loss([row])
                own = totals.setdefault(f"{row.task}_loss", [0.0, 0])
                own[0], own[1] = own[0] + float(total), own[1] + tokens
            if rows := [row for row in rows if row.task == "ask"]:
                right += [
                    _plain(text) == _plain(row.answer or "") for text, row in zip(self.write(rows), rows, strict=True)
                ]
        found = {name: round(total / tokens, 5) for name, (total, tokens) in sorted(totals.items())}
        return found | ({"right_answers": round(sum(right) / len(right), 5)} if right else {})

    def write(self, rows: Sequence[Clip]) -> list[str]:
        """The greedy answer to each row, at most `ANSWER_TOKENS` tokens long."""
        ids, mask = self.padded([self.prompt(row) for row in rows])
        written = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            speech_tokens=self.words(rows).flatten(0, 1),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
        )
        return self.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)


def _together(rows: Sequence[Clip]) -> Iterator[list[Clip]]:
    """Rows in groups that are not too large to be judged at once, the short ones first."""
    group: list[Clip] = []
    for row in sorted(rows, key=clip_windows):
        if group and (len(group) == JUDGED_TOGETHER or (len(group) + 1) * clip_windows(row) > JUDGED_WINDOWS):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _plain(text: str) -> str:
    return " ".join("".join(letter for letter in text.lower() if letter.isalnum() or letter == " ").split())

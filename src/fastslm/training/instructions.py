"""The four tasks from text alone: the language model answers from heard words in the places of speech tokens (ours).

What it reads of a recording are the embeddings of its words (`fastslm.model.heard_words`), so no sound is needed to
teach it: a row's `text` is what the reader would hear.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.manifest import Clip, read_manifest
from fastslm.errors import ManifestError
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.recipe import Phase, Recipe
from fastslm.training.transcript import IGNORED, lora_parameters

JUDGED_ROWS = 120
JUDGED_TOGETHER = 24
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class InstructionBatch:
    """Rows of one step, and their names for a report."""

    rows: Sequence[Clip]

    @property
    def clips(self) -> list[str]:
        """Ids of the rows."""
        return [row.id for row in self.rows]


def read_instructions(path: Path) -> list[Clip]:
    """The rows of an instruction manifest.

    Raises:
        ManifestError: a row is no task, or lasts longer than a window.
    """
    rows = read_manifest(path)
    for row in rows:
        if row.task is None or row.instruction is None or row.answer is None:
            raise ManifestError(
                f"{path}: {row.id} has no task with its answer; make such rows with fastslm data synthesize."
            )
        if row.duration > WINDOW_SECONDS:
            raise ManifestError(
                f"{path}: {row.id} lasts {row.duration:.1f} s, and this objective takes up to {WINDOW_SECONDS} s; "
                "leave such rows out."
            )
    return rows


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
        self.parts: dict[str, nn.Module] = {"lora": nn.ParameterList(lora_parameters(model))}
        # Without sound it cannot be taught, and what is not taught must not disturb the words.
        nn.init.zeros_(model.projector.weight)
        nn.init.zeros_(model.projector.bias)
        self.sources = [(read_instructions(source.path), source.share) for source in recipe.data.instructions]
        validation = recipe.data.instructions_validation
        self.judged = read_instructions(validation)[:JUDGED_ROWS] if validation else []

    def batch(self, index: int) -> InstructionBatch:
        """The `index`-th batch: every row is drawn by itself, its source by the shares."""
        generator = np.random.default_rng([*self.seed, index, 11])
        shares = np.array([share for _, share in self.sources])
        chosen = generator.choice(len(self.sources), size=self.phase.batch_windows, p=shares / shares.sum())
        rows = [self.sources[source][0] for source in chosen]
        return InstructionBatch([own[int(generator.integers(len(own)))] for own in rows])

    def prompt(self, row: Clip) -> list[int]:
        """Ids of a row's prompt, its placeholders included."""
        assert row.task is not None
        said = {"question": row.instruction} if row.task == "ask" else {"instruction": row.instruction}
        text = self.processor.expand([self.processor.build_prompt(row.task, **said)], [1])[0]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded on the left."""
        longest = max(map(len, sequences))
        ids = [[self.tokenizer.pad_token_id] * (longest - len(own)) + list(own) for own in sequences]
        mask = [[0] * (longest - len(own)) + [1] * len(own) for own in sequences]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def words(self, rows: Sequence[Clip]) -> torch.Tensor:
        """What the language model reads of each row's recording: (rows, places, text hidden)."""
        texts = [row.text or "" for row in rows]
        return self.model.heard_words.embed(texts, self.model.get_input_embeddings())

    def losses(self, batch: InstructionBatch) -> dict[str, torch.Tensor]:
        end = self.tokenizer.eos_token_id
        answers = [[*self.tokenizer.encode(row.answer, add_special_tokens=False), end] for row in batch.rows]
        prompts = [self.prompt(row) for row in batch.rows]
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
            speech_tokens=self.words(batch.rows).flatten(0, 1),
            logits_to_keep=places,
            use_cache=False,
        ).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, places + 1].flatten(), ignore_index=IGNORED)
        return {"loss": loss}

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """What the CTC head hears, which this objective leaves as it is."""
        return self.model.letters(self.model.hfq_former(frames))

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Share of the validation rows whose greedy answer is the right one, case and marks aside."""
        right = 0
        for first in range(0, len(self.judged), JUDGED_TOGETHER):
            rows = self.judged[first : first + JUDGED_TOGETHER]
            ids, mask = self.padded([self.prompt(row) for row in rows])
            written = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                speech_tokens=self.words(rows).flatten(0, 1),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
            )
            texts = self.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
            right += sum(_plain(text) == _plain(row.answer or "") for text, row in zip(texts, rows, strict=True))
        return {"right_answers": round(right / len(self.judged), 5)} if self.judged else {}


def _plain(text: str) -> str:
    return " ".join("".join(letter for letter in text.lower() if letter.isalnum() or letter == " ").split())

"""The paper's loss, in every stage and for every task: the language model writes the answer after prompt and speech.

    <|audio_bos|> 50 tokens a window <|audio_eos|> instruction ─ language model ─ cross-entropy of answer and end token

A row may ask for anything in any language about 1 to 30 windows, or about text alone. Rows are padded on the left, so
that answers end together; what a row's loss is does not depend on its neighbours.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from fastslm.data import tasks
from fastslm.data.loading import RowBatch
from fastslm.data.rows import Row
from fastslm.errors import OptionError, RecipeError, TrainingError
from fastslm.model.processing import FastSLMProcessor
from fastslm.prompts import AUDIO_TOKEN, language_name
from fastslm.training.losses.loss import IGNORED, Loss, Prepared, letters_sum, row_generator, spelt
from fastslm.training.recipe import Recipe

PHRASINGS = {
    "transcribe": tasks.TRANSCRIBE,
    "translate": tasks.TRANSLATE,
    "summarize": tasks.SUMMARIZE,
}
# Of a validation's texts, each.
NEW_TOKENS = 256
# What draws of a row are for, beside its masks.
PHRASING = 1_000_000


class SpeechLM(Loss):
    """Cross-entropy of answers and their end tokens, in the batch's mean over tokens or over rows.

    Beside it, by weight:
        ctc: of the CTC head's letters, where a row's words are known and it has letters for them.
        distillation: how far what is written after the speech is from what the language model as it was published
            writes after the words of the speech (KL divergence at each token of the answer), where they are known.
    """

    name = "speech_lm"

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        text = self.model.config.text_config.get_text_config()
        # Positions of the language model, where it says how many it has.
        self.limit: int | None = getattr(text, "max_position_embeddings", None)

    @classmethod
    def check_rows(cls, rows: Iterable[Row], processor: FastSLMProcessor, recipe: Recipe) -> None:
        tokenizer: Any = processor.tokenizer
        for row in rows:
            ids = tokenizer.encode(row.answer, add_special_tokens=False)
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                lost = next((x for x in row.answer if tokenizer.unk_token_id in tokenizer.encode(x)), row.answer)
                raise RecipeError(
                    f"{row.source}: the language model's tokenizer cannot write {lost!r} in the answer of {row.id}; "
                    "take a language model that knows the language, or leave such rows out."
                )
            try:
                prompt_of(row, processor, recipe)
            except OptionError as error:
                raise RecipeError(f"{row.source}: {row.id} cannot be asked for: {error}") from None

    def prepare(self, batch: RowBatch) -> Prepared:
        end = self.tokenizer.eos_token_id
        answers = [[*self._encoded(row.answer), end] for row in batch.rows]
        prompts = [
            self._prompt_ids(prompt_of(row, self.processor, self.recipe), row, windows)
            for row, windows in zip(batch.rows, batch.windows_per_row, strict=True)
        ]
        longest = max(map(len, answers))
        labels = torch.tensor([[IGNORED] * (longest - len(own)) + own for own in answers])
        ids, mask = self._padded(batch.rows, prompts, answers)
        tokens = sum(map(len, answers))
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        counts: dict[str, float] = {
            self.name: tokens if self.recipe.loss.mean_over == "tokens" else len(batch.rows),
        }
        if "ctc" in self.weights:
            counts["ctc"] = sum(spelt(row) is not None for row in batch.rows)
        if "distillation" in self.weights:
            known = [row.text is not None and row.windows > 0 for row in batch.rows]
            told = [
                self._encoded(prompt_of(row, self.processor, self.recipe).replace(AUDIO_TOKEN, row.text or ""))
                for row in batch.rows
            ]
            inputs["told_ids"], inputs["told_mask"] = self._padded(batch.rows, told, answers)
            inputs["known"] = torch.tensor(known)
            counts["distillation"] = sum(len(own) for own, yes in zip(answers, known, strict=True) if yes)
        return Prepared(batch, inputs, counts)

    def _encoded(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt_ids(self, prompt: str, row: Row, windows: int) -> list[int]:
        if not windows:  # the words stand where the speech would
            return self._encoded(prompt.replace(AUDIO_TOKEN, row.text or ""))
        return self._encoded(self.processor.expand([prompt], [windows])[0])

    def _padded(
        self, rows: list[Row], prompts: list[list[int]], answers: list[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, padded on the left."""
        whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        longest = max(map(len, whole))
        if self.limit is not None and longest > self.limit:
            row = rows[max(range(len(rows)), key=lambda index: len(whole[index]))]
            raise TrainingError(
                f"{row.id} takes {longest} tokens, and the language model has positions for {self.limit}; leave such "
                "rows out by data.max_seconds."
            )
        pad = self.tokenizer.pad_token_id
        ids = [[pad] * (longest - len(own)) + own for own in whole]
        mask = [[0] * (longest - len(own)) + [1] * len(own) for own in whole]
        return torch.tensor(ids), torch.tensor(mask)

    def forward(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        inputs, batch = prepared.inputs, prepared.batch
        speech = tokens = None
        if batch.windows:
            tokens = self.model.get_speech_tokens(encoder_frames=self.frames(prepared))
            speech = self.model.project(tokens).flatten(0, 1)
        labels = inputs["labels"]
        scores = self._scores(inputs["input_ids"], inputs["attention_mask"], labels.shape[1], speech, adapter=True)
        costs = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        costs = costs.unflatten(0, labels.shape)
        if self.recipe.loss.mean_over == "rows":
            costs = costs / (labels != IGNORED).sum(1, keepdim=True)
        found = {self.name: costs.sum()}
        if tokens is None:
            # DDP and FSDP expect a gradient for everything that is trained, in each process.
            unheard = sum(own.sum() for own in self.parameters() if own.requires_grad)
            found[self.name] = found[self.name] + 0 * unheard
        if "ctc" in self.weights:
            nothing = scores.sum() * 0
            heard = None if tokens is None else self.model.letters(tokens)
            found["ctc"] = nothing if heard is None else letters_sum(heard, batch.rows, batch.windows_per_row)
        if "distillation" in self.weights:
            found["distillation"] = self._distillation(inputs, scores)
        return found

    def _scores(
        self, ids: torch.Tensor, mask: torch.Tensor, answers: int, speech: torch.Tensor | None, adapter: bool
    ) -> torch.Tensor:
        """Logits of the last `answers` tokens, (rows, answers, vocabulary), float32."""
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            speech_tokens=speech,
            # The token before an answer predicts its first; the end token predicts nothing.
            logits_to_keep=answers + 1,
            use_cache=False,
            adapter=adapter,
        ).logits
        return logits[:, :-1].float()

    def _distillation(self, inputs: Any, scores: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self._scores(inputs["told_ids"], inputs["told_mask"], scores.shape[1], None, adapter=False)
        told = F.kl_div(scores.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        counted = (inputs["labels"] != IGNORED) & inputs["known"][:, None]
        return (told * counted).sum()

    @torch.no_grad()
    def write(self, batch: RowBatch) -> list[str]:
        found: list[str] = []
        frames = batch.frames(self.model.encode)
        parts = [None] * len(batch) if frames is None else frames.split(batch.windows_per_row)
        for row, windows, own in zip(batch.rows, batch.windows_per_row, parts, strict=True):
            ids = torch.tensor([self._prompt_ids(prompt_of(row, self.processor, self.recipe), row, windows)])
            ids = ids.to(self.model.device)
            heard: dict[str, Any] = {}
            if own is not None and windows:
                tokens = self.model.get_speech_tokens(encoder_frames=own)
                heard = {"speech_tokens": self.model.project(tokens).flatten(0, 1)}
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                **heard,
            )
            found.append(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
        return found


def prompt_of(row: Row, processor: FastSLMProcessor, recipe: Recipe) -> str:
    """The prompt of a row, with one `<|AUDIO|>`.

    Raises:
        OptionError: the row has no question, or its language has no name here.
    """
    said: dict[str, Any] = {}
    if row.task == "ask":
        said["question"] = row.instruction
    elif row.instruction is not None:
        said["instruction"] = row.instruction
    else:
        if recipe.data.phrasings == "varied":
            known = PHRASINGS[row.task]
            chosen = known[int(row_generator(recipe.seed, row, PHRASING).integers(len(known)))]
            into = language_name(row.language or "en") if row.task == "translate" else ""
            said["instruction"] = chosen.format(language=into)
        elif row.task == "translate":
            said["language"] = row.language
    return processor.build_prompt(row.task, **said)

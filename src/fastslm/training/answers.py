"""Tasks about recordings whose words are known: the loss of right answers, and what a model writes instead (ours).

No sound is needed: the words of each window lie in its own places, as where the model hears them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from fastslm.data.manifest import Clip
from fastslm.data.spoken import clip_windows, window_texts
from fastslm.inference.cascade import Cascade
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.training.transcript import IGNORED

# A summed loss, and how many it is to be divided by.
Weighed = tuple[torch.Tensor, int]

# Rows that are judged together, and their windows as they are padded.
JUDGED_TOGETHER = 24
JUDGED_WINDOWS = 96
ANSWER_TOKENS = 24


class Answers:
    """A model that reads heard words, and rows of tasks with their right answers.

    Labels cover the answer only. Rows are padded on the left, so that the answers end together.

    Args:
        model: that answers by way of transcripts (`fastslm.inference.cascade`).
    """

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        # Of transformers' mixins, which type checkers cannot follow.
        self.model: Any = model
        self.tokenizer: Any = processor.tokenizer
        self.processor = processor
        self.cascade = Cascade(model, processor)

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
        return self.cascade.embed(texts)

    def answer_loss(self, rows: Sequence[Clip], mean_over: Literal["tokens", "rows"] = "tokens") -> Weighed:
        """Summed cross-entropy of the rows' answers and end tokens, and how many tokens these are.

        With `mean_over` rows, the sum of the mean of each row, and how many rows these are: a summary of sixty tokens
        counts as much as an answer of three.
        """
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
        costs = F.cross_entropy(logits.float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="none")
        lengths = torch.tensor([len(answer) for answer in answers], device=costs.device)
        if mean_over == "rows":
            return (costs.unflatten(0, (len(rows), -1)).sum(1) / lengths).sum(), len(rows)
        return costs.sum(), int(lengths.sum())

    @torch.no_grad()
    def judged_by(self, rows: Sequence[Clip]) -> dict[str, float]:
        """Of rows: each task's loss, and the share of right answers, case and marks aside."""
        totals: dict[str, list[float]] = {}
        right: list[bool] = []
        for group in _together(rows):
            for row in group:
                total, tokens = self.answer_loss([row])
                own = totals.setdefault(f"{row.task}_loss", [0.0, 0])
                own[0], own[1] = own[0] + float(total), own[1] + tokens
            if asked := [row for row in group if row.task == "ask"]:
                right += [
                    _plain(text) == _plain(row.answer or "") for text, row in zip(self.write(asked), asked, strict=True)
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

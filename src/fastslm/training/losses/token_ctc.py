"""Teach the projector `ctc_embeddings` to hear: CTC over the language model's own tokens (ours).

A language model has tens of thousands of tokens, and each step would be scored against all of them. So a batch is
scored against the tokens that occur in it and some that are drawn, which are enough to push away from.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fastslm.data.loading import RowBatch
from fastslm.data.rows import Row
from fastslm.errors import RecipeError
from fastslm.model.ctc_head import ctc_text
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.projectors import CTCEmbeddings
from fastslm.training.losses.loss import Loss, Prepared, ctc_sum, letters_sum, row_generator, spelt
from fastslm.training.recipe import Recipe

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
# Kinds that are drawn beside those of a batch.
DRAWN = 1500
# CTC's loss of a shorter text is divided by this.
FEWEST_TOKENS = 10
# Stretches of unfolded frames that are blanked, and how long each is: at least, and below.
STRETCHES, STRETCH = (2, 9), (2, 11)
MASKS, KINDS = 2_000_000, 2_000_001


class TokenCTC(Loss):
    """CTC of the last block's scores; beside it `intermediate`, of those of a block in the middle, and `letters`, of
    the front's letters.

    Rows are transcripts of single windows.
    """

    name = "token_ctc"

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        assert isinstance(self.model.projector, CTCEmbeddings)
        self.projector: CTCEmbeddings = self.model.projector
        self._known: _Vocabulary | None = None

    @classmethod
    def check_rows(cls, rows: Iterable[Row], processor: FastSLMProcessor, recipe: Recipe) -> None:
        for row in rows:
            if row.task != "transcribe" or row.windows != 1:
                raise RecipeError(
                    f"{row.source}: {row.id} is a row of {row.task} with {row.windows} windows, and token_ctc learns "
                    "from transcripts of one; set task: transcribe and data.max_seconds: 30."
                )

    def start(self, rows: Sequence[Row], batches: Iterable[RowBatch], fresh: set[str]) -> str | None:
        if "projector." not in fresh:
            return None
        kinds = choose_kinds((row.answer for row in rows), self.tokenizer, len(self.projector.kinds))
        self.projector.kinds.copy_(torch.tensor(kinds))
        self._known = None
        said = f"the projector can hear {len(kinds)} tokens, chosen from {len(rows)} texts"
        return said + ("; its front starts as unfolder and CTC head" if self._start_front(fresh) else "")

    def _start_front(self, fresh: set[str]) -> bool:
        """Hear with what heard letters before, where it was trained and has the sizes of the front."""
        decoder, head = self.model.whisper_decoder, self.model.ctc_head
        if decoder is None or head is None or fresh & {"reader.unfold.", "ctc_head."}:
            return False
        pairs = [(self.projector.unfold, decoder.unfold), (self.projector.head, head)]
        states = [(own, other.state_dict()) for own, other in pairs]
        for own, state in states:
            sizes = {key: value.shape for key, value in own.state_dict().items()}
            if sizes != {key: value.shape for key, value in state.items()}:
                return False
        for own, state in states:
            own.load_state_dict(state)
        return True

    @property
    def vocabulary(self) -> "_Vocabulary":
        if self._known is None:
            self._known = _Vocabulary(self.tokenizer, self.projector.kinds.tolist())
        return self._known

    def prepare(self, batch: RowBatch) -> Prepared:
        targets = [self.vocabulary.classes(row.answer) for row in batch.rows]
        inputs: dict[str, Any] = {"targets": targets, "some": None, "keep": None}
        if self.training:
            drawn = row_generator(self.recipe.seed, batch.rows[0], KINDS).integers(
                len(self.projector.kinds), size=DRAWN
            )
            some = sorted({own for target in targets for own in target} | set(drawn.tolist()))
            inputs["some"] = torch.tensor(some)
            inputs["keep"] = torch.stack([self._keep(row) for row in batch.rows])
        counts = dict.fromkeys(self.weights, float(len(batch.rows)))
        if "letters" in counts:
            counts["letters"] = sum(spelt(row) is not None for row in batch.rows)
        return Prepared(batch, inputs, counts)

    def _keep(self, row: Row) -> torch.Tensor:
        rng = row_generator(self.recipe.seed, row, MASKS)
        keep = torch.ones(len(self.projector.unfold.place))
        for _ in range(int(rng.integers(*STRETCHES))):
            size = int(rng.integers(*STRETCH))
            first = int(rng.integers(max(1, len(keep) - size)))
            keep[first : first + size] = 0
        return keep

    def forward(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        inputs, batch, projector = prepared.inputs, prepared.batch, self.projector
        frames = self.frames(prepared)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "hfq" in self.recipe.optimizer.rates.given):
            tokens = self.model.get_speech_tokens(encoder_frames=frames)
        last, middle = projector.hidden(tokens, inputs["keep"])
        found = {self.name: self._sum(last, projector.norm, inputs)}
        if "intermediate" in self.weights:
            found["intermediate"] = self._sum(middle, projector.inter_norm, inputs)
        if "letters" in self.weights:
            front: Any = projector.head
            heard = front(projector.unfold(tokens.to(projector.bias.dtype)))
            found["letters"] = letters_sum(heard, batch.rows, batch.windows_per_row)
        return found

    def _sum(self, x: torch.Tensor, norm: Any, inputs: Any) -> torch.Tensor:
        some = inputs["some"]
        scores = self.projector.scores_of(x, norm, some)
        place = None if some is None else {int(kind): index for index, kind in enumerate(some)}
        targets = [[(own if place is None else place[own]) + 1 for own in target] for target in inputs["targets"]]
        return ctc_sum(list(zip(scores, targets, strict=True)), scores, FEWEST_TOKENS)

    @torch.no_grad()
    def write(self, batch: RowBatch) -> list[str]:
        frames = batch.frames(self.model.encode)
        heard = self.projector.heard(self.model.get_speech_tokens(encoder_frames=frames))
        return [ctc_text(self.tokenizer.decode(ids)) for ids in heard]


class _Vocabulary:
    """Texts → indices of the tokens that can be heard."""

    def __init__(self, tokenizer: Any, kinds: Sequence[int]):
        self.tokenizer = tokenizer
        self.index = {kind: index for index, kind in enumerate(kinds)}
        self.written = {tokenizer.decode([kind]): index for index, kind in enumerate(kinds)}
        self.words: dict[str, list[int]] = {}

    def classes(self, text: str) -> list[int]:
        """Of lower-case words without marks; one with a token that cannot be heard is spelt by its longest pieces."""
        return [own for word in ctc_text(text).split() for own in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self.words:
            ids = self.tokenizer.encode(f" {word}", add_special_tokens=False)
            known = all(own in self.index for own in ids)
            self.words[word] = [self.index[own] for own in ids] if known else self._spelt(f" {word}")
        return self.words[word]

    def _spelt(self, rest: str) -> list[int]:
        found = []
        while rest:
            size = next((size for size in range(len(rest), 0, -1) if rest[:size] in self.written), None)
            if size is not None:
                found.append(self.written[rest[:size]])
            rest = rest[size or 1 :]
        return found


def choose_kinds(texts: Iterable[str], tokenizer: Any, count: int) -> list[int]:
    """The `count` tokens that texts are written with most often, all single letters among them, increasing.

    Raises:
        RecipeError: there are fewer places than letters.
    """
    letters = [tokenizer.encode(own, add_special_tokens=False) for x in LETTERS for own in (x, f" {x}")]
    chosen = dict.fromkeys(ids[0] for ids in letters if len(ids) == 1)
    if count < len(chosen):
        raise RecipeError(
            f"model.projector_config.kinds is {count}, and single letters alone are {len(chosen)} tokens; raise it."
        )
    seen: Counter[int] = Counter()
    for text in texts:
        for word in ctc_text(text).split():
            seen.update(tokenizer.encode(f" {word}", add_special_tokens=False))
    for kind, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == count:
            break
        chosen.setdefault(kind)
    # Fewer words than places: some token that is never said takes each of the rest.
    spare = (kind for kind in range(len(tokenizer)) if kind not in chosen)
    while len(chosen) < count:
        chosen.setdefault(next(spare))
    return sorted(chosen)

"""The language model's loss: the answer and its end, and nothing else."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch
from fastslm.training.recipe import Phase, Recipe, check_recipe
from fastslm.training.stages import Learner
from fastslm.training.transcript import IGNORED, LanguageModelTranscript

TEXTS = ["l m h", "a much longer text that is said", ""]


@pytest.fixture
def recipe(recipe_content: dict[str, Any]) -> Recipe:
    return check_recipe(recipe_content, "recipe")


def objective_of(recipe: Recipe, ctc_weight: float = 0.0) -> LanguageModelTranscript:
    rates = {"lora": 0.1}
    phase = Phase.model_validate(
        {"name": "llm", "objective": "llm", "steps": 1, "rates": rates, "ctc_weight": ctc_weight}
    )
    learner = Learner(recipe, torch.device("cpu"))
    objective = learner.objective(phase, None)
    learner.eval()
    assert isinstance(objective, LanguageModelTranscript)
    return objective


def batch(texts: list[str], windows: list[int]) -> Batch:
    frames = torch.randn(3, 1500, 64, generator=torch.Generator().manual_seed(0))[windows]
    return Batch(frames, [WindowLabel(text, 10, ()) for text in texts], [0] * len(texts))


def test_labels_cover_the_answer_and_the_end_token_only(recipe: Recipe) -> None:
    objective = objective_of(recipe)
    rows = objective.sequences(TEXTS)
    for ids, mask, labels, text in zip(rows["input_ids"], rows["attention_mask"], rows["labels"], TEXTS, strict=True):
        taught = labels != IGNORED
        assert int(taught.sum()) == len(text) + 1  # a token a character, and the end
        assert torch.equal(labels[taught], ids[taught])
        assert int(ids[taught][-1]) == objective.end
        assert not taught[: len(objective.prompt)].any()
        assert not (taught & (mask == 0)).any()
        assert ids[: len(objective.prompt)].tolist() == objective.prompt
        assert (ids[mask == 0] == objective.pad).all()


@torch.no_grad()
def test_a_batchs_loss_is_the_mean_over_the_tokens_of_each_row_alone(recipe: Recipe) -> None:
    objective = objective_of(recipe)
    together = objective.losses(batch(TEXTS, [0, 1, 2]))["loss"]
    alone = [objective.losses(batch([text], [i]))["loss"] for i, text in enumerate(TEXTS)]
    tokens = [len(text) + 1 for text in TEXTS]
    by_hand = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    torch.testing.assert_close(together, by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_next_token_after_the_whole_prompt(recipe: Recipe) -> None:
    objective = objective_of(recipe)
    one = batch(TEXTS[:1], [0])
    rows = objective.sequences(TEXTS[:1])
    speech = objective.model.project(objective.model.hfq_former(one.frames)).flatten(0, 1)
    logits = objective.model(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], speech_tokens=speech
    ).logits[0]
    answer = rows["labels"][0][rows["labels"][0] != IGNORED]
    first = len(objective.prompt) - 1
    expected = F.cross_entropy(logits[first : first + len(answer)], answer)
    torch.testing.assert_close(objective.losses(one)["loss"], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_speech_decides_the_loss(recipe: Recipe) -> None:
    objective = objective_of(recipe)
    objective.model.projector.weight.normal_(0, 1.0)
    losses = [float(objective.losses(batch(TEXTS[:1], [window]))["loss"]) for window in (0, 1)]
    assert losses[0] != losses[1]


@torch.no_grad()
def test_the_ctc_loss_is_added_by_its_weight(recipe: Recipe) -> None:
    losses = objective_of(recipe, ctc_weight=0.3).losses(batch(TEXTS, [0, 1, 2]))
    torch.testing.assert_close(losses["loss"], losses["transcript"] + 0.3 * losses["ctc"])
    assert set(objective_of(recipe).losses(batch(TEXTS, [0, 1, 2]))) == {"loss", "transcript"}

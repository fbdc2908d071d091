"""The projectors: the paper's map, and what CTC hears as the language model's own embeddings."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.projectors import FADING, CTCEmbeddings, fold, folded

KINDS = 12
SIZES = {
    "kinds": KINDS,
    "hidden_size": 24,
    "layers": 2,
    "heads": 3,
    "kernel": 5,
    "intermediate": 1,
    "unfolder_layers": 1,
    "front_size": 16,
    "front_layers": 1,
}


@pytest.fixture(scope="module")
def model(build_model: Any) -> Any:
    """A model whose projector hears something, and not the same everywhere."""
    model = build_model(projector="ctc_embeddings", projector_config=SIZES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
        model.projector.kinds.copy_(torch.arange(40, 40 + KINDS))
    return model


def some_tokens(model: Any, windows: int = 3, seed: int = 0) -> torch.Tensor:
    size = windows, model.config.tokens_per_window, model.config.hfq_config.hidden_size
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 9999), max_size=150), st.integers(1, 60))
def test_folding_keeps_every_id_in_order_and_shares_them_out_evenly(ids: list[int], places: int) -> None:
    parts = fold(ids, places)
    assert [one for part in parts for one in part] == ids
    assert len(parts) == places
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_ids_that_share_a_place_are_added_each_weaker_than_the_one_before() -> None:
    embedding = nn.Embedding(10, 4)
    (found,) = folded([[1, 2, 3, 4, 5]], embedding, 2)
    one, two, three, four, five = embedding.weight[1:6]
    torch.testing.assert_close(found[0], one + FADING * two + FADING**2 * three)
    torch.testing.assert_close(found[1], four + FADING * five)


def test_the_papers_projector_is_a_linear_map(build_model: Any) -> None:
    model = build_model()
    assert isinstance(model.projector, nn.Linear)
    assert {"projector.weight", "projector.bias"} <= model.state_dict().keys()
    tokens = some_tokens(model)
    assert torch.equal(model.project(tokens), F.linear(tokens, model.projector.weight, model.projector.bias))


@torch.no_grad()
def test_scores_are_log_probabilities_of_the_blank_and_of_each_kind_by_its_embedding(model: Any) -> None:
    projector = model.projector
    tokens = some_tokens(model)
    scores = projector.scores(tokens)
    steps = model.config.tokens_per_window * 6
    assert scores.shape == (3, steps, 1 + KINDS)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3, steps))
    x = projector.norm(projector.hidden(tokens)[0])
    rows = model.get_input_embeddings().weight[40 : 40 + KINDS]
    by_hand = torch.cat([projector.blank(x), projector.out(x) @ rows.T], -1) + projector.bias
    torch.testing.assert_close(scores, by_hand.log_softmax(-1))
    some = torch.tensor([2, 7])
    part = projector.scores_of(projector.hidden(tokens)[0], projector.norm, some)
    torch.testing.assert_close(part, by_hand[..., [0, 3, 8]].log_softmax(-1))


@torch.no_grad()
def test_what_is_heard_is_folded_into_the_places_of_the_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torch.tensor([[0, 3, 3, 0, 3, 5, 0, 0], [0] * 8, [1, 2, 1, 0, 4, 4, 6, 7]])
    monkeypatch.setattr(model.projector, "scores", lambda tokens: F.one_hot(path, 1 + KINDS).float())
    tokens = some_tokens(model)
    heard = [[42, 42, 44], [], [40, 41, 40, 43, 45, 46]]
    assert model.projector.heard(tokens) == heard
    expected = folded(heard, model.get_input_embeddings(), model.config.tokens_per_window)
    assert torch.equal(model.project(tokens), expected)
    assert not model.project(tokens)[1].any()


@torch.no_grad()
def test_what_is_heard_decides_what_the_language_model_says(
    model: Any, processor: Any, clips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = processor.build_prompt("transcribe")
    heard = [[41, 44, 41], [51]]
    monkeypatch.setattr(
        model.projector, "heard", lambda tokens: heard[-len(tokens) :] if len(tokens) > 1 else heard[:1]
    )
    both = processor([prompt] * 2, [clips["short"], clips["middle"]])
    found = model(**both).logits
    assert not torch.allclose(found[0, -1], found[1, -1], atol=1e-3)
    alone = model(**processor(prompt, clips["short"])).logits
    torch.testing.assert_close(found[0, -1], alone[0, -1], atol=1e-4, rtol=1e-4)


def test_ctc_trains_every_weight_of_it_and_neither_embeddings_nor_the_language_model(model: Any) -> None:
    projector = model.projector
    tokens = some_tokens(model)
    targets, lengths = torch.tensor([[1, 2], [3, 3], [9, 1]]), torch.tensor([2, 2, 2])
    last, middle = projector.hidden(tokens)
    loss = torch.zeros(())
    for x, norm in ((last, projector.norm), (middle, projector.inter_norm)):
        scores = projector.scores_of(x, norm).transpose(0, 1)
        loss = loss + F.ctc_loss(scores, targets, torch.full((3,), len(scores)), lengths)
    loss.backward()
    # The letters of the front are trained by a loss of their own.
    without = {name for name, own in projector.named_parameters() if own.grad is None}
    assert without == {"head.out.weight", "head.out.bias"}
    assert model.get_input_embeddings().weight.grad is None
    model.zero_grad()


def test_it_comes_back_bit_for_bit_with_its_kinds(model: Any, processor: Any, clips: Any, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path / "whole")
    loaded = FastSLMForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert isinstance(loaded.projector, CTCEmbeddings)
    assert loaded.projector.kinds.tolist() == list(range(40, 40 + KINDS))
    assert not any("embedding" in key for key in loaded.projector.state_dict())
    inputs = processor(processor.build_prompt("transcribe"), clips["middle"])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    half = FastSLMForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert {own.dtype for own in half.projector.parameters()} == {torch.float32}
    assert half.projector.kinds.dtype == torch.int64
    assert half(**inputs).logits.isfinite().all()


def test_the_trained_part_holds_it_too(base_folders: Any, tmp_path: Any) -> None:
    former = {"head_size": 32, "stage_tokens": [8, 8, 8], "final_tokens": 5}
    options = {"hfq_config": former, "lora_rank": 2, "projector": "ctc_embeddings", "projector_config": SIZES}
    model = FastSLMForConditionalGeneration.from_base(*base_folders[:2], **options)
    model.projector.kinds.copy_(torch.arange(0, 2 * KINDS, 2))
    model.save_trained(tmp_path / "trained", dtype=torch.float16)
    loaded = FastSLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    left, right = model.projector.state_dict(), loaded.projector.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key].half().to(left[key].dtype), right[key]) for key in left)
    assert loaded.projector.scores(some_tokens(loaded)).shape[-1] == 1 + KINDS


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"projector": "lineal"}, "projector is 'lineal'; it must be one of linear, ctc_embeddings"),
        ({"projector_config": SIZES}, "does nothing for the projector linear"),
        ({"projector": "ctc_embeddings"}, "lacks kinds"),
        ({"projector": "ctc_embeddings", "projector_config": {**SIZES, "layer": 2}}, "'layer', did you mean 'layers'"),
        ({"projector": "ctc_embeddings", "projector_config": {**SIZES, "heads": 5}}, "must be a multiple of heads 5"),
        ({"projector": "ctc_embeddings", "projector_config": {**SIZES, "intermediate": 3}}, "one of the 2 layers"),
    ],
)
def test_a_projector_that_cannot_be_is_refused(build_model: Any, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_model(**config)


def test_a_vocabulary_that_is_not_the_language_models_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.projector, "kinds", torch.arange(1000, 1000 + KINDS))
    with pytest.raises(ValueError, match="hears token 1011, and the language model has 384"):
        model.project(some_tokens(model))

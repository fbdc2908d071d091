"""The language model's texts: how they end, and that each has a budget of its own."""

import pytest
import torch
from tiny_fastslm import noise

from fastslm.longform.generation import LEAST_TOKENS, caveats, generate, prompt_ids, token_budget
from fastslm.model.capabilities import Capabilities
from fastslm.speech import FastSLM


def test_a_budget_grows_with_the_seconds() -> None:
    assert token_budget(0.1) > LEAST_TOKENS
    assert token_budget(3600) > 10 * token_budget(360) - 10 * LEAST_TOKENS


def test_each_row_has_its_own_budget_and_the_text_that_it_has_alone(tiny: FastSLM) -> None:
    prompt = tiny.processor.build_prompt("transcribe")
    tokens = torch.stack([tiny.encode(noise(10, seed)).tokens for seed in range(4)])
    together = generate(tiny.model, tiny.processor, prompt, tokens, [3, 40, 9, 1])
    for row, budget, written in zip(tokens, [3, 40, 9, 1], together, strict=True):
        assert written == generate(tiny.model, tiny.processor, prompt, row[None], [budget])[0]
        assert written.tokens <= budget


def test_an_end_token_is_a_stop_and_is_not_counted(tiny: FastSLM, monkeypatch) -> None:
    end, letter = tiny.processor.tokenizer.eos_token_id, tiny.processor.tokenizer.convert_tokens_to_ids("a")
    rows = torch.tensor([[letter, letter, end, end], [letter, letter, letter, letter]])
    monkeypatch.setattr(tiny.model, "generate", lambda input_ids, **_: torch.cat([input_ids, rows], 1))
    tokens = torch.stack([tiny.encode(noise(1)).tokens] * 2)
    first, second = generate(tiny.model, tiny.processor, tiny.processor.build_prompt("summarize"), tokens, [4, 4])
    assert (first.tokens, first.finish_reason) == (2, "stop")
    assert (second.tokens, second.finish_reason) == (4, "length")


@pytest.mark.parametrize("windows", [1, 7])
def test_the_prompt_has_a_place_for_every_speech_token(tiny: FastSLM, windows: int) -> None:
    ids = prompt_ids(tiny.processor, tiny.processor.build_prompt("ask", question="Who?"), [windows])
    assert int((ids == tiny.model.config.audio_token_id).sum()) == 50 * windows


def test_the_prompt_is_that_of_the_processor(tiny: FastSLM) -> None:
    prompt = tiny.processor.build_prompt("transcribe")
    assert torch.equal(prompt_ids(tiny.processor, prompt, [2]), tiny.processor(prompt, [noise(40)])["input_ids"])


@pytest.mark.parametrize(
    ("config", "task", "language", "said"),
    [
        ({"tasks": []}, "ask", None, "does not read speech tokens yet"),
        ({"tasks": ["ask", "summarize"]}, "translate", "fr", "has not learnt to translate, only to ask, summarize"),
        ({"tasks": ["ask"]}, "ask", None, None),
        ({"translates_into": ["fr", "de"]}, "translate", "ko", "translate into French, German alone, not into Korean"),
        ({"translates_into": ["fr"]}, "translate", None, "not into English"),
        ({"translates_into": ["fr"]}, "translate", "French", None),
        ({"translates_into": ["fr"]}, "summarize", None, None),
        ({"taught_with": {"translate": "captions"}}, "translate", "ko", "learnt to translate from captions alone"),
        ({"taught_with": {"translate": "captions"}}, "ask", None, None),
        ({}, "translate", "ko", None),
    ],
)
def test_what_was_not_learnt_is_said(
    tiny: FastSLM, monkeypatch, config: dict, task: str, language: str | None, said: str | None
) -> None:
    monkeypatch.setattr(tiny.model.config, "capabilities", Capabilities(**{"tasks": None, **config}))
    found = caveats(tiny.model, task, language)
    assert found == [] if said is None else said in " ".join(found)

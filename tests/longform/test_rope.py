"""The language model's positions."""

from typing import Any

import pytest
import torch
from long_memory import long_memory
from tiny_fastslm import CONTEXT

from fastslm.errors import OptionError
from fastslm.longform.rope import positions_limit, rope_scaled
from fastslm.speech import FastSLM


def _logits(tiny: FastSLM) -> torch.Tensor:
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        return tiny.model(input_ids=ids).logits


def test_scaling_changes_the_limit_and_the_angles_and_only_inside(tiny: FastSLM) -> None:
    before = _logits(tiny)
    assert (positions_limit(tiny.model), positions_limit(tiny.model, 2.5)) == (CONTEXT, int(CONTEXT * 2.5))
    with rope_scaled(tiny.model, 2.5):
        assert not torch.allclose(_logits(tiny), before, atol=1e-6)
    assert torch.equal(_logits(tiny), before)
    with rope_scaled(tiny.model, None):
        assert torch.equal(_logits(tiny), before)


def test_a_recording_beyond_the_positions_fits_one_prompt_once_they_are_scaled(tiny: FastSLM) -> None:
    memory = long_memory(tiny, 44)
    options: Any = {"max_new_tokens": 4, "repetition": "keep"}
    assert tiny.ask(memory, "Who?", **options).usage.method == "map_reduce"
    scaled = tiny.ask(memory, "Who?", rope_scaling=2, **options)
    assert scaled.usage.method == "whole"
    assert scaled.usage.prompt_tokens > CONTEXT
    assert scaled.options["rope_scaling"] == 2
    # What was kept of the one is not taken for the other.
    assert tiny.ask(memory, "Who?", rope_scaling=3, **options).usage.cached_tokens == 0
    assert tiny.ask(memory, "Why?", rope_scaling=3, **options).usage.cached_tokens > CONTEXT


@pytest.mark.parametrize("factor", [1, 0.5, -2])
def test_a_factor_that_stretches_nothing_is_refused(tiny: FastSLM, factor: float) -> None:
    with pytest.raises(OptionError, match="above 1"):
        tiny.ask("missing.wav", "Who?", rope_scaling=factor)


def test_a_model_whose_positions_cannot_be_stretched_refuses(tiny: FastSLM, monkeypatch) -> None:
    monkeypatch.setattr(tiny.model.config.text_config, "rope_parameters", {"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(OptionError, match="cannot be scaled"):
        tiny.ask("missing.wav", "Who?", rope_scaling=2)

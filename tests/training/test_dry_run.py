"""Dry runs: what they say of a tiny run is what a real one needs, and of the paper's what the paper has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastslm.data.batches import RowBatches
from fastslm.data.loading import RowLoader
from fastslm.errors import RecipeError
from fastslm.training.dry_run import _Saved, dry_run
from fastslm.training.losses.speech_lm import SpeechLM
from fastslm.training.optimizer import Optimizers
from fastslm.training.recipe_file import load_recipe, validate_recipe
from fastslm.training.sources import sources_of
from fastslm.training.starts import Start, parts_of

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
WITHIN = 0.15


def test_a_dry_run_agrees_with_a_real_step(recipe_content: dict[str, Any]) -> None:
    recipe_content |= {"accumulate": 2}
    recipe = validate_recipe(recipe_content, "r")
    said = dry_run(recipe)
    start = Start(recipe)
    model: Any = start.build(torch.device("cpu"))
    loss = SpeechLM(model, start.processor, recipe)
    optimizers = Optimizers(parts_of(model), recipe.optimizer, 3)
    loss.train()
    batches = RowBatches(sources_of(recipe), batch_rows=2, seed=recipe.seed)
    prepared = loss.prepare(next(iter(RowLoader(batches, n_mels=80))))
    saved = _Saved(model)
    # Kernels that a CPU has are not counted by torch; plain products are.
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
        (loss(prepared)["speech_lm"] / prepared.counts["speech_lm"]).backward()
    with saved:
        (loss(prepared)["speech_lm"] / prepared.counts["speech_lm"]).backward()
    optimizers.step(0)
    trained = [own for own in model.parameters() if own.requires_grad]
    state = [own for part in optimizers.optimizers for own in part.state.values()]
    real = {
        "weights": sum(own.numel() * own.element_size() for own in model.parameters()),
        "gradients": sum(own.numel() * 4 for own in trained),
        "optimizer": sum(x.numel() * 4 for own in state for x in own.values() if x.ndim),
        "activations": saved.in_layers + saved.outside,
        "windows": 2 * prepared.batch.windows,
        "tokens": 2 * prepared.tokens,
        "rows": 4,
        "flops": 2 * flops.get_total_flops(),
    }
    for name, value in real.items():
        assert getattr(said, name) == pytest.approx(value, rel=WITHIN), name
    assert said.parameters["hfq"][1] == sum(own.numel() for own in model.hfq_former.parameters())
    assert sum(trained for _, trained in said.parameters.values()) == sum(own.numel() for own in trained)


def test_the_papers_first_stage_is_counted_without_any_data_or_weights() -> None:
    recipe = load_recipe(PAPER / "stage1.yaml", look_for_files=False)
    said = dry_run(recipe, processes=8, tflops=350)
    assert said.parameters["hfq"] == (52_861_440, 52_861_440)
    assert said.parameters["encoder"] == (636_968_960, 0)
    assert said.parameters["language model"] == (4_022_468_096, 0)
    assert said.windows == said.rows == 16 * 8 * 16
    assert said.steps is not None
    assert said.hours is not None
    # Frozen weights in bfloat16, trained ones in float32.
    trained = sum(own for _, own in said.parameters.values())
    assert said.weights == pytest.approx(2 * (636_968_960 + 4_022_468_096) + 4 * trained)
    assert said.optimizer == 2 * said.gradients == 8 * trained
    assert said.activations_checkpointed < said.activations / 3
    assert "hours at 350 TFLOP/s" in said.as_text()


def test_what_is_shared_out_is_divided_and_what_is_not_is_not(recipe_content: dict[str, Any]) -> None:
    recipe_content |= {"average": 0.9}
    recipe_content["data"]["batch_rows"] = 8
    recipe = validate_recipe(recipe_content, "r")
    alone, four, shared = dry_run(recipe), dry_run(recipe, processes=4), dry_run(recipe, processes=4, sharded=True)
    for name in ("weights", "gradients", "optimizer", "average"):
        assert getattr(shared, name) == pytest.approx(getattr(four, name) / 4, abs=4), name
        assert getattr(four, name) == getattr(alone, name), name
    assert shared.activations == four.activations < alone.activations / 3
    assert four.rows == alone.rows == 8
    assert four.flops == pytest.approx(alone.flops, rel=0.1)


def test_a_base_model_whose_sizes_are_nowhere_is_said(recipe_content: dict[str, Any]) -> None:
    recipe_content["model"]["encoder"] = "openai/whisper-large-v3"
    with pytest.raises(RecipeError, match=r"model\.encoder has no sizes here"):
        dry_run(validate_recipe(recipe_content, "r"))

"""Whole runs of a tiny model: the same bits after a kill, nothing half-written, and what stops a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastslm.errors import CheckpointError, TrainingError
from fastslm.training.checkpoint import checkpoints, load_newest
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer

LLM_PHASE = {
    "name": "llm",
    "objective": "llm",
    "steps": 4,
    "batch_windows": 2,
    "rates": {"hfq_other": 0.0001, "projector": 0.001, "lora": 0.001},
    "ctc_weight": 0.2,
}


def run(content: dict[str, Any]) -> Path:
    return Trainer(check_recipe(content, "recipe"), quiet=True).run()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_all_phases_run_and_the_export_loads_as_a_model(recipe_content: dict[str, Any]) -> None:
    from fastslm.model.modeling import FastSLMForConditionalGeneration

    recipe_content["phases"].append(LLM_PHASE)
    folder = run(recipe_content)
    model = FastSLMForConditionalGeneration.from_pretrained(folder)
    saved = weights_of(folder)
    name = "hfq_former.detail_recovery.0.cross_attention.v_proj.weight"
    assert torch.equal(model.state_dict()[name].half(), saved[name])
    # LoRA's B starts at zero: what is not zero was trained.
    assert any(key.endswith("lora_B.default.weight") and bool(value.abs().max() > 0) for key, value in saved.items())
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == list(range(1, 15))
    assert [row["phase"] for row in rows if row["kind"] == "validation"] == ["tied", "ctc", "llm"]
    assert "written_wer" in rows[-1]
    assert (folder.parent / "curves.png").stat().st_size > 1000
    assert json.loads((folder / "training.json").read_text())["steps"] == 14


def test_a_run_that_is_killed_and_started_again_ends_with_the_same_bits(
    recipe_content: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed = weights_of(run({**recipe_content, "out": str(tmp_path / "undisturbed")}))
    # A checkpoint after every step, and a kill that no handler sees after a few of them.
    content = {**recipe_content, "out": str(tmp_path / "killed"), "checkpoint_minutes": 1e-9}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    program = (
        "from fastslm.training.recipe import load_recipe\n"
        "from fastslm.training.trainer import Trainer\n"
        f"Trainer(load_recipe({str(recipe)!r}), quiet=True).run()\n"
    )
    for wanted in (2, 6):
        process = subprocess.Popen([sys.executable, "-c", program])
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if metrics.exists() and metrics.read_text().count('"kind": "step"') >= wanted:
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert load_newest(tmp_path / "killed" / "checkpoints") is not None
        assert not (tmp_path / "killed" / "model").exists()
    resumed = weights_of(run({**content, "checkpoint_minutes": 3}))
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in resumed)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == list(range(1, 11))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_clips(recipe_content: dict[str, Any]) -> None:
    recipe_content["phases"] = recipe_content["phases"][1:]
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    batch = trainer._batch

    def poisoned(*arguments: Any) -> Any:
        result = batch(*arguments)
        result.frames[0, 0, 0] = float("nan")
        return result

    trainer._batch = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"step 1 is not finite.*train-\d"):
        trainer.run()
    report = json.loads((trainer.recipe.out / "non-finite.json").read_text())
    assert all(clip.startswith("train-") for clip in report["clips"])


def test_a_folder_that_holds_another_recipes_run_is_refused(recipe_content: dict[str, Any]) -> None:
    content = {**recipe_content, "checkpoint_minutes": 1e-9}
    run(content)
    assert checkpoints(Path(content["out"]) / "checkpoints")
    with pytest.raises(TrainingError, match="another recipe"):
        run({**content, "seed": 4})


def test_training_lowers_the_loss_on_tones(recipe_content: dict[str, Any]) -> None:
    recipe_content["phases"][0]["steps"] = 60
    recipe_content["phases"] = recipe_content["phases"][:1]
    run(recipe_content)
    lines = (Path(recipe_content["out"]) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"kind": "step"' in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_stage_that_starts_from_another_begins_with_its_weights(
    recipe_content: dict[str, Any], tmp_path: Path
) -> None:
    first = run(recipe_content)
    # One step so slow that nothing moves: what comes out is what went in.
    still = {**LLM_PHASE, "steps": 1, "rates": {"projector": 1e-12}}
    content = {**recipe_content, "out": str(tmp_path / "second"), "start_from": str(first), "phases": [still]}
    second = run({**content, "seed": 9})
    before, after = weights_of(first), weights_of(second)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith(("hfq", "ctc")))
    content["model"] = {**content["model"], "ctc": {"hidden_size": 8, "layers": 1, "steps_per_token": 4}}
    with pytest.raises(CheckpointError, match="another size"):
        run({**content, "out": str(tmp_path / "third")})

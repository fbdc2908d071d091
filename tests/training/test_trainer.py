"""Whole runs of a tiny model: the same bits after a kill, nothing half-written, and what stops a run."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from fastslm.errors import CheckpointError, ManifestError, RecipeError, TrainingError
from fastslm.training.checkpoint import checkpoints, load_newest, save_checkpoint
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


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_clips(recipe_content: dict[str, Any]) -> None:
    recipe_content["phases"] = recipe_content["phases"][1:]
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    batch = trainer.windows.batch

    def poisoned(*arguments: Any) -> Any:
        result = batch(*arguments)
        result.frames[0, 0, 0] = float("nan")
        return result

    trainer.windows.batch = poisoned  # type: ignore[method-assign]
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


def numbered(content: dict[str, Any]) -> list[int]:
    lines = (Path(content["out"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["global_step"] for line in lines if '"kind": "step"' in line]


@pytest.mark.parametrize("at", [2, 4, 10])
def test_ctrl_c_saves_the_step_it_meets_and_the_run_goes_on_with_the_same_bits(
    recipe_content: dict[str, Any], tmp_path: Path, at: int, undisturbed: dict[str, torch.Tensor]
) -> None:
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    one_step = trainer._one_step

    def interrupted(*arguments: Any) -> Any:
        if trainer.global_step + 1 == at:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(*arguments)

    trainer._one_step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    state = load_newest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert state["global_step"] == at
    assert not (tmp_path / "run" / "model").exists()
    resumed = weights_of(run(recipe_content))
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert numbered(recipe_content) == list(range(1, 11))


@pytest.fixture(scope="module")
def undisturbed_of() -> dict[str, dict[str, torch.Tensor]]:
    return {}


@pytest.fixture
def undisturbed(
    recipe_content: dict[str, Any], tmp_path: Path, undisturbed_of: dict[str, dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What the fixture's recipe ends with, when nothing happens. Trained once."""
    if not undisturbed_of:
        undisturbed_of["weights"] = weights_of(run({**recipe_content, "out": str(tmp_path / "undisturbed")}))
    return undisturbed_of["weights"]


def test_ctrl_c_while_windows_are_encoded_saves_what_was_trained(
    recipe_content: dict[str, Any], tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    variant = trainer.windows.variant

    def asked(epoch: int) -> Any:
        if trainer.global_step == 6:
            trainer._interruption.asked = True
            trainer._encoding("windows")(1, 2)
        return variant(epoch)

    trainer.windows.variant = asked  # type: ignore[method-assign]
    # As where a packing is reached that is not encoded yet.
    trainer.windows.ready = lambda *_: False  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    state = load_newest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert (state["global_step"], state["step"]) == (6, 2)
    resumed = weights_of(run(recipe_content))
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)


def test_a_second_ctrl_c_does_not_wait(recipe_content: dict[str, Any]) -> None:
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    steps: list[int] = []

    def stuck(*arguments: Any) -> Any:
        steps.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    trainer._one_step = stuck  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert steps == [1]


def test_a_run_that_has_ended_is_exported_again_without_a_step(
    recipe_content: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(recipe_content)
    first = weights_of(folder)
    (folder / "model.safetensors").unlink()  # as a kill during the export leaves it
    monkeypatch.setattr(Trainer, "_one_step", None)
    Trainer(check_recipe(recipe_content, "recipe")).run()
    assert "this run ended at step 10; its model is exported again" in capsys.readouterr().err
    again = weights_of(folder)
    assert all(torch.equal(again[key], first[key]) for key in first)
    assert numbered(recipe_content) == list(range(1, 11))
    assert json.loads((folder / "training.json").read_text())["steps"] == 10


def test_a_phase_may_be_added_to_a_run_that_has_ended(recipe_content: dict[str, Any]) -> None:
    run(recipe_content)
    more = {**recipe_content["phases"][1], "name": "more", "steps": 2}
    run({**recipe_content, "phases": [*recipe_content["phases"], more]})
    assert numbered(recipe_content) == list(range(1, 13))


def test_two_processes_do_not_train_into_one_folder(recipe_content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(TrainingError, match="another process trains there"):
        run(recipe_content)


def test_a_batch_larger_than_the_data_is_refused_not_waited_for(recipe_content: dict[str, Any]) -> None:
    recipe_content["phases"][0]["batch_windows"] = 500
    with pytest.raises(RecipeError, match=r"phase tied: batch_windows is 500, but the training data make only \d+ win"):
        run(recipe_content)


def test_a_gradient_that_is_not_finite_moves_no_weight_and_names_its_clips(recipe_content: dict[str, Any]) -> None:
    recipe_content["phases"] = recipe_content["phases"][1:]
    trainer = Trainer(check_recipe(recipe_content, "recipe"), quiet=True)
    objectives: list[Any] = []
    one_step = trainer._one_step

    def poisoned(phase: Any, step: int, shared: Any, optimizers: Any) -> Any:
        objective = shared.objective
        objectives.append(({k: v.clone() for k, v in objective.head.state_dict().items()}, objective.head))
        objective.head.out.weight.register_hook(lambda gradient: gradient * float("inf"))
        return one_step(phase, step, shared, optimizers)

    trainer._one_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"The gradient at step 1 is not finite.*train-\d"):
        trainer.run()
    (before, head) = objectives[0]
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    report = json.loads((trainer.recipe.out / "non-finite.json").read_text())
    assert report["what"] == "gradient"
    assert report["clips"]


def test_windows_that_ctc_cannot_write_are_said_and_counted(
    recipe_content: dict[str, Any], tone_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tone_corpus / "train.jsonl").read_text().splitlines()]
    path = tone_corpus / "long.jsonl"
    path.write_text("".join(json.dumps(row | {"text": "route 66 " * 50}) + "\n" for row in rows))
    recipe_content["data"]["train"] = [{"path": str(path)}]
    recipe_content["phases"] = [recipe_content["phases"][0] | {"steps": 1}]
    Trainer(check_recipe(recipe_content, "recipe")).run()
    said = capsys.readouterr().err
    assert "windows hold more text than CTC can write, and teach nothing" in said
    assert "windows hold letters or digits that are not taught, though they are said (6)" in said
    row = json.loads((Path(recipe_content["out"]) / "metrics.jsonl").read_text().splitlines()[0])
    assert row["too_long"] >= 1


def test_a_device_that_is_not_there_is_one_sentence(recipe_content: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="device is 'cuda:99'"):
        Trainer(check_recipe({**recipe_content, "device": "cuda:99"}, "recipe"))
    with pytest.raises(RecipeError, match="device is 'gpu'"):
        Trainer(check_recipe({**recipe_content, "device": "gpu"}, "recipe"))


def test_sizes_that_do_not_fit_are_said_before_anything_is_encoded(
    recipe_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastslm.training import feature_cache

    monkeypatch.setattr(feature_cache, "_cached", None)
    recipe_content["model"]["ctc"]["steps_per_token"] = 8
    with pytest.raises(RecipeError, match="in 8 steps, but it is 4 looks"):
        run(recipe_content)
    recipe_content["model"]["ctc"]["steps_per_token"] = 24
    with pytest.raises(RecipeError, match=r"model\.ctc: ctc_steps_per_token is 24"):
        run(recipe_content)
    recipe_content["model"]["hfq"]["detail_positions"] = False
    with pytest.raises(RecipeError, match="needs detail_positions"):
        run(recipe_content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audio": "gone.wav"}, r"train-35.*gone\.wav"),
        ({"duration": 31.0}, r"train-35 lasts 31\.0 s, and a window 30 s"),
    ],
)
def test_a_recording_that_only_a_later_packing_takes_is_looked_for_before_a_model_is_loaded(
    recipe_content: dict[str, Any],
    tone_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    said: str,
) -> None:
    rows = [json.loads(line) for line in (tone_corpus / "train.jsonl").read_text().splitlines()]
    rows[35] |= change
    train = tone_corpus / f"later-{next(iter(change))}.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # This seed's first packing leaves the last clip out, its second one takes it.
    recipe_content["data"] |= {"train": [{"path": str(train), "share": 0.5}], "cache": str(tmp_path / "cache")}
    taken = [np.random.default_rng([3, variant, 99]).permutation(36)[:18] for variant in (0, 1)]
    assert [35 in clips for clips in taken] == [False, True]
    monkeypatch.setattr("fastslm.training.trainer.Learner", lambda *given: pytest.fail("a model is loaded"))
    with pytest.raises(ManifestError, match=said):
        run(recipe_content)
    assert not (tmp_path / "cache").exists()


def test_windows_that_are_cached_need_no_recordings(
    recipe_content: dict[str, Any], tone_corpus: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tone_corpus / "train.jsonl").read_text().splitlines()]
    for row in rows:
        (tmp_path / row["audio"]).write_bytes((tone_corpus / row["audio"]).read_bytes())
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_content["data"] |= {"train": [{"path": str(train)}], "variants": 1}
    recipe_content["phases"] = [recipe_content["phases"][0] | {"steps": 1}]
    run(recipe_content)
    for row in rows:
        (tmp_path / row["audio"]).unlink()
    run({**recipe_content, "out": str(tmp_path / "again")})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_when_a_checkpoint_is_written_stops_the_run_and_loses_nothing(
    recipe_content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, torch.Tensor],
) -> None:
    def full(folder: Path, name: str, state: dict[str, Any]) -> Path:
        if state["global_step"] == 7:
            os.symlink("/dev/full", folder / f"{name}.pt.partial")
        return save_checkpoint(folder, name, state)

    content = {**recipe_content, "checkpoint_minutes": 1e-9}
    with monkeypatch.context() as patched:
        patched.setattr("fastslm.training.trainer.save_checkpoint", full)
        with pytest.raises(TrainingError, match=r"step-0000007\.pt: the checkpoint could not be written \(the disk is"):
            run(content)
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(left) == ["step-0000005.pt", "step-0000006.pt"]
    resumed = weights_of(run(content))
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert numbered(content) == list(range(1, 11))

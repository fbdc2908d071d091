"""The loop: a run that is stopped or killed goes on to the same bits, stages follow each other, faults are said."""

import copy
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastslm.training.train as train_module
from fastslm.errors import CheckpointError, FastSLMError, OptionError, TrainingError
from fastslm.loading import load
from fastslm.model.lora import stored_state
from fastslm.training.recipe_file import validate_recipe
from fastslm.training.train import train


def run(content: dict[str, Any]) -> Path:
    return train(validate_recipe(content, "recipe"), quiet=True)


def losses(content: dict[str, Any]) -> list[float]:
    rows = map(json.loads, (Path(content["out"]) / "metrics.jsonl").read_text().splitlines())
    return [row["speech_lm"] for row in rows if row["kind"] == "step"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def elsewhere(recipe_content: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same recipe into another folder."""
    return {**copy.deepcopy(recipe_content), "out": str(tmp_path / "other")}


def killed(content: dict[str, Any], step: int) -> None:
    """Train, and die without warning in the middle of a step, after the checkpoint of the one before."""
    prepare = train_module.loss_class(content.get("loss", {}).get("name", "speech_lm")).prepare
    seen = [0]

    def watched(self: Any, batch: Any) -> Any:
        seen[0] += 1
        if seen[0] > step:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, batch)

    train_module.loss_class("speech_lm").prepare = watched
    run({**content, "checkpoint_minutes": 1e-9})


def test_a_killed_run_goes_on_to_the_same_bits(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"steps": 4, "average": 0.5}
    recipe_content |= changes
    recipe_content["model"]["lora"]["dropout"] = 0.1
    recipe_content["data"] |= {"mask": {"share": 0.1}, "phrasings": "varied"}
    elsewhere = {**copy.deepcopy(recipe_content), "out": elsewhere["out"]}
    whole = run(recipe_content)
    process = multiprocessing.get_context("fork").Process(target=killed, args=(elsewhere, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(losses(elsewhere)) == 2
    resumed = run(elsewhere)
    assert losses(elsewhere) == losses(recipe_content)
    assert same(whole, resumed)


def test_the_loss_falls_and_what_comes_out_loads_and_transcribes(recipe_content: dict[str, Any]) -> None:
    recipe_content |= {"steps": 12}
    recipe_content["optimizer"]["rates"] = {"hfq": 0.003, "projector": 0.003, "lora": 0.01}
    recipe_content["data"]["validation"] = {
        "path": recipe_content["data"]["train"][0]["path"].replace("train", "validation")
    }
    folder = run(recipe_content)
    found = losses(recipe_content)
    assert found[-1] < found[0] - 0.1
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [12]
    assert (folder.parent / "curves.png").stat().st_size > 1000
    model = load(folder, dtype="float32", quiet=True).model
    state = stored_state(model.state_dict())
    assert all(torch.equal(own, state[key]) for key, own in weights(folder).items())


def test_master_weights_stay_float32_and_frozen_ones_are_bfloat16(
    recipe_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_content |= {"precision": "bf16", "steps": 1}
    seen: list[Any] = []
    build = train_module.Start.build
    monkeypatch.setattr(train_module.Start, "build", lambda self, device: seen.append(build(self, device)) or seen[0])
    run(recipe_content)
    model = seen[0]
    trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
    assert {own.dtype for own in trained.values()} == {torch.float32}
    assert any("low_rank.A" in name for name in trained)
    assert {own.dtype for name, own in model.named_parameters() if name not in trained} == {torch.bfloat16}
    # A step of 1e-3 is less than half a bfloat16 step of these weights: it is kept all the same.
    assert any(not torch.equal(own, own.bfloat16().float()) for own in model.hfq_former.parameters())


def test_a_stage_starts_from_the_one_before(recipe_content: dict[str, Any], elsewhere: dict[str, Any]) -> None:
    recipe_content["optimizer"]["rates"] = {"hfq": 0.003, "projector": 0.003, "lora": 0.01}
    recipe_content["steps"] = 8
    first = run(recipe_content)
    del elsewhere["model"]["encoder"], elsewhere["model"]["text_model"]
    elsewhere |= {"stage": 2, "start_from": str(first), "steps": 1}
    elsewhere["optimizer"] = {"rates": {"lora": 1e-12}}
    second = run(elsewhere)
    before, after = weights(first), weights(second)
    assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)
    assert losses(elsewhere)[0] < losses(recipe_content)[0]


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("hfq", {"stage_tokens": [12, 12, 12]}, "its hfq.stage_tokens is"),
        ("lora", {"rank": 4}, "its lora.rank is 2"),
        (
            "encoder",
            {"config": {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2}},
            "encoder width is 32",
        ),
    ],
)
def test_a_checkpoint_of_another_size_is_refused_before_a_weight_is_read(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any], section: str, change: dict[str, Any], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = run({**recipe_content, "steps": 1})
    elsewhere |= {"start_from": str(first)}
    elsewhere["model"][section] = change if section == "encoder" else elsewhere["model"][section] | change
    monkeypatch.setattr(train_module.Start, "build", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(CheckpointError, match=said):
        run(elsewhere)


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_rows(
    recipe_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastslm.training.losses.speech_lm import SpeechLM

    forward = SpeechLM.forward
    steps = [0]

    def broken(self: Any, prepared: Any) -> Any:
        steps[0] += 1
        found = forward(self, prepared)
        return {name: own * float("nan") for name, own in found.items()} if steps[0] == 2 else found

    monkeypatch.setattr(SpeechLM, "forward", broken)
    with pytest.raises(TrainingError, match=r"The loss at step 2 is not finite; its rows are train-\d+, train-\d+"):
        run(recipe_content)
    report = json.loads((Path(recipe_content["out"]) / "non-finite.json").read_text())
    assert len(report["rows"]) == 2
    assert report["losses"] == {"speech_lm": "nan"}


def test_accumulated_batches_move_the_weights_as_one_batch_does(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any]
) -> None:
    recipe_content |= {"steps": 1, "accumulate": 6}
    elsewhere |= {"steps": 1}
    elsewhere["data"]["batch_rows"] = 12
    one, other = run(recipe_content), run(elsewhere)
    a, b = weights(one), weights(other)
    assert all(torch.allclose(a[key], b[key], atol=2e-5) for key in a)
    assert losses(recipe_content)[0] == pytest.approx(losses(elsewhere)[0], rel=1e-5)


def test_a_folder_of_another_recipes_run_is_left_alone(recipe_content: dict[str, Any]) -> None:
    run({**recipe_content, "steps": 1})
    with pytest.raises(TrainingError, match="holds a run of another recipe"):
        run({**recipe_content, "steps": 1, "seed": 4})


def test_a_batch_that_cannot_hold_the_longest_row_is_refused_before_a_model_is_built(
    recipe_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del recipe_content["data"]["batch_rows"]
    recipe_content["data"]["batch_seconds"] = 20
    monkeypatch.setattr(train_module.Start, "build", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(OptionError, match="raise batch_seconds to at least 30"):
        run(recipe_content)


def test_packed_and_augmented_clips_are_rows_like_others(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any]
) -> None:
    recipe_content["data"] |= {"packing": {"silent_ends": 0.5}, "variants": 1, "phrasings": "varied"}
    elsewhere["data"] |= {"augmentation": {"speeds": [0.9, 1.1]}, "variants": 2}
    for content in (recipe_content, elsewhere):
        run({**content, "steps": 1})
        assert len(losses(content)) == 1


@pytest.mark.parametrize("cuts", [True, False])
def test_rows_without_text_are_refused_before_a_model_is_built(
    recipe_content: dict[str, Any], tmp_path: Path, tone_corpus: Path, monkeypatch: pytest.MonkeyPatch, cuts: bool
) -> None:
    rows = [json.loads(line) for line in (tone_corpus / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("text")
        row["audio"] = str(tone_corpus / row["audio"])
    silent = tmp_path / "silent.jsonl"
    silent.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if cuts:
        pytest.importorskip("lhotse")
        from lhotse import MonoCut, Recording

        path = Path(rows[0]["audio"])
        cut = MonoCut("c", 0, 2.0, 0, recording=Recording.from_file(path)).to_dict()
        silent.write_text(json.dumps(cut) + "\n")
    recipe_content["data"]["train"] = [{"cuts" if cuts else "path": str(silent)}]
    monkeypatch.setattr(train_module.Start, "build", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(FastSLMError, match="has no text"):
        run(recipe_content)


def two_processes(content: dict[str, Any], rank: int, port: int, fsdp: bool) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if fsdp:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    sys.stdout = sys.stderr
    run(content)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def by_two(content: dict[str, Any], fsdp: bool = False) -> None:
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=two_processes, args=(content, rank, port, fsdp)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_give_the_losses_of_one(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any], fsdp: bool
) -> None:
    for content in (recipe_content, elsewhere):
        content["data"]["batch_rows"] = 3  # of which one process has two
        content["data"] |= {"cache_features": False}
        del content["data"]["cache"]
        content |= {"accumulate": 2, "device": "cpu"}
    one = run(recipe_content)
    by_two(elsewhere, fsdp)
    assert losses(elsewhere) == pytest.approx(losses(recipe_content), abs=2e-4)
    a, b = weights(one), weights(Path(elsewhere["out"]) / "model")
    assert a.keys() == b.keys()
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 2e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"optimizer": {"name": "muon", "rates": {"hfq": {"matrices": 0.01, "other": 0.001}}}},
            "set optimizer.name to adamw",
        ),
        (
            {"loss": {"name": "token_ctc"}, "optimizer": {"rates": {"projector": 0.01}}, "projector": True},
            "launch without --use_fsdp",
        ),
    ],
)
def test_what_fsdp_cannot_share_out_is_refused(
    recipe_content: dict[str, Any], change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change.pop("projector", False):
        recipe_content["model"] |= {"projector": "ctc_embeddings", "projector_config": {"kinds": 80}}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(FastSLMError, match=said):
        run(recipe_content | change)


def test_a_stop_is_heard_after_the_step_and_the_same_command_goes_on(
    recipe_content: dict[str, Any], elsewhere: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe_content)
    asked = SimpleNamespace(steps=0)
    step = train_module.Optimizers.step

    def counted(self: Any, number: int) -> float:
        asked.steps += 1
        if asked.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(train_module.Optimizers, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(elsewhere)
    assert len(losses(elsewhere)) == 2
    assert same(whole, run(elsewhere))

"""Processes that a launcher really starts train as one does, whatever the objective."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastslm.errors import RecipeError
from fastslm.training.checkpoint import load_newest
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch
from fastslm.training.processes import Processes
from fastslm.training.recipe import check_recipe
from fastslm.training.stages import Learner
from fastslm.training.trainer import Trainer

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# One start of two processes for all recipes: importing takes longer than training.
PROGRAM = """
import json, os, sys
from fastslm.training.processes import Processes
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer
prepare = Processes.prepare
def prepared(self, objective):
    shared = prepare(self, objective)
    if "ACCELERATE_USE_FSDP" in os.environ:
        parameters = list(shared.losses.parameters())
        # Tensors of one row cannot be halved.
        assert sum(p.to_local().numel() for p in parameters) < 0.6 * sum(p.numel() for p in parameters)
    return shared
Processes.prepare = prepared
for content in json.load(open(sys.argv[1])):
    Trainer(check_recipe(content, "recipe"), quiet=True).run()
"""


@pytest.fixture
def contents(recipe_content: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """Recipes with every objective that may be shared. Three windows cannot be halved, and everything is random."""
    recipe_content["model"]["lora"]["dropout"] = 0.0
    # Windows whose texts are not equally long.
    source = Path(recipe_content["data"]["train"][0]["path"])
    clips = [json.loads(line) for line in source.read_text().splitlines()]
    clips = [clip | {"text": " ".join(clip["text"].split()[: 1 + index % 4])} for index, clip in enumerate(clips)]
    train = source.with_name("unequal.jsonl")
    train.write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    recipe_content["data"]["train"] = [{"path": str(train)}]
    spoken = deepcopy(recipe_content)
    adam = {"hfq_other": 0.001, "head_other": 0.001}
    llm = {"hfq_other": 0.0001, "projector": 0.001, "lora": 0.001}
    spoken["phases"] = [
        {"name": "tied", "objective": "tied", "steps": 6, "shift_frames": 5, "rates": adam},
        {"name": "ctc", "objective": "ctc", "steps": 12, "accumulate": 2, "average": 0.5, "rates": adam}
        | {"mask": 0.1, "dropout": 0.3},
        {"name": "llm", "objective": "llm", "steps": 6, "ctc_weight": 0.2, "rates": llm, "dropout": 0.0},
    ]
    read = deepcopy(recipe_content)
    read["model"]["reader"] = {"base": read["model"]["encoder"], "layers": 1, "start_windows": 5}
    read["model"]["ctc"] = {"hidden_size": 16, "layers": 1, "reads": "frames"}
    rates = {"hfq_other": 0.001, "reader_other": 0.001}
    read["phases"] = [
        {"name": "frames", "objective": "frames", "steps": 6, "accumulate": 2, "mask": 0.1, "rates": rates},
        {"name": "reader", "objective": "reader", "steps": 12, "frames_weight": 0.5, "ctc_weight": 0.3}
        | {"rates": {**rates, "head_other": 0.001}, "average": 0.5, "dropout": 0.3, "shift_frames": 5},
    ]
    told = deepcopy(read)
    answers = ("Red.", "a much longer answer than the others have", "")
    made = [
        {"id": f"row-{i}", "audio": "x.wav", "duration": 4.0, "text": "the house is red", "task": "ask"}
        | {"instruction": f"What colour is house {i}?", "answer": answers[i % 3]}
        for i in range(10)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    told["model"]["reader"].pop("start_windows")
    told["model"]["heard_words"] = True
    told["data"] |= {"instructions": [{"path": str(tmp_path / "tasks.jsonl")}]}
    told["phases"] = [{"name": "tasks", "objective": "instructions", "steps": 12, "rates": {"lora": 0.01}}]
    for name, content in (("spoken", spoken), ("read", read), ("told", told)):
        content["name"] = name
        for phase in content["phases"]:
            phase["batch_windows"] = 3
    return [spoken, read, told]


def placed(contents: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    return [{**content, "out": str(folder / content["name"])} for content in contents]


def launched(arguments: list[str], **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    return subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def weights_of(folder: Path) -> Iterator[torch.Tensor]:
    state = load_newest(folder / "checkpoints")
    assert state is not None
    for part in state["learner"].values():
        yield from part.values() if isinstance(part, dict) else part


def assert_trained_alike(one: Path, two: Path) -> None:
    """The same losses, step by step, and the same weights, up to how float32 rounds sums of other orders."""
    expected, found = steps_of(one), steps_of(two)
    assert [row["global_step"] for row in found] == [row["global_step"] for row in expected]
    for a, b in zip(expected, found, strict=True):
        losses = {key: value for key, value in a.items() if key in ("loss", "transcript", "frames", "ctc")}
        # The log has five decimals.
        assert {key: b[key] for key in losses} == pytest.approx(losses, rel=1e-5, abs=1.1e-5)
    for a, b in zip(weights_of(one), weights_of(two), strict=True):
        # AdamW's first steps have the size of the rate whatever the gradient's, so one that is about 0 shows its noise.
        assert float((a - b).norm()) <= 2e-3 * float(a.norm()) + 1e-6


def train_alone_and_launched(contents: list[dict[str, Any]], tmp_path: Path, **variables: str) -> None:
    alone, both = placed(contents, tmp_path / "alone"), placed(contents, tmp_path / "both")
    for content in alone:
        Trainer(check_recipe(content, "recipe"), quiet=True).run()
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "recipes.json").write_text(json.dumps(both))
    done = launched([str(tmp_path / "program.py"), str(tmp_path / "recipes.json")], OMP_NUM_THREADS="1", **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(alone, both, strict=True):
        assert_trained_alike(Path(one["out"]), Path(two["out"]))
        summary = json.loads((Path(two["out"]) / "model" / "training.json").read_text())
        assert summary["processes"] == 2


def test_two_processes_train_as_one_does(contents: list[dict[str, Any]], tmp_path: Path) -> None:
    read = contents[1]
    read["phases"] = [phase | {"steps": 3} for phase in read["phases"]]
    train_alone_and_launched([read], tmp_path)


@pytest.mark.slow
def test_two_processes_train_every_objective_as_one_does(contents: list[dict[str, Any]], tmp_path: Path) -> None:
    train_alone_and_launched(contents, tmp_path)


@pytest.mark.slow
def test_two_processes_that_share_out_the_weights_train_as_one_does(
    contents: list[dict[str, Any]], tmp_path: Path
) -> None:
    spoken, _, told = contents
    spoken["phases"] = spoken["phases"][2:]
    # The second phase starts where the first one ends, and the average is of shared out weights.
    told["phases"] = [told["phases"][0] | {"average": 0.5}, told["phases"][0] | {"name": "more", "steps": 3}]
    train_alone_and_launched([spoken, told], tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_two_processes_that_are_stopped_go_on_to_the_same_bits(
    contents: list[dict[str, Any]], tmp_path: Path, with_signal: signal.Signals
) -> None:
    content = contents[1] | {"checkpoint_minutes": 1e-9}
    for name in ("undisturbed", "stopped"):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({**content, "out": str(tmp_path / name)}))
    assert launched(["-m", "fastslm", "train", str(tmp_path / "undisturbed.yaml")]).returncode == 0
    command = [*LAUNCH, "-m", "fastslm", "train", str(tmp_path / "stopped.yaml")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    log = tmp_path / "stopped" / "metrics.jsonl"
    while not log.exists() or len(steps_of(tmp_path / "stopped")) < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # As Ctrl-C does, to the launcher and all that it started.
    os.killpg(process.pid, with_signal)
    process.wait(100)
    assert not (tmp_path / "stopped" / "model").exists()
    done = launched(["-m", "fastslm", "train", str(tmp_path / "stopped.yaml")])
    assert done.returncode == 0, done.stderr[-2000:]
    # One of them says where it is.
    assert done.stdout == f"{tmp_path / 'stopped' / 'model'}\n"
    for a, b in zip(weights_of(tmp_path / "undisturbed"), weights_of(tmp_path / "stopped"), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def two() -> Processes:
    """The first of two processes, as far as sharing goes."""
    processes = Processes("cpu")
    processes.count = 2
    return processes


def test_fewer_windows_than_processes_are_refused_before_anything_is_encoded(
    contents: list[dict[str, Any]], two: Processes
) -> None:
    two.check(check_recipe(contents[0], "recipe"))
    contents[0]["phases"][1]["batch_windows"] = 1
    with pytest.raises(RecipeError, match="phase ctc: batch_windows is 1, which 2 processes cannot share"):
        two.check(check_recipe(contents[0], "recipe"))
    tasks = contents[2]["phases"][0]
    del tasks["batch_windows"]
    two.count = 20
    two.check(check_recipe({**contents[2], "phases": [tasks | {"batch_seconds": 60.0}]}, "recipe"))


def test_alignments_are_not_written_by_two_processes(contents: list[dict[str, Any]], two: Processes) -> None:
    contents[0]["phases"][0]["objective"] = "alignment"
    with pytest.raises(RecipeError, match=r"phase tied: objective alignment .* one process trains it"):
        two.check(check_recipe(contents[0], "recipe"))


def test_fsdp_is_refused_where_it_has_nothing_to_share_out(contents: list[dict[str, Any]], two: Processes) -> None:
    two.sharded = True
    two.check(check_recipe(contents[2], "recipe"))
    with pytest.raises(RecipeError, match="phase frames: objective frames has no language model whose weights FSDP"):
        two.check(check_recipe(contents[1], "recipe"))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", "launch with --fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "launch without --fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set gradient_checkpointing in the phase"),
    ],
)
def test_what_fsdp_does_not_do_here_is_said(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=said):
        Processes("cpu")


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_row_of_a_batch_belongs_to_one_process_and_none_has_two_more_than_another(rows: int, count: int) -> None:
    processes = Processes("cpu")
    processes.count = count
    found = []
    for processes.index in range(count):
        found.append(processes.rows(rows))
    assert [row for own in found for row in own] == list(range(rows))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_launcher_that_starts_one_process_where_two_were_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # As `accelerate launch --cpu --num_processes 2` leaves the environment of the only process that it starts.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RecipeError, match=r"starts one process, however many .* torchrun"):
        Processes("auto")


def test_a_process_among_several_takes_no_device_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="device is 'cuda:1', but 2 processes take one device each"):
        Processes("cuda:1")


@pytest.mark.parametrize("which", [("spoken", "ctc"), ("spoken", "llm"), ("read", "frames"), ("read", "reader")])
def test_what_two_processes_add_is_the_loss_of_all_windows_at_once(
    contents: list[dict[str, Any]], two: Processes, which: tuple[str, str]
) -> None:
    name, objective_name = which
    recipe = check_recipe(next(content for content in contents if content["name"] == name), "recipe")
    learner = Learner(recipe, torch.device("cpu"))
    objective = learner.objective(next(p for p in recipe.phases if p.objective == objective_name), None)
    learner.eval()
    torch.manual_seed(0)
    # Frames of other variance, texts of other lengths; batches of one window, which has no second half, and of four.
    frames = torch.randn(5, 1500, 64) * torch.tensor([0.1, 0.5, 1.0, 3.0, 2.0])[:, None, None]
    labels = [WindowLabel(text, 1500, ()) for text in ("h", "l m h l m h l", "", "m l", "h h h m")]
    whole = Batch(frames, labels, [0] * 5)
    batches = [whole.part(range(1)), whole.part(range(1, 5))]
    assert_shares_add_up(objective, two, whole, batches)


def test_what_two_processes_add_is_the_loss_of_all_answers_at_once(
    contents: list[dict[str, Any]], two: Processes
) -> None:
    recipe = check_recipe(contents[2], "recipe")
    objective: Any = Learner(recipe, torch.device("cpu")).objective(recipe.phases[0], None)
    whole = objective.batch(0)
    assert_shares_add_up(objective, two, whole, [whole.part(range(1)), whole.part(range(1, 3))])


@torch.no_grad()
def assert_shares_add_up(objective: Any, two: Processes, whole: Any, batches: list[Any]) -> None:
    expected = objective.losses(whole)
    added = dict.fromkeys(["loss", *objective.weights], torch.zeros(()))
    for two.index in (0, 1):
        shared = two.prepare(objective)
        amounts = shared.amounts(batches)
        for batch in batches:
            found = shared.contribution(batch, amounts)
            added = {key: value + found[key] for key, value in added.items()}
    assert {key: float(value) for key, value in added.items()} == pytest.approx(
        {key: float(expected[key]) for key in added}, rel=1e-5
    )


@pytest.mark.parametrize("index", [0, 1])
def test_dropout_blanks_the_same_numbers_in_a_share_as_in_the_whole_batch(two: Processes, index: int) -> None:
    class Dropping:
        weights: ClassVar = {"loss": 1.0}

        def __init__(self) -> None:
            self.parts = {"drop": nn.Dropout(0.5)}

        def losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            # Not as it lies in memory.
            return {"loss": self.parts["drop"](batch.transpose(1, 2)).transpose(1, 2)}

        def amounts(self, batches: Sequence[torch.Tensor]) -> dict[str, float]:
            return {"loss": 1.0}

        def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
            return frames

    class Rows(torch.Tensor):
        def part(self, rows: range) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)[rows.start : rows.stop]

    batch = torch.ones(5, 7, 3)
    torch.manual_seed(1)
    whole = Dropping().losses(batch)["loss"]
    two.index = index
    shared = two.prepare(Dropping())
    torch.manual_seed(1)
    own = shared.contribution(batch.as_subclass(Rows), {"loss": 1.0})["loss"]
    rows = two.rows(5)
    assert torch.equal(own, whole[rows.start : rows.stop])
    shared.close()
    assert not shared.objective.parts["drop"]._forward_hooks

"""A run that is killed at any line, again and again, ends with the bits of an undisturbed one."""

import json
import multiprocessing
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_processes import train

from fastslm.training.checkpoint import load_newest

# Starts processes from one that has imported everything: a kill costs a second, not ten.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["training_processes", "fastslm.training.stages"])


@pytest.fixture
def contents(request: pytest.FixtureRequest, recipe_content: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Recipes by the objectives that they train."""
    rates = {"hfq_other": 0.0001, "projector": 0.001, "lora": 0.001}
    llm = {"name": "llm", "objective": "llm", "steps": 3, "batch_windows": 2, "rates": rates, "ctc_weight": 0.2}
    heard = deepcopy({**recipe_content, "phases": [*recipe_content["phases"], llm]})
    # Changes the other fixture's recipe.
    reader_content = request.getfixturevalue("reader_content")
    read = reader_content["phases"]
    rows = [
        {"id": f"row-{i}", "audio": "x.wav", "duration": 4.0, "text": "the house is red", "task": "ask"}
        | {"instruction": f"What colour is house {i}?", "answer": "Red." if i % 2 else "not mentioned"}
        for i in range(10)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {**reader_content["model"], "heard_words": True}
    data = {**reader_content["data"], "instructions": [{"path": str(tmp_path / "tasks.jsonl")}]}
    tasks = {"name": "tasks", "objective": "instructions", "steps": 4, "batch_windows": 3, "rates": {"lora": 0.01}}
    told = {**reader_content, "model": model, "data": data, "phases": [*read, {**tasks, "average": 0.5}]}
    return {"tied, ctc, llm": heard, "frames, reader, instructions": told}


def ended(content: dict[str, Any], at: int = 0, writing: bool = False) -> tuple[int | None, list[int]]:
    """Exit status of a run, and the lines that it took."""
    lines = SERVER.Array("q", 2)
    process = SERVER.Process(target=train, args=(content, at, writing, lines))
    process.start()
    process.join(200)
    return process.exitcode, list(lines)


def weights_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All that was trained, in float32, at the end of a run."""
    state = load_newest(Path(content["out"]) / "checkpoints")
    assert state is not None
    named = {}
    for name, part in state["learner"].items():
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            named[f"{name}.{key}"] = value
    return named


def assert_kills_change_nothing(content: dict[str, Any], tmp_path: Path, kills: int) -> None:
    content = {**content, "checkpoint_minutes": 1e-9}
    undisturbed = {**content, "out": str(tmp_path / "undisturbed")}
    status, lines = ended(undisturbed)
    assert status == 0
    steps = sum(phase["steps"] for phase in content["phases"])
    rng = np.random.default_rng()
    killed = {**content, "out": str(tmp_path / "killed")}
    moments, from_middle = [], 0
    for kill in range(kills + 10):
        writing = kill % 2 == 1
        # Not much further than a few steps, so that there is something left to kill.
        at = int(rng.integers(1, lines[writing] * 2 // steps))
        moments.append((at, writing))
        status, _ = ended(killed, at, writing)
        if status == 0:
            # So many kills that it came to its end between them.
            break
        assert status == -signal.SIGKILL, moments
        # Whole, whatever the moment.
        state = load_newest(Path(killed["out"]) / "checkpoints")
        from_middle += bool(state and state["optimizers"])
        # From the middle of a phase there is most to be taken up again.
        if kill + 1 >= kills and from_middle:
            break
    # Where chance never met the middle of a phase, what was killed elsewhere is compared all the same.
    assert len(moments) > 1 or status != 0, moments
    if status != 0:
        assert ended(killed)[0] == 0, moments
    assert (Path(killed["out"]) / "model" / "model.safetensors").is_file()
    found, expected = weights_of(killed), weights_of(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found), moments
    rows = [json.loads(line) for line in (Path(killed["out"]) / "metrics.jsonl").read_text().splitlines()]
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == list(range(1, steps + 1))


def test_killed_anywhere_the_run_ends_with_the_same_bits(contents: dict[str, Any], tmp_path: Path) -> None:
    assert_kills_change_nothing(contents["frames, reader, instructions"], tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", ["frames, reader, instructions", "tied, ctc, llm"])
def test_killed_ten_times_the_run_ends_with_the_same_bits(
    contents: dict[str, Any], tmp_path: Path, objectives: str
) -> None:
    assert_kills_change_nothing(contents[objectives], tmp_path, 10)

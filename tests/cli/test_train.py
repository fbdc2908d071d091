"""`fastslm train`: what it hands on, and how it ends."""

import importlib
import json
from pathlib import Path

import pytest
from toy_training import ENCODER, TEXT_MODEL

from fastslm.cli import run
from fastslm.training import recipe_file as recipes

loop = importlib.import_module("fastslm.training.train")
PAPER = Path(__file__).parents[2] / "recipes" / "paper" / "stage1.yaml"


def test_a_missing_recipe_is_one_sentence(capsys) -> None:
    assert run(["train", "nope.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastslm: nope.yaml: there is no such recipe")
    assert err.count("\n") == 1


@pytest.fixture
def caught(monkeypatch) -> list[object]:
    """What the recipe was read with, instead of reading it."""
    seen: list[object] = []
    monkeypatch.setattr(
        recipes,
        "load_recipe",
        lambda path, overrides, look_for_files: seen.append((path, list(overrides), look_for_files)) or "recipe",
    )
    return seen


def test_overrides_reach_the_recipe_and_the_model_is_printed(caught, monkeypatch, capsys) -> None:
    monkeypatch.setattr(loop, "train", lambda recipe: caught.append(recipe) or Path("runs/x/model"))
    assert run(["train", "a.yaml", "--set", "seed=2", "--set", "steps=1"]) == 0
    assert caught == [(Path("a.yaml"), ["seed=2", "steps=1"], True), "recipe"]
    assert capsys.readouterr().out == "runs/x/model\n"


def test_ctrl_c_leaves_with_130(caught, monkeypatch, capsys) -> None:
    def stopped(recipe: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stopped)
    assert run(["train", "a.yaml"]) == 130
    assert capsys.readouterr().err == "\nfastslm: stopped.\n"


def test_a_dry_run_says_what_a_recipe_needs_and_trains_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(loop, "train", lambda recipe: pytest.fail("it trained"))
    command = ["train", str(PAPER), "--dry-run", "--processes", "8", "--tflops", "100"]
    for part, sizes in (("encoder", ENCODER), ("text_model", TEXT_MODEL)):
        command += ["--set", f"model.{part}={json.dumps({'config': sizes})}"]
    command += ["--set", "model.hfq.head_size=16"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 16 * 8 * 16
    assert found["hours"] > 0
    assert run(command) == 0
    assert "hours at 100 TFLOP/s on each of 8" in capsys.readouterr().out

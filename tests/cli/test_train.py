"""`fastslm train`: what it hands on, and how it ends."""

import time
from pathlib import Path

import pytest

from fastslm.cli import run
from fastslm.training import recipe as recipes
from fastslm.training import trainer
from fastslm.training.processes import Processes


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
        recipes, "load_recipe", lambda path, overrides: seen.append((path, list(overrides))) or "recipe"
    )
    return seen


def test_overrides_reach_the_recipe_and_the_model_is_printed(caught, monkeypatch, capsys) -> None:
    class Instant:
        processes = Processes("cpu")

        def __init__(self, recipe: object, started: float) -> None:
            assert started < time.time()
            caught.append(recipe)

        def run(self) -> Path:
            return Path("runs/x/model")

    monkeypatch.setattr(trainer, "Trainer", Instant)
    assert run(["train", "a.yaml", "--set", "seed=2", "--set", "data.variants=1"]) == 0
    assert caught == [(Path("a.yaml"), ["seed=2", "data.variants=1"]), "recipe"]
    assert capsys.readouterr().out == "runs/x/model\n"


def test_ctrl_c_leaves_with_130(caught, monkeypatch, capsys) -> None:
    class Stopped:
        def __init__(self, recipe: object, started: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "Trainer", Stopped)
    assert run(["train", "a.yaml"]) == 130
    assert capsys.readouterr().err == "\nfastslm: stopped.\n"

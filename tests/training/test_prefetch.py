"""Batches drawn ahead: in order, one step ahead, and the same whatever the thread's timing."""

import threading
import time
from typing import Any

import pytest
import torch

from fastslm.errors import RecipeError
from fastslm.training.prefetch import StepBatches
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer


class Drawing:
    """Draws of steps, noted with the threads that made them."""

    def __init__(self) -> None:
        self.made: list[tuple[int, bool]] = []
        self.done = threading.Semaphore(0)

    def __call__(self, step: int) -> list[Any]:
        self.made.append((step, threading.current_thread() is threading.main_thread()))
        self.done.release()
        return [step]


def test_the_next_step_is_drawn_by_a_thread_while_this_one_is_computed_and_no_further() -> None:
    drawing, asked = Drawing(), []

    def ready(step: int) -> bool:
        asked.append(step)
        return True

    batches = StepBatches(drawing, ready, 3)
    assert batches.take(0) == [0]
    drawing.done.acquire()
    assert drawing.done.acquire(timeout=60), "nothing was drawn ahead"
    assert drawing.made == [(0, True), (1, False)]
    assert [batches.take(1), batches.take(2)] == [[1], [2]]
    batches.close()
    assert [step for step, _ in drawing.made] == [0, 1, 2]
    assert asked == [1, 2]


def test_what_cannot_be_drawn_in_a_thread_is_drawn_where_it_is_taken() -> None:
    drawing = Drawing()
    batches = StepBatches(drawing, lambda step: step != 1, 3)
    assert [batches.take(step) for step in range(3)] == [[0], [1], [2]]
    batches.close()
    assert drawing.made == [(0, True), (1, True), (2, False)]


def test_an_error_of_a_draw_comes_with_its_step() -> None:
    def draw(step: int) -> list[Any]:
        if step == 1:
            raise RecipeError("no")
        return [step]

    batches = StepBatches(draw, lambda step: True, 3)
    assert batches.take(0) == [0]
    with pytest.raises(RecipeError):
        batches.take(1)
    batches.close()


def test_the_seconds_that_a_step_waited_are_those_of_its_own_batches() -> None:
    release = threading.Event()

    def draw(step: int) -> list[Any]:
        if step == 1:
            release.wait(60)
        return [step]

    batches = StepBatches(draw, lambda step: True, 2)
    batches.take(0)
    before = batches.waited
    threading.Timer(0.2, release.set).start()
    started = time.monotonic()
    batches.take(1)
    assert before < batches.waited <= time.monotonic() - started
    batches.close()


@pytest.mark.parametrize("slow", ["drawing", "steps"])
def test_any_timing_gives_the_same_losses(recipe_content: dict[str, Any], tmp_path: Any, slow: str) -> None:
    losses = {}
    recipe_content["phases"] = [phase | {"steps": 4, "validate_every": 4} for phase in recipe_content["phases"]]
    for name in ("alone", slow):
        content = {**recipe_content, "out": str(tmp_path / name)}
        trainer = Trainer(check_recipe(content, "recipe"), quiet=True)
        batch, one_step, seen = trainer.windows.batch, trainer._one_step, []
        threads = set()

        def drawn(*arguments: Any, batch: Any = batch, name: str = name, threads: set[str] = threads) -> Any:
            threads.add(threading.current_thread().name)
            if name == "drawing":
                time.sleep(0.05)
            return batch(*arguments)

        def stepped(*arguments: Any, one_step: Any = one_step, name: str = name, seen: list[Any] = seen) -> Any:
            if name == "steps":
                time.sleep(0.05)
                # What others draw meanwhile from torch's own generator is not the thread's.
                torch.rand(1)
            seen.append(one_step(*arguments))
            return seen[-1]

        trainer.windows.batch, trainer._one_step = drawn, stepped  # type: ignore[method-assign]
        if name == "alone":
            trainer.windows.ready = lambda *_: False  # type: ignore[method-assign]
        trainer.run()
        assert (len(threads) > 1) == (name != "alone")
        losses[name] = seen
    assert losses["alone"] == losses[slow]

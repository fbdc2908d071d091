"""What training in a process of its own runs: to its end, or until it is killed at a moment that was chosen."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import fastslm.training.trainer as trainer_module
from fastslm.training import checkpoint
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer

# Whose lines are moments: the training system; of torch, where it writes a checkpoint, each call is one.
LINES, CALLS = str(Path(trainer_module.__file__).parent), "torch/serialization.py"


class Moments:
    """Counts the lines of training code that run, and kills the process at one of them, as a loss of power does.

    Args:
        at: the number of the line to die at, 0 never. writing: only lines count that run while a checkpoint is written.
    """

    def __init__(self, at: int, writing: bool):
        self.at, self.writing = at, writing
        self.lines = self.lines_of_writing = 0
        self.inside = False
        save = checkpoint.save_checkpoint

        def watched(*arguments: Any) -> Path:
            self.inside = True
            try:
                return save(*arguments)
            finally:
                self.inside = False

        trainer_module.save_checkpoint = watched

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(LINES) and not (self.inside and file.endswith(CALLS)):
            return None
        self.lines += 1
        self.lines_of_writing += self.inside
        if self.at and (self.lines_of_writing if self.writing else self.lines) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self if file.startswith(LINES) else None


def train(content: dict[str, Any], at: int, writing: bool, lines: Any) -> None:
    """Train a recipe with a checkpoint after every step.

    Args:
        at, writing: as `Moments`.
        lines: an array of two numbers that receives the lines that ran, of all and of writing checkpoints.
    """
    moments = Moments(at, writing)
    trainer = Trainer(check_recipe(content, "recipe"), quiet=True)
    sys.settrace(moments)
    trainer.run()
    sys.settrace(None)
    lines[0], lines[1] = moments.lines, moments.lines_of_writing

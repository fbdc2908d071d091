"""What a person and a program see of a run: a line on standard error, a JSON line a step, and a plot."""

import contextlib
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from fastslm.training.disk import writing

# Steps whose speed the time left is told from.
RECENT = 50
NOT_LOSSES = ("kind", "step", "seconds", "step_seconds", "wait_seconds", "rate", "norm", "windows", "tokens", "epoch")


class RunLog:
    """`metrics.jsonl` of a run. On a resume, lines of steps that will be done again are dropped."""

    def __init__(self, folder: Path, resumed_at: int):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in self.rows() if row["step"] <= resumed_at]
        with writing(self.path, "the log"):
            folder.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(partial, self.path)

    def write(self, row: dict[str, Any]) -> None:
        with writing(self.path, "the log"), self.path.open("a") as out:
            out.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What is whole of the log: a kill or a crash of the machine may have torn a line."""
        rows = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]


class StepLine:
    """One line on standard error with the step, the losses and the time left."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.tty = sys.stderr.isatty()
        self.last = float("-inf")
        # When the last steps ended. What came before the first, such as loading, says nothing of the speed.
        self.ends: deque[float] = deque(maxlen=RECENT)

    def show(self, step: int, steps: int, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        self.ends.append(now)
        if self.quiet or (now - self.last < (0.5 if self.tty else 30.0) and step != steps):
            return
        self.last = now
        said = [f"step {step}/{steps}", *(f"{name} {value:.3g}" for name, value in numbers.items())]
        if (remaining := self.remaining(steps - step)) is not None:
            said.append(f"{format_seconds(remaining)} left")
        line = "  ".join(said)
        print(f"\r\x1b[2K{line}" if self.tty else line, end="" if self.tty else "\n", file=sys.stderr, flush=True)

    def remaining(self, left: int) -> float | None:
        """Seconds that `left` steps take at the speed of the last ones, `None` before two have ended."""
        if len(self.ends) < 2:
            return None
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) * left

    def say(self, sentence: str) -> None:
        """A line that stays."""
        if not self.quiet:
            print(f"\r\x1b[2K{sentence}" if self.tty else sentence, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """75 → 1:15, 3675 → 1:01:15"""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def draw_curves(rows: list[dict[str, Any]], target: Path, title: str) -> None:
    """Losses in training and validation, and the share of wrong words, over the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, errors = figure.subplots(2, 1, sharex=True)
    for kind, style in (("step", "-"), ("validation", "o--")):
        own = [row for row in rows if row["kind"] == kind]
        names = dict.fromkeys(name for row in own for name in row if name not in (*NOT_LOSSES, "wer"))
        for name in names:
            points = [(row["step"], row[name]) for row in own if name in row]
            values = _smoothed([value for _, value in points], 20 if kind == "step" else 1)
            losses.plot([step for step, _ in points], values, style, label=f"{name}, {kind}", linewidth=1.2)
    written = [(row["step"], row["wer"]) for row in rows if row["kind"] == "validation" and "wer" in row]
    if written:
        errors.plot(*zip(*written, strict=True), "o-", label="words wrong, as they are written")
    losses.set(ylabel="loss", title=title)
    losses.set_ylim(bottom=0)
    errors.set(xlabel="step", ylabel="validation error", ylim=(0, 1.05))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    partial = target.with_suffix(".partial.png")
    with writing(target, "the plot"):
        figure.savefig(partial, dpi=110)
        os.replace(partial, target)


def _smoothed(values: list[float], over: int) -> list[float]:
    return [
        sum(values[max(0, i - over + 1) : i + 1]) / len(values[max(0, i - over + 1) : i + 1])
        for i in range(len(values))
    ]

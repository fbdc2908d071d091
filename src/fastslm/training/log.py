"""What a person and a program see of a run: a line a step on standard error, a JSON line a step, and a plot."""

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


class RunLog:
    """`metrics.jsonl` of a run. On a resume, lines of steps that will be done again are dropped."""

    def __init__(self, folder: Path, resumed_at: int):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in self.rows() if row["global_step"] <= resumed_at]
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
    """One line on standard error with the phase, the step, the loss and the time left."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.tty = sys.stderr.isatty()
        self.last = float("-inf")
        # When the last steps ended. What came before the first, such as loading, says nothing of the speed.
        self.ends: deque[float] = deque(maxlen=RECENT)

    def show(self, phase: str, step: int, steps: int, left: int, numbers: dict[str, float]) -> None:
        """`left` is the number of steps until the end of the run, over all phases."""
        now = time.monotonic()
        self.ends.append(now)
        if self.quiet or (now - self.last < (0.5 if self.tty else 30.0) and step != steps):
            return
        self.last = now
        said = [phase, f"step {step}/{steps}", *(f"{name} {value:.3g}" for name, value in numbers.items())]
        if (remaining := self.remaining(left)) is not None:
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
    """Losses and validation error rates of a run over its hours, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, errors = figure.subplots(2, 1, sharex=True)
    steps = [row for row in rows if row["kind"] == "step"]
    for phase in dict.fromkeys(row["phase"] for row in steps):
        own = [row for row in steps if row["phase"] == phase]
        hours = [row["seconds"] / 3600 for row in own]
        smooth = _smoothed([row["loss"] for row in own], 20)
        losses.plot(hours, smooth, label=phase, linewidth=1.2)
    checks = [row for row in rows if row["kind"] == "validation"]
    hours = [row["seconds"] / 3600 for row in checks]
    errors.plot(hours, [row["wer"] for row in checks], "o-", label="words, CTC head")
    errors.plot(hours, [row["cer"] for row in checks], "s-", label="characters, CTC head")
    written = [row for row in checks if "written_wer" in row]
    if written:
        times = [row["seconds"] / 3600 for row in written]
        errors.plot(times, [row["written_wer"] for row in written], "^-", label="words, as they are written")
    losses.set(ylabel="training loss", title=title)
    losses.set_ylim(bottom=0)
    errors.set(xlabel="hours of training", ylabel="validation error", ylim=(0, 1.05))
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

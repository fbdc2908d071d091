"""What each ingredient brings to training: stage 1 from the plain way to the shipped trainer, on the same speech.

    python benchmarks/training.py ../shared/data                         # some three minutes of two cores
    python benchmarks/training.py ../shared/data --set device=cuda --set threads=8

Whole steps of the shipped stage 1 (`recipes/tiny/stage1-reader.yaml`): batch, forward and backward pass, optimizers.
The first trainer puts one clip into a window and has Whisper's encoder in the loop, in float32, with every token
looking at every frame; then comes one thing after another. All rows take their steps in turn, so that what else the
machine does falls on all alike. The share of the peak is of the rate at which this machine multiplies large matrices of
the same kind, float32 or bfloat16: the best that is seen between the steps. The table goes into docs/training.md.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastslm.audio import SAMPLE_RATE
from fastslm.data.manifest import Clip, read_manifest
from fastslm.data.packing import PackedWindow, Placement, pack, render
from fastslm.features import window_mel
from fastslm.model.base_weights import load_encoder
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch, masked, shifted
from fastslm.training.optimizer import Optimizers
from fastslm.training.recipe import Recipe, load_recipe
from fastslm.training.stages import Learner
from fastslm.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny" / "stage1-reader.yaml"
ROWS, PAGE = ROOT / "docs" / "experiments" / "training-throughput.jsonl", ROOT / "docs" / "training.md"
START, END = "<!-- throughput -->", "<!-- end of throughput -->"
# Clips for a window that is packed full; some are left over.
CLIPS_A_WINDOW = 3
PLAIN, LOCAL = "model.hfq.attention_span=null", "model.hfq.attention_span=1"
# Name, packed, cached, settings.
TRAINERS = (
    ("first trainer", False, False, (PLAIN, "precision=float32")),
    ("+ windows packed full", True, False, (PLAIN, "precision=float32")),
    ("+ the encoder's frames cached", True, True, (PLAIN, "precision=float32")),
    ("+ attention_span 1", True, True, (LOCAL, "precision=float32")),
    ("+ bf16: the shipped trainer", True, True, (LOCAL, "precision=bf16")),
)


class EncodedEachTime:
    """Windows whose frames are made when a step wants them, in place of `TrainingWindows`."""

    def __init__(self, trainer: Trainer, windows: list[PackedWindow]):
        self.windows, self.recipe, self.device, self.dtype = windows, trainer.recipe, trainer.device, trainer.dtype
        self.is_too_long = trainer.windows.is_too_long
        self.encoder: Any = load_encoder(self.recipe.model.encoder).eval()
        self.encoder.to(self.device)

    @torch.no_grad()
    def batch(self, phase_index: int, index: int, generator: torch.Generator) -> Batch:
        """As that of `TrainingWindows`."""
        phase = self.recipe.phases[phase_index]
        size = phase.batch_windows
        chosen = [self.windows[(index * size + i) % len(self.windows)] for i in range(size)]
        features = window_mel([render(window) for window in chosen], self.encoder.config.num_mel_bins)
        frames = self.encoder(features.to(self.device)).last_hidden_state
        limit = phase.shift_frames
        shifts = torch.randint(-limit, limit + 1, (size,), generator=generator).tolist()
        whole = shifted(frames, shifts)
        seen = masked(whole.cpu(), phase.mask, phase.mask_frames, generator).to(self.device, self.dtype)
        labels = [WindowLabel(w.text, frames.shape[1], tuple(p.clip.id for p in w.placements)) for w in chosen]
        return Batch(seen, labels, shifts, whole.to(self.dtype))


class Row:
    """One trainer, and what its steps took."""

    def __init__(self, name: str, recipe: Recipe, windows: list[PackedWindow] | None):
        self.name, self.recipe = name, recipe
        self.trainer = Trainer(recipe, quiet=True)
        self.batches: list[Batch] = []
        source: Any = self.trainer.windows if windows is None else EncodedEachTime(self.trainer, windows)
        draw = source.batch

        def noted(*arguments: Any) -> Batch:
            self.batches.append(draw(*arguments))
            return self.batches[-1]

        source.batch = noted
        self.trainer.windows = source
        learner = Learner(recipe, self.trainer.device)
        self.objective: Any = learner.objective(recipe.phases[0], None)
        self.optimizers = Optimizers(self.objective.parts, recipe.phases[0])
        self.shared = self.trainer.processes.prepare(self.objective)
        # Nothing is drawn ahead: a step is all that its windows cost.
        self.trainer._batches = self.trainer._step_batches(recipe.phases[0], self.objective)
        self.trainer._batches.ready = lambda step: False
        learner.train(recipe.phases[0])
        self.seconds: list[float] = []

    def step(self, index: int) -> float:
        """Seconds of a step."""
        started = time.perf_counter()
        # What `run` does for every step.
        self.trainer._one_step(self.recipe.phases[0], index, self.shared, self.optimizers)
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def warm_up(self) -> None:
        """A step that is not timed, whose multiplications are counted."""
        # Fused attention on a CPU is unknown to the counter; as matrix products it is counted.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.step(0)
        self.flops = counter.get_total_flops()
        self.batches.clear()

    def result(self, durations: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Figures a second."""
        seconds, windows = sum(self.seconds), sum(map(len, self.batches))
        clips = [clip for batch in self.batches for clip in batch.clips]
        hfq = self.recipe.model.hfq
        flops_a_second = self.flops * len(self.seconds) / seconds
        return {
            "trainer": self.name,
            "steps": len(self.seconds),
            "step_seconds": statistics.median(self.seconds),
            "windows": windows / seconds,
            "clips": len(clips) / seconds,
            "speech_seconds": sum(durations[clip] for clip in clips) / seconds,
            "speech_tokens": windows * hfq.final_tokens / seconds,
            "text_tokens": self.objective.amounts(self.batches)["transcript"] / seconds,
            "flops_a_step": self.flops,
            "share_of_peak": flops_a_second / rates[self.recipe.precision],
        }


def multiplication_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of square matrix products, the best of a few."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def rates_of(device: torch.device) -> dict[str, float]:
    """By the recipe's names of precisions."""
    size = 8192 if device.type == "cuda" else 2048
    return {
        "float32": multiplication_rate(device, torch.float32, size),
        "bf16": multiplication_rate(device, torch.bfloat16, size),
    }


def alone(clip: Clip) -> PackedWindow:
    """A window that holds one clip."""
    return PackedWindow((Placement(clip, 0, round(clip.duration * SAMPLE_RATE), 1.0, 0.0),), None, None, (0,))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, and the machine's own."""
    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        needed = (arguments.steps + 1) * 8 * CLIPS_A_WINDOW
        clips = [clip for clip in read_manifest(data / "librispeech" / "train.jsonl") if clip.text][:needed]
        train = folder / "train.jsonl"
        train.write_text("".join(json.dumps(clip.row(folder)) + "\n" for clip in clips))
        settings = [f"data.train={json.dumps([{'path': str(train)}])}", "data.sounds=null", "data.variants=1"]
        settings += [f"data.validation={data / 'librispeech' / 'validation.jsonl'}", f"data.cache={folder / 'cache'}"]
        settings += [f"out={folder / 'run'}", "model.reader.start_windows=0", *arguments.set]
        rows, windows = [], {}
        for name, packed, cached, own in TRAINERS:
            recipe = load_recipe(RECIPE, [*settings, *own])
            if not windows:
                windows = {True: pack(clips, [], recipe.data.packing, (recipe.seed, 0)), False: [*map(alone, clips)]}
            rows.append(Row(name, recipe, None if cached else windows[packed]))
        busy = os.getloadavg()[0]
        device = rows[0].trainer.device
        started = time.perf_counter()
        encoded = len(rows[-1].trainer.windows.variant(0))
        encoding = (time.perf_counter() - started) / encoded
        for row in rows:
            row.warm_up()
        rates = rates_of(device)
        for index in range(1, arguments.steps + 1):
            for row in rows:
                row.seconds.append(row.step(index))
            rates = {name: max(rate, rates[name]) for name, rate in rates_of(device).items()}
        durations = {clip.id: clip.duration for clip in clips}
        machine = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "threads": rows[0].recipe.threads,
            "load_before": busy,
            "rates": rates,
            "encoding_seconds_a_window": encoding,
        }
        return [row.result(durations, rates) | machine for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of a run."""
    first = rows[0]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in first["rates"].items())
    lines = [
        f"`python benchmarks/training.py ../shared/data`: {first['steps']} steps of 8 windows each in turn, on "
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, load of the machine before "
        f"{first['load_before']:.1f}. Large matrices are multiplied at {rates}. Encoding, once, takes "
        f"{first['encoding_seconds_a_window']:.2f} s a window and is not in the rows that have it cached.",
        "",
        "| trainer | windows/s | clips/s | seconds of speech/s | speech tokens/s | text tokens/s | GFLOP a step "
        "| share of the peak | against the first |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if first["load_before"] > 0.5:
        lines[:0] = ["Provisional: other work ran beside it.", ""]
    for row in rows:
        lines.append(
            f"| {row['trainer']} | {row['windows']:.2f} | {row['clips']:.2f} | {row['speech_seconds']:.1f} | "
            f"{row['speech_tokens']:.0f} | {row['text_tokens']:.0f} | {row['flops_a_step'] / 1e9:,.0f} | "
            f"{row['share_of_peak']:.0%} | {row['speech_seconds'] / first['speech_seconds']:.1f} × |"
        )
    return "\n".join(lines)


def write(rows: list[dict[str, Any]]) -> None:
    """Rows to docs/experiments, the table between its marks; runs on other devices stay."""
    kept = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    kept = [row for row in kept if row["device"] != rows[0]["device"]] + rows
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept))
    page = PAGE.read_text()
    before, rest = page.split(START)
    by_device = {row["device"]: [own for own in kept if own["device"] == row["device"]] for row in kept}
    content = "\n\n".join(table(own) for own in by_device.values())
    PAGE.write_text(f"{before}{START}\n{content}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each trainer")
    parser.add_argument("--set", action="append", default=["threads=2"], help="a setting of the recipe")
    rows = run(parser.parse_args())
    print(table(rows))
    write(rows)


if __name__ == "__main__":
    main()

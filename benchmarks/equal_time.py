"""Ingredients of training, one changed at a time, each for the same processor time.

    python benchmarks/equal_time.py reader runs/equal-time [--minutes 6] [--set threads=1 …]
    python benchmarks/equal_time.py answers runs/equal-time --minutes 4

`reader`: stage 1 from its first step, Whisper's decoder reading the tokens (recipes/tiny/stage1-reader.yaml).
`answers`: the language model's LoRA from its first step, from text alone (recipes/tiny/stage3.yaml). Needs what
`recipes/tiny/prepare.sh` makes. A few steps tell what a step costs, and a run then has as many as fit; its rate falls
to nothing at the last. What is counted is processor time within steps: loading, encoding and validation are not. Rows
are kept in docs/experiments/equal-time.jsonl and not measured again; the tables go into docs/training.md.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from page_section import put_section

from fastslm.training.recipe import Recipe, load_recipe
from fastslm.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "docs" / "experiments" / "equal-time.jsonl", ROOT / "docs" / "training.md"
# The first step also pays for what is made once.
PROBED = 6

# Of a short run: the recipes' own averages and warm-ups are for long ones.
SHORT: dict[str, dict[str, Any]] = {
    "reader": {"warmup_steps": 15, "average": 0.97},
    "answers": {"warmup_steps": 10, "average": 0.9, "accumulate": 1, "batch_seconds": 300, "max_minutes": 0.5},
}
RECIPES = {"reader": "stage1-reader", "answers": "stage3"}
BASE: dict[str, dict[str, Any]] = {
    "reader": {"data.variants": 1},
    "answers": {
        "start_from": None,
        # Nothing is heard; what is read must be there.
        "data.train": [{"path": "cache/labels/librispeech.jsonl"}],
        "data.instructions": [
            {"path": "cache/instructions/coffee.jsonl", "share": 0.6},
            {"path": "cache/instructions/librispeech.jsonl", "share": 0.25},
            {"path": "cache/instructions/commonvoice.jsonl", "share": 0.15},
        ],
    },
}
# What is changed: keys of the phase, of its rates after `rates.`, or, with a dot before them, of the recipe.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "reader": {
        "the recipe": {},
        "the recipe, with other draws": {"shift_frames": 16},
        "a random start, not least squares": {".model.reader.start_windows": 0},
        "AdamW alone, no Muon": {"rates.hfq_matrices": 0.0, "rates.reader_matrices": 0.0, "rates.head_matrices": 0.0},
        "HFQ-Former at a fifth of its speed": {"rates.hfq_matrices": 0.001, "rates.hfq_other": 0.0001},
        "unfolder at a fifth of its speed": {"rates.reader_matrices": 0.001, "rates.reader_other": 0.0001},
        "both at twice their speed": {
            "rates.hfq_matrices": 0.01,
            "rates.hfq_other": 0.001,
            "rates.reader_matrices": 0.01,
            "rates.reader_other": 0.001,
        },
        "no average of weights": {"average": 0.0},
        "LoRA of rank 8 in the decoder": {".model.reader.lora_rank": 8, "rates.decoder": 0.0005},
    },
    "answers": {
        "the recipe": {},
        "LoRA of rank 4": {".model.lora.rank": 4, ".model.lora.alpha": 16},
        "LoRA of rank 64": {".model.lora.rank": 64, ".model.lora.alpha": 256},
        "half the speed": {"rates.lora": 0.0003},
        "twice the speed": {"rates.lora": 0.0012},
    },
}
# Of a validation: how it is called and written.
FIGURES = {
    "reader": {"written_wer": ("words wrong", ".1%")},
    "answers": {"ask_loss": ("loss of an answer", ".3f"), "right_answers": ("orders right", ".1%")},
}


class Timed(Trainer):
    """A trainer that counts the processor time of its steps."""

    spent: list[float]

    def _one_step(self, *given: Any) -> dict[str, float]:
        begun = time.process_time()
        numbers = super()._one_step(*given)
        self.spent.append(time.process_time() - begun)
        return numbers


def recipe_of(kind: str, change: Mapping[str, Any], steps: int, out: Path, settings: list[str]) -> Recipe:
    """The short run's recipe, with what a variant changes."""
    file = ROOT / "recipes" / "tiny" / f"{RECIPES[kind]}.yaml"
    (published,) = yaml.safe_load(file.read_text(encoding="utf-8"))["phases"]
    phase = {**published, **SHORT[kind], "steps": steps, "validate_every": steps}
    keys: dict[str, Any] = dict(BASE[kind])
    for key, value in change.items():
        if key.startswith("."):
            keys[key[1:]] = value
        elif key.startswith("rates."):
            phase["rates"] = {**phase["rates"], key.removeprefix("rates."): value}
        else:
            phase[key] = value
    keys |= {"phases": [phase], "out": str(out), "checkpoint_minutes": 600, "threads": 1}
    return load_recipe(file, [*(f"{key}={json.dumps(value)}" for key, value in keys.items()), *settings])


def trained(recipe: Recipe) -> tuple[list[float], list[dict[str, Any]]]:
    """Processor seconds of every step, and the rows of the log."""
    trainer = Timed(recipe, quiet=True)
    trainer.spent = []
    trainer.run()
    return trainer.spent, [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]


def measure(kind: str, name: str, minutes: float, out: Path, settings: list[str]) -> dict[str, Any]:
    """The row of a variant."""
    change = VARIANTS[kind][name]
    for folder in (out, out.with_name(out.name + "-probe")):
        shutil.rmtree(folder, ignore_errors=True)
    # What a step costs does not depend on where the weights start.
    quick = change | ({".model.reader.start_windows": 0} if kind == "reader" else {})
    probe, _ = trained(recipe_of(kind, quick, PROBED, out.with_name(out.name + "-probe"), settings))
    steps = round(minutes * 60 / (sum(probe[1:]) / (PROBED - 1)))
    spent, rows = trained(recipe_of(kind, change, steps, out, settings))
    last = [row for row in rows if row["kind"] == "validation"][-1]
    losses = [row["loss"] for row in rows if row["kind"] == "step"][-20:]
    figures = {key: last[key] for key in FIGURES[kind] if key in last}
    return {"steps": steps, "spent": sum(spent) / 60, "loss": sum(losses) / len(losses), **figures}


def table(kind: str, rows: list[dict[str, Any]]) -> str:
    titles = [title for title, _ in FIGURES[kind].values()]
    lines = [
        "| " + " | ".join(["what is changed", "minutes", "steps", *titles]) + " |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for row in rows:
        if row["kind"] == kind:
            written = [format(row[key], form) if key in row else "" for key, (_, form) in FIGURES[kind].items()]
            cells = [row["name"], f"{row['spent']:.1f}", str(row["steps"]), *written]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not measured yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=VARIANTS)
    parser.add_argument("out", type=Path, help="a folder for the runs")
    parser.add_argument("--minutes", type=float, default=6.0, help="of one core, for each variant")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the recipe")
    given = parser.parse_args()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for index, name in enumerate(VARIANTS[given.kind]):
        asked = {"kind": given.kind, "name": name, "minutes": given.minutes, "set": " ".join(given.set)}
        if any(all(row[key] == value for key, value in asked.items()) for row in rows):
            continue
        row = asked | measure(given.kind, name, given.minutes, given.out / f"{given.kind}-{index}", given.set)
        print(json.dumps(row), flush=True)
        ROWS.parent.mkdir(parents=True, exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    put_section(table(given.kind, rows), PAGE, f"equal time: {given.kind}")


if __name__ == "__main__":
    main()

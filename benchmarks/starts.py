"""Three ways to start training, at the same wall time: cold, alignment warm-up, tied start.

    python benchmarks/starts.py runs/starts [--set threads=1 …]

The table of docs/training.md. Same data, model and seed; only the phases differ. Each ends with its
learning rate at nothing, after some minutes of one core; the seconds that it took are in the table. The alignment
run needs the extra `align`; the time in which its words are aligned counts.
"""

import json
import sys
from pathlib import Path

from fastslm.training.recipe import load_recipe
from fastslm.training.trainer import Trainer

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny" / "stage1.yaml"
CTC = {
    "name": "ctc",
    "objective": "ctc",
    "batch_windows": 4,
    "rates": {"hfq_matrices": 0.01, "hfq_other": 0.001, "head_matrices": 0.01, "head_other": 0.001},
    "warmup_steps": 30,
    "shift_frames": 15,
    "dropout": 0.05,
    "validate_every": 70,
}
ALIGNMENT = {**CTC, "name": "alignment", "objective": "alignment"}
TIED = {
    **CTC,
    "name": "tied",
    "objective": "tied",
    "rates": {"hfq_other": 0.003, "head_other": 0.003},
    "final_rate": 0.1,
}
RUNS = {
    "cold: CTC from the first step": [{**CTC, "steps": 210}],
    "alignment warm-up, then CTC": [{**ALIGNMENT, "steps": 60}, {**CTC, "steps": 140}],
    "tied start, then CTC": [{**TIED, "steps": 420}, {**CTC, "steps": 40}],
}


def main() -> None:
    """Run what has not been run, and print the table."""
    out, overrides = Path(sys.argv[1]), [a for a in sys.argv[2:] if a != "--set"]
    print("| start | seconds | steps | training loss (mean of the last 20) | validation CER | validation WER |")
    print("|---|---|---|---|---|---|")
    for index, (name, phases) in enumerate(RUNS.items()):
        folder = out / str(index)
        if not (folder / "model").is_dir():
            settings = [f"out={folder}", "data.variants=1", f"phases={json.dumps(phases)}", *overrides]
            Trainer(load_recipe(RECIPE, settings)).run()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if row["kind"] == "step"]
        last = [row for row in rows if row["kind"] == "validation"][-1]
        loss = sum(row["loss"] for row in steps[-20:]) / 20
        print(f"| {name} | {last['seconds']:.0f} | {len(steps)} | {loss:.2f} | {last['cer']:.1%} | {last['wer']:.1%} |")


if __name__ == "__main__":
    main()

"""The model card of a checkpoint: every speech set's `test` split, beside Whisper's own decoder on the same clips.

    python benchmarks/card.py checkpoints/fastslm-tiny ../shared/data

Each row is one `fastslm evaluate asr` command. Results are kept as JSON beside the card, so that what was measured
before is not measured again, unless the checkpoint has changed.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

SPLITS = (
    "librispeech/test",
    "librispeech/test_other",
    "commonvoice/test",
    "speechocean/test",
    "longform/test",
)
SYSTEMS = ("fastslm", "whisper")


def measure(checkpoint: Path, data: Path, split: str, system: str) -> dict:
    """One evaluation in a process of its own, as a user would run it."""
    command = ["fastslm", "evaluate", "asr", "--manifest", str(data / f"{split}.jsonl"), "--json"]
    command += ["--model", str(checkpoint)] if system == "fastslm" else ["--system", "whisper"]
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout)
    # How fast it was is another benchmark's matter: this one may run beside other work.
    for timing in ("processing_seconds", "real_time_factor"):
        del report[timing]
    return {**report, "split": split}


def results(checkpoint: Path, data: Path) -> list[dict]:
    """All rows, measured now or kept from before."""
    kept_at = checkpoint / "results.json"
    with (checkpoint / "model.safetensors").open("rb") as weights:
        stamp = hashlib.file_digest(weights, "sha256").hexdigest()
    kept = json.loads(kept_at.read_text()) if kept_at.exists() else {"weights": stamp, "rows": []}
    same = kept["weights"] == stamp
    rows = [row for row in kept["rows"] if same or row["system"] == "whisper"]
    for split in SPLITS:
        for system in SYSTEMS:
            if not any(row["split"] == split and row["system"] == system for row in rows):
                print(f"{split}, {system}", file=sys.stderr)
                rows.append(measure(checkpoint, data, split, system))
                partial = kept_at.with_suffix(".partial")
                partial.write_text(json.dumps({"weights": stamp, "rows": rows}, indent=1) + "\n")
                os.replace(partial, kept_at)
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    by = {(row["split"], row["system"]): row for row in rows}
    lines = [
        "| split | clips | words | fastslm-tiny WER (95 % interval) | CER | Whisper tiny.en's decoder WER |",
        "|---|---|---|---|---|---|",
    ]
    for split in SPLITS:
        ours, whisper = by[split, "fastslm"], by[split, "whisper"]
        low, high = ours["wer_interval_95"]
        lines.append(
            f"| `{split}` | {ours['clips']} | {ours['words']} | **{ours['wer']:.1%}** ({low:.1%} – {high:.1%}) "
            f"| {ours['cer']:.1%} | {whisper['wer']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, and put the table between the card's markers."""
    checkpoint, data = Path(sys.argv[1]), Path(sys.argv[2])
    rows = results(checkpoint, data)
    card = checkpoint / "README.md"
    text = card.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- results -->")
    _, _, tail = rest.partition("<!-- end of results -->")
    card.write_text(f"{head}<!-- results -->\n{table(rows)}\n<!-- end of results -->{tail}", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()

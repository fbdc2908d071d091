"""The model card of a checkpoint: every suite on the `test` splits, each beside a baseline on the same clips.

    python benchmarks/card.py checkpoints/fastslm-tiny ../shared/data [--limit 5] [--without cascade]

Each row is one `fastslm evaluate` command. Results are kept as JSON beside the card, so that what was measured before
is not measured again, unless the checkpoint has changed, and the tables go into the card. With `--limit`, only the
first so many clips of each split are heard, and the tables are only printed: a look, not a result.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fastslm.data.manifest import read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))
from orders import evaluated

SPLITS = {
    "asr": ("librispeech/test", "librispeech/test_other", "commonvoice/test", "speechocean/test", "longform/test"),
    "silence": ("environment/test",),
    "sqqa": ("coffee/test",),
}
BASELINES = {"asr": "whisper", "silence": "whisper", "sqqa": "cascade"}
BASELINE_NAMES = {
    "whisper": "Whisper tiny.en's decoder",
    "cascade": "Whisper tiny.en, then the untrained language model",
}
# Figure, its title, how it is written; those of recognition have a table of their own.
FIGURES = {
    "silence": (("no_words", "clips without words", ".1%"), ("words_per_minute", "words a minute", ".1f")),
    "sqqa": (
        ("exact_match", "exact answers", ".1%"),
        ("token_f1", "token F1", ".3f"),
        ("not_mentioned", "rightly not mentioned", ".1%"),
        ("missed", "wrongly not mentioned", ".1%"),
    ),
}


def measure(checkpoint: Path, data: Path, suite: str, split: str, system: str, limit: int | None) -> dict:
    """One evaluation in a process of its own, as a user would run it."""
    with TemporaryDirectory() as folder:
        manifest = data / f"{split}.jsonl"
        if suite == "sqqa":
            questions = Path(folder).resolve() / "questions.jsonl"
            write_manifest(questions, evaluated(read_manifest(manifest)[:limit], questions.parent))
            manifest, limit = questions, None
        command = ["fastslm", "evaluate", suite, "--manifest", str(manifest), "--json"]
        command += ["--model", str(checkpoint)] if system == "fastslm" else ["--system", system]
        command += [] if limit is None else ["--limit", str(limit)]
        program = Path(sys.executable).with_name(command[0])
        done = subprocess.run([program, *command[1:]], check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout)
    # How fast it was is another benchmark's matter: this one may run beside other work.
    for timing in ("processing_seconds", "real_time_factor"):
        del report[timing]
    return {**report, "split": split}


def results(checkpoint: Path, data: Path, limit: int | None, without: Sequence[str] = ()) -> list[dict]:
    """All rows, measured now or, without a limit, kept from before."""
    kept_at = checkpoint / "results.json"
    with (checkpoint / "model.safetensors").open("rb") as weights:
        stamp = hashlib.file_digest(weights, "sha256").hexdigest()
    kept = json.loads(kept_at.read_text()) if kept_at.exists() and limit is None else {"weights": stamp, "rows": []}
    same = kept["weights"] == stamp
    rows = [{"suite": "asr", **row} for row in kept["rows"] if same or row["system"] != "fastslm"]
    for suite, splits in SPLITS.items():
        for split in splits:
            if not (data / f"{split}.jsonl").is_file():
                print(f"{split} is not in {data}: left out", file=sys.stderr)
                continue
            for system in ("fastslm", BASELINES[suite]):
                if system in without or (suite, split, system) in {
                    (row["suite"], row["split"], row["system"]) for row in rows
                }:
                    continue
                print(f"{suite} of {split}, {system}", file=sys.stderr)
                rows.append(measure(checkpoint, data, suite, split, system, limit))
                if limit is None:
                    partial = kept_at.with_suffix(".partial")
                    partial.write_text(json.dumps({"weights": stamp, "rows": rows}, indent=1) + "\n")
                    os.replace(partial, kept_at)
    return rows


def tables(rows: list[dict], name: str) -> str:
    """The rows as Markdown: recognition, then all else."""
    by = {(row["suite"], row["split"], row["system"]): row for row in rows}
    lines = [
        f"| split | clips | words | {name} WER (95 % interval) | CER | {BASELINE_NAMES['whisper']} WER |",
        "|---|---|---|---|---|---|",
    ]
    for split in SPLITS["asr"]:
        if ("asr", split, "fastslm") in by:
            ours, other = by["asr", split, "fastslm"], by["asr", split, "whisper"]
            lines.append(
                f"| `{split}` | {ours['clips']} | {ours['words']} | {interval(ours, 'wer', '.1%')} | {ours['cer']:.1%} "
                f"| {other['wer']:.1%} |"
            )
    lines += ["", f"| split | figure | samples | {name} (95 % interval) | compared with | its figure |"]
    lines.append("|---|---|---|---|---|---|")
    for suite, figures in FIGURES.items():
        system = BASELINES[suite]
        for split in SPLITS[suite]:
            for figure, title, form in figures if (suite, split, "fastslm") in by else ():
                ours, other = by[suite, split, "fastslm"], by.get((suite, split, system), {})
                lines.append(
                    f"| `{split}` | {title} | {ours[f'{figure}_samples']} | {interval(ours, figure, form)} "
                    f"| {BASELINE_NAMES[system]} | {written(other.get(figure), form)} |"
                )
    return "\n".join(lines)


def interval(row: dict, figure: str, form: str) -> str:
    """A figure of the model with its interval."""
    if row[figure] is None:
        return "–"
    low, high = row[f"{figure}_interval_95"]
    return f"**{row[figure]:{form}}** ({low:{form}} – {high:{form}})"


def written(value: float | None, form: str) -> str:
    """A number, or that there is none."""
    return "–" if value is None else f"{value:{form}}"


def main() -> None:
    """Measure, print the tables, and put them between the card's markers."""
    parser = argparse.ArgumentParser(description="The tables of a model card.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, help="only the first so many clips of each split; nothing is kept")
    parser.add_argument("--without", nargs="*", default=(), help="baselines to leave out unless they are kept: cascade")
    chosen = parser.parse_args()
    rows = results(chosen.checkpoint, chosen.data, chosen.limit, chosen.without)
    found = tables(rows, chosen.checkpoint.resolve().name)
    if chosen.limit is None:
        card = chosen.checkpoint / "README.md"
        text = card.read_text(encoding="utf-8")
        head, _, rest = text.partition("<!-- results -->")
        _, _, tail = rest.partition("<!-- end of results -->")
        content = f"{head}<!-- results -->\n{found}\n<!-- end of results -->{tail}"
        partial = card.with_suffix(".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, card)
    print(found)


if __name__ == "__main__":
    main()

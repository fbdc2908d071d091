"""Every task after every stage: what each stage learns, and that nothing from before is lost.

    python benchmarks/stages.py ../shared/data runs/tiny-stage1-between runs/tiny-stage2/model \
        runs/tiny-stage3/model [--limit 10]

Writes the section "Every task after every stage" of docs/training.md. The upper table is of validation rows
(`recipes/tiny/prepare.sh` makes them): what the right answers cost a model that is given the right words. The lower one
is of recordings of the `test` splits, each row one `fastslm evaluate`; long ones are composed here of
`librispeech/test`, with an order of `coffee/test` somewhere in each. Figures are kept in `--work` by the weights that
they depend on: transcripts, which Whisper's decoder writes, are not measured again where only the language model's part
has changed. A model whose language model does not read speech yet is asked nothing. With `--limit`, the others are
asked about the first so many clips and rows only, and the section says so; with `--kept`, nothing is measured.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from page_section import put_section
from safetensors.torch import load_file

import fastslm
from fastslm.data.composition import Composing, compose
from fastslm.data.manifest import Clip, manifest_digest, read_manifest, write_manifest
from fastslm.data.tasks import synthesize
from fastslm.model.heard_words import HeardWords
from fastslm.training.answers import Answers

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))
from orders import EVALUATED, evaluated

DOCS = Path(__file__).parents[1] / "docs" / "training.md"
SECTION = "stages"
LONG_MINUTES, LONG_COUNT = (1.0, 5.0), 12
VALIDATION_ROWS = {
    "coffee-validation": "questions about orders",
    "long-validation": "recordings of 1 to 5 minutes",
    "translations-validation": "captions, into French",
}
VALIDATED = 40
NOT_TAUGHT: dict[str, Any] = {}
# What the language model has to have been taught for a suite.
TASK_OF = {"sqqa": "ask", "ssum": "summarize", "ast": "translate"}
# What the transcripts of Whisper's decoder and of the CTC head depend on.
SPEECH_PARTS = ("hfq_former.", "ctc_head.", "reader.")
TITLES = {
    "ask_loss": "loss of answers",
    "summarize_loss": "loss of summaries",
    "transcribe_loss": "loss of transcripts",
    "translate_loss": "loss of translations",
    "right_answers": "answers right",
}


@dataclass(frozen=True)
class Figure:
    """A figure of a suite over a manifest, in DATA or made here, and how it is called and written."""

    suite: str
    manifest: str
    name: str
    title: str
    form: str = ".1%"


FIGURES = (
    Figure("asr", "librispeech/test", "wer", "words wrong, clips"),
    Figure("asr", "longform/test", "wer", "words wrong, 2 to 7 minutes"),
    Figure("sqqa", "orders-test", "exact_match", "orders: exact answers"),
    Figure("sqqa", "orders-test", "not_mentioned", 'orders: rightly "not mentioned"'),
    Figure("sqqa", "long-orders", "exact_match", "orders in one window of many: exact answers"),
    Figure("sqqa", "long-orders", "not_mentioned", 'orders in one window of many: rightly "not mentioned"'),
    Figure("ssum", "long-talks", "rouge_l", "summaries of 1 to 5 minutes: ROUGE-L", ".3f"),
    Figure("ast", "translations/test-spoken", "bleu", "captions, spoken by a machine, into French: BLEU", ".1f"),
    Figure("silence", "environment/test", "no_words", "clips without speech that get no words"),
)


def make_long(data: Path, work: Path) -> None:
    """Manifests of long recordings of `test` splits, in `work`: with an order in each, and with their summaries."""
    clips = read_manifest(data / "librispeech" / "test.jsonl")
    needles = read_manifest(data / "coffee" / "test.jsonl")
    orders = Composing(minutes=LONG_MINUTES, count=LONG_COUNT, seed=7)
    write_manifest(work / "orders-test.jsonl", evaluated(needles, work.resolve()))
    write_manifest(work / "composed-orders.jsonl", compose(clips, orders, work.resolve(), needles=needles))
    write_manifest(work / "long-orders.jsonl", evaluated(read_manifest(work / "composed-orders.jsonl"), work.resolve()))
    talks = Composing(minutes=LONG_MINUTES, count=LONG_COUNT, seed=8)
    write_manifest(work / "talks.jsonl", compose(clips, talks, work.resolve()))
    rows = synthesize(read_manifest(work / "talks.jsonl"), work.resolve(), ["summarize"], seed=8)
    write_manifest(work / "long-talks.jsonl", rows)


def measured(model: Path, suite: str, manifest: Path, limit: int | None) -> dict[str, Any]:
    """One evaluation in a process of its own, as a user would run it."""
    program = Path(sys.executable).with_name("fastslm")
    command = [program, "evaluate", suite, "--manifest", manifest, "--model", model, "--json"]
    command += [] if limit is None else ["--limit", str(limit)]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def validated(folder: Path, rows: Sequence[Clip]) -> dict[str, float]:
    """Losses and right answers of a model that is given the rows' words, whether or not it reads such by itself."""
    loaded = fastslm.load(str(folder), quiet=True)
    model: Any = loaded.model
    if model.heard_words is None:
        # Before it was taught to: the language model as it was published.
        model.heard_words = HeardWords(model.reader, model.config.base_text_model, model.config.tokens_per_window)
    with torch.inference_mode():
        return Answers(model, loaded.processor).judged_by(rows)


class Kept:
    """Figures in a file, by what they depend on."""

    def __init__(self, file: Path, only: bool):
        self.file, self.only = file, only

    def rows(self) -> dict[str, Any]:
        """All that is there now: another process may have measured another model."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def get(self, key: str, make: Any) -> Any:
        """What was found before, or what `make` finds now; `None` where it may not."""
        if key not in (rows := self.rows()) and self.only:
            return None
        if key not in rows:
            started = monotonic()
            found = make()
            print(f"{key}: {monotonic() - started:.0f} s", file=sys.stderr)
            rows = self.rows() | {key: found}
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(rows, indent=1) + "\n")
            os.replace(partial, self.file)
        return rows[key]


def stamp(model: Path, transcripts: bool = False) -> str:
    """Of a model's weights, or of those alone that its transcripts depend on."""
    config = json.loads((model / "config.json").read_text())
    digest = hashlib.sha256()
    of_speech = transcripts and config["transcript_reader"] in ("whisper", "ctc")
    for name, weight in sorted(load_file(model / "model.safetensors").items()):
        if name.startswith(SPEECH_PARTS) or not of_speech:
            digest.update(name.encode())
            digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def taught(model: Path) -> Sequence[str]:
    """The tasks that a model says its language model was taught from speech."""
    config = json.loads((model / "config.json").read_text())
    return (config["llm_tasks"] or tuple(TASK_OF.values())) if config["llm_reads_speech"] else ()


def tables(
    models: Sequence[Path],
    losses: Sequence[dict[str, dict[str, float]]],
    tests: Sequence[dict[str, dict[str, Any] | None]],
    limit: int | None,
    section: str,
) -> str:
    """Both tables as Markdown: a row a figure, a column a stage."""
    names = [model.parent.name if model.name == "model" else model.name for model in models]
    only = ("" if limit is None else f" --limit {limit}") + ("" if section == SECTION else f" --section '{section}'")
    lines = [
        f"`python benchmarks/stages.py ../shared/data {' '.join(map(str, models))}{only}`",
        "",
        "Validation rows, words given:",
        "",
        f"| rows | figure | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for rows, title in VALIDATION_ROWS.items():
        for name in TITLES:
            if any(own[rows] and name in own[rows] for own in losses):
                form = ".1%" if name == "right_answers" else ".3f"
                cells = " | ".join(f"{own[rows][name]:{form}}" if own[rows] else "not measured" for own in losses)
                lines.append(f"| {title} | {TITLES[name]} | {cells} |")
    taken = "" if limit is None else f", asked about the first {limit} of each"
    lines += ["", f"Recordings of `test` splits{taken}, with 95 % intervals:", ""]
    lines += [f"| set | samples | figure | {' | '.join(names)} |", f"|---|---|---|{'---|' * len(names)}"]
    for figure in FIGURES:
        found = [own[f"{figure.suite} {figure.manifest}"] for own in tests]
        cells = " | ".join(_cell(own, figure) for own in found)
        samples = next((own[f"{figure.name}_samples"] for own in found if own), "–")
        lines.append(f"| `{figure.manifest}` | {samples} | {figure.title} | {cells} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None, figure: Figure) -> str:
    if not found:
        return "not taught" if found is NOT_TAUGHT else "not measured"
    if found[figure.name] is None:
        return "–"
    low, high = found[f"{figure.name}_interval_95"]
    return f"{found[figure.name]:{figure.form}} ({low:{figure.form}} – {high:{figure.form}})"


def main() -> None:
    """Measure what is not measured yet, print the tables, and put them into the documentation."""
    parser = argparse.ArgumentParser(description="Every task after every stage.")
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="the stages' models, in their order")
    parser.add_argument("--limit", type=int, help="the language model is asked about so many clips of each set")
    parser.add_argument("--work", type=Path, default=Path("cache/stages"))
    parser.add_argument("--rows", type=Path, default=Path("cache/instructions"), help="where the validation rows are")
    parser.add_argument("--section", default=SECTION, help="of the page, where it is not that of the stages")
    parser.add_argument("--kept", action="store_true", help="write what was measured before, and measure nothing")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    make_long(chosen.data, chosen.work)
    kept = Kept(chosen.work / "results.json", chosen.kept)
    losses: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    for model in chosen.models:
        own, speech = stamp(model), stamp(model, transcripts=True)
        losses.append({})
        for name in VALIDATION_ROWS:
            rows = read_manifest(chosen.rows / f"{name}.jsonl")[:VALIDATED]
            key = f"{own} {name} {manifest_digest(chosen.rows / f'{name}.jsonl')[:12]} {len(rows)}"
            losses[-1][name] = kept.get(key, lambda model=model, rows=rows: validated(model, rows))
        tests.append({})
        for suite, name in dict.fromkeys((figure.suite, figure.manifest) for figure in FIGURES):
            made_before = chosen.rows.parent if name.startswith("translations/") else chosen.data
            manifest = (made_before if "/" in name else chosen.work) / f"{name}.jsonl"
            heard = suite in ("asr", "silence")
            weights, limit = (speech, None) if heard else (own, chosen.limit)
            if not heard and TASK_OF[suite] not in taught(model):
                tests[-1][f"{suite} {name}"] = NOT_TAUGHT
                continue
            if limit is not None and suite == "sqqa":
                limit *= len(EVALUATED)  # rows, of which an order has several
            key = f"{weights} {suite} {name} {manifest_digest(manifest)[:12]} {limit}"
            tests[-1][f"{suite} {name}"] = kept.get(
                key,
                lambda model=model, suite=suite, manifest=manifest, limit=limit: measured(
                    model, suite, manifest, limit
                ),
            )
    found = tables(chosen.models, losses, tests, chosen.limit, chosen.section)
    put_section(found, DOCS, chosen.section)
    print(found)


if __name__ == "__main__":
    main()

"""Recordings of 2 to 5 minutes against the clips that they are made of: what does it cost to hear speech in one piece?

    python benchmarks/compositions.py ../shared/data [--also cache/more/test_clean/test.jsonl]

The clips of each `test` split are put together as `fastslm data compose` does it, in random order and by speaker, until
about all of them are used. The model writes down the clips, each alone, and the compositions; both are scored as by
`fastslm evaluate asr`. The ratio is that of the error rates over the same clips, as often as they occur, and its
interval is drawn over the compositions. The table goes to docs/evaluation.md. What was written down is kept in `--work`
for the model and the manifest that it is of, so a run that was stopped goes on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import fastslm
from fastslm.data.composition import SHORTFALL_SECONDS, Composing, compose
from fastslm.data.manifest import Clip, manifest_digest, read_manifest, write_manifest
from fastslm.errors import ManifestError
from fastslm.evaluation.bootstrap import Measure, measure
from fastslm.evaluation.metrics import ClipErrors, error_rates
from fastslm.evaluation.predictions import Predictions
from fastslm.evaluation.suite import evaluate
from fastslm.evaluation.suites.asr import Recognition
from fastslm.evaluation.systems import FastSLMSystem
from fastslm.writing import write_text

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
MARKS = ("<!-- compositions -->", "<!-- end of compositions -->")
SPLITS = ("librispeech/test", "librispeech/test_other", "commonvoice/test")
GROUPINGS = ("random", "speaker")
MINUTES = (2.0, 5.0)
SEED = 8


@dataclass(frozen=True)
class Compared:
    """Compositions and their clips alone: the two error rates, how many times the first the second is, and counts."""

    clips: Measure
    compositions: Measure
    ratio: Measure
    pieces: int
    words: int


def compared(rows: Sequence[Clip], alone: dict[str, ClipErrors], whole: dict[str, ClipErrors]) -> Compared:
    """Errors of compositions beside those of the clips in them.

    Args:
        rows: the compositions.
        alone: by a clip's id, its errors when it was heard alone.
        whole: by a composition's id, its errors.
    """
    parts = {}
    for row in rows:
        pieces = [alone[str(piece.id)] for piece in row.pieces]
        own = whole[row.id]
        parts[row.id] = (
            own.errors,
            own.words,
            sum(piece.errors for piece in pieces),
            sum(piece.words for piece in pieces),
        )
    return Compared(
        measure((name, part[2:]) for name, part in parts.items()),
        measure((name, part[:2]) for name, part in parts.items()),
        measure(parts.items(), _times),
        sum(len(row.pieces) for row in rows),
        sum(part[1] for part in parts.values()),
    )


def together(every: Sequence[Compared]) -> Compared:
    """All compositions as of one split."""

    def joined(figures: Sequence[Measure]) -> Measure:
        names = tuple(f"{index} {name}" for index, own in enumerate(figures) for name in own.clips)
        return Measure(names, np.concatenate([own.parts for own in figures]), len(names), figures[0].of)

    return Compared(
        joined([own.clips for own in every]),
        joined([own.compositions for own in every]),
        joined([own.ratio for own in every]),
        sum(own.pieces for own in every),
        sum(own.words for own in every),
    )


def _times(sums: np.ndarray) -> np.ndarray:
    """(…, 4) → (…): the error rate of the first two over that of the last two, NaN where that is none or 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
    return np.where(np.isfinite(found), found, np.nan)


def composed(clips: Sequence[Clip], by: str, folder: Path, most: int) -> list[dict[str, Any]]:
    """Compositions that use about all clips once, at most `most`.

    Raises:
        ManifestError: no speaker has enough clips.
    """
    low, high = MINUTES
    seconds = sum(clip.duration for clip in clips)
    if by == "speaker":
        own: dict[str | None, float] = {}
        for clip in clips:
            own[clip.speaker] = own.get(clip.speaker, 0.0) + clip.duration
        seconds = sum(length for length in own.values() if length >= low * 60)
    usual = ((low + high) * 60 + SHORTFALL_SECONDS) / 2
    count = min(max(1, round(seconds / usual)), most)
    return compose(clips, Composing(by, MINUTES, count, SEED), folder.resolve())


def heard(system: FastSLMSystem, manifest: Path, kept: Path) -> dict[str, ClipErrors]:
    """By id, the errors in what is written down of a manifest's rows, now or, where it is kept, before."""
    if not kept.is_file() or not _of(Predictions.load(kept), system, manifest):
        print(f"{manifest}: written down now", file=sys.stderr)
        evaluate(Recognition(), system, manifest, predictions=kept)
    rows = Predictions.load(kept).rows
    texts = ([row[key] for row in rows] for key in ("text", "hypothesis", "language"))
    return {row["id"]: errors for row, errors in zip(rows, error_rates(*texts).clips, strict=True)}


def _of(predictions: Predictions, system: FastSLMSystem, manifest: Path) -> bool:
    asked = {**system.facts("transcribe"), "manifest_sha256": manifest_digest(manifest)}
    return all(predictions.facts.get(key) == value for key, value in asked.items())


def line(name: str, by: str, rows: Sequence[Clip], found: Compared) -> str:
    """A row of the table."""
    lengths = [row.duration / 60 for row in rows]
    made = f"{len(rows)} of {min(lengths):.1f} to {max(lengths):.1f} min"
    return (
        f"| {name} | {by} | {made} | {found.pieces} | {found.words} "
        f"| {_with_interval(found.clips, '.1%')} | {_with_interval(found.compositions, '.1%')} "
        f"| **{_with_interval(found.ratio, '.2f')}** |"
    )


def _with_interval(own: Measure, form: str) -> str:
    if own.value is None or own.interval is None:
        return "–"
    low, high = own.interval
    return f"{own.value:{form}} ({low:{form}} – {high:{form}})"


def put(text: str, page: Path) -> None:
    """The section between its marks, whole or not at all; at the page's end where there are none yet."""
    whole = page.read_text(encoding="utf-8")
    if MARKS[0] not in whole:
        whole = f"{whole.rstrip()}\n\n{MARKS[0]}\n{MARKS[1]}\n"
    head, _, rest = whole.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    write_text(page, f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{tail}")


def main() -> None:
    """Compose, write down, score, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds librispeech/test.jsonl and the others")
    parser.add_argument("--also", type=Path, nargs="*", default=(), metavar="MANIFEST", help="of further test clips")
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--work", type=Path, default=Path("cache/compositions"))
    parser.add_argument("--most", type=int, default=40, help="compositions of a split and grouping, at most")
    parser.add_argument("--no-page", action="store_true", help="print the table and leave the page as it is")
    chosen = parser.parse_args()
    manifests = [chosen.data / f"{name}.jsonl" for name in SPLITS] + list(chosen.also)
    every = [read_manifest(manifest) for manifest in manifests]
    chosen.work.mkdir(parents=True, exist_ok=True)
    system = FastSLMSystem(fastslm.load(chosen.model, quiet=True))
    also = "".join(f" {path}" for path in chosen.also)
    lines = [
        f"`python benchmarks/compositions.py {os.path.relpath(chosen.data)}{f' --also{also}' if also else ''}`, "
        f"{system.model.name}, decoder {system.decoder}, {date.today()}:",
        "",
        "| clips of | composed by | compositions | clips in them | words | WER, alone | WER, composed | times |",
        "|---|---|---|---|---|---|---|---|",
    ]
    all_rows: list[Clip] = []
    found: list[Compared] = []
    for manifest, clips in zip(manifests, every, strict=True):
        name = f"{manifest.parent.name}/{manifest.stem}"
        alone: dict[str, ClipErrors] = {}
        for by in GROUPINGS:
            stem = f"{name.replace('/', '-')}-{by}"
            try:
                write_manifest(chosen.work / f"{stem}.jsonl", composed(clips, by, chosen.work, chosen.most))
            except ManifestError as error:
                print(f"{name} by {by} is left out: {error}", file=sys.stderr)
                continue
            # Only now, since a split of which nothing can be composed needs no hearing.
            alone = alone or heard(system, manifest, chosen.work / f"{name.replace('/', '-')}-clips.predictions.jsonl")
            rows = read_manifest(chosen.work / f"{stem}.jsonl")
            whole = heard(system, chosen.work / f"{stem}.jsonl", chosen.work / f"{stem}.predictions.jsonl")
            all_rows += rows
            found.append(compared(rows, alone, whole))
            lines.append(line(f"`{name}`", by, rows, found[-1]))
            print(lines[-1], file=sys.stderr)
    if found:
        lines.append(line("all of them", "", all_rows, together(found)))
    if not chosen.no_page:
        put("\n".join(lines), PAGE)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

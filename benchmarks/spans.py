"""An hour in which one order is spoken, asked about in one prompt and in parts: how long may a part be?

    python benchmarks/spans.py fastslm-tiny ../shared/data [--split validation] [--orders 8] [--minutes 60]

Writes "How long a part may be" of docs/benchmarks.md. Around the order are clips of `librispeech`, encoded
once; an hour repeats them. Orders are of `coffee`, each asked about in the phrasing of an evaluation. The length that
is best on `validation` is what a checkpoint may have as `taught_seconds`.
With `--captions cache/translations/test-spoken.jsonl` (`recipes/tiny/prepare.sh`) captions are joined to recordings of
two minutes too, and translated in one prompt and window by window.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import numpy as np
import torch
from page_section import put_section
from sacrebleu.metrics.bleu import BLEU

import fastslm
from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS
from fastslm.data.manifest import Clip, read_manifest
from fastslm.evaluation.metrics import normalize_answer
from fastslm.longform.memory import MemoryFacts, SpeechMemory

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))
from orders import KINDS, order_questions

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
# 0 is one prompt.
PARTS = (0.0, 900.0, 600.0, 300.0, 150.0)
PAUSE_SECONDS = 0.6
CAPTIONS_SECONDS = 110


def joined(clips: list[Clip]) -> np.ndarray:
    """The clips' sound with a pause after each."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    return np.concatenate([part for clip in clips for part in (clip.read(), pause)])


def recording(around: SpeechMemory, spoken: SpeechMemory, windows: int, place: int) -> SpeechMemory:
    """So many windows of what is around, over and over, and those of the order in between."""
    own = len(spoken.tokens)
    order = [index % len(around.tokens) for index in range(windows - own)]
    tokens = torch.cat([around.tokens[order[:place]], spoken.tokens, around.tokens[order[place:]]])
    lengths = [(memory.times[:, 1] - memory.times[:, 0]) for memory in (around, spoken)]
    seconds = torch.cat([lengths[0][order[:place]], lengths[1], lengths[0][order[place:]]])
    ends = seconds.cumsum(0)
    facts = MemoryFacts(around.facts.token_fingerprint, "an hour", float(ends[-1]), "")
    silent = torch.zeros(windows, dtype=torch.bool)
    return SpeechMemory(tokens, torch.stack([ends - seconds, ends], 1), silent, facts)


def measure(
    model: Any, data: Path, split: str, count: int, minutes: float, parts: Sequence[float]
) -> list[dict[str, Any]]:
    """Of every length of parts, how many questions of each kind are answered right, and how long one takes."""
    speech = read_manifest(data / "librispeech" / f"{split}.jsonl")
    orders = [clip for clip in read_manifest(data / "coffee" / f"{split}.jsonl") if clip.slots]
    rng = Random(1)
    chosen = rng.sample(orders, count)
    around = model.encode(joined(speech), sampling_rate=SAMPLE_RATE)
    windows = round(minutes * 60 / WINDOW_SECONDS)
    right: dict[float, Counter[str]] = {part: Counter() for part in parts}
    asked: Counter[str] = Counter()
    seconds: dict[float, list[list[float]]] = {part: [[], []] for part in parts}
    for number, order in enumerate(chosen):
        neighbours = rng.sample([clip for clip in speech if clip.duration < 9], 2)
        spoken = model.encode(joined([neighbours[0], order, neighbours[1]]), sampling_rate=SAMPLE_RATE)
        memory = recording(around, spoken, windows, round((number + 0.5) / count * (windows - len(spoken.tokens))))
        questions = order_questions(order.slots or {})
        groups = [("said" if question.mentioned else "not", question) for question in questions]
        asked.update(f"{question.kind} {group}" for group, question in groups)
        for part in parts:
            for index, (group, question) in enumerate(groups):
                begun = monotonic()
                options: dict[str, Any] = {"span_seconds": part} if part else {"method": "whole"}
                answer = model.ask(memory, question.question, **options).text
                seconds[part][min(index, 1)].append(monotonic() - begun)
                right[part][f"{question.kind} {group}"] += int(
                    normalize_answer(question.answer) == normalize_answer(answer)
                )
            model.answerer.prefixes.clear()
    return [
        {
            "part": part,
            "right": dict(right[part]),
            "asked": dict(asked),
            "first": float(np.median(seconds[part][0])),
            "later": float(np.median(seconds[part][1])),
        }
        for part in parts
    ]


def translated(model: Any, captions: list[Clip]) -> list[dict[str, Any]]:
    """BLEU of recordings of about two minutes, of whole captions each, in one prompt and in parts of a window."""
    recordings: list[list[Clip]] = [[]]
    for clip in captions:
        if sum(own.duration + PAUSE_SECONDS for own in recordings[-1]) > CAPTIONS_SECONDS:
            recordings.append([])
        recordings[-1].append(clip)
    wanted = [" ".join((clip.translation or "").strip() for clip in own) for own in recordings]
    memories = [model.encode(joined(own), sampling_rate=SAMPLE_RATE) for own in recordings]
    rows = []
    for part in (0, WINDOW_SECONDS):
        options: dict[str, Any] = {"span_seconds": part} if part else {"method": "whole"}
        given = [model.translate(memory, "fr", **options).text for memory in memories]
        rows.append({"part": part, "recordings": len(memories), "bleu": BLEU().corpus_score(given, [wanted]).score})
    return rows


def translations_table(rows: list[dict[str, Any]], command: str) -> str:
    """Of `translated`."""
    lines = [
        f"`{command}`: {rows[0]['recordings']} recordings of two minutes, of captions, into French.",
        "",
        "| parts of | BLEU |",
        "|---|---|",
    ]
    for row in rows:
        lines.append(f"| {'a window' if row['part'] else 'one prompt'} | {row['bleu']:.1f} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], command: str) -> str:
    """The section."""
    kinds = [kind for kind in KINDS if kind != "drink"]

    def of(row: dict[str, Any], kinds: list[str], group: str) -> str:
        asked = sum(row["asked"].get(f"{kind} {group}", 0) for kind in kinds)
        return f"{sum(row['right'].get(f'{kind} {group}', 0) for kind in kinds)} of {asked}"

    lines = [
        f"`{command}`: questions about one order somewhere in the recording, answers right.",
        "",
        "| parts of | the drink | what else was said | not mentioned | seconds, first question | a later one |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        part = f"{row['part'] / 60:g} minutes" if row["part"] else "one prompt"
        cells = [part, of(row, ["drink"], "said"), of(row, kinds, "said"), of(row, list(KINDS), "not")]
        lines.append("| " + " | ".join([*cells, f"{row['first']:.1f}", f"{row['later']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--orders", type=int, default=8, help="0: only --captions")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--parts", default=",".join(f"{part:g}" for part in PARTS), help="seconds; 0 is one prompt")
    parser.add_argument("--captions", type=Path, help="translations with sound")
    parser.add_argument("--print", action="store_true", help="do not write the page")
    given = parser.parse_args()
    parts = [float(part) for part in given.parts.split(",")]
    model = fastslm.load(given.model, quiet=True)
    command = f"python benchmarks/spans.py {given.model} ../shared/data --orders {given.orders}"
    found: dict[str, str] = {}
    if given.orders:
        command += f" --split {given.split} --minutes {given.minutes:g} --parts {given.parts}"
        rows = measure(model, given.data, given.split, given.orders, given.minutes, parts)
        for row in rows:
            print(json.dumps(row), flush=True)
        found["spans"] = table(rows, command)
    if given.captions is not None:
        rows = translated(model, read_manifest(given.captions))
        print(json.dumps(rows), flush=True)
        found["translations in parts"] = translations_table(rows, f"{command} --captions {given.captions}")
    for section, text in found.items():
        print(text)
        if not given.print:
            put_section(text, DOCS, section)


if __name__ == "__main__":
    main()

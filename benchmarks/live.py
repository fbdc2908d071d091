"""How far live text is behind the speaker: a recording played to `transcribe_stream` as fast as it was spoken.

    python benchmarks/live.py RECORDING [--seconds 120] [--update-seconds 2] [--model fastslm-tiny]

A word's delay is from its end, by the final text's own times, to the moment at which a text that holds it there came;
`final` is the same to the final text. The table goes into docs/benchmarks.md.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import fastslm
from fastslm.audio import SAMPLE_RATE, load_audio
from fastslm.longform.live import LiveText

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- live -->", "<!-- end of live -->"
CHUNK_SECONDS = 0.1
SAME_WORD_SECONDS = 0.5


def played(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Chunks as a microphone gives them: none before it was spoken."""
    size = round(CHUNK_SECONDS * SAMPLE_RATE)
    started = time.monotonic()
    for begin in range(0, len(samples), size):
        chunk = samples[begin : begin + size]
        time.sleep(max(0.0, started + (begin + len(chunk)) / SAMPLE_RATE - time.monotonic()))
        yield chunk


def delays(texts: list[tuple[float, LiveText]]) -> tuple[list[float], list[float]]:
    """Seconds from a word's end to its first text, and to its final one, of every word of the final texts."""
    first: list[float] = []
    final: list[float] = []
    for came, text in texts:
        if not text.final:
            continue
        earlier = [pair for pair in texts if pair[1].segment.start == text.segment.start]
        for word in text.segment.words:
            held = [
                when
                for when, other in earlier
                if any(w.text == word.text and abs(w.end - word.end) < SAME_WORD_SECONDS for w in other.segment.words)
            ]
            first.append(min(held) - word.end)
            final.append(came - word.end)
    return first, final


def main() -> None:
    """Play, measure, and put the table between the page's markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--update-seconds", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--model", default="fastslm-tiny")
    arguments = parser.parse_args()
    model = fastslm.load(arguments.model, quiet=True)
    samples = load_audio(arguments.recording)[: round(arguments.seconds * SAMPLE_RATE)]
    lines = [
        START,
        "## Live audio",
        "",
        f"`python benchmarks/live.py RECORDING`: {len(samples) / SAMPLE_RATE:.0f} s of speech at the pace of speaking; "
        f"seconds from a word's end to the text; torch {torch.__version__}, {torch.get_num_threads()} threads, load of "
        f"the machine before it {os.getloadavg()[0]:.1f}.",
        "",
        "| new sound between texts | texts | first text of a word, median | 95 % | final text, median | 95 % "
        "| reading one text, median |",
        "|---|---|---|---|---|---|---|",
    ]
    busy = os.getloadavg()[0] > 0.5
    for update in arguments.update_seconds:
        started = time.monotonic()
        texts = [
            (time.monotonic() - started, text)
            for text in model.transcribe_stream(played(samples), update_seconds=update)
        ]
        first, final = delays(texts)
        reading = np.median([text.processing_seconds for _, text in texts])
        figures = [np.quantile(kind, share) for kind in (first, final) for share in (0.5, 0.95)]
        cells = " | ".join(f"{figure:.1f} s" for figure in figures)
        lines.append(f"| {update:g} s | {len(texts)} | {cells} | {reading:.2f} s |")
    if busy:
        lines += ["", "Other work ran beside it, so the figures are provisional."]
    lines.append(END)
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    if START not in text:
        text = f"{text.rstrip()}\n\n{START}\n{END}\n"
    head, _, rest = text.partition(START)
    PAGE.write_text(head + "\n".join(lines) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""How far live text is behind the speaker: a recording played to `transcribe_stream` as fast as it was spoken.

    python benchmarks/live.py ../shared/data [--seconds 120] [--update-seconds 1 2 4] [--model fastslm-tiny]

A word's delay is from its end, by the final text's own times, to the moment at which a text that holds it there came;
`final` is the same to the final text. Each row takes as long as the recording. The table goes to docs/benchmarks.md.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoding import write_recording

import fastslm
from fastslm.audio import SAMPLE_RATE, load_audio
from fastslm.longform.live import LiveText

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- live -->", "<!-- end of live -->"
CHUNK_SECONDS = 0.1
SAME_WORD_SECONDS = 0.5
QUIET_LOAD = 0.5  # with more than this before it begins, other work runs beside it


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


def measure(model: Any, samples: np.ndarray, update_seconds: float) -> dict[str, Any]:
    """One row: the recording played once."""
    started = time.monotonic()
    stream = model.transcribe_stream(played(samples), update_seconds=update_seconds)
    texts = [(time.monotonic() - started, text) for text in stream]
    first, final = delays(texts)
    reading = [text.processing_seconds for _, text in texts]
    return {"update": update_seconds, "texts": len(texts), "first": first, "final": final, "reading": reading}


def section(rows: list[dict[str, Any]], seconds: float, load: float) -> str:
    """The rows as Markdown, with what they were measured in.

    Args:
        seconds: of the recording.
        load: of the machine before it all began.
    """
    lines = [
        "## Live audio",
        "",
        f"`python benchmarks/live.py ../shared/data --seconds {seconds:.0f} --threads {torch.get_num_threads()}`: real "
        "speech played to `transcribe_stream` at the pace of speaking; seconds from a word's end to the text that has "
        "it; "
        f"torch {torch.__version__}; load of the machine before it {load:.1f}.",
        "",
        "| new sound between texts | texts | words | first text of a word, median | 95 % | final text, median | 95 % "
        "| reading one text, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kinds = (row["first"], row["final"])
        figures = [np.quantile(kind, share) if kind else np.nan for kind in kinds for share in (0.5, 0.95)]
        cells = " | ".join(f"{figure:.1f} s" for figure in figures)
        reading = np.median(row["reading"])
        lines.append(f"| {row['update']:g} s | {row['texts']} | {len(row['final'])} | {cells} | {reading:.2f} s |")
    lines += [
        "",
        "A text is final when its window ends, in a pause once 30 s are there; until then it is read again, and may "
        "change.",
    ]
    if load > QUIET_LOAD:
        lines += ["", f"Other work ran beside it (load {load:.1f} before), so the figures are provisional."]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """The section in its place on the page, or at its end."""
    whole = PAGE.read_text(encoding="utf-8")
    if START not in whole:
        whole = f"{whole.rstrip()}\n\n{START}\n{END}\n"
    head, _, rest = whole.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    """Play, measure, and put the table between the page's markers."""
    load = os.getloadavg()[0]  # before this has any of its own
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds longform/test.jsonl")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--update-seconds", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = fastslm.load(arguments.model, device="cpu", quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        file = write_recording(arguments.data, arguments.seconds / 60, Path(folder) / "speech.ogg")
        samples = load_audio(file)[: round(arguments.seconds * SAMPLE_RATE)]
    for _ in model.transcribe_stream([samples[:SAMPLE_RATE]]):  # the first use of anything costs more
        pass
    rows = [measure(model, samples, update) for update in arguments.update_seconds]
    text = section(rows, len(samples) / SAMPLE_RATE, load)
    write_page(text)
    print(text)


if __name__ == "__main__":
    main()

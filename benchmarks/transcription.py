"""Transcribing real speech: words right and speed beside faster-whisper, which runs the same weights in int8.

    pip install --no-deps faster-whisper==1.2.1        # what it needs is there already; or the extra `benchmark`
    python benchmarks/transcription.py ../shared/data [--model fastslm-tiny] [--limit 4]

The recordings: the clips of librispeech/test; the long ones of longform/test, each a file; and an hour in one file, of
real clips with 0.3 s of pause between them, repeated. Each system transcribes them in a process of its own, with the
same threads; decoding the audio is counted, loading the model is not. A faster-whisper in batches is tried with several
sizes, and its fastest is shown. The table and the plot go into docs/benchmarks.md, unless there is a `--limit`; rows of
sets that are not measured again (`--sets clips,long`) stay.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import matplotlib
import numpy as np
import torch

import fastslm
from fastslm.audio import SAMPLE_RATE
from fastslm.data.manifest import read_manifest
from fastslm.evaluation.metrics import error_rates, normalizer_name
from fastslm.weights import original

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WHISPER = "whisper-tiny.en"
PAUSE_SECONDS = 0.3
HOUR_MINUTES = 60
# Load beyond the threads of the row before, from which on something else is said to have run.
BESIDE = 0.3
DOCS = Path(__file__).parents[1] / "docs"
ROWS, PLOT, PAGE = DOCS / "experiments" / "transcription.jsonl", DOCS / "transcription.png", DOCS / "benchmarks.md"
MARKS = ("<!-- transcribing -->", "<!-- end of transcribing -->")
SETS = {"clips": "clips of librispeech/test", "long": "longform/test, each a file", "hour": "an hour in one file"}
OURS = {"fastslm-bfloat16": "FastSLM, bfloat16", "fastslm-float32": "FastSLM, float32"}
SEQUENTIAL, BATCHED = "faster-whisper", "faster-whisper-batched"


def write_recordings(data: Path, folder: Path, limit: int | None) -> dict[str, list[dict]]:
    """Of each set, its files with their texts and seconds, as every system reads them."""
    found: dict[str, list[dict]] = {}
    clips = [clip for clip in read_manifest(data / "librispeech" / "test.jsonl") if clip.text][:limit]
    long = [clip for clip in read_manifest(data / "longform" / "test.jsonl") if clip.text][:limit]
    for name, own in (("clips", clips), ("long", long)):
        found[name] = []
        for index, clip in enumerate(own):
            file = folder / f"{name}-{index}.ogg"
            file.write_bytes(clip.encoded())
            found[name].append({"file": str(file), "text": clip.text, "seconds": clip.duration})
    minutes = HOUR_MINUTES if limit is None else min(limit, HOUR_MINUTES)
    found["hour"] = [write_hour(clips, minutes, folder / "hour.flac")]
    return found


def write_hour(clips: list[Any], minutes: float, file: Path) -> dict:
    """Clips one after another with pauses, again and again: as many whole ones as fill the minutes."""
    waveforms = [clip.read() for clip in clips]
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), dtype=np.float32)
    parts: list[np.ndarray] = []
    texts: list[str] = []
    samples = 0
    for clip, waveform in cycle(list(zip(clips, waveforms, strict=True))):
        parts += [waveform, pause]
        texts.append(clip.text)
        samples += len(waveform) + len(pause)
        if samples >= minutes * 60 * SAMPLE_RATE:
            break
    with av.open(str(file), "w") as out:
        stream: Any = out.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        whole = (np.concatenate(parts).clip(-1, 1) * 32767).astype(np.int16)
        for start in range(0, len(whole), SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(whole[None, start : start + SAMPLE_RATE], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return {"file": str(file), "text": " ".join(texts), "seconds": samples / SAMPLE_RATE}


def our_system(name: str, model: str) -> Callable[[list[str]], list[str]]:
    """This engine, as `transcribe_many` is."""
    loaded = fastslm.load(model, device="cpu", dtype=name.removeprefix("fastslm-"), quiet=True)
    return lambda files: [transcript.text for transcript in loaded.transcribe_many(files)]


def their_system(name: str, threads: int) -> Callable[[list[str]], list[str]]:
    """faster-whisper: greedy, as its documentation has it for speed; what is not named here is its default."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio

    whisper = WhisperModel(str(original(WHISPER)), device="cpu", compute_type="int8", cpu_threads=threads)

    def sequential(files: list[str]) -> list[str]:
        texts = []
        for file in files:
            segments, _ = whisper.transcribe(file, beam_size=1, language="en", condition_on_previous_text=False)
            texts.append(" ".join(segment.text.strip() for segment in segments))
        return texts

    if name == SEQUENTIAL:
        return sequential
    size = int(name.rpartition("-")[2])
    pipeline = BatchedInferencePipeline(whisper)
    options = {"beam_size": 1, "language": "en", "batch_size": size}

    def batched(files: list[str]) -> list[str]:
        waveforms = [decode_audio(file) for file in files]
        if len(files) == 1 or max(map(len, waveforms)) > 30 * SAMPLE_RATE:
            results = [pipeline.transcribe(waveform, **options)[0] for waveform in waveforms]
            return [" ".join(segment.text.strip() for segment in segments) for segments in results]
        # Clips share its batches when they are parts of one recording.
        ends = np.cumsum([len(waveform) for waveform in waveforms]) / SAMPLE_RATE
        starts = np.concatenate([[0.0], ends[:-1]])
        parts = [{"start": float(a), "end": float(b)} for a, b in zip(starts, ends, strict=True)]
        segments, _ = pipeline.transcribe(np.concatenate(waveforms), clip_timestamps=parts, **options)
        texts: list[list[str]] = [[] for _ in files]
        for segment in segments:
            texts[int(np.searchsorted(starts, segment.start + 1e-3, "right")) - 1].append(segment.text.strip())
        return [" ".join(own) for own in texts]

    return batched


def measure(system: str, model: str, listed: Path, threads: int) -> None:
    """One row as JSON on standard output, in a process of its own."""
    torch.set_num_threads(threads)
    files = json.loads(listed.read_text(encoding="utf-8"))
    transcribe = our_system(system, model) if system in OURS else their_system(system, threads)
    transcribe(files["warm"])
    started, worked = time.perf_counter(), time.process_time()
    texts = transcribe(files["files"])
    row = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    print(json.dumps({**row, "peak": peak_memory(), "texts": texts}))


def peak_memory() -> int:
    """This process's highest resident size in bytes, by the kernel's count (Linux); `ru_maxrss` keeps its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run(arguments: argparse.Namespace) -> list[dict]:
    """All rows: sets in turn, on each the systems one after another."""
    rows = []
    systems = [*OURS, SEQUENTIAL, *(f"{BATCHED}-{size}" for size in arguments.batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        recordings = write_recordings(arguments.data, Path(name), arguments.limit)
        listed = Path(name) / "files.json"
        for kind in arguments.sets:
            own = recordings[kind]
            warm = [recordings["clips"][0]["file"]]
            listed.write_text(json.dumps({"warm": warm, "files": [one["file"] for one in own]}), encoding="utf-8")
            for system in systems:
                command = [sys.executable, __file__, str(arguments.data), "--model", arguments.model]
                command += ["--threads", str(arguments.threads), "--measure", system, str(listed)]
                row: dict[str, Any] = {"set": kind, "system": system, "load_before": os.getloadavg()[0]}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                row |= json.loads(done.stdout.splitlines()[-1])
                texts = row.pop("texts")
                rates = error_rates([one["text"] for one in own], texts)
                row |= {"audio_seconds": sum(one["seconds"] for one in own), "wer": rates.wer.value}
                row |= {"words": rates.total("words"), "threads": arguments.threads}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
    return rows


def merged(rows: list[dict]) -> list[dict]:
    """With the rows of before, of sets that were not measured again."""
    kept = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()] if ROWS.exists() else []
    new = {row["set"] for row in rows}
    together = [row for row in kept if row["set"] not in new] + rows
    return sorted(together, key=lambda row: list(SETS).index(row["set"]))


def shown(rows: list[dict]) -> list[dict]:
    """The rows with a label each; of a set's batch sizes, the fastest alone."""
    found = []
    for kind in SETS:
        own = [row for row in rows if row["set"] == kind]
        batched = [row for row in own if row["system"].startswith(BATCHED)]
        best = min(batched, key=lambda row: row["seconds"], default=None)
        for row in own:
            if row in batched and row is not best:
                continue
            label = OURS.get(row["system"]) or "faster-whisper, int8, " + (
                f"batches of {row['system'].rpartition('-')[2]}" if row is best else "one after another"
            )
            found.append({**row, "label": label})
    return found


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| recordings | system | word error rate | seconds | times real time | processor seconds | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in shown(rows):
        lines.append(
            f"| {SETS[row['set']]}, {row['audio_seconds'] / 60:.1f} min | {row['label']} | {row['wer']:.1%} "
            f"| {row['seconds']:.1f} | {row['audio_seconds'] / row['seconds']:.0f} | {row['cpu_seconds']:.1f} "
            f"| {row['peak'] / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def draw(rows: list[dict]) -> None:
    """Times real time against words wrong, one panel a set."""
    kinds = [kind for kind in SETS if any(row["set"] == kind for row in rows)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 4), layout="constrained", squeeze=False)
    for panel, kind in zip(axes[0], kinds, strict=True):
        title = SETS[kind]
        for row in (row for row in shown(rows) if row["set"] == kind):
            mark = "o" if row["system"] in OURS else "s"
            speed = row["audio_seconds"] / row["seconds"]
            panel.plot(100 * row["wer"], speed, mark, markersize=9, label=row["label"])
        panel.set(xlabel="word error rate, %", ylabel="times real time", title=title, xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="lower left")
    figure.savefig(PLOT, dpi=120)


def section(rows: list[dict], model: str) -> str:
    """The section as Markdown."""
    busiest = max(row["load_before"] for row in rows)
    threads = "1 thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    lines = [
        "## Transcribing",
        "",
        f"`python benchmarks/transcription.py ../shared/data --model {Path(model).name}`: files to text on "
        f"{threads} of {platform.machine()}, decoding counted, loading not; torch "
        f"{torch.__version__}, faster-whisper {version('faster-whisper')} on CTranslate2 {version('ctranslate2')} with "
        f"the weights of the same {WHISPER}; both greedy, each with its own cuts and retries. Words are compared after "
        f"{normalizer_name()}; memory is the process's highest, with all that the script imports. FastSLM reads 50 "
        "tokens for each 30 s and gives a time to every word; faster-whisper reads 1500 frames and was not asked for "
        "word times.",
        "",
        table(rows),
        "",
        "![Speed and word error rate](transcription.png)",
    ]
    if busiest > rows[0]["threads"] + BESIDE:
        lines += ["", f"Other work ran beside it (load up to {busiest:.1f}), so the seconds are provisional."]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """The section in its place on the page, or at its end."""
    whole = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    if MARKS[0] not in whole:
        whole = f"{whole.rstrip()}\n\n{MARKS[0]}\n{MARKS[1]}\n"
    head, _, rest = whole.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    scratch = PAGE.with_suffix(".partial")
    scratch.write_text(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{tail}", encoding="utf-8")
    os.replace(scratch, PAGE)


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds librispeech/ and longform/")
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[8, 16, 32])
    parser.add_argument("--limit", type=int, help="clips, long recordings and minutes of the hour; writes no page")
    parser.add_argument("--scratch", help="a folder with room for the recordings: 80 MB")
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "FILES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.sets) - set(SETS):
        parser.error(f"there is no set {', '.join(unknown)}: choose from {', '.join(SETS)}")
    if arguments.measure:
        measure(arguments.measure[0], arguments.model, Path(arguments.measure[1]), arguments.threads)
        return
    rows = run(arguments)
    if arguments.limit is None:
        rows = merged(rows)
        ROWS.parent.mkdir(exist_ok=True)
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        draw(rows)
        write_page(section(rows, arguments.model))
    print(table(rows))


if __name__ == "__main__":
    main()

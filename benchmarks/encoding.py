"""Encoding long recordings: this engine against all windows at once, with the same weights, each in its own process.

    python benchmarks/encoding.py ../shared/data
    python benchmarks/encoding.py ../shared/data --minutes 1440 --systems engine-bfloat16   # a day

int8 is torch's dynamic quantisation of the encoder's linear layers. Real speech, repeated: the packets of
`longform/test` one after another in one Ogg file. Seconds are of a file becoming tokens, without the loading of the
model; memory is the process's highest while it does. The table and the plot go into docs/benchmarks.md; rows of other
lengths that were measured before stay.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import av
import matplotlib
import psutil
import torch
from torch.ao.quantization import quantize_dynamic

import fastslm
from fastslm.audio import WINDOW_SAMPLES, load_audio
from fastslm.data.manifest import read_manifest
from fastslm.features import window_mel
from fastslm.longform.encoder import WindowEncoder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
ROWS, PLOT, PAGE = DOCS / "experiments" / "encoding.jsonl", DOCS / "encoding.png", DOCS / "benchmarks.md"
START, END = "<!-- encoding -->", "<!-- end of encoding -->"
SYSTEMS = {
    "engine-bfloat16": "this engine, bfloat16",
    "alone-bfloat16": "this engine, bfloat16, one group of four after another",
    "engine-float32": "this engine, float32",
    "engine-int8": "this engine, int8",
    "whole-float32": "all windows at once, float32",
    "whole-bfloat16": "all windows at once, bfloat16",
}
BASELINE = "whole-float32"
# Load beyond the threads of the row before, from which on something else is said to have run.
BESIDE = 0.3


def write_recording(data: Path, minutes: float, target: Path) -> Path:
    """An Ogg file of so many minutes at least: the clips' own packets again and again, nothing encoded anew."""
    clips = read_manifest(data / "longform" / "test.jsonl")
    packets: list[tuple[bytes, int]] = []
    with av.open(str(target), "w", format="ogg") as out:
        stream = None
        for clip in clips:
            with av.open(io.BytesIO(_content(data, clip))) as source:
                sound = source.streams.audio[0]
                stream = stream or out.add_stream_from_template(sound)
                packets += [(bytes(p), p.duration or 0) for p in source.demux(sound) if p.size]
        assert stream is not None
        assert stream.time_base is not None
        position, wanted = 0, minutes * 60 / stream.time_base
        while position < wanted:
            for content, duration in packets:
                packet = av.Packet(content)
                packet.stream, packet.time_base = stream, stream.time_base
                packet.pts = packet.dts = position
                packet.duration = duration
                out.mux(packet)
                position += duration
                if position >= wanted:
                    break
    return target


def _content(data: Path, clip) -> bytes:
    path = data / clip.audio.path
    with path.open("rb") as file:
        file.seek(clip.audio.offset)
        return file.read(clip.audio.length)


def forget_peak() -> None:
    """Let the kernel count the process's highest resident size anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The highest resident size since then, in bytes, by the kernel's own count: nothing is missed between looks."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@torch.inference_mode()
def all_at_once(model, file: Path, dtype: torch.dtype) -> torch.Tensor:
    """What is straightforward: the whole file, its windows in one batch."""
    waveform = load_audio(file)
    windows = [waveform[start : start + WINDOW_SAMPLES] for start in range(0, len(waveform), WINDOW_SAMPLES)]
    features = window_mel(windows, model.config.audio_config.num_mel_bins)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        return model.hfq_former(model.encoder(features).last_hidden_state)


def measure(system: str, model_name: str, file: Path, threads: int) -> None:
    """One row as JSON on standard output, in a process of its own."""
    torch.set_num_threads(threads)
    how, name = system.split("-")
    model = fastslm.load(model_name, device="cpu", dtype="float32", quiet=True).model
    if name == "int8":
        # The linear layers of the encoder, in which it spends most; torch names no other way without further packages.
        with warnings.catch_warnings(action="ignore"):
            model.encoder = quantize_dynamic(model.encoder, {torch.nn.Linear}, dtype=torch.qint8)
    dtype = torch.float32 if name == "int8" else getattr(torch, name)
    loaded = psutil.Process().memory_info().rss
    forget_peak()
    started, worked = time.perf_counter(), time.process_time()
    if how in ("engine", "alone"):
        one = {"group_windows": 4, "workers": 1} if how == "alone" else {}
        encoder = WindowEncoder(model, dtype=None if dtype is torch.float32 else dtype, **one)
        windows = len(encoder.encode(file).tokens)
    else:
        windows = len(all_at_once(model, file, dtype))
    row = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    print(json.dumps({**row, "windows": windows, "peak": peak_memory(), "loaded": loaded}))


def run(arguments: argparse.Namespace) -> list[dict]:
    """All rows that were asked for."""
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for minutes in arguments.minutes:
            file = write_recording(arguments.data, minutes, Path(folder) / f"{minutes}.ogg")
            for system in arguments.systems:
                command = [sys.executable, __file__, str(arguments.data), "--model", arguments.model]
                command += ["--measure", system, str(file), "--threads", str(arguments.threads)]
                busy = os.getloadavg()[0]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                row = {"system": system, "minutes": minutes, "threads": arguments.threads, "load_before": busy}
                # A process that the system killed for its memory is a result, too.
                row |= json.loads(done.stdout) if done.returncode == 0 else {"failed": done.returncode}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
            file.unlink()
    return rows


def merged(rows: list[dict]) -> list[dict]:
    """With the rows of before that were not measured again."""
    kept = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    new = {(row["system"], row["minutes"]) for row in rows}
    together = [row for row in kept if (row["system"], row["minutes"]) not in new] + rows
    order = list(SYSTEMS)
    together.sort(key=lambda row: (row["minutes"], order.index(row["system"])))
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in together))
    return together


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    by = {(row["minutes"], row["system"]): row for row in rows}
    lines = [
        "| minutes | system | seconds | times real time | peak memory | against all at once, float32 |",
        "|---|---|---|---|---|---|",
    ]
    for (minutes, system), row in by.items():
        if "failed" in row:
            lines.append(f"| {minutes:g} | {SYSTEMS[system]} | failed ({row['failed']}) | | | |")
            continue
        base = by.get((minutes, BASELINE), {})
        ratio = f"{base['seconds'] / row['seconds']:.1f} × as fast" if "seconds" in base else ""
        lines.append(
            f"| {minutes:g} | {SYSTEMS[system]} | {row['seconds']:.1f} | {minutes * 60 / row['seconds']:.0f} "
            f"| {row['peak'] / 1e6:.0f} MB | {ratio} |"
        )
    busiest = max(row["load_before"] for row in rows)
    lines.append("")
    lines.append(
        f"Threads: {', '.join(sorted({str(row['threads']) for row in rows}))}; torch {torch.__version__}; load of the "
        f"machine before a row, the rows before it counted: up to {busiest:.1f}."
    )
    if busiest > max(row["threads"] for row in rows) + BESIDE:
        lines.append("Other work ran beside it, so the seconds are provisional; the memory is not.")
    return "\n".join(lines)


def draw(rows: list[dict]) -> None:
    """Seconds and memory over minutes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for system, label in SYSTEMS.items():
        own = [row for row in rows if row["system"] == system and "failed" not in row]
        if not own:
            continue
        minutes = [row["minutes"] for row in own]
        style = "--s" if system.startswith("whole") else "-o"
        left.plot(minutes, [row["seconds"] for row in own], style, label=label)
        right.plot(minutes, [row["peak"] / 1e9 for row in own], style, label=label)
    for axis, title in ((left, "seconds"), (right, "peak memory, GB")):
        axis.set(xscale="log", yscale="log", xlabel="minutes of speech", title=title)
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(PLOT, dpi=120)


def section(rows: list[dict]) -> str:
    """What the page says, from marker to marker."""
    return "\n".join(
        [
            START,
            "## Encoding",
            "",
            "`python benchmarks/encoding.py ../shared/data`: a file of real speech to tokens (decoding, log-mel, "
            "encoder, HFQ-Former), each row in a process of its own; memory is the process's highest, the loaded model "
            "with it. "
            "The baseline holds the waveform and passes all windows through the encoder in one batch, with the same "
            "weights.",
            "",
            table(rows),
            "",
            f"![Encoding: seconds and memory]({PLOT.name})",
            END,
        ]
    )


def write_page(rows: list[dict]) -> None:
    """The section in its place on the page, or at its end."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    if START not in text:
        text = f"{text.rstrip()}\n\n{START}\n{END}\n"
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + section(rows) + tail, encoding="utf-8")


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds longform/test.jsonl")
    parser.add_argument("--minutes", type=lambda text: [float(m) for m in text.split(",")], default=[1, 10, 60, 180])
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scratch", help="a folder with room for the recordings: 9 MB for an hour")
    parser.add_argument("--measure", nargs=2, metavar=("SYSTEM", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.systems) - set(SYSTEMS):
        parser.error(f"there is no system {', '.join(unknown)}: choose from {', '.join(SYSTEMS)}")
    if arguments.measure:
        measure(arguments.measure[0], arguments.model, Path(arguments.measure[1]), arguments.threads)
        return
    rows = merged(run(arguments))
    draw(rows)
    write_page(rows)
    print(table(rows))


if __name__ == "__main__":
    main()

"""Where the time goes: each part from file to answer, and how far it is from what the processor multiplies.

    python benchmarks/parts.py ../shared/data [--minutes 5] [--model fastslm-tiny]

Five minutes of real speech, each part alone, the best of three rounds; the rate of matrix products is measured in the
same run, in the precision of the part. Operations are counted by torch's FlopCounterMode: products only, so what a
spends on exponentials, sampling rates or Python shows as distance from the rate. The table goes to docs/benchmarks.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from encoding import write_recording
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fastslm
from fastslm.audio import stream_audio
from fastslm.features import window_mel
from fastslm.inference.cascade import speech_embeddings
from fastslm.longform.encoder import GROUP_WINDOWS, WindowEncoder
from fastslm.longform.readers import WhisperDecoderReader

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- parts -->", "<!-- end of parts -->"
ROUNDS = 3
MATRIX = 2048
QUESTION = "What is this recording about?"
BFLOAT16, FLOAT32 = "bfloat16", "float32"


def best_seconds(work: Callable[[], Any]) -> float:
    """The shortest of a few rounds, after one that warms up."""
    work()
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    return 2 * MATRIX**3 / best_seconds(lambda: a @ b)


def operations(work: Callable[[], Any]) -> int:
    """Of its matrix products and convolutions; attention is counted as its two products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.inference_mode()
def measure(model_name: str, file: Path) -> tuple[list[dict[str, Any]], int]:
    """A row for each part, and how many windows the recording has."""
    loaded = fastslm.load(model_name, device="cpu", dtype="float32", quiet=True)
    model: Any = loaded.model
    model.requires_grad_(False)  # the counter follows gradients where there are any
    windows = [window.copy() for window in stream_audio(file)]
    mels = model.config.audio_config.num_mel_bins
    features = window_mel(windows, mels)
    rows: list[dict[str, Any]] = []

    def add(part: str, precision: str, work: Callable[[], Any], multiplies: bool = True) -> Any:
        rows.append({"part": part, "precision": precision, "seconds": best_seconds(work)})
        rows[-1]["operations"] = operations(work) if multiplies else 0

    add("decoding and resampling", "", lambda: [None for _ in stream_audio(file)], multiplies=False)
    add("log-mel", "", lambda: window_mel(windows, mels), multiplies=False)
    for name, dtype in ((FLOAT32, None), (BFLOAT16, torch.bfloat16)):
        encoder = WindowEncoder(model, dtype=dtype)
        groups = features.split(GROUP_WINDOWS)
        add("Whisper's encoder", name, lambda e=encoder, g=groups: [e.frames(group) for group in g])
        frames = [encoder.frames(group) for group in groups]
        add("HFQ-Former", name, lambda e=encoder, f=frames: [e.fold(group) for group in f])
    tokens = WindowEncoder(model).tokens(features)
    if model.whisper_decoder is not None:
        reader: Any = WhisperDecoderReader(model, loaded.processor)
        together = tokens.split(reader.read_together)
        for name in (FLOAT32, BFLOAT16):
            if name == BFLOAT16:
                model.whisper_decoder.read_in(torch.bfloat16)
            add("unfolder", name, lambda: model.whisper_decoder.unfolded(tokens))
            add(
                "unfolder and Whisper's decoder",
                name,
                lambda: [model.whisper_decoder.read(group, 200) for group in together],
            )
    if model.ctc_head is not None:
        add("unfolder, and CTC head in float32", BFLOAT16, lambda: model.letters(tokens))
    prompt = loaded.processor.expand([loaded.processor.build_prompt("ask", question=QUESTION)], [len(tokens)])
    ids = loaded.processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    speech = speech_embeddings(model, loaded.processor, tokens).reshape(-1, model.config.text_hidden_size)
    add(
        f"language model, {ids.shape[1]:,} places to the first token",
        FLOAT32,
        lambda: model(input_ids=ids, speech_tokens=speech, logits_to_keep=1),
    )
    return rows, len(windows)


def table(rows: list[dict[str, Any]], windows: int, rates: dict[str, float]) -> str:
    """The rows as Markdown."""
    lines = [
        "| part | precision | seconds | milliseconds a window | GFLOP | GFLOP/s | of the matrix rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spent = f"| {row['part']} | {row['precision']} | {row['seconds']:.2f} | {1000 * row['seconds'] / windows:.0f} "
        if not row["operations"]:
            lines.append(f"{spent}| | | |")
            continue
        rate = row["operations"] / row["seconds"]
        share = rate / rates[row["precision"]]
        lines.append(f"{spent}| {row['operations'] / 1e9:.0f} | {rate / 1e9:.0f} | {share:.0%} |")
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
    """Measure, and put the table between the page's markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds longform/test.jsonl")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rates = {FLOAT32: matrix_rate(torch.float32), BFLOAT16: matrix_rate(torch.bfloat16)}
    with tempfile.TemporaryDirectory() as folder:
        file = write_recording(arguments.data, arguments.minutes, Path(folder) / "speech.ogg")
        rows, windows = measure(arguments.model, file)
    text = "\n".join(
        [
            "## Where the time goes",
            "",
            f"`python benchmarks/parts.py ../shared/data`: {windows} windows of real speech, each part alone on "
            f"{arguments.threads} threads; torch {torch.__version__}. A matrix product of {MATRIX}³ runs at "
            f"{rates[FLOAT32] / 1e9:,.0f} GFLOP/s in float32 and {rates[BFLOAT16] / 1e9:,.0f} in bfloat16 in the same "
            "run. Only products and convolutions are counted as work.",
            "",
            table(rows, windows, rates),
        ]
    )
    write_page(text)
    print(text)


if __name__ == "__main__":
    main()

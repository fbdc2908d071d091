"""What half precision costs: words wrong and processor time, with what encodes and what reads each in its own.

    python benchmarks/precision.py ../shared/data [--clips 130]

Clips of librispeech/test and commonvoice/test, each alone in a window, greedy. The table goes into docs/benchmarks.md.
"""

import argparse
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

import fastslm
from fastslm.data.manifest import read_manifest
from fastslm.evaluation.metrics import error_rates
from fastslm.features import window_mel
from fastslm.longform.encoder import WindowEncoder

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- precision -->", "<!-- end of precision -->"
SETS = ("librispeech/test", "commonvoice/test")
TOGETHER, NEW_TOKENS = 32, 200
FLOAT, HALF = "float32", "bfloat16"
# Encoder and HFQ-Former; unfolder and Whisper's decoder. The last is what `fastslm.load` chooses where it can.
SYSTEMS = ((FLOAT, FLOAT), (HALF, FLOAT), (FLOAT, HALF), (HALF, HALF))


@torch.inference_mode()
def read(decoder: Any, tokens: torch.Tensor, together: int = TOGETHER) -> list[str]:
    """The text of each window."""
    return [read.text for group in tokens.split(together) for read in decoder.read(group, NEW_TOKENS)]


def measure(model_name: str, data: Path, clips: int) -> list[str]:
    """The table's rows."""
    exact = fastslm.load(model_name, device="cpu", dtype=FLOAT, quiet=True).model
    assert exact.whisper_decoder is not None
    half = deepcopy(exact.whisper_decoder)
    half.decoder.bfloat16()
    decoders = {FLOAT: exact.whisper_decoder, HALF: half}
    found = {name: read_manifest(data / f"{name}.jsonl")[:clips] for name in SETS}
    features = window_mel(
        [clip.read() for own in found.values() for clip in own], exact.config.audio_config.num_mel_bins
    )
    lines = [
        f"| encoder, HFQ-Former | unfolder, Whisper's decoder | {' | '.join(f'WER, {name}' for name in SETS)} "
        "| texts that differ from float32 | and one by one from 32 at once | encoding, s | reading, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    tokens: dict[str, tuple[torch.Tensor, float]] = {}
    first: list[str] = []
    for encoder, decoder in SYSTEMS:
        if encoder not in tokens:
            dtype = None if encoder == FLOAT else torch.bfloat16
            engine = WindowEncoder(exact, dtype=dtype)
            started = time.process_time()
            own = torch.cat([engine.tokens(group) for group in features.split(engine.group_windows)]).float()
            tokens[encoder] = (own, time.process_time() - started)
        started = time.process_time()
        texts = read(decoders[decoder], tokens[encoder][0])
        spent = time.process_time() - started
        alone = sum(a != b for a, b in zip(texts, read(decoders[decoder], tokens[encoder][0], 1), strict=True))
        first = first or texts
        rates, done = [], 0
        for own_clips in found.values():
            part = texts[done : done + len(own_clips)]
            rates.append(f"{error_rates([clip.text or '' for clip in own_clips], part).wer.value:.1%}")
            done += len(own_clips)
        differ = sum(a != b for a, b in zip(first, texts, strict=True))
        lines.append(
            f"| {encoder} | {decoder} | {' | '.join(rates)} | {differ} of {len(texts)} | {alone} of {len(texts)} "
            f"| {tokens[encoder][1]:.0f} | {spent:.0f} |"
        )
    return lines


def main() -> None:
    """Measure, and put the table between the page's markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds librispeech/ and commonvoice/")
    parser.add_argument("--clips", type=int, default=130)
    parser.add_argument("--model", default="fastslm-tiny")
    arguments = parser.parse_args()
    lines = measure(arguments.model, arguments.data, arguments.clips)
    text = "\n".join([*lines, "", f"{arguments.clips} clips of each; seconds are of the processor, all threads."])
    whole = PAGE.read_text(encoding="utf-8")
    head, _, rest = whole.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

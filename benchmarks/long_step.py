"""A training step of 15 minutes: 1,500 speech tokens and 3,000 of text, with gradient checkpointing or without.

    python benchmarks/long_step.py [--model fastslm-tiny] [--threads 1] [--only on|off]

One forward and backward pass of the language model's LoRA over one row, in bfloat16 as a recipe trains, each way in a
process of its own: the peak of its resident memory, what the step added to it, and its seconds.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
from time import monotonic
from typing import Any

import torch

import fastslm
from fastslm.audio import WINDOW_SECONDS
from fastslm.data.manifest import Clip
from fastslm.training.answers import Answers

WINDOWS, TEXT_TOKENS = 30, 3000
TEXT = "the lamp went out and the old man in the corner told them of a ship which had never come back"
GIB = 2**30


def long_row(tokenizer: Any) -> Clip:
    """A transcript of 15 minutes whose answer has `TEXT_TOKENS` tokens."""
    words = random.Random(0).choices(TEXT.split(), k=TEXT_TOKENS)
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False)[: TEXT_TOKENS - 1]  # and the end token
    text = tokenizer.decode(ids)
    row = {"id": "long", "audio": "none", "duration": WINDOWS * WINDOW_SECONDS, "text": text, "task": "transcribe"}
    return Clip.model_validate({**row, "instruction": "Write down what is said.", "answer": text})


def measure(model: str, checkpointing: bool, threads: int) -> dict[str, Any]:
    """One step in this process."""
    torch.set_num_threads(threads)
    loaded = fastslm.load(model, quiet=True)
    whole: Any = loaded.model
    if checkpointing:
        whole.language_model.activation_checkpointing_enable({"use_reentrant": False})
    answers = Answers(whole, loaded.processor)
    row = long_row(answers.tokenizer)
    whole.train()
    before = _peak()
    started = monotonic()
    with torch.autocast("cpu", torch.bfloat16):
        total, tokens = answers.answer_loss([row])
    (total / tokens).backward()
    return {
        "gradient_checkpointing": checkpointing,
        "speech_tokens": answers.prompt(row).count(whole.config.audio_token_id),
        "text_tokens": tokens,
        "peak_gib": round(_peak() / GIB, 2),
        "added_gib": round((_peak() - before) / GIB, 2),
        "seconds": round(monotonic() - started, 1),
        "loss": round(float(total.detach()) / tokens, 5),
        "threads": threads,
    }


def _peak() -> int:
    """Bytes that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure both ways and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description="A training step of 15 minutes of speech.")
    parser.add_argument("--model", default="fastslm-tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("on", "off"), help="gradient checkpointing on or off, in this process")
    chosen = parser.parse_args()
    if chosen.only is not None:
        print(json.dumps(measure(chosen.model, chosen.only == "on", chosen.threads)))
        return
    for way in ("on", "off"):
        command = [sys.executable, __file__, "--model", chosen.model, "--threads", str(chosen.threads), "--only", way]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

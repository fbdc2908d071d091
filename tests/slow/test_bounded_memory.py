"""Memory does not grow with the recording, and is what was planned: in processes of their own, at tiny.en's size."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fastslm import write_bases
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fastslm.longform.plan import empty_model, plan
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor

pytestmark = pytest.mark.slow

RATE = 16_000
ALLOWED_BYTES = 200e6
MEASURE = """
import resource, sys, torch
import fastslm
torch.set_num_threads(2)
result = fastslm.load(sys.argv[1], quiet=True).transcribe(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, result.usage.audio_tokens)
"""

# Of all memory: allocators keep some of what was freed, and kernels bring buffers of their own.
PLAN_TOLERANCE = 0.20
MEASURE_ENCODING = """
import psutil, sys, threading, torch
import fastslm
torch.set_num_threads(2)
model = fastslm.load(sys.argv[1], device="cpu", dtype=sys.argv[3], quiet=True)
highest, over, process = 0, threading.Event(), psutil.Process()
def look():
    global highest
    while not over.wait(0.01):
        highest = max(highest, process.memory_info().rss)
watcher = threading.Thread(target=look)
watcher.start()
model.encode(sys.argv[2])
over.set()
watcher.join()
print(highest)
"""


def _write_noise(path: Path, minutes: int) -> Path:
    rng = np.random.default_rng(minutes)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for _ in range(minutes):
            file.writeframes((3000 * rng.standard_normal(60 * RATE)).astype(np.int16).tobytes())
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; encoder and HFQ-Former as large as fastslm-tiny's, the language model nearly nothing."""
    root = tmp_path_factory.mktemp("bases")
    _, llama = write_bases(root)
    torch.manual_seed(0)
    size = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 64, "vocab_size": 100}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    WhisperForConditionalGeneration(WhisperConfig(**size, **decoder, **ids, **none)).save_pretrained(root / "encoder")
    processor = FastSLMProcessor.from_base(root / "encoder", llama)
    model = FastSLMForConditionalGeneration.from_base(
        root / "encoder", llama, tokenizer=processor.tokenizer, ctc_head=True, hfq_config={"detail_blocks": 4}
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "sized"
    model.save_trained(folder)
    processor.save_pretrained(folder)
    return folder


def test_sixty_minutes_take_no_more_memory_than_five(checkpoint: Path, tmp_path: Path) -> None:
    peaks: dict[int, int] = {}
    for minutes in (5, 60):
        file = _write_noise(tmp_path / f"{minutes}.wav", minutes)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(checkpoint), str(file)], capture_output=True, text=True, check=True
        )
        peak, tokens = map(int, done.stdout.split())
        assert tokens == minutes * 100
        peaks[minutes] = peak
    print(f"\npeak memory: {peaks[5] / 1e6:.0f} MB for 5 minutes, {peaks[60] / 1e6:.0f} MB for 60")
    assert peaks[60] - peaks[5] < ALLOWED_BYTES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoding_takes_the_memory_that_was_planned(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    file = _write_noise(tmp_path / "20.wav", 20)
    planned = plan(empty_model(checkpoint), 1200, dtype=getattr(torch, dtype), device="cpu")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_ENCODING, str(checkpoint), str(file), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = int(done.stdout)
    print(f"\n{dtype}: planned {planned.total_bytes / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert abs(planned.total_bytes - measured) < PLAN_TOLERANCE * measured

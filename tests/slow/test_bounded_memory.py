"""Memory does not grow with the recording: each duration in a process of its own, at the size of Whisper tiny.en."""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fastslm import write_bases
from transformers import WhisperConfig, WhisperForConditionalGeneration

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

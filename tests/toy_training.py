"""Sizes of a speech model of a few thousand random weights, and recordings of tones, for runs that take seconds."""

from pathlib import Path
from typing import Any

import numpy as np

from fastslm.audio import SAMPLE_RATE

WORDS = {"l": 220.0, "m": 440.0, "h": 880.0}
ENCODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
    # Large, so that what sounds is not lost beside the table of positions.
    "init_std": 0.2,
}
TEXT_MODEL = {
    "model_type": "qwen3",
    "vocab_size": 268,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    # Large, so that frozen random embeddings can tell tokens apart.
    "initializer_range": 0.2,
}


def write_tones(path: Path, words: list[str], encode: Any) -> dict[str, Any]:
    """A recording of half a second for each word, and its line of a manifest."""
    time = np.arange(round(0.5 * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * WORDS[word] * time) for word in words])
    encode(path, wave.astype(np.float32))
    return {"id": path.stem, "audio": path.name, "duration": len(words) / 2, "text": " ".join(words)}

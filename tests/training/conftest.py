"""A speech model of a few thousand random weights, and a corpus of tones, for runs that take seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastslm.audio import SAMPLE_RATE

WORDS = {"l": 220.0, "m": 440.0, "h": 880.0}
ENCODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
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
}


def write_tones(path: Path, words: list[str], encode: Any) -> dict[str, Any]:
    """A recording of half a second for each word, and its line of a manifest."""
    time = np.arange(round(0.5 * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * WORDS[word] * time) for word in words])
    encode(path, wave.astype(np.float32))
    return {"id": path.stem, "audio": path.name, "duration": len(words) / 2, "text": " ".join(words)}


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory: pytest.TempPathFactory, encode: Any) -> Path:
    """A folder with train.jsonl (12 clips) and validation.jsonl (2): words that are tones of three pitches."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, clips in (("train", 12), ("validation", 2)):
        rows = [
            write_tones(root / f"{split}-{index}.wav", [list(WORDS)[int(i)] for i in rng.integers(3, size=4)], encode)
            for index in range(clips)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def recipe_content(tone_corpus: Path, tmp_path: Path) -> dict[str, Any]:
    """A whole recipe of a few steps on the tone corpus, as `validate_recipe` takes it."""
    return {
        "name": "tones",
        "stage": 1,
        "seed": 3,
        "out": str(tmp_path / "run"),
        "threads": 1,
        "precision": "float32",
        "steps": 3,
        "model": {
            "encoder": {"config": dict(ENCODER)},
            "text_model": {"config": dict(TEXT_MODEL)},
            "hfq": {"head_size": 16, "stage_tokens": [10, 10, 10], "detail_blocks": 1},
            "lora": {"rank": 2, "dropout": 0.0},
        },
        "data": {
            "train": [{"path": str(tone_corpus / "train.jsonl")}],
            "batch_rows": 2,
            "cache_features": True,
            "cache": str(tone_corpus / "cache"),
        },
        "optimizer": {"rates": {"hfq": 0.001, "projector": 0.001, "lora": 0.001}},
    }

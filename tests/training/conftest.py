"""A recipe of a few thousand random weights, and a corpus of tones, for runs that take seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_training import ENCODER, TEXT_MODEL, WORDS, write_tones


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

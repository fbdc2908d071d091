"""What training encodes: every window once, and of compositions none."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.data.composition import Composing, compose
from fastslm.data.manifest import read_manifest, write_manifest
from fastslm.data.tasks import synthesize
from fastslm.training.feature_cache import cache_training_windows, cache_validation_windows
from fastslm.training.recipe import check_recipe
from fastslm.training.trainer import Trainer


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each window has gone through any Whisper encoder, by a digest of its log-mel."""
    found: Counter[str] = Counter()
    forward = WhisperEncoder.forward

    def counted(self: WhisperEncoder, input_features: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        found.update(hashlib.sha256(window.numpy().tobytes()).hexdigest() for window in input_features.float().cpu())
        return forward(self, input_features, *arguments, **named)

    monkeypatch.setattr(WhisperEncoder, "forward", counted)
    return found


@pytest.fixture
def composed(tone_corpus: Path, tmp_path: Path) -> Path:
    """Twelve compositions of the tones, of one window and two, as tasks with their answers."""
    clips = read_manifest(tone_corpus / "train.jsonl")
    rows = compose(clips, Composing(minutes=(0.1, 1.0), count=12, seed=1), tmp_path.resolve())
    assert max(row["duration"] for row in rows) > 30
    write_manifest(tmp_path / "composed.jsonl", rows)
    tasks = synthesize(read_manifest(tmp_path / "composed.jsonl"), tmp_path.resolve(), ["transcribe"], seed=1)
    write_manifest(tmp_path / "tasks.jsonl", tasks)
    return tmp_path / "tasks.jsonl"


def test_each_window_is_encoded_once_for_all_steps_phases_and_runs(
    recipe_content: dict[str, Any], tmp_path: Path, encoded: Counter[str]
) -> None:
    recipe_content["data"]["cache"] = str(tmp_path / "cache")
    # So many steps that every window comes several times.
    recipe_content["phases"][1]["steps"] = 12
    Trainer(check_recipe(recipe_content, "recipe")).run()
    assert set(encoded.values()) == {1}, "a window was encoded twice"
    recipe = check_recipe(
        {**recipe_content, "out": str(tmp_path / "second"), "phases": recipe_content["phases"][1:]}, "r"
    )
    once = len(encoded)
    Trainer(recipe).run()
    cached = [cache_training_windows(recipe, variant) for variant in range(2)]
    assert once == len(encoded) == encoded.total()
    assert once == sum(map(len, cached)) + len(cache_validation_windows(recipe))
    windows = sum(phase.steps * phase.accumulate * phase.batch_windows for phase in recipe.phases)
    assert windows > 2 * sum(map(len, cached)), "too few steps to need a window twice"


def test_training_on_compositions_encodes_no_window_of_them(
    reader_content: dict[str, Any], tmp_path: Path, composed: Path, encoded: Counter[str]
) -> None:
    reader_content["model"]["reader"].pop("start_windows")
    reader_content["model"]["heard_words"] = True
    reader_content["data"] |= {
        "cache": str(tmp_path / "cache"),
        "instructions": [{"path": str(composed)}],
        "instructions_validation": str(composed),
    }
    phase = {"objective": "instructions", "batch_windows": 4, "max_minutes": 1, "rates": {"lora": 0.01}}
    reader_content["phases"] = [{**phase, "name": f"tasks {epoch}", "steps": 3} for epoch in range(2)]
    recipe = check_recipe(reader_content, "recipe")
    Trainer(recipe).run()
    # What validation hears are clips alone.
    assert encoded.total() == len(cache_validation_windows(recipe))

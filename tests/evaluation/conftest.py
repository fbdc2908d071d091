"""The tiny model, and a manifest of noise, for every test in this folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_fastslm import make_checkpoint, noise, tiny, tiny_checkpoint

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]


@pytest.fixture
def make_manifest(tmp_path: Path, encode) -> Callable[..., Path]:
    """`make_manifest(row, …)`: a manifest of clips of 1.5 s, ids 0, 1, …, each with these keys."""

    def make(*rows: dict[str, Any], name: str = "test.jsonl") -> Path:
        lines = []
        for index, row in enumerate(rows):
            encode(tmp_path / f"{index}.wav", noise(1.5, index))
            lines.append(json.dumps({"id": str(index), "audio": f"{index}.wav", "duration": 1.5, **row}) + "\n")
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return tmp_path / name

    return make

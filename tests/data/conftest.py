"""Manifests and cuts that several test modules of data share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastslm.data.conversion import manifest_to_cuts, manifest_to_shar


@pytest.fixture
def make_manifest(tmp_path: Path, encode: Any, tone: Any) -> Callable[..., Path]:
    """`make_manifest(durations, **columns)`: tones of those seconds in a file each, with a word of text a second."""

    def make(durations: list[float], name: str = "m", **columns: Any) -> Path:
        rows = []
        for index, seconds in enumerate(durations):
            encode(tmp_path / f"{name}{index}.wav", tone(seconds, frequency=200.0 + 10 * index))
            text = " ".join(f"{name}{index}w{i}" for i in range(max(1, round(seconds))))
            row = {"id": f"{name}{index}", "audio": f"{name}{index}.wav", "duration": seconds, "text": text}
            rows.append(row | {"speaker": f"s{index % 2}", "language": "en"} | columns)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / f"{name}.jsonl"

    return make


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The speech corpus, which is not part of the repository."""
    for place in Path(__file__).resolve().parents:
        if (place / "shared" / "data" / "librispeech").is_dir():
            return place / "shared" / "data"
    pytest.skip("the speech corpus is not beside the repository")


@pytest.fixture(scope="session")
def spoken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty clips of read speech as a manifest, as cuts and as a Shar folder of three shards."""
    folder = tmp_path_factory.mktemp("spoken")
    lines = (corpus / "librispeech" / "validation.jsonl").read_text().splitlines()[:20]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["audio"]["path"] = str(corpus / row["audio"]["path"])
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest_to_cuts(folder / "m.jsonl", folder / "cuts.jsonl")
    manifest_to_cuts(folder / "m.jsonl", folder / "cuts.jsonl.gz")
    manifest_to_shar(folder / "m.jsonl", folder / "shar", shard_cuts=8)
    return {
        "manifest": folder / "m.jsonl",
        "cuts": folder / "cuts.jsonl",
        "packed": folder / "cuts.jsonl.gz",
        "shar": folder / "shar",
    }

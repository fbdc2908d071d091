"""The cache of encoder frames: one name for one content, whole files, and no others taken for them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslm.data.feature_cache import Encode, FeatureCache
from fastslm.data.loading import RowBatch
from fastslm.data.rows import ManifestRows, Row
from fastslm.errors import FastSLMError


@pytest.fixture
def rows(make_manifest: Callable[..., Path]) -> list[Row]:
    return ManifestRows(make_manifest([1.0, 31.0])).rows


def batch_of(rows: list[Row]) -> RowBatch:
    windows = [row.windows for row in rows]
    return RowBatch(rows, windows, torch.arange(sum(windows)).float()[:, None, None].expand(-1, 80, 3000), None, {})


def frames_of(rows: list[Row], cache: FeatureCache, encode: Encode | None = None) -> torch.Tensor:
    found = batch_of(rows).frames(encode or first_numbers, cache)
    assert found is not None
    return found


def first_numbers(features: torch.Tensor) -> torch.Tensor:
    return features[:, :2, :3].transpose(1, 2)


def test_a_name_depends_on_the_audio_the_encoder_and_the_log_mel(rows: list[Row], tmp_path: Path) -> None:
    caches = [
        FeatureCache(tmp_path, "a"),
        FeatureCache(tmp_path, "b"),
        FeatureCache(tmp_path, "a", "authors"),
    ]
    names = {cache.path(row) for cache in caches for row in rows}
    assert len(names) == 6
    assert FeatureCache(tmp_path, "a").path(rows[0]) in names


def test_an_encoder_in_a_folder_is_told_by_its_files(rows: list[Row], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    name = FeatureCache(tmp_path, str(folder)).path(rows[0])
    moved = folder.rename(tmp_path / "other")
    assert FeatureCache(tmp_path, str(moved)).path(rows[0]) == name
    (moved / "weights").write_bytes(b"2")
    assert FeatureCache(tmp_path, str(moved)).path(rows[0]) != name


def test_only_what_is_missing_is_computed(rows: list[Row], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", "a")
    frames_of(rows[:1], cache)
    seen: list[int] = []

    def counted(features: torch.Tensor) -> torch.Tensor:
        seen.append(len(features))
        return first_numbers(features)

    assert cache.read(rows) is None
    assert frames_of(rows, cache, counted).shape == (3, 3, 2)
    assert seen == [2]
    assert [len(own) for own in cache.read(rows) or ()] == [1, 2]
    assert cache.bytes_of(rows, 3, 2) == 3 * 3 * 2 * 2


def test_a_damaged_file_is_computed_anew(rows: list[Row], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", "a")
    wanted = frames_of(rows, cache)
    cache.path(rows[1]).write_bytes(b"half of it")
    assert cache.read(rows) is None
    assert torch.equal(frames_of(rows, cache), wanted)
    assert cache.read(rows) is not None


def test_several_that_write_at_once_leave_whole_files_and_nothing_else(rows: list[Row], tmp_path: Path) -> None:
    caches = [FeatureCache(tmp_path / "c", "a") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda cache: frames_of(rows, cache), caches))
    assert all(torch.equal(own, found[0]) for own in found)
    files = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(caches[0].path(row) for row in rows)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FastSLMError, match="the cache of encoder frames cannot be made there"):
        FeatureCache(tmp_path / "file" / "cache", "a")
    cache = FeatureCache(tmp_path / "c", "a")

    def full(*_: Any, **__: Any) -> Iterator[None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FastSLMError, match="No space left on device"):
        frames_of(rows, cache)
    assert cache.read(rows) is None

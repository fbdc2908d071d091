"""Loading: the same batches from any number of workers, from where the last one that was handed out left off."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastslm.audio import load_audio
from fastslm.data.batches import RowBatches, Source
from fastslm.data.cuts import read_rows
from fastslm.data.feature_cache import FeatureCache
from fastslm.data.loading import RowBatch, RowLoader
from fastslm.errors import ManifestError
from fastslm.features import extract_features


def loader(manifest: Path, workers: int = 0, batch_seconds: int = 120, **options: Any) -> RowLoader:
    batches = RowBatches([Source(read_rows(manifest))], batch_seconds=batch_seconds, seed=4)
    return RowLoader(batches, n_mels=80, workers=workers, **options)


def same(one: RowBatch, two: RowBatch) -> bool:
    assert one.input_features is not None
    assert two.input_features is not None
    return (
        [row.id for row in one.rows] == [row.id for row in two.rows]
        and one.windows_per_row == two.windows_per_row
        and one.state == two.state
        and torch.equal(one.input_features, two.input_features)
    )


@pytest.fixture
def manifest(make_manifest: Callable[..., Path]) -> Path:
    return make_manifest([1.0, 31.0, 2.0, 5.0])


def test_windows_of_all_rows_stand_one_after_another(manifest: Path) -> None:
    for batch in islice(loader(manifest), 1):
        assert batch.input_features is not None
        assert batch.windows == sum(batch.windows_per_row) == len(batch.input_features)
        assert batch.windows * 30 <= 120
        for row, features in zip(batch.rows, batch.input_features.split(batch.windows_per_row), strict=True):
            wave = load_audio(manifest.with_name(f"{row.id}.wav"))
            assert torch.equal(features, extract_features(wave, 80))


def test_the_authors_log_mel_is_of_the_whole_recording(manifest: Path) -> None:
    batch = next(iter(loader(manifest, mel_mode="authors")))
    assert batch.input_features is not None
    for row, features in zip(batch.rows, batch.input_features.split(batch.windows_per_row), strict=True):
        wave = load_audio(manifest.with_name(f"{row.id}.wav"))
        assert torch.equal(features, extract_features(wave, 80, "authors"))


def test_workers_change_nothing_and_a_state_is_that_of_the_batch_that_was_handed_out(
    make_manifest: Callable[..., Path],
) -> None:
    manifest = make_manifest([1.0, 2.0, 3.0])
    wanted = list(islice(loader(manifest, batch_seconds=60), 4))
    several = loader(manifest, 2, batch_seconds=60)
    assert all(same(*pair) for pair in zip(islice(several, 2), wanted[:2], strict=True))
    # Workers are ahead by then; what they read is not lost.
    assert several.state_dict() == wanted[1].state
    resumed = loader(manifest, batch_seconds=60)
    resumed.load_state_dict(several.state_dict())
    assert all(same(*pair) for pair in zip(islice(resumed, 2), wanted[2:], strict=True))
    again = iter(several)
    assert same(next(again), wanted[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_recording_is_its_sentence_in_whichever_process_it_was_found(manifest: Path, workers: int) -> None:
    manifest.write_text(manifest.read_text().replace('"duration": 5.0', '"duration": 6.0'))
    with pytest.raises(ManifestError) as caught:
        list(islice(loader(manifest, workers), 4))
    assert "m3 lasts 5.00 s, but 6.00 s are stated" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_rows_without_sound_have_no_features(tmp_path: Path) -> None:
    line = '{"id": "a", "audio": null, "duration": 1, "text": "hi", "translation": "salut", "target_language": "fr"}'
    (tmp_path / "m.jsonl").write_text(line)
    batches = RowBatches([Source(read_rows(tmp_path / "m.jsonl", "translate"))], batch_rows=2)
    batch = next(iter(RowLoader(batches, n_mels=80)))
    assert (batch.windows_per_row, batch.input_features, batch.frames(encode)) == ([0, 0], None, None)


def encode(features: torch.Tensor) -> torch.Tensor:
    """Frames that tell their window, and that depend on the windows beside it."""
    return features[:, :4, ::2].transpose(1, 2) + len(features)


def test_cached_frames_come_as_they_were_computed_and_no_recording_is_read_for_them(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "cache", "tiny")
    first = list(islice(loader(manifest, cache=cache), 2))
    assert all(batch.encoder_frames is None for batch in first)
    computed = [batch.frames(encode, cache) for batch in first]
    for batch, frames in zip(first, computed, strict=True):
        assert frames is not None
        assert frames.shape == (batch.windows, 1500, 4)
        assert frames.dtype == torch.bfloat16
        assert not frames.is_inference()
        assert batch.input_features is not None
        own = [encode(features) for features in batch.input_features.split(batch.windows_per_row)]
        assert torch.equal(frames, torch.cat(own).to(torch.bfloat16))
        whole = batch.frames(encode)
        assert whole is not None
        assert torch.equal(whole, encode(batch.input_features)), "without a cache in one go"
    monkeypatch.setattr("fastslm.data.rows.ClipSound.windows", lambda self: pytest.fail("was read"))
    again = list(islice(loader(manifest, cache=FeatureCache(tmp_path / "cache", "tiny")), 2))
    for batch, frames in zip(again, computed, strict=True):
        assert batch.encoder_frames is not None
        assert frames is not None
        assert torch.equal(batch.encoder_frames, frames)
        assert batch.frames(lambda _: pytest.fail("was encoded"), cache) is batch.encoder_frames
    assert [batch.windows_per_row for batch in again] == [batch.windows_per_row for batch in first]


def test_a_batch_goes_to_a_device_whole(manifest: Path) -> None:
    batch = next(iter(loader(manifest))).to(torch.device("meta"))
    assert batch.input_features is not None
    assert batch.input_features.device.type == "meta"
    assert np.sum(batch.windows_per_row) == len(batch.input_features)

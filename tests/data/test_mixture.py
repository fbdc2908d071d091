"""Mixtures: exact shares, nothing twice too soon, an order that the seed decides."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslm.data.manifest import read_manifest, write_manifest
from fastslm.data.mixture import Source, epoch_indices, mix, quotas, whole_count
from fastslm.errors import ManifestError, OptionError

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(deadline=None)
@given(weights=WEIGHTS, count=st.integers(0, 5000))
def test_quotas_add_up_and_are_within_one_of_the_exact_share(weights: list[float], count: int) -> None:
    found = quotas(weights, count)
    assert sum(found) == count
    for quota, weight in zip(found, weights, strict=True):
        assert abs(quota - weight / sum(weights) * count) < 1 + 1e-6


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    count=st.integers(1, 80),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_through_the_epochs_a_row_comes_again_only_when_all_have_come(
    sizes: list[int], count: int, seed: int, data: Any
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    times = [[0] * size for size in sizes]
    for epoch in range(4):
        drawn = epoch_indices(sizes, weights, count, seed, epoch)
        assert drawn.shape == (count, 2)
        for source, row in drawn.tolist():
            times[source][row] += 1
        for own in times:
            assert max(own) - min(own) <= 1


def test_the_seed_decides_and_sources_are_well_mixed() -> None:
    one = epoch_indices([500, 500], [1, 1], 400, 7, 0)
    assert one.tolist() == epoch_indices([500, 500], [1, 1], 400, 7, 0).tolist()
    assert one.tolist() != epoch_indices([500, 500], [1, 1], 400, 8, 0).tolist()
    # Of 200 drawn in random order from 400 in halves, 100 ± 7.1 are of the first: four deviations.
    assert 72 <= int((one[:200, 0] == 0).sum()) <= 128


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=4), data=st.data())
def test_the_whole_count_uses_up_a_source_and_no_row_twice(sizes: list[int], data: Any) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    count = whole_count(sizes, weights)
    assert all(quota <= size for quota, size in zip(quotas(weights, count), sizes, strict=True))
    shares = [(count + 1) * weight / sum(weights) for weight in weights]
    assert any(share > size - 1e-6 for share, size in zip(shares, sizes, strict=True)), "one more row would do"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = []
    for name, size in (("asr", 10), ("sqqa", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"x")
        rows = ({"id": f"{i}", "audio": "a.wav", "duration": 1.0, "text": f"{name} {i}"} for i in range(size))
        write_manifest(tmp_path / name / f"{name}.jsonl", rows)
        paths.append(tmp_path / name / f"{name}.jsonl")
    return paths


def test_rows_keep_their_audio_and_say_where_they_are_from(sources: list[Path], tmp_path: Path) -> None:
    rows = mix([Source(sources[0], 3), Source(sources[1], 1)], tmp_path)
    write_manifest(tmp_path / "mixed.jsonl", rows)
    clips = read_manifest(tmp_path / "mixed.jsonl")
    origins = [(clip.model_extra or {})["mixed_from"] for clip in clips]
    assert (origins.count("asr"), origins.count("sqqa")) == (10, 3)
    for clip, origin in zip(clips, origins, strict=True):
        assert clip.audio_file().parent.name == origin
        assert clip.id == f"{origin}/{(clip.text or '').split()[1]}"


def test_rows_that_come_again_have_ids_of_their_own(sources: list[Path], tmp_path: Path) -> None:
    ids = [row["id"] for row in mix([Source(sources[1], 1)], tmp_path, count=9)]
    assert len(set(ids)) == 9
    assert sum(name.endswith("/2") for name in ids) >= 4


def test_a_later_epoch_goes_on_with_what_was_left(sources: list[Path], tmp_path: Path) -> None:
    first, second = (mix([Source(sources[0], 1)], tmp_path, count=5, epoch=epoch) for epoch in (0, 1))
    assert len({row["id"] for row in first + second}) == 10


def test_sources_are_read_from_words() -> None:
    assert Source.named("a.jsonl") == Source(Path("a.jsonl"), 1.0)
    assert Source.named("run=3/a.jsonl=0.25") == Source(Path("run=3/a.jsonl"), 0.25)
    with pytest.raises(OptionError, match=r"'much' is no number; write a=0\.5"):
        Source.named("a=much")
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(OptionError, match="weight of"):
            Source.named(f"a={weight}")


def test_what_cannot_be_mixed_is_one_sentence(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to mix"):
        mix([], tmp_path)
    with pytest.raises(OptionError, match="Two manifests are called"):
        mix([Source(sources[0], 1), Source(sources[0], 2)], tmp_path)
    with pytest.raises(ManifestError, match="no such manifest"):
        mix([Source(tmp_path / "none.jsonl", 1)], tmp_path)
    with pytest.raises(OptionError, match="0 rows are not possible"):
        mix([Source(sources[0], 1)], tmp_path, count=0)

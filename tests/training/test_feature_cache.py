"""The cache of encoder features: what the encoder says, once, whatever interrupts it."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastslm.data.augmentation import Augmentation
from fastslm.data.packing import render
from fastslm.errors import ManifestError, TrainingError
from fastslm.features import window_mel
from fastslm.model.base_weights import load_encoder
from fastslm.training import disk, feature_cache
from fastslm.training.feature_cache import ENCODE_BATCH, CachedWindows, cache_training_windows, cache_validation_windows
from fastslm.training.recipe import Recipe, check_recipe


@pytest.fixture
def recipe(recipe_content: dict[str, Any], tmp_path: Path) -> Recipe:
    """Of some ten windows, in a cache of its own."""
    (train,) = recipe_content["data"]["train"]
    packing = {"silent_ends": 1.0, "without_speech": 0.1}
    data = {**recipe_content["data"], "cache": str(tmp_path / "cache"), "packing": packing}
    data["train"] = [{**train, "share": 0.5}]
    return check_recipe({**recipe_content, "data": data}, "recipe")


def elsewhere(recipe: Recipe, cache: Path, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": cache, **changes})})


def content(windows: CachedWindows) -> bytes:
    return (windows.folder / "frames.bf16").read_bytes() + (windows.folder / "labels.jsonl").read_bytes()


def test_cached_frames_are_what_the_encoder_says_of_the_rendered_windows(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    pack = feature_cache.pack
    monkeypatch.setattr(feature_cache, "pack", lambda *a: plans.extend(pack(*a)) or plans)
    windows = cache_training_windows(recipe, 0)
    assert len(windows) == len(plans) > ENCODE_BATCH
    encoder = load_encoder(recipe.model.encoder).eval()
    for index in (0, ENCODE_BATCH, len(windows) - 1):
        with torch.no_grad():
            expected = encoder(window_mel([render(plans[index])], 80)).last_hidden_state[0]
        frames = windows.frames([index])[0]
        assert frames.dtype == torch.bfloat16
        # Frames are normed to about 1; the encoder's own arithmetic is bfloat16 too.
        torch.testing.assert_close(frames.float(), expected, rtol=0.05, atol=0.05)
        label = windows.labels[index]
        assert label.text == plans[index].text
        assert label.clips == tuple(p.clip.id for p in plans[index].placements)
        last = plans[index].placements[-1] if plans[index].placements else None
        assert label.frames == (-(-(last.start + last.samples) // 320) if last else 0)


@pytest.mark.parametrize("torn", [1000, -1000])
def test_an_interrupted_encoding_goes_on_and_gives_the_same_bytes(recipe: Recipe, tmp_path: Path, torn: int) -> None:
    undisturbed = content(cache_training_windows(elsewhere(recipe, tmp_path / "other"), 0))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_training_windows(recipe, 0, stop)
    (partial,) = recipe.data.cache.glob("*.partial")
    # What a kill leaves of a write: less than was meant, or a part of the next batch.
    file = partial / "frames.bf16"
    written = file.read_bytes()
    file.write_bytes(written[: len(written) + torn] if torn < 0 else written + written[:torn])
    calls: list[int] = []
    again = cache_training_windows(recipe, 0, lambda done, total: calls.append(done))
    assert content(again) == undisturbed
    assert calls[0] == (ENCODE_BATCH if torn < 0 else len(again))
    assert not list(recipe.data.cache.glob("*.partial"))
    cache_training_windows(recipe, 0, stop)  # nothing is left to encode


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of = feature_cache._encode.__globals__
    monkeypatch.setitem(folder_of, "_label", lambda *_: (_ for _ in ()).throw(OSError(disk.errno.ENOSPC, "full")))
    with pytest.raises(TrainingError, match=r"features could not be written \(the disk is full\); free some room"):
        cache_training_windows(recipe, 0)
    monkeypatch.undo()
    calls: list[int] = []
    windows = cache_training_windows(recipe, 0, lambda done, total: calls.append(done))
    assert len(calls) <= 1, "windows were encoded again"
    assert len(windows.frames(range(len(windows)))) == len(windows)


def test_two_processes_at_once_encode_once_and_read_the_same(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "encoded.txt"
    encode = feature_cache._encode

    def logged(*arguments: Any) -> None:
        with log.open("a") as out:
            out.write("once\n")
        encode(*arguments)

    monkeypatch.setattr(feature_cache, "_encode", logged)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=cache_training_windows, args=(recipe, 0)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
    finally:
        torch.set_num_threads(threads)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "once\n"


def test_each_packing_and_each_setting_has_a_cache_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    first = cache_training_windows(recipe, 0)
    second = cache_training_windows(recipe, 1)
    assert first.folder != second.folder
    assert cache_training_windows(recipe, 0).folder == first.folder
    names = [label.name for windows in (first, second) for label in windows.labels]
    assert len(set(names)) == len(names)
    # Other weights under the encoder's path are another encoder.
    before = cache_validation_windows(recipe)
    extra = Path(recipe.model.encoder) / "extra.txt"
    extra.write_text("changed")
    try:
        assert cache_validation_windows(recipe).folder != before.folder
    finally:
        extra.unlink()


def test_a_share_takes_so_many_clips_and_others_in_another_packing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_cached", lambda features, *_: features.windows())
    plans: Any = [cache_training_windows(recipe, variant) for variant in (0, 1)]
    taken = [{p.clip.id for window in windows for p in window.placements} for windows in plans]
    assert [len(clips) for clips in taken] == [18, 18]
    assert taken[0] != taken[1]


def test_validation_clips_stand_alone_from_the_first_sample(recipe: Recipe) -> None:
    windows = cache_validation_windows(recipe)
    assert [label.clips for label in windows.labels] == [(f"validation-{i}",) for i in range(4)]
    assert {label.frames for label in windows.labels} == {100}


@pytest.mark.parametrize(("change", "said"), [({"text": None}, "no clip"), ({"duration": 31.0}, "31.0 s")])
def test_clips_without_text_and_clips_that_would_be_cut_are_refused(
    recipe: Recipe, tone_corpus: Path, change: dict[str, Any], said: str
) -> None:
    rows = [json.loads(line) | change for line in (tone_corpus / "train.jsonl").read_text().splitlines()]
    path = tone_corpus / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = (recipe.data.train[0].model_copy(update={"path": path}),)
    with pytest.raises(ManifestError, match=said):
        cache_training_windows(elsewhere(recipe, recipe.data.cache, train=train), 0)
    with pytest.raises(ManifestError, match=said):
        cache_validation_windows(elsewhere(recipe, recipe.data.cache, validation=path))
    assert np.all([not p.name.endswith(".partial") for p in recipe.data.cache.iterdir()])


def test_augmented_windows_have_a_cache_of_their_own_and_each_variant_another_draw(recipe: Recipe) -> None:
    augmented = recipe.data.packing.model_copy(update={"augmentation": Augmentation(speeds=(0.9, 1.1), noise=1.0)})
    plain = cache_training_windows(recipe, 0)
    first, second = (
        cache_training_windows(elsewhere(recipe, recipe.data.cache, packing=augmented), variant) for variant in (0, 1)
    )
    assert len({plain.folder, first.folder, second.folder}) == 3
    clips = {label.clips for label in plain.labels if label.clips}
    # The same clips in the same windows, each of another sound.
    assert {label.clips for label in first.labels if label.clips} == clips
    same = [torch.equal(plain.frames([i]), first.frames([i])) for i, label in enumerate(plain.labels) if label.clips]
    assert not any(same)


def test_a_text_may_hold_what_other_programs_take_for_the_end_of_a_line(recipe: Recipe, tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    rows = [json.loads(line) for line in recipe.data.validation.read_text().split("\n") if line]
    manifest = recipe.data.validation.with_name("separators.jsonl")
    manifest.write_text(json.dumps({**rows[0], "text": text}) + "\n")
    windows = cache_validation_windows(elsewhere(recipe, tmp_path / "other", validation=manifest))
    assert [label.text for label in windows.labels] == [text]

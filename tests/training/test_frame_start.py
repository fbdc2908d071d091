"""The least-squares start: its two regressions against numpy's, and the loss that it says against the loss that is."""

from typing import Any

import numpy as np
import pytest
import torch

from fastslm.errors import RecipeError
from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.starts import start_hfq_former
from fastslm.model.whisper_decoder import FRAMES_PER_TOKEN, Unfolder, frames_at_rate
from fastslm.training import frame_start
from fastslm.training.frame_start import _components, _folding, start_from_frames

WIDTH, FRAMES, TOKENS = 64, 200, 10


def parts(**changes: Any) -> tuple[HFQFormer, Unfolder]:
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "head_size": 16,
        "window_frames": FRAMES,
        "stage_tokens": [8, 8, 8],
        "final_tokens": TOKENS,
        "detail_blocks": 2,
        "query_start": "time",
        "detail_positions": True,
        "detail_start": "positional",
        "attention_span": 1,
    }
    torch.manual_seed(0)
    hfq = HFQFormerConfig(**{**sizes, **changes})
    former = HFQFormer(hfq)
    start_hfq_former(former)
    return former, Unfolder(hfq, 1)


def frame_distance(unfolded: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Mean squared distance from the encoder's frames at the same times, in units of the frames' variance."""
    there = frames_at_rate(frames, unfolded.shape[1])
    return (unfolded - there).square().mean() / there.var()


def slow_frames(windows: int, seed: int = 0) -> torch.Tensor:
    """Frames that move slowly, as an encoder's do, in a dozen directions, about a mean of their own at every time."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(windows, 12, FRAMES // 8, generator=generator)
    paths = torch.nn.functional.interpolate(coarse, FRAMES, mode="linear").transpose(1, 2)
    directions = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(9))
    mean = torch.randn(FRAMES, WIDTH, generator=torch.Generator().manual_seed(8))
    # Quiet, so that time and not what is said decides where the looks look.
    return 0.1 * (paths @ directions + mean)


def batches_of(frames: torch.Tensor) -> list[torch.Tensor]:
    """Of unequal sizes, as the last one is."""
    return list(frames.split([10, 10, len(frames) - 20]))


def test_components_are_numpys_first_principal_ones() -> None:
    vectors = torch.randn(300, 20) @ torch.randn(20, 20) + 3
    mean, found = _components(iter(vectors.view(3, 10, 10, 20)), 5)
    centred = vectors.double().numpy() - vectors.double().numpy().mean(0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:5]
    np.testing.assert_allclose(mean.numpy(), vectors.numpy().mean(0), atol=1e-4)
    # The same directions, whichever way each points.
    np.testing.assert_allclose(found.numpy().T @ found.numpy(), expected.T @ expected, atol=1e-3)


def test_folding_is_the_reduced_rank_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_start, "RIDGE", 1e-7)
    generator = np.random.default_rng(0)
    windows, tokens, channels, width, twelve = 40, 10, 24, 6, 3
    seen = generator.standard_normal((windows * tokens, channels)) @ generator.standard_normal((channels, channels))
    slots = seen @ generator.standard_normal((channels, twelve * width))
    slots += 0.5 * generator.standard_normal(slots.shape)
    x = torch.tensor(seen, dtype=torch.float32).view(windows, tokens, channels)
    y = torch.tensor(slots, dtype=torch.float32).view(windows, tokens * twelve, width)
    folding = _folding(zip(x.split(16), y.split(16), strict=True)).double().numpy()
    assert folding.shape == (channels, width)
    folded = seen @ folding
    np.testing.assert_allclose(folded.T @ folded / len(folded), np.eye(width), atol=1e-2)
    # What no rank of `width` can avoid (Eckart–Young): what a full regression leaves, and its smaller singular values.
    full = seen @ np.linalg.lstsq(seen, slots, rcond=None)[0]
    unavoidable = ((slots - full) ** 2).sum() + (np.linalg.svd(full, compute_uv=False)[width:] ** 2).sum()
    lost = ((slots - folded @ np.linalg.lstsq(folded, slots, rcond=None)[0]) ** 2).sum()
    assert lost == pytest.approx(unavoidable, rel=1e-4)


@torch.no_grad()
def test_the_loss_that_it_says_is_the_loss_that_is_measured() -> None:
    former, unfold = parts()
    frames = slow_frames(27)
    said = start_from_frames(former, unfold, batches_of(frames))
    measured = frame_distance(unfold(former(frames)), frames)
    assert said == pytest.approx(float(measured), rel=1e-3)
    assert said < 0.5


@torch.no_grad()
def test_no_other_linear_unfolder_of_these_tokens_loses_less() -> None:
    former, unfold = parts()
    frames = slow_frames(60)
    said = start_from_frames(former, unfold, batches_of(frames))
    tokens = former(frames).flatten(0, 1).double().numpy()
    there = frame_start.frames_at_rate(frames, TOKENS * FRAMES_PER_TOKEN)
    slots = (there - there.mean(0)).unflatten(1, (TOKENS, -1)).flatten(2).flatten(0, 1).double().numpy()
    x = np.concatenate([tokens, np.ones((len(tokens), 1))], 1)
    best = ((slots - x @ np.linalg.lstsq(x, slots, rcond=None)[0]) ** 2).mean() / float(there.double().var())
    assert best <= said < best * 1.05 + 1e-3  # the ridge costs a little


@torch.no_grad()
def test_windows_that_were_not_seen_lose_hardly_more_and_a_random_start_loses_far_more() -> None:
    other = slow_frames(20, seed=1)
    former, unfold = parts()
    before = float(frame_distance(unfold(former(other)), other))
    said = start_from_frames(former, unfold, batches_of(slow_frames(80)))
    after = float(frame_distance(unfold(former(other)), other))
    assert after < 1.5 * said
    assert before > 3 * after


@torch.no_grad()
def test_the_mean_frame_of_every_place_is_that_of_all_windows_whatever_their_batches() -> None:
    frames = slow_frames(27)
    places = []
    for batches in ([frames], batches_of(frames)):
        former, unfold = parts()
        start_from_frames(former, unfold, batches)
        places.append(unfold.place.clone())
    torch.testing.assert_close(places[0], places[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"detail_start": "random"}, {"attention_span": None}])
def test_a_former_without_placed_looks_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="detail_start positional and an attention_span"):
        start_from_frames(*parts(**changes), batches_of(slow_frames(21)))

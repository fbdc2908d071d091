"""What phases train towards: shifting, masking, and losses that add up over micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperConfig

from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig
from fastslm.model.ctc_head import CTCHead
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.starts import start_hfq_former
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch, TokenCTC, masked, shifted

TEXTS = ["a few words", "some other words that are said", "no", ""]


@pytest.fixture
def objective() -> TokenCTC:
    torch.manual_seed(0)
    hfq = HFQFormerConfig(hidden_size=64, window_frames=120, stage_tokens=[4, 4, 4], final_tokens=20, head_size=32)
    config = FastSLMConfig(
        audio_config=WhisperConfig(d_model=64, max_source_positions=120),
        hfq_config=hfq,
        ctc_hidden_size=8,
        ctc_layers=1,
        ctc_steps_per_token=4,
    )
    former = HFQFormer(hfq)
    start_hfq_former(former)
    return TokenCTC(former, CTCHead(config))


def batch(texts: list[str], frames: torch.Tensor) -> Batch:
    return Batch(frames, [WindowLabel(text, 10, ()) for text in texts], [0] * len(texts))


def gradients(objective: TokenCTC) -> list[torch.Tensor]:
    found = [p.grad.clone() for part in objective.parts.values() for p in part.parameters() if p.grad is not None]
    for part in objective.parts.values():
        part.zero_grad()
    return found


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(objective: TokenCTC) -> None:
    frames = torch.randn(4, 120, 64)
    whole = objective.losses(batch(TEXTS, frames))["loss"]
    whole.backward()
    expected = gradients(objective)
    total = 0.0
    for first in (0, 2):
        loss = objective.losses(batch(TEXTS[first : first + 2], frames[first : first + 2]))["loss"] / 2
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    for one, other in zip(gradients(objective), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=4))
def test_shifting_rolls_each_window_by_its_own_count_and_back(by: list[int]) -> None:
    frames = torch.arange(len(by) * 30 * 2).view(len(by), 30, 2)
    moved = shifted(frames, by)
    for window, shift in enumerate(by):
        for frame in range(30):
            assert torch.equal(moved[window, (frame + shift) % 30], frames[window, frame])
    assert torch.equal(shifted(moved, [-b for b in by]), frames)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_masking_blanks_about_its_share_with_the_mean_frame(share: float) -> None:
    frames = torch.randn(8, 1500, 4)
    result = masked(frames, share, 15, torch.Generator().manual_seed(0))
    blank = (result != frames).any(-1)
    # Stretches overlap and pass the end, so the share is what is left of 1 − e^(−share).
    assert float(blank.float().mean()) == pytest.approx(1 - torch.tensor(-share).exp().item(), rel=0.15)
    for window in range(8):
        mean = frames[window].mean(0)
        torch.testing.assert_close(result[window][blank[window]], mean.expand(int(blank[window].sum()), 4))
    assert len({tuple(row.tolist()) for row in blank}) == 8, "windows are masked alike"


def test_masking_draws_only_from_its_generator() -> None:
    frames = torch.randn(2, 100, 4)
    before = torch.get_rng_state()
    first = masked(frames, 0.2, 15, torch.Generator().manual_seed(5))
    assert torch.equal(first, masked(frames, 0.2, 15, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, masked(frames, 0.2, 15, torch.Generator().manual_seed(6)))
    assert torch.equal(before, torch.get_rng_state())

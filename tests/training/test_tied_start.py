"""The tied start: shared looks, and the ordinary HFQ-Former that they become."""

import math
from typing import Any

import pytest
import torch

from fastslm.errors import RecipeError
from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.local_attention import SlotFrames, detail_frames
from fastslm.model.starts import LOOK_CONTENT_SCALE, start_hfq_former
from fastslm.training import tied_start
from fastslm.training.tied_start import REST, TiedLooks, check_tied, untie

WIDTH, FRAMES, TOKENS, BLOCKS = 64, 200, 10, 2


def former(**changes: Any) -> HFQFormer:
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "head_size": 16,
        "window_frames": FRAMES,
        "stage_tokens": [8, 8, 8],
        "final_tokens": TOKENS,
        "detail_blocks": BLOCKS,
        "query_start": "time",
        "detail_positions": True,
        "detail_start": "positional",
        "attention_span": 1,
    }
    torch.manual_seed(0)
    model = HFQFormer(HFQFormerConfig(**{**sizes, **changes}))
    start_hfq_former(model)
    return model


def untied_difference(content: bool) -> float:
    """How far the tokens move, relative to their size, where looks are untied."""
    looks = TiedLooks(former())
    if not content:
        for block in looks.hfq_former.blocks:
            block.norm2.weight.zero_()
    x1 = torch.randn(2, FRAMES, WIDTH, generator=torch.Generator().manual_seed(0))
    tied = looks(x1)
    untie(looks)
    return float((looks.hfq_former(x1) - tied).norm() / tied.norm())


@torch.no_grad()
def test_untying_adds_no_more_than_what_was_quietened(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where tokens do not turn the looks, all that is added is REST of what the other projections say, which is about
    # as loud as the looks: so the difference is of REST's size, and as REST falls, it falls.
    quiet = untied_difference(content=False)
    assert quiet < 3 * REST
    monkeypatch.setattr(tied_start, "REST", REST / 10)
    assert untied_difference(content=False) == pytest.approx(quiet / 10, rel=0.2)
    monkeypatch.setattr(tied_start, "REST", 1.0)
    assert untied_difference(content=False) > 50 * quiet


@torch.no_grad()
def test_what_tokens_hold_turns_their_looks_but_little() -> None:
    # The tied looks know time alone; afterwards a token's content speaks in its query, at LOOK_CONTENT_SCALE.
    assert untied_difference(content=True) < 2 * (LOOK_CONTENT_SCALE + REST)


@torch.no_grad()
def test_each_look_keeps_its_own_channels_after_untying() -> None:
    looks = TiedLooks(former())
    x1 = torch.randn(1, FRAMES, WIDTH)
    untie(looks)
    before = looks.hfq_former(x1)
    head = looks.hfq_former.blocks[0].cross_attention
    look = 2
    head.v_proj.weight[look * 16 : (look + 1) * 16] = 0
    head.v_proj.bias[look * 16 : (look + 1) * 16] = 0
    moved = (looks.hfq_former(x1) - before).abs().mean((0, 1)).unflatten(0, (looks.looks, -1)).mean(-1)
    assert int(moved.argmax()) == look
    assert moved[look] > 10 * moved[torch.arange(looks.looks) != look].max()


@torch.no_grad()
def test_looks_lie_where_a_dense_cross_attention_of_empty_tokens_looks() -> None:
    looks = TiedLooks(former())
    hfq = looks.hfq_former
    x1 = torch.randn(2, FRAMES, WIDTH)
    x2 = hfq.downsampler1(x1)
    x3 = hfq.downsampler2(x2)
    frames = detail_frames(hfq.config, x1, x2, x3)
    assert isinstance(frames, SlotFrames)
    found = looks.attention_weights(frames)

    # Written down once more from the definition, over all keys with a mask.
    scales = [FRAMES, FRAMES // 2, FRAMES // 4]
    speeds = torch.exp(-math.log(10_000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))

    def code(times: torch.Tensor) -> torch.Tensor:
        return torch.cat([(times[:, None] * speeds).sin(), (times[:, None] * speeds).cos()], -1)

    slot = FRAMES / TOKENS
    token_time = code((torch.arange(TOKENS) + 0.5) * slot - 0.5)
    key_time = code(torch.cat([torch.arange(n) * (FRAMES / n) for n in scales]))
    keys = torch.cat([x1, x2, x3], 1) + key_time
    key_slot = torch.cat([torch.arange(n) * TOKENS // n for n in scales])
    visible = (key_slot[None] - torch.arange(TOKENS)[:, None]).abs() <= 1
    look = 0
    for block in hfq.blocks:
        attention = block.cross_attention
        query = (token_time @ attention.q_proj.weight.T + attention.q_proj.bias).unflatten(-1, (4, 16))
        key = (keys @ attention.k_proj.weight.T).unflatten(-1, (4, 16))
        for head in range(4):
            scores = torch.einsum("tc,bkc->btk", query[:, head], key[:, :, head]) / math.sqrt(16)
            dense = scores.masked_fill(~visible, float("-inf")).softmax(-1)
            for token in range(TOKENS):
                own = found[:, token, look][:, frames.real[token]]
                torch.testing.assert_close(own, dense[:, token, visible[token]], rtol=1e-4, atol=1e-6)
            look += 1
    assert look == looks.looks


def test_only_the_downsamplers_and_the_shared_map_get_gradients() -> None:
    looks = TiedLooks(former())
    looks(torch.randn(1, FRAMES, WIDTH)).square().sum().backward()
    moved = {
        name.split(".")[1] if name[0] == "h" else name for name, p in looks.named_parameters() if p.grad is not None
    }
    assert moved == {"downsampler1", "downsampler2", "value.weight", "value.bias"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detail_start": "random"}, "detail_start positional"),
        ({"attention_span": None}, "attention_span"),
        ({"detail_blocks": 3}, "12 looks cannot share 64 channels"),
    ],
)
def test_a_former_that_cannot_be_tied_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        TiedLooks(former(**changes))


def test_no_detail_recovery_cannot_be_tied() -> None:
    config = former(detail_blocks=0, detail_start="random").config
    config.detail_start = "positional"
    with pytest.raises(RecipeError, match="0 looks cannot share 64 channels"):
        check_tied(config)


def test_a_head_that_reads_other_steps_than_the_looks_is_refused() -> None:
    config = former().config
    assert check_tied(config, steps_per_token=8) == 8
    with pytest.raises(RecipeError, match="in 24 steps, but it is 8 looks"):
        check_tied(config, steps_per_token=24)

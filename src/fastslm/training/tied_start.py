"""The tied start: detail recovery learns to hear as equal, shared looks at evenly spaced times (ours).

An adapter that must learn each place of a slot by itself memorises a dozen hours of speech instead of learning to hear.
So for the first minutes all heads of all blocks share one value map, and their looks, in order of time, are a sequence
at 40 Hz that the CTC head reads. Then the map is copied into every head, each look gets channels of its own in the
token, and what there is now is an ordinary HFQ-Former.
"""

import math

import torch
from torch import nn

from fastslm.errors import RecipeError
from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.local_attention import SlotFrames, detail_frames

# What is not a look starts this small when the looks are untied, so that untying hardly changes what is heard.
REST = 0.01


def check_tied(config: HFQFormerConfig, steps_per_token: int | None = None, needed_by: str = "objective tied") -> int:
    """Looks a token, heads × blocks.

    Args:
        steps_per_token: in which the CTC head reads a token, where there is a head.
        needed_by: what of a recipe asks for it.

    Raises:
        RecipeError: the tied start cannot be made with this HFQ-Former, or not be read by this head.
    """
    looks = config.detail_blocks * config.num_heads
    if config.detail_start != "positional" or config.attention_span is None:
        raise RecipeError(f"{needed_by} needs model.hfq.detail_start positional and an attention_span; set both.")
    if not looks or config.hidden_size % looks or config.hidden_size // looks > config.head_size:
        raise RecipeError(
            f"{needed_by}: {looks} looks cannot share {config.hidden_size} channels; "
            "set model.hfq.detail_blocks so that heads × blocks divides the width."
        )
    if steps_per_token not in (None, looks):
        raise RecipeError(
            f"{needed_by}: the head reads a token in {steps_per_token} steps, but it is {looks} looks "
            f"(heads × blocks); set model.ctc.steps_per_token to {looks}."
        )
    return looks


class TiedLooks(nn.Module):
    """All looks of all tokens through one shared value map.

    Holds the HFQ-Former, whose downsamplers it trains and whose query and key projections stay at their positional
    start, and the shared map.

    Raises:
        RecipeError: the HFQ-Former has no positional start, or its looks do not share out the token's channels.
    """

    def __init__(self, hfq_former: HFQFormer):
        super().__init__()
        config = hfq_former.config
        self.looks = check_tied(config)
        self.hfq_former = hfq_former
        self.channels = config.hidden_size // self.looks
        self.value = nn.Linear(config.hidden_size, self.channels)

    def forward(self, x1: torch.Tensor) -> torch.Tensor:
        """(windows, 1500, hidden) → (windows, 50, hidden): look j in channels 16 j … 16 j + 15 of its token."""
        hfq = self.hfq_former
        x2 = hfq.downsampler1(x1)
        x3 = hfq.downsampler2(x2)
        frames = detail_frames(hfq.config, x1, x2.detach(), x3.detach())
        assert isinstance(frames, SlotFrames)
        weights = self.attention_weights(frames)
        values = SlotFrames(
            [self.value(x) for x in (x1, x2, x3)], hfq.config.final_tokens, hfq.config.attention_span or 0, None, None
        )
        parts = weights.split(frames.sizes, dim=-1)
        seen = [part @ value for part, value in zip(parts, values.scales, strict=True)]
        return torch.stack(seen).sum(0).flatten(2)

    @torch.no_grad()
    def attention_weights(self, frames: SlotFrames) -> torch.Tensor:
        """Where every look looks: (windows, tokens, looks, neighbours). Time alone asks, time and content answer."""
        asked = []
        assert frames.query_time is not None
        assert frames.key_time is not None
        for block in self.hfq_former.blocks:
            attention = block.cross_attention
            query = attention.q_proj(frames.query_time).unflatten(-1, (attention.heads, -1))
            weight = attention.k_proj.weight.unflatten(0, (attention.heads, -1))
            asked.append(torch.einsum("thd,hdc->thc", query, weight.to(query.dtype)))
        every = torch.cat(asked, dim=1).to(frames.key_time.dtype)
        scores = torch.cat([torch.einsum("tjc,btkc->btjk", every, scale) for scale in frames.scales], dim=-1)
        scores = scores + torch.einsum("tjc,tkc->tjk", every, frames.key_time)
        scores = scores.float() / math.sqrt(self.hfq_former.config.head_size)
        return scores.masked_fill(~frames.real[:, None, :], float("-inf")).softmax(-1).to(every.dtype)


@torch.no_grad()
def untie(looks: TiedLooks) -> None:
    """Copy the shared map into every head, give each look its own channels of the token, and quieten all the rest."""
    hfq = looks.hfq_former
    head_size, channels = hfq.config.head_size, looks.channels
    hfq.distillation.out_proj.weight.mul_(REST)
    hfq.distillation.out_proj.bias.zero_()
    look = 0
    for block in hfq.blocks:
        self_attention, cross = block.self_attention, block.cross_attention
        self_attention.out_proj.weight.mul_(REST)
        self_attention.out_proj.bias.zero_()
        cross.v_proj.weight.mul_(REST)
        cross.v_proj.bias.zero_()
        cross.out_proj.weight.mul_(REST)
        cross.out_proj.bias.zero_()
        for head in range(cross.heads):
            first = head * head_size
            cross.v_proj.weight[first : first + channels] = looks.value.weight
            cross.v_proj.bias[first : first + channels] = looks.value.bias
            rows = slice(look * channels, (look + 1) * channels)
            cross.out_proj.weight[rows] = 0.0
            cross.out_proj.weight[rows, first : first + channels] = torch.eye(channels)
            look += 1

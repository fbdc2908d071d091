"""What detail recovery reads: the frames of all scales, or for each token those near its own slot (ours).

Of the latter, the projections of keys and values are moved to the other side of the products, which changes no result
but rounding: a token's neighbourhood is some 150 frames of 2625, and projecting the one query is far cheaper than
projecting them all.
"""

import functools
import math
from typing import TYPE_CHECKING

import torch

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.positions import neighbourhoods, slot_and_key_times

if TYPE_CHECKING:
    from fastslm.model.hfq_former import Attention


def detail_frames(config: HFQFormerConfig, x1: torch.Tensor, x2: torch.Tensor, x3: torch.Tensor) -> "DetailFrames":
    """What detail recovery reads: all frames, or with `attention_span` those near each token's slot."""
    query_time = key_time = None
    if config.detail_positions:
        query_time, key_time = detail_times(config, x1.device)
    if config.attention_span is not None:
        return SlotFrames([x1, x2, x3], config.final_tokens, config.attention_span, query_time, key_time)
    scales = [x.to(x3.dtype) for x in (x1, x2, x3)]
    if query_time is None or key_time is None:
        return AllFrames(scales, 0.0, 0.0)
    return AllFrames(scales, query_time.to(x3.dtype), key_time.to(x3.dtype))


def detail_times(config: HFQFormerConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sinusoids of each token's slot middle, (tokens, hidden), and of every key's time, (keys, hidden).

    Time is counted in frames of the encoder (50 a second); frame j of a scale halved s times is at 2^s · j.
    """
    return slot_and_key_times(config.final_tokens, config.scale_lengths, config.hidden_size, device)


class AllFrames:
    """X1, X2 and X3 one after another, and the positions that queries and keys add, 0 as published."""

    def __init__(self, scales: list[torch.Tensor], query_time: torch.Tensor | float, key_time: torch.Tensor | float):
        self.frames = torch.cat(scales, dim=1)
        self.query_time = query_time
        self.key_time = key_time

    def attended(self, attention: "Attention", query: torch.Tensor) -> torch.Tensor:
        """What the normed query, (batch, tokens, hidden), reads in all frames; the same shape."""
        return attention(query + self.query_time, self.frames + self.key_time, self.frames)


class SlotFrames:
    """The frames that each token may see, gathered once for all blocks, scale by scale.

    With gradients the scales stay apart, because the first one comes from the frozen encoder: no gradient has to be
    carried to it. Without, those of a half precision are one: it takes fewer products, and no sum of parts is rounded.

    Attributes:
        scales: three of (batch, tokens, neighbours, hidden), or one of all neighbours
        real: (tokens, neighbours of all scales) of bool; the others fill up
        query_time: (tokens, hidden) or `None`
        key_time: (tokens, neighbours of all scales, hidden) or `None`
    """

    def __init__(
        self,
        scales: list[torch.Tensor],
        tokens: int,
        span: int,
        query_time: torch.Tensor | None,
        key_time: torch.Tensor | None,
    ):
        lengths = tuple(x.shape[1] for x in scales)
        indices, self.real = neighbourhoods(tokens, lengths, span, scales[0].device)
        device = scales[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else scales[-1].dtype
        if not torch.is_grad_enabled() and dtype.itemsize < 4:
            scales, indices = [torch.cat([x.to(dtype) for x in scales], dim=1)], [_in_one_sequence(indices, lengths)]
        self.scales = [
            x.to(dtype).index_select(1, i.flatten()).unflatten(1, i.shape) for x, i in zip(scales, indices, strict=True)
        ]
        self.sizes = [i.shape[1] for i in indices]
        self.query_time = query_time
        self.key_time = None if key_time is None else _nearby(key_time, tokens, lengths, span, dtype)

    def attended(self, attention: "Attention", query: torch.Tensor) -> torch.Tensor:
        """What the normed query, (batch, tokens, hidden), reads near its slots; the same shape."""
        return local_cross_attention(attention, query, self)


DetailFrames = AllFrames | SlotFrames


def _in_one_sequence(indices: list[torch.Tensor], lengths: tuple[int, ...]) -> torch.Tensor:
    """Per sequence (tokens, neighbours), to be found where the sequences stand one after another."""
    return torch.cat([i + sum(lengths[:n]) for n, i in enumerate(indices)], dim=1)


@functools.lru_cache(maxsize=4)
@torch.no_grad()
def _nearby(
    key_time: torch.Tensor, tokens: int, lengths: tuple[int, ...], span: int, dtype: torch.dtype
) -> torch.Tensor:
    """The times of each token's neighbours, (tokens, neighbours, hidden); they are the same for every recording."""
    indices, _ = neighbourhoods(tokens, lengths, span, key_time.device)
    with torch.inference_mode(False):
        return key_time[_in_one_sequence(indices, lengths)].to(dtype)


def local_cross_attention(attention: "Attention", query: torch.Tensor, frames: SlotFrames) -> torch.Tensor:
    """`attention(query + query_time, frames + key_time, frames)` over the neighbourhoods alone.

    Args:
        query: (batch, tokens, hidden), normed, without its time.

    Returns:
        (batch, tokens, hidden)
    """
    heads = attention.heads
    if frames.query_time is not None:
        query = query + frames.query_time.to(query.dtype)
    query = attention.q_proj(query).unflatten(-1, (heads, -1))
    head_size = query.shape[-1]
    key_weight = attention.k_proj.weight.unflatten(0, (heads, head_size)).to(query.dtype)
    # (batch, tokens, heads, hidden): what the query asks of a frame, before any frame is projected.
    asked = torch.einsum("bthd,hdc->bthc", query, key_weight)
    scores = torch.cat([asked @ scale.transpose(-1, -2) for scale in frames.scales], dim=-1)
    if frames.key_time is not None:
        scores = scores + torch.einsum("bthc,tkc->bthk", asked, frames.key_time)
    scores = scores.float() / math.sqrt(head_size)
    weights = scores.masked_fill(~frames.real[:, None, :], float("-inf")).softmax(-1).to(asked.dtype)
    parts = weights.split(frames.sizes, dim=-1)
    seen = [part @ scale for part, scale in zip(parts, frames.scales, strict=True)]
    seen = torch.stack(seen).sum(0) if len(seen) > 1 else seen[0]
    value_weight = attention.v_proj.weight.unflatten(0, (heads, head_size)).to(seen.dtype)
    value = torch.einsum("bthc,hdc->bthd", seen, value_weight).flatten(2)
    return attention.out_proj(value + attention.v_proj.bias.to(value.dtype))

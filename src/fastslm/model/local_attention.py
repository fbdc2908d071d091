"""Detail recovery's cross-attention where every token sees only frames near its own slot (ours).

The projections of keys and values are moved to the other side of the products, which changes no result but rounding: a
token's 50 Hz neighbourhood is a few dozen frames, so projecting the one query is far cheaper than projecting 2625 frames.
"""

import math
from typing import TYPE_CHECKING

import torch

from fastslm.model.positions import neighbourhoods

if TYPE_CHECKING:
    from fastslm.model.hfq_former import Attention


class SlotFrames:
    """The frames of all scales that each token may see, gathered once for all blocks.

    Attributes:
        frames: (batch, tokens, neighbours, hidden)
        real: (tokens, neighbours) of bool; the others fill up
        query_time: (tokens, hidden) or `None`; key_time: (tokens, neighbours, hidden) or `None`
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
        dtype = scales[-1].dtype
        gathered = [x.to(dtype).index_select(1, i.flatten()).unflatten(1, i.shape) for x, i in zip(scales, indices, strict=True)]
        self.frames = torch.cat(gathered, dim=2)
        self.query_time, self.key_time = query_time, None
        if key_time is not None:
            starts = [sum(lengths[:n]) for n in range(len(lengths))]
            self.key_time = torch.cat([key_time[i + s] for i, s in zip(indices, starts, strict=True)], dim=1)


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
    key_weight = attention.k_proj.weight.unflatten(0, (heads, head_size))
    # (batch, tokens, heads, hidden): what the query asks of a frame, before any frame is projected.
    asked = torch.einsum("bthd,hdc->bthc", query, key_weight.to(query.dtype))
    neighbours = frames.frames.to(asked.dtype)
    scores = asked @ neighbours.transpose(-1, -2)
    if frames.key_time is not None:
        time = frames.key_time.to(asked.dtype)
        scores = scores + (asked.transpose(0, 1).flatten(1, 2) @ time.transpose(-1, -2)).unflatten(
            1, asked.shape[::2]
        ).transpose(0, 1)
    scores = scores.float() / math.sqrt(head_size)
    weights = scores.masked_fill(~frames.real[:, None, :], float("-inf")).softmax(-1).to(neighbours.dtype)
    seen = weights @ neighbours
    value_weight = attention.v_proj.weight.unflatten(0, (heads, head_size))
    value = torch.einsum("bthc,hdc->bthd", seen, value_weight.to(seen.dtype)).flatten(2)
    return attention.out_proj(value + attention.v_proj.bias.to(value.dtype))

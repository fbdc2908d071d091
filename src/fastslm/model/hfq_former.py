"""The HFQ-Former: 1500 encoder frames of a 30 s window become 50 tokens (paper section 3, figure 2).

    X1 [1500, d] ──────────────► compressor 1 ─ Q1 [80, d] ─┐
      │ downsampler 1                                       │
    X2 [750, d] ───────────────► compressor 2 ─ Q2 [80, d] ─┤ distillation ─ Z0 [50, d]
      │ downsampler 2                                       │
    X3 [375, d] ───────────────► compressor 3 ─ Q3 [80, d] ─┘
                                                            ▼
    X1, X2, X3 [2625, d] ──────► detail recovery, N blocks ─ Z [50, d]

Everything that is ours is a switch of `HFQFormerConfig`; with all of them off the arithmetic is the paper's.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.local_attention import DetailFrames, detail_frames
from fastslm.model.positions import sinusoids, visible_keys


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, visible: torch.Tensor | None = None
):
    """Scaled dot-product attention over heads of equal width.

    Args:
        query: (batch, queries, hidden). key, value: (batch, keys, hidden).
        visible: (queries, keys) of bool, `None` for all.

    Returns:
        (batch, queries, hidden)
    """
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return mixed.transpose(1, 2).flatten(2)


class Compressor(nn.Module):
    """Learned queries read a sequence through one cross-attention without projections of query, key or value.

    The value carries no position. No residual, no feed-forward part (paper section 3.1).
    """

    def __init__(self, config: HFQFormerConfig, queries: int, scales: tuple[int, ...]):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.scales = scales
        self.span = config.attention_span
        self.query = nn.Parameter(torch.empty(1, queries, width))
        self.query_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.key_value_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(width, width)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, keys, hidden) → (batch, queries, hidden)"""
        batch, keys, width = frames.shape
        queries = self.query.shape[1]
        query = self.query_norm(self.query)
        query = query + sinusoids(queries, width, query.device, query.dtype)
        value = self.key_value_norm(frames)
        key = value + sinusoids(keys, width, value.device, value.dtype)
        visible = visible_keys(queries, self.scales, self.span, frames.device)
        return self.out_proj(attend(query.expand(batch, -1, -1), key, value, self.heads, visible))


class Downsampler(nn.Module):
    """Halves the frame rate: convolution, GELU, convolution of stride 2, GELU, LayerNorm (paper section 3.1)."""

    def __init__(self, config: HFQFormerConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames, hidden) → (batch, frames / 2, hidden)"""
        frames = F.gelu(self.conv1(frames.transpose(1, 2)))
        frames = F.gelu(self.conv2(frames))
        return self.norm(frames.transpose(1, 2))


class Attention(nn.Module):
    """Multi-head attention with Whisper's projections: query, value and output with bias, key without."""

    def __init__(self, config: HFQFormerConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query (batch, queries, hidden), key and value (batch, keys, hidden) → (batch, queries, hidden)"""
        return self.out_proj(attend(self.q_proj(query), self.k_proj(key), self.v_proj(value), self.heads))


class DetailRecovery(nn.Module):
    """One block in which the distilled tokens look once more at the frames of all scales (paper section 3.2).

    Pre-norm and residual, without a feed-forward part; keys and values are not normed again. As published it has no
    positions. With `detail_positions`, queries and keys of the cross-attention, but not its values, know their time.
    """

    def __init__(self, config: HFQFormerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = Attention(config)

    def forward(self, tokens: torch.Tensor, frames: DetailFrames) -> torch.Tensor:
        """tokens (batch, tokens, hidden), and the frames of all scales → (batch, tokens, hidden)"""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed)
        return tokens + frames.attended(self.cross_attention, self.norm2(tokens))


class HFQFormer(nn.Module):
    """Hierarchical frame querying transformer (paper section 3)."""

    def __init__(self, config: HFQFormerConfig):
        super().__init__()
        self.config = config
        frames, tokens = config.scale_lengths, config.stage_tokens
        self.compressor1 = Compressor(config, tokens[0], frames[:1])
        self.downsampler1 = Downsampler(config)
        self.compressor2 = Compressor(config, tokens[1], frames[1:2])
        self.downsampler2 = Downsampler(config)
        self.compressor3 = Compressor(config, tokens[2], frames[2:])
        self.distillation = Compressor(config, config.final_tokens, tuple(tokens))
        self.detail_recovery = nn.ModuleList(DetailRecovery(config) for _ in range(config.detail_blocks))

    def forward(self, x1: torch.Tensor) -> torch.Tensor:
        """Encoder frames of windows → tokens.

        Args:
            x1: (windows, 1500, hidden), the encoder's last hidden state.

        Returns:
            (windows, 50, hidden)
        """
        q1 = self.compressor1(x1)
        x2 = self.downsampler1(x1)
        q2 = self.compressor2(x2)
        x3 = self.downsampler2(x2)
        q3 = self.compressor3(x3)
        tokens = self.distillation(torch.cat([q1, q2, q3], dim=1))
        if self.detail_recovery:
            frames = detail_frames(self.config, x1, x2, x3)
            for block in self.blocks:
                tokens = block(tokens, frames)
        return tokens

    @property
    def blocks(self) -> list[DetailRecovery]:
        """The blocks of detail recovery, in order."""
        return [cast(DetailRecovery, block) for block in self.detail_recovery]

"""Whisper's encoder in bfloat16, window by window, with the kernels of `fastslm.model.products` (ours)."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastslm.model.narrow_copy import ChannelsLastConv1d
from fastslm.model.products import Norm, attend, joined_linear, packed

DTYPE = torch.bfloat16


class _Layer:
    """One layer: attention, then a perceptron, each normed before and added."""

    def __init__(self, layer: Any):
        attention = layer.self_attn
        self.heads = attention.num_heads
        self.norm1 = Norm(layer.self_attn_layer_norm, DTYPE)
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.project = joined_linear(parts, [attention.scaling, 1.0, 1.0])
        self.out = packed(attention.out_proj)
        self.norm2 = Norm(layer.final_layer_norm, DTYPE)
        self.expand, self.contract = packed(layer.fc1, gelu=True), packed(layer.fc2)

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """(frames, hidden) → the same shape"""
        query, key, value = self.project(self.norm1(frames)).unflatten(1, (3, self.heads, -1)).unbind(1)
        frames = frames + self.out(attend(query, key, value))
        return frames + self.contract(self.expand(self.norm2(frames)))


class FastEncoder:
    """Computes what the encoder does, with a copy of its weights.

    A window's frames do not depend, to the last bit, on the windows beside it.
    """

    def __init__(self, encoder: WhisperEncoder):
        self.source = encoder
        convolutions = deepcopy((encoder.conv1, encoder.conv2))
        self.conv1, self.conv2 = (ChannelsLastConv1d(own).requires_grad_(False).to(DTYPE) for own in convolutions)
        self.positions = encoder.embed_positions.weight.detach().to(DTYPE)
        self.layers = [_Layer(layer) for layer in encoder.layers]
        self.norm = Norm(encoder.layer_norm, DTYPE)

    def __reduce__(self) -> tuple[type, tuple[WhisperEncoder]]:
        """Copied and pickled as what it is made of: oneDNN's layouts cannot be."""
        return FastEncoder, (self.source,)

    @torch.inference_mode()
    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(windows, mel bins, 3000) → (windows, 1500, hidden), bfloat16"""
        return torch.stack([self._frames(window) for window in features.to(DTYPE)])

    def _frames(self, features: torch.Tensor) -> torch.Tensor:
        frames = F.gelu(self.conv2(F.gelu(self.conv1(features[None]))))[0].t() + self.positions
        for layer in self.layers:
            frames = layer(frames)
        return self.norm(frames)

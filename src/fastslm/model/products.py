"""Attention and linear layers as plain matrix products, for processors that multiply bfloat16 without AMX (ours).

On such a processor torch's fused attention (2.13) runs at a third of the rate of its matrix products, in bfloat16 no
faster than in float32: it took 55 % of the time of Whisper's encoder and of its decoder. Two products with a softmax
between them take two thirds of its time in the encoder and a fifth in the decoder (docs/benchmarks.md). For inference:
weights are rounded and laid out once.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

# What multiplies: torch's own modules, or this file.
Kernels = Literal["torch", "products"]
PRODUCTS_REASON = "without AMX, attention by plain matrix products and the decoder's scores in int8"
# Queries whose scores are held together: with 1500 keys 1.5 MB, about what a core has of second-level cache.
QUERIES_TOGETHER = 500
# Activations of 8 bits are 1 to 255, around this.
ZERO_POINT = 128
LARGEST = 127
TINY = torch.finfo(torch.float32).tiny


def best_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """`products` for bfloat16 on a CPU that multiplies it without AMX, where torch has what they are made of."""
    made_of = ((torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.onednn, "qlinear_pointwise"))
    fits = (
        device.type == "cpu"
        and dtype is torch.bfloat16
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
        and all(hasattr(own, name) for own, name in made_of)
    )
    return "products" if fits else "torch"


class PackedLinear:
    """A linear layer in bfloat16, laid out for oneDNN, with its bias and a GELU in the same pass.

    What a row gives does not depend, to the last bit, on the rows beside it.

    Args:
        weight: (outputs, inputs). bias: (outputs,) or `None`.
        gelu: whether GELU follows.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False):
        own = weight.detach().bfloat16().contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(own)
        self.bias = None if bias is None else bias.detach().bfloat16()
        self.after = ("gelu", [], "none") if gelu else ("none", [], "")

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, inputs) of any floating type → (…, outputs), bfloat16"""
        if inputs.shape[:-1].numel() == 1:
            # oneDNN sums a single row in another order.
            return self(torch.cat([inputs, inputs]))[:1]
        return torch.ops.mkldnn._linear_pointwise(inputs.bfloat16(), self.weight, self.bias, *self.after)


class Int8Linear:
    """A layer norm and the linear layer that reads it, in 8-bit integers.

    Each output has a scale of its own, and so has each row. The norm's weights are multiplied into the linear layer's
    (those of whisper-tiny.en's last norm go up to 17): without them all channels are of one size, and rounding costs
    fewer words. What a row gives does not depend, to the last bit, on the rows beside it.

    Args:
        weight: (outputs, inputs).
    """

    def __init__(self, norm: nn.LayerNorm, weight: torch.Tensor):
        self.width, self.epsilon = norm.normalized_shape, norm.eps
        own = weight.detach().float() * norm.weight.detach().float()
        self.bias = weight.detach().float() @ norm.bias.detach().float()
        self.scale = own.abs().amax(1).clamp(min=TINY) / LARGEST
        self.weight = torch.ops.onednn.qlinear_prepack((own / self.scale[:, None]).round().to(torch.int8), None)
        self.zero_points = torch.zeros(len(own), dtype=torch.int64)
        # The conversion to integers cuts off, which after adding a half is rounding.
        self.offset = torch.tensor(ZERO_POINT + 0.5)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(rows, inputs), float32 → (rows, outputs), float32"""
        normed = F.layer_norm(inputs, self.width, eps=self.epsilon)
        largest = normed.abs().amax(1, keepdim=True).clamp(min=TINY)
        rounded = torch.addcmul(self.offset, normed, LARGEST / largest).to(torch.uint8)
        activations, weights = (rounded, 1.0, ZERO_POINT), (self.weight, self.scale, self.zero_points)
        after = (None, 1.0, 0, torch.float32, "none", [], "")
        sums = torch.ops.onednn.qlinear_pointwise(*activations, *weights, *after)
        return torch.addcmul(self.bias, sums, largest / LARGEST)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Dot-product attention of one window, bfloat16.

    Args:
        query: (queries, heads, head size), scaled already. key, value: (keys, heads, head size).

    Returns:
        (queries, heads · head size)
    """
    key = centred(key, 0)
    mixed = torch.empty(query.shape, dtype=query.dtype)
    for head in range(query.shape[1]):
        asked, keys, values = query[:, head], key[:, head].t(), value[:, head]
        for start in range(0, len(asked), QUERIES_TOGETHER):
            rows = slice(start, start + QUERIES_TOGETHER)
            mixed[rows, head] = torch.mm(torch.mm(asked[rows], keys).softmax(-1), values)
    return mixed.flatten(1)


def centred(key: torch.Tensor, dim: int) -> torch.Tensor:
    """Keys less their mean, which changes no softmax: the scores are smaller, and lose less in bfloat16."""
    return key - key.mean(dim, keepdim=True)


def joined_linear(layers: list[nn.Linear], scales: list[float]) -> PackedLinear:
    """Linear layers of the same input as one, each multiplied by its scale; a layer without bias gets zeros."""
    weights = [layer.weight.detach() * scale for layer, scale in zip(layers, scales, strict=True)]
    biases = [
        torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() * scale
        for layer, scale in zip(layers, scales, strict=True)
    ]
    return PackedLinear(torch.cat(weights), torch.cat(biases))


def packed(layer: Any, gelu: bool = False) -> PackedLinear:
    """One `nn.Linear`."""
    return PackedLinear(layer.weight, layer.bias, gelu)


class Norm:
    """A layer norm with its own copy of the weights, in the type of its input."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype):
        self.weight, self.bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        self.epsilon = norm.eps

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, width) → the same shape"""
        return F.layer_norm(inputs, self.weight.shape, self.weight, self.bias, self.epsilon)

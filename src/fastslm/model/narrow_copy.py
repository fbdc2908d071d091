"""Copies of frozen modules to compute in a narrower type: nothing is left to be cast, or laid out anew, for each group.

They compute what the modules themselves do under autocast, up to the order in which a convolution sums.
"""

from copy import deepcopy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class ChannelsLastConv1d(nn.Conv1d):
    """A convolution that computes with its channels last, as the frames on both sides of it are kept.

    torch knows that order for images alone, and turns all else around and back again, weights too: the same
    convolution, of an image of one row, takes less than half the time. For inference.
    """

    def __init__(self, conv: nn.Conv1d):
        (kernel,), (stride,), (padding,) = conv.kernel_size, conv.stride, cast(tuple[int], conv.padding)
        super().__init__(conv.in_channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
        weight = conv.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last).squeeze(2)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = conv.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, length) → (batch, channels, length / stride), whose transpose is contiguous."""
        image = input.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        padding = cast(tuple[int], self.padding)
        return F.conv2d(image, self.weight.unsqueeze(2), self.bias, (1, *self.stride), (0, *padding)).squeeze(2)


# What autocast computes in the narrower type.
NARROWED = (nn.Linear, nn.Conv1d)


def narrow_copy(module: Module, dtype: torch.dtype) -> Module:
    """A copy whose linear layers and convolutions have their weights in `dtype`; all other weights keep their own.

    Under autocast it computes what the module does, and no weight is cast. The module is left as it is.
    """
    copy = deepcopy(module).requires_grad_(False)
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                child.to(dtype)
            elif isinstance(child, nn.Conv1d):
                setattr(parent, name, ChannelsLastConv1d(child).to(dtype))
    return copy


def narrow_bytes(module: nn.Module, dtype: torch.dtype, own: torch.dtype) -> int:
    """Of the parameters of `narrow_copy(module, dtype)`, where the module's are in `own`, without making it."""
    return sum(
        parameter.numel() * (dtype if isinstance(part, NARROWED) else own).itemsize
        for part in module.modules()
        for parameter in part.parameters(recurse=False)
    )

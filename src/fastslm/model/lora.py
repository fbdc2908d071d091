"""LoRA in the language model and in Whisper's decoder: put in, switched off, merged, told apart from the base.

The trained LoRA is a part of the model, not an adapter of PEFT's: a linear layer keeps its class and its weight, and
adds the low-rank product to its output. PEFT therefore wraps it like any other linear layer, and whatever a user adds,
switches off, deletes or merges there leaves the trained LoRA as it is, active beneath.

    in memory                          in a checkpoint, as PEFT has it
    up_proj.weight                     up_proj.base_layer.weight
    up_proj.low_rank.A                 up_proj.lora_A.default.weight      (rank, inputs)
    up_proj.low_rank.B                 up_proj.lora_B.default.weight      (outputs, rank)
"""

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from fastslm.model.configuration import FastSLMConfig
from fastslm.model.starts import mark_started

# Without "lora" in it, by which PEFT and transformers take what is theirs.
LOW_RANK = "low_rank"
# Matrices of a layer of Whisper's decoder, of both its attentions.
DECODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
# What is called otherwise in a checkpoint: pattern → name in memory, as transformers' `key_mapping` has it.
STORED_NAMES = {
    r"\.base_layer\.": ".",
    r"\.lora_A\.default\.weight": f".{LOW_RANK}.A",
    r"\.lora_B\.default\.weight": f".{LOW_RANK}.B",
}


class _Switch(threading.local):
    """Whether LoRA of language models is on in this thread. Threads that backpropagate have it on."""

    on = True


_SWITCH = _Switch()


class Lora(nn.Module):
    """The low-rank change of one linear layer: `scale · B A x` is added to its output (arXiv 2106.09685).

    Args:
        linear: torch's linear layer, quantised or not, or transformers' `Conv1D`.
        rank, alpha, dropout: as in PEFT; the scale is alpha / rank.
        always_on: deaf to `lora_switched`.
    """

    def __init__(self, linear: Any, rank: int, alpha: float, dropout: float, always_on: bool = False):
        super().__init__()
        inputs, outputs = _sizes(linear)
        weight = linear.weight
        # The draws that PEFT takes from torch's generator: a seed gives the start that it always gave.
        down, up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        device = down.weight.device if down.weight.is_meta else weight.device  # a checkpoint is about to fill them
        dtype = None if _is_quantised(weight) else weight.dtype
        # Parameters, not linear layers: what targets all linear layers is not to target these.
        self.A = nn.Parameter(down.weight.detach().to(device, dtype))
        self.B = nn.Parameter(torch.zeros_like(up.weight).to(device, dtype))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scale = alpha / rank
        self.always_on = always_on
        self.hook = linear.register_forward_hook(_add_change)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs), in the dtype of its own matrices."""
        return F.linear(F.linear(self.dropout(x.to(self.A.dtype)), self.A), self.B) * self.scale

    def product(self) -> torch.Tensor:
        """`scale · B A`: (outputs, inputs). Half precision is multiplied in float32, and rounded once."""
        a, b = self.A.detach(), self.B.detach()
        return ((b.float() @ a.float()) * self.scale).to(b.dtype)


def _add_change(linear: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    lora: Any = getattr(linear, LOW_RANK)
    if not (_SWITCH.on or lora.always_on):
        return output
    return (output + lora(inputs[0])).to(output.dtype)


def _sizes(linear: Any) -> tuple[int, int]:
    if isinstance(linear, Conv1D):
        inputs, outputs = linear.weight.shape
        return inputs, outputs
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"LoRA was to be put into a {type(linear).__name__}: name linear layers in lora_targets.")
    return linear.in_features, linear.out_features


def _is_quantised(weight: torch.Tensor) -> bool:
    """Whether its dtype is one to store numbers in, and none to compute with."""
    return not weight.is_floating_point() or weight.dtype.itemsize < 2


def add_lora(language_model: nn.Module, config: FastSLMConfig) -> None:
    """Give the target layers of `language_model` their LoRA, in place. Rank 0 adds nothing.

    Raises:
        ValueError: the language model has no layers of those names, or they are not linear.
    """
    if config.lora_rank:
        sizes = (config.lora_rank, config.lora_alpha, config.lora_dropout)
        _add(language_model, config.lora_targets, *sizes)


def add_decoder_lora(decoder: nn.Module, config: FastSLMConfig) -> None:
    """As `add_lora`, in all matrices of the layers of Whisper's decoder, without dropout; it is always on."""
    if config.decoder_lora_rank:
        _add(decoder, DECODER_TARGETS, config.decoder_lora_rank, config.decoder_lora_alpha, 0.0, always_on=True)


def _add(
    module: nn.Module, targets: Sequence[str], rank: int, alpha: float, dropout: float, always_on: bool = False
) -> None:
    found = [part for name, part in module.named_modules() if any(f".{name}".endswith(f".{end}") for end in targets)]
    if not found:
        raise ValueError(f"lora_targets names {', '.join(targets)}, and the model has no such layers: name its own.")
    for linear in found:
        lora = Lora(linear, rank, alpha, dropout, always_on)
        linear.add_module(LOW_RANK, lora)
        if not lora.A.is_meta:  # marked as started, a matrix that a checkpoint lacks would not be reported as missing
            mark_started(lora)


def lora_layers(model: nn.Module) -> list[nn.Module]:
    """Every linear layer that has a LoRA of ours."""
    return [module for module in model.modules() if isinstance(module._modules.get(LOW_RANK), Lora)]


def is_lora_key(key: str) -> bool:
    """Whether a key of the state dict is one of LoRA's matrices."""
    return f".{LOW_RANK}." in key


def stored_key(key: str) -> str:
    """What one of LoRA's matrices is called in a checkpoint; other keys stay as they are."""
    return re.sub(rf"\.{LOW_RANK}\.([AB])$", r".lora_\1.default.weight", key)


def key_in_memory(stored: str) -> str:
    """The key of the state dict that a checkpoint has under this name."""
    for pattern, name in STORED_NAMES.items():
        stored = re.sub(pattern, name, stored)
    return stored


def stored_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under a checkpoint's names."""
    with_lora = {key.partition(f".{LOW_RANK}.")[0] for key in state if is_lora_key(key)}
    stored = {}
    for key, value in state.items():
        owner = next((name for name in _owners(key) if name in with_lora), None)
        if owner is not None and not is_lora_key(key):
            key = f"{owner}.base_layer{key.removeprefix(owner)}"
        stored[stored_key(key)] = value
    return stored


def _owners(key: str) -> Iterator[str]:
    """The modules that a key lies in, the innermost first."""
    while key := key.rpartition(".")[0]:
        yield key


class lora_switched:
    """LoRA of language models on or off inside the context, in this thread alone; as it was afterwards.

    Off, a model computes as its base to the last bit.
    """

    def __init__(self, on: bool):
        self.on = on

    def __enter__(self) -> None:
        self.before, _SWITCH.on = _SWITCH.on, self.on

    def __exit__(self, *error: object) -> None:
        _SWITCH.on = self.before


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For `torch.utils.checkpoint`: what is computed again in the backward pass has LoRA as it was in the forward."""
    return nullcontext(), lora_switched(_SWITCH.on)


def lora_parameters(module: nn.Module) -> list[nn.Parameter]:
    """LoRA's matrices in a module, in its order."""
    return [parameter for name, parameter in module.named_parameters() if is_lora_key(f".{name}")]


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Add LoRA's product into the weights of its layers and take LoRA out, in place.

    Raises:
        ValueError: a merged weight is not finite, or a weight is quantised.
    """
    for linear in lora_layers(module):
        lora, weight = getattr(linear, LOW_RANK), linear.get_parameter("weight")
        if _is_quantised(weight):
            raise ValueError("LoRA cannot be merged into quantised weights: load the model without quantization.")
        product = lora.product().to(weight.dtype)
        merged = weight + (product.T if isinstance(linear, Conv1D) else product)
        if not torch.isfinite(merged).all():
            raise ValueError("LoRA's product is not finite, so it cannot be merged: load the checkpoint again.")
        weight.data = merged
        lora.hook.remove()
        delattr(linear, LOW_RANK)


def remove_lora(module: nn.Module) -> nn.Module:
    """Take LoRA out, in place; nothing is added into the weights beneath."""
    for linear in lora_layers(module):
        getattr(linear, LOW_RANK).hook.remove()
        delattr(linear, LOW_RANK)
    return module

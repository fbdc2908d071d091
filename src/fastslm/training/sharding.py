"""Weights shared out among processes (FSDP2, torch's `fully_shard`): each keeps its part of every tensor.

It pays where a large language model is frozen or trained; the parts beside it are a few megabytes. Checkpoints hold
whole tensors, so a run may go on with another number of processes, or with one.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fastslm.errors import RecipeError

# Objectives that hold a language model.
SHARDABLE = ("llm", "instructions")


def wanted() -> bool:
    """Whether the launcher was asked for FSDP: `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        RecipeError: it was asked for some of it that is not there.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise RecipeError("FSDP version 1 is not supported; launch with --fsdp_version 2.")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise RecipeError("FSDP cannot keep weights on the CPU here; launch without --fsdp_offload_params.")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise RecipeError("Recomputing activations is the recipe's to say; set gradient_checkpointing in the phase.")
    return True


def shard(losses: nn.Module, model: Any, device: torch.device, count: int) -> None:
    """Share out all weights of the parts of `losses` and of its language model, in place: each layer of it alone.

    Args:
        losses: `fastslm.training.processes.Losses`, which computes with the language model in its forward pass.
        model: of transformers, which knows its layers.
    """
    parts: Any = losses.parts
    # Of a weight, FSDP must see the module that computes with it and no list beside that.
    names = {parameter: name for name, parameter in model.named_parameters()}
    lists = {part: [names[own] for own in module] for part, module in parts.items() if _is_list(module)}
    for part in lists:
        del parts[part]
    parts["language_model"] = model
    mesh = init_device_mesh(device.type, (count,))
    for module in list(model.modules()):
        if type(module).__name__ in (model._no_split_modules or ()):
            fully_shard(module, mesh=mesh)
    fully_shard(losses, mesh=mesh)
    for part, own in lists.items():
        losses.objective.parts[part] = nn.ParameterList(model.get_parameter(name) for name in own)  # type: ignore


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ParameterList)


@contextmanager
def gathered(losses: nn.Module) -> Iterator[None]:
    """Within, all processes hold all weights, so that they can compute otherwise than in `losses.forward`, together."""
    own = [module for module in losses.modules() if isinstance(module, FSDPModule)]
    for module in own:
        module.unshard()
    yield
    for module in own:
        module.reshard()


def whole(value: Any) -> Any:
    """Dicts and lists with every shared out tensor made whole. All processes must ask for it together."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(own) for own in value)
    return value


def as_shared(value: Any, parameter: torch.Tensor) -> Any:
    """A whole tensor of the size of `parameter`, shared out as that is; anything else as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value

"""What a user may have done to a loaded model: an adapter of PEFT's on top, weights changed beneath."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

SAMPLED = 3


def adapted_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that PEFT has put in the place of the model's own."""
    for part in model.modules():
        if {"base_layer", "original_module"} & part._modules.keys():
            yield part


def adapter_state(model: nn.Module) -> tuple[object, ...]:
    """Which adapters of PEFT's are there, which of them is active, and whether they are switched off."""
    return tuple(
        (tuple(part._modules), str(getattr(part, "_active_adapter", None)), getattr(part, "_disable_adapters", None))
        for part in adapted_parts(model)
    )


@torch.no_grad()
def weight_sample(parameters: Iterable[torch.Tensor]) -> tuple[float, ...]:
    """A few values of each tensor: training, merging and loading change them, whichever way they do it.

    What is shared out among processes is passed over.
    """
    found = [own.detach().reshape(-1) for own in parameters if not hasattr(own, "to_local")]
    found = [own[:: max(1, len(own) // SAMPLED)][:SAMPLED].float() for own in found]
    return tuple(torch.cat([own.to(found[0].device) for own in found]).tolist()) if found else ()

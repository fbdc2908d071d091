"""What a user may have done to a loaded model: an adapter of PEFT's on top, weights changed beneath."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

SAMPLED = 3


def adapted_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that PEFT has put in the place of the model's own."""
    for part in model.modules():
        if {"base_layer", "original_module"} & part._modules.keys():
            yield part


def model_beneath(
    given: Any, hub: dict[str, Any], adapter_kwargs: dict[str, Any]
) -> tuple[Any, str | os.PathLike | None]:
    """Of what `from_pretrained` is asked for, the model to load and the adapter to put on top, `None` without one.

    As transformers' own models find them: a folder that holds a whole model beside an adapter is both.

    Args:
        hub: arguments of transformers that say how the Hub is asked.
        adapter_kwargs: those that transformers' Auto classes hand over, which have found an adapter already.
    """
    adapter = adapter_kwargs.get("_adapter_model_path")
    if adapter is not None or given is None:
        return given, adapter
    found = find_adapter_config_file(os.fspath(given), **hub)
    if found is None:
        return given, None
    if (Path(given) / CONFIG_NAME).is_file():
        return given, given
    return json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"], given


def adapter_state(model: nn.Module) -> tuple[object, ...]:
    """Which adapters of PEFT's are there, which of them is active, and whether they are switched off."""
    return tuple(
        (tuple(part._modules), str(getattr(part, "_active_adapter", None)), getattr(part, "_disable_adapters", None))
        for part in adapted_parts(model)
    )


def weights_seen(*modules: nn.Module) -> tuple[object, ...]:
    """What tells whether modules compute as before: a look that costs a millisecond or two, not a digest."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return (*weight_sample(parameters), *(state for module in modules for state in adapter_state(module)))


@torch.no_grad()
def weight_sample(parameters: Iterable[torch.Tensor]) -> tuple[float, ...]:
    """A few values of each tensor: training, merging and loading change them, whichever way they do it.

    What is shared out among processes is passed over.
    """
    found = [own.detach().reshape(-1) for own in parameters if not hasattr(own, "to_local")]
    found = [own[:: max(1, len(own) // SAMPLED)][:SAMPLED].float() for own in found]
    return tuple(torch.cat([own.to(found[0].device) for own in found]).tolist()) if found else ()

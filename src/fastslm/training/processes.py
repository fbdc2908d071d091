"""One process, or several that `accelerate launch` or `torchrun` started and that train as one: DDP, or FSDP2.

Everything that is shared out is accelerate's: its launcher's options say what. What a recipe can share is checked here.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from fastslm.errors import RecipeError
from fastslm.training.losses import Loss
from fastslm.training.recipe import Recipe

# The others wait while the main process validates or writes.
PATIENCE = timedelta(days=1)


def join(recipe: Recipe) -> Accelerator:
    """This process among those that were started.

    Raises:
        RecipeError: the device is not there, or the recipe cannot be trained as the launcher was asked to.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and recipe.device not in ("auto", "cpu", "cuda"):
        raise RecipeError(
            f"device is {recipe.device!r}, but {count} processes take one device each; set auto, cpu or cuda."
        )
    on_cpu = device_named(recipe.device).type == "cpu"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _check_sharding(recipe)
    # Of token_ctc, the front's letters are trained only where they stand beside it.
    unused = DistributedDataParallelKwargs(find_unused_parameters=recipe.loss.name == "token_ctc")
    # What is computed in bfloat16 is the recipe's to say.
    return Accelerator(
        cpu=on_cpu, mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE), unused]
    )


def _check_sharding(recipe: Recipe) -> None:
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise RecipeError("FSDP version 1 is not supported; launch with --fsdp_version 2.")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise RecipeError("Recomputing activations is the recipe's to say; set gradient_checkpointing there.")
    if recipe.loss.name != "speech_lm" or recipe.model.projector != "linear":
        raise RecipeError(
            f"FSDP shares out the language model, which loss {recipe.loss.name} with the projector "
            f"{recipe.model.projector} does not train through; launch without --use_fsdp."
        )
    if recipe.optimizer.name == "muon":
        raise RecipeError("Muon needs whole matrices, which FSDP shares out; set optimizer.name to adamw.")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds its part of the weights only."""
    return str(accelerator.distributed_type).endswith("FSDP")


def shard(accelerator: Accelerator, loss: Loss) -> None:
    """Share out all weights among the processes, in place: each layer of the language model by itself (FSDP2)."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    # What accelerate asks a model for.
    language_model: Any = loss.model.language_model
    loss._no_split_modules = list(language_model._no_split_modules or ())  # type: ignore[assignment]
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.cpu_ram_efficient_loading = False
    fsdp2_prepare_model(accelerator, loss)


def total(accelerator: Accelerator, values: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes."""
    if accelerator.num_processes == 1:
        return dict(values)
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    summed: Any = accelerator.reduce(own, "sum")
    return dict(zip(values, summed.tolist(), strict=True))


def device_named(name: str) -> torch.device:
    """The device of a recipe; `auto` is CUDA where there is one.

    Raises:
        RecipeError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(f"device is {name!r}, which this machine does not have; set auto, cpu or cuda.") from None
    return device

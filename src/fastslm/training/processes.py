"""Several processes that train as one, through accelerate: `torchrun` and `accelerate launch` start them.

A step is the same step whatever their number. Every process draws the whole batch, which costs little, computes the
losses of its own rows of it, and DDP adds up the gradients; what a loss is a mean over is counted over the whole batch,
which every process knows. Losses are reduced before they are shown, and the main process alone writes. With FSDP in
place of DDP, a large language model's weights are shared out too (`fastslm.training.sharding`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fastslm.errors import RecipeError
from fastslm.training.objectives import Objective, combined
from fastslm.training.recipe import Recipe
from fastslm.training.sharding import SHARDABLE, gathered, shard, wanted, whole

# The others wait while the main process encodes, validates or writes.
PATIENCE = timedelta(days=1)
# As launchers name the number of processes, in accelerate's order.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class Processes:
    """This process among those that a launcher started; alone, without accelerate, where none did.

    Args:
        device: of the recipe: `auto`, or a torch device.

    Raises:
        RecipeError: the device is not there, or the launcher did not start what it was asked for.
    """

    def __init__(self, device: str):
        self.count = next((int(os.environ[name]) for name in SIZES if name in os.environ), 1)
        self.index = 0
        # Whether each holds its part of the weights only (FSDP).
        self.sharded = False
        # Of accelerate, which is imported where it is needed.
        self.accelerator: Any = None
        if self.count > 1:
            self._join(device)
        elif "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True":
            raise RecipeError(
                "accelerate launch --cpu starts one process, however many it is asked for, where there is no MPI; "
                "start them with torchrun --nproc-per-node N -m fastslm train …"
            )
        else:
            self.device = _device(device)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def _join(self, device: str) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        if device not in ("auto", "cpu", "cuda"):
            raise RecipeError(
                f"device is {device!r}, but {self.count} processes take one device each; set auto, cpu or cuda."
            )
        self.sharded = wanted()
        on_cpu = _device(device).type == "cpu"
        # What is computed in bfloat16 is the recipe's to say.
        self.accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        self.index, self.device = self.accelerator.process_index, self.accelerator.device

    def check(self, recipe: Recipe) -> None:
        """Make sure that every phase can be shared out.

        Raises:
            RecipeError: it cannot; said before anything is encoded.
        """
        if self.count == 1:
            return
        for phase in recipe.phases:
            # By seconds, a batch may be one long row: then the others count for nothing in that step.
            if phase.batch_seconds is None and phase.batch_windows < self.count:
                raise RecipeError(
                    f"phase {phase.name}: batch_windows is {phase.batch_windows}, which {self.count} processes cannot "
                    "share; raise it, or start fewer."
                )
            if phase.objective == "alignment":
                raise RecipeError(
                    f"phase {phase.name}: objective alignment keeps its alignments in one file, so one process trains "
                    "it; the phases after it may go on with several."
                )
            if self.sharded and phase.objective not in SHARDABLE:
                raise RecipeError(
                    f"phase {phase.name}: objective {phase.objective} has no language model whose weights FSDP could "
                    "share out; launch without --use_fsdp."
                )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does this alone; the others then find it done."""
        with nullcontext() if self.accelerator is None else self.accelerator.main_process_first():
            yield

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes."""
        if self.accelerator is None:
            return dict(values)
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self.accelerator.reduce(own, "sum").tolist(), strict=True))

    def rows(self, count: int) -> range:
        """Which of a batch's rows are this process's own: an even share, in order; none where there are too few."""
        return range(count * self.index // self.count, count * (self.index + 1) // self.count)

    @torch.no_grad()
    def take_over(self, modules: Sequence[nn.Module]) -> None:
        """Give all processes the main one's weights."""
        if self.accelerator is not None:
            from accelerate.utils import broadcast

            for module in modules:
                for value in module.state_dict().values():
                    value.copy_(broadcast(value.clone()))

    def prepare(self, objective: Objective) -> "Shared":
        """The objective's losses as a module, its weights shared out where FSDP is to do so."""
        shared = Shared(objective, self)
        if self.sharded:
            language_model = objective.model.language_model  # type: ignore[attr-defined]
            shard(shared.losses, language_model, self.device, self.count)
        return shared

    def whole(self, state: Any) -> Any:
        """A state as one process alone would have it; all processes ask for it together."""
        return whole(state) if self.sharded else state

    def end(self) -> None:
        """Wait for all, and leave them."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


class Losses(nn.Module):
    """What DDP wraps: the parts that an objective trains, and its losses as their forward pass."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.parts = nn.ModuleDict(objective.parts)
        self.objective = objective

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Named losses of a batch."""
        return self.objective.losses(batch)


class Shared:
    """A step's losses, micro-batch by micro-batch and share by share: they add up to those of the whole step at once.

    Args:
        objective: what is trained.
        processes: among which a batch is shared.
    """

    def __init__(self, objective: Objective, processes: Processes):
        self.objective, self.processes = objective, processes
        self.losses = Losses(objective)
        self.module: nn.Module = self.losses
        self._rows, self._of = range(0), 0
        self._hooks: list[RemovableHandle] = []
        if processes.count > 1:
            for part in self.losses.modules():
                if isinstance(part, nn.Dropout):
                    self._hooks += [part.register_forward_pre_hook(self._widen)]
                    self._hooks += [part.register_forward_hook(self._narrow)]

    def start(self) -> None:
        """What trains is known: from here on DDP adds up its gradients."""
        accelerator = self.processes.accelerator
        if accelerator is not None and not self.processes.sharded:
            self.module = accelerator.prepare_model(self.losses, device_placement=False)

    def gathered(self) -> AbstractContextManager[None]:
        """Around what is computed beside the losses."""
        return gathered(self.losses) if self.processes.sharded else nullcontext()

    def close(self) -> None:
        """Leave the objective's modules as they were, but for weights that FSDP has shared out."""
        for hook in self._hooks:
            hook.remove()
        if self.processes.accelerator is not None:
            self.module = self.losses
            self.processes.accelerator.free_memory()

    def amounts(self, batches: Sequence[Any]) -> dict[str, float] | None:
        """What the step's losses are means over, `None` where one process computes them at once."""
        if self.processes.count == 1 and len(batches) == 1:
            return None
        return self.objective.amounts(batches)

    def contribution(self, batch: Any, whole: dict[str, float] | None) -> dict[str, torch.Tensor]:
        """What this process's rows of a micro-batch add to the losses of the step.

        Args:
            whole: `amounts` of the step.
        """
        if whole is None:
            return self.module(batch)
        rows = self.processes.rows(len(batch))
        counts = bool(rows)
        # DDP waits for all: who has no row computes another's, which counts for nothing.
        rows = rows or range(1)
        self._rows, self._of = rows, len(batch)
        own = batch if len(rows) == len(batch) else batch.part(rows)
        terms = self.module(own)
        amounts = self.objective.amounts([own])
        scaled = {name: terms[name] * (counts * amounts[name] / whole[name]) for name in self.objective.weights}
        return {"loss": combined(scaled, self.objective.weights)} | scaled

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the others'; DDP and FSDP, which take the mean of them, reduce them."""
        accelerator = self.processes.accelerator
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss * self.processes.count)

    def reducing(self, last: bool) -> AbstractContextManager[None]:
        """Around the losses of a micro-batch and their backward pass: gradients are reduced after the last one."""
        accelerator = self.processes.accelerator
        if self.processes.sharded:
            # FSDP's own switch, which stays as it is set.
            self.losses.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if accelerator is None or last else accelerator.no_sync(self.module)

    def _widen(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        """Dropout draws for the whole micro-batch, so that a window loses the same numbers in any process."""
        (x,) = inputs
        if not module.training or len(x) == self._of:
            return None
        # What is drawn for a number depends on its place in memory.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        shape = [self._of, *x.shape[1:]]
        whole = x.new_zeros([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(x.ndim)])
        whole[self._rows.start : self._rows.stop] = x
        return (whole,)

    def _narrow(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        """The process's own rows of what `_widen` made whole."""
        if not module.training or len(self._rows) == self._of:
            return None
        return output[self._rows.start : self._rows.stop]


def _device(name: str) -> torch.device:
    """The device of a recipe; `auto` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RecipeError(f"device is {name!r}, which this machine does not have; set auto, cpu or cuda.") from None
    return device

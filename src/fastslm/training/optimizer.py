"""Which parameter learns how fast: AdamW, or Muon for matrices and AdamW for the rest; one schedule for all."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fastslm.training.recipe import MuonRates, OptimizerRecipe

MUON_MOMENTUM = 0.95


class Optimizers:
    """Muon and AdamW side by side, driven as one.

    Args:
        parts: parameters by part (`fastslm.training.starts.parts_of`); those without a rate are frozen.
        recipe: rates, schedule, decay and clipping.
        steps: of the whole run, which the schedule ends with.
    """

    def __init__(self, parts: Mapping[str, list[nn.Parameter]], recipe: OptimizerRecipe, steps: int):
        self.recipe, self.steps = recipe, steps
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for part, parameters in parts.items():
            rate = recipe.rates.given.get(part)
            big = [own for own in parameters if isinstance(rate, MuonRates) and own.ndim == 2 and min(own.shape) > 1]
            of_big = {id(own) for own in big}
            rest = [own for own in parameters if rate is not None and id(own) not in of_big]
            for own in parameters:
                own.requires_grad_(rate is not None)
            if isinstance(rate, MuonRates) and big:
                matrices.append({"params": big, "peak": rate.matrices, "lr": rate.matrices})
            if rest:
                peak = rate.other if isinstance(rate, MuonRates) else rate
                others.append({"params": rest, "peak": peak, "lr": peak})
        self.parameters = [own for group in (*matrices, *others) for own in group["params"]]
        self.optimizers: list[torch.optim.Optimizer] = []
        decay = recipe.weight_decay
        if matrices:
            self.optimizers.append(torch.optim.Muon(matrices, momentum=MUON_MOMENTUM, weight_decay=decay))
        if others:
            self.optimizers.append(torch.optim.AdamW(others, betas=recipe.betas, weight_decay=decay))

    def share(self, step: int) -> float:
        """Share of the peak rates at a step: a linear warm-up, then the schedule."""
        recipe = self.recipe
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        if recipe.schedule == "constant":
            return 1.0
        done = min(1.0, (step - recipe.warmup_steps) / max(1, self.steps - recipe.warmup_steps))
        left = 1 - done if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return recipe.final_rate + (1 - recipe.final_rate) * left

    def step(self, step: int) -> float:
        """Clip the gradients, move the parameters, forget the gradients. Returns the norm before clipping.

        Nothing moves where the norm is not finite.
        """
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)))
        if math.isfinite(norm):
            share = self.share(step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for optimizer, part in zip(self.optimizers, state, strict=True):
            parameters = [own for group in optimizer.param_groups for own in group["params"]]
            own = {
                index: {name: as_shared(value, parameters[index]) for name, value in values.items()}
                for index, values in part["state"].items()
            }
            optimizer.load_state_dict({**part, "state": own})


class Average:
    """An exponential average of parameters over the steps, corrected for its start."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        # A young average forgets faster, so that it does not drag the random start along.
        decay = min(self.decay, self.steps / (self.steps + 10))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their average."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(as_shared(saved, value))


def whole(value: Any) -> Any:
    """A state without FSDP's parts: every tensor as one process alone would have it. All processes ask together."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(own) for own in value)
    return value


def as_shared(value: Any, like: torch.Tensor) -> Any:
    """A whole tensor shared out as `like` is; of one number, as it is."""
    if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value

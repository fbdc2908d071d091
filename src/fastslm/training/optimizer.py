"""Which parameter learns how fast: Muon for matrices, AdamW for the rest, one schedule for all."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from fastslm.training.recipe import Phase
from fastslm.training.sharding import as_shared, whole

ADAM_BETAS = (0.9, 0.98)
MUON_MOMENTUM = 0.95


class Optimizers:
    """Muon and AdamW side by side, driven as one.

    Args:
        parts: the trained modules by name: `hfq`, `head`, `reader`, `projector`, `lora`.
        phase: its rates; a part whose rates are 0 is frozen.
    """

    def __init__(self, parts: dict[str, nn.Module], phase: Phase):
        self.phase = phase
        matrices: list[dict] = []
        others: list[dict] = []
        self.parameters: list[nn.Parameter] = []
        for name, module in parts.items():
            matrix_rate = getattr(phase.rates, f"{name}_matrices", 0.0)
            other_rate = getattr(phase.rates, f"{name}_other", getattr(phase.rates, name, 0.0))
            big, rest = [], []
            for parameter in module.parameters():
                is_matrix = matrix_rate > 0 and parameter.ndim == 2 and min(parameter.shape) > 1
                trains = matrix_rate > 0 if is_matrix else other_rate > 0
                parameter.requires_grad_(trains)
                if trains:
                    (big if is_matrix else rest).append(parameter)
            if big:
                matrices.append({"params": big, "lr": matrix_rate, "peak": matrix_rate})
            if rest:
                others.append({"params": rest, "lr": other_rate, "peak": other_rate})
            self.parameters += big + rest
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            decay = phase.weight_decay
            self.optimizers.append(torch.optim.Muon(matrices, momentum=MUON_MOMENTUM, weight_decay=decay))
        if others:
            self.optimizers.append(torch.optim.AdamW(others, betas=ADAM_BETAS, weight_decay=phase.weight_decay))

    def rate(self, step: int) -> float:
        """Share of the peak rate at a step: a linear warm-up, then half a cosine."""
        phase = self.phase
        if step < phase.warmup_steps:
            return (step + 1) / phase.warmup_steps
        done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
        return phase.final_rate + (1 - phase.final_rate) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def clip(self) -> float:
        """Clip the gradients. Returns their norm before."""
        return float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.phase.clip_norm)))

    def step(self, step: int) -> None:
        """Set the rates, move the parameters, and forget the gradients."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict]) -> None:
        for optimizer, part in zip(self.optimizers, state, strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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

    def state_dict(self) -> dict:
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(as_shared(saved, value))

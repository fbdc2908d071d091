"""Rates, Muon and AdamW, and the average of the weights."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from fastslm.training.optimizer import Average, Optimizers
from fastslm.training.recipe import OptimizerRecipe


def recipe(rates: dict[str, Any], **changes: Any) -> OptimizerRecipe:
    muon = any(isinstance(rate, dict) for rate in rates.values())
    return OptimizerRecipe.model_validate({"name": "muon" if muon else "adamw", "rates": rates} | changes)


def parts() -> dict[str, list[nn.Parameter]]:
    torch.manual_seed(0)
    hfq = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    return {
        "hfq": list(hfq.parameters()),
        "projector": list(nn.Linear(6, 3).parameters()),
        "lora": [nn.Parameter(torch.randn(2, 5))],
    }


def fill_gradients(own: dict[str, list[nn.Parameter]]) -> None:
    for parameter in (parameter for part in own.values() for parameter in part):
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", {10: 1.0, 60: 0.6, 35: 0.8, 110: 0.2, 500: 0.2}),
        ("cosine", {10: 1.0, 60: 0.6, 35: 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, 110: 0.2}),
    ],
)
def test_the_rate_warms_up_then_falls_to_its_final_share(schedule: str, shares: dict[int, float]) -> None:
    own = Optimizers(parts(), recipe({"lora": 1.0}, schedule=schedule, warmup_steps=10, final_rate=0.2), 110)
    assert [own.share(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert {step: own.share(step) for step in shares} == pytest.approx(shares)


def test_the_authors_schedule_starts_at_the_peak_and_a_constant_one_stays_there() -> None:
    linear = Optimizers(parts(), recipe({"lora": 1.0}), 100)
    assert (linear.share(0), linear.share(50), linear.share(100)) == (1.0, 0.5, 0.0)
    assert Optimizers(parts(), recipe({"lora": 1.0}, schedule="constant"), 100).share(99) == 1.0


def test_a_part_without_a_rate_stays_as_it_is() -> None:
    own = parts()
    before = copy.deepcopy(own)
    optimizers = Optimizers(own, recipe({"projector": 0.1}), 10)
    fill_gradients(own)
    optimizers.step(0)
    assert all(torch.equal(a, b) for part in ("hfq", "lora") for a, b in zip(own[part], before[part], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(own["projector"], before["projector"], strict=True))
    assert [parameter.requires_grad for parameter in own["lora"]] == [False]


def test_muon_gets_matrices_only_and_every_parameter_once() -> None:
    own = parts()
    optimizers = Optimizers(own, recipe({"hfq": {"matrices": 0.1, "other": 0.2}, "projector": 0.3, "lora": 0.4}), 10)
    muon, adam = optimizers.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adam, torch.optim.AdamW)
    # A matrix of one row has nothing to orthogonalise.
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(6, 4)]
    every = [id(p) for o in (muon, adam) for group in o.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for part in own.values() for p in part)
    assert [group["peak"] for group in adam.param_groups] == [0.2, 0.3, 0.4]


def test_gradients_are_clipped_to_the_norm_and_forgotten_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    own = parts()
    optimizers = Optimizers(own, recipe({"projector": 0.1, "lora": 0.1}, clip_norm=0.5, warmup_steps=10), 110)
    fill_gradients(own)
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *arguments: Any) -> Any:
        seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in optimizers.parameters if p.grad is not None)))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    assert optimizers.step(0) > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    assert all(p.grad is None for p in optimizers.parameters)
    assert all(group["lr"] == pytest.approx(0.01) for o in optimizers.optimizers for group in o.param_groups)


def test_nothing_moves_where_a_gradient_is_not_finite() -> None:
    own = parts()
    before = copy.deepcopy(own)
    optimizers = Optimizers(own, recipe({"lora": 0.1}), 10)
    own["lora"][0].grad = torch.full((2, 5), float("inf"))
    assert not math.isfinite(optimizers.step(0))
    assert torch.equal(own["lora"][0], before["lora"][0])


def test_the_average_is_that_of_a_slow_loop() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = Average([parameter], 0.8)
    expected = parameter.detach().double()
    for step in range(1, 60):
        with torch.no_grad():
            parameter.add_(torch.tensor([0.1, math.sin(step)]))
        average.update()
        keep = min(0.8, step / (step + 10))
        expected = keep * expected + (1 - keep) * parameter.detach().double()
    torch.testing.assert_close(average.values[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_swapping_twice_changes_nothing_and_once_gives_the_average() -> None:
    parameter = nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)))
    average = Average([parameter], 0.9)
    with torch.no_grad():
        parameter.add_(1.0)
    average.update()
    live, mean = parameter.detach().clone(), average.values[0].clone()
    average.swap()
    assert torch.equal(parameter, mean)
    average.swap()
    assert torch.equal(parameter, live)
    assert torch.equal(average.values[0], mean)

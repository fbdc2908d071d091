"""Rates, Muon and AdamW, and the average of the weights."""

import copy
import math

import pytest
import torch
from torch import nn

from fastslm.training.optimizer import Average, Optimizers
from fastslm.training.recipe import Phase


def phase(rates: dict[str, float], **changes: float) -> Phase:
    return Phase.model_validate(
        {"name": "p", "objective": "llm", "steps": 110, "warmup_steps": 10, "rates": rates} | changes
    )


def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    hfq = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    return {"hfq": hfq, "projector": nn.Linear(6, 3), "lora": nn.ParameterList([torch.randn(2, 5)])}


def fill_gradients(modules: dict[str, nn.Module]) -> None:
    for module in modules.values():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def test_the_rate_warms_up_then_falls_on_a_half_cosine_to_its_final_share() -> None:
    optimizers = Optimizers(parts(), phase({"lora": 1.0}, final_rate=0.2))
    assert [optimizers.rate(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert optimizers.rate(10) == 1.0
    assert optimizers.rate(60) == pytest.approx(0.6)
    assert optimizers.rate(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert optimizers.rate(110) == pytest.approx(0.2)
    assert optimizers.rate(500) == pytest.approx(0.2)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert Optimizers(parts(), phase({"lora": 1.0}, warmup_steps=0)).rate(0) == 1.0


def test_a_part_whose_rates_are_zero_stays_as_it_is() -> None:
    modules = parts()
    before = copy.deepcopy(modules)
    optimizers = Optimizers(modules, phase({"hfq_matrices": 0.1, "projector": 0.1}))
    fill_gradients(modules)
    optimizers.clip()
    optimizers.step(0)
    for name, moved in (("hfq.1.weight", True), ("hfq.0.weight", False), ("hfq.1.bias", False), ("lora.0", False)):
        part, key = name.split(".", 1)
        changed = not torch.equal(modules[part].state_dict()[key], before[part].state_dict()[key])
        assert changed == moved, name
    # A matrix of one row has nothing to orthogonalise, and belongs to the others, which are frozen.
    assert torch.equal(modules["hfq"].state_dict()["3.weight"], before["hfq"].state_dict()["3.weight"])
    assert all(not p.requires_grad for p in modules["lora"].parameters())


def test_muon_gets_matrices_only_and_every_parameter_once() -> None:
    modules = parts()
    optimizers = Optimizers(modules, phase({"hfq_matrices": 0.1, "hfq_other": 0.2, "projector": 0.3, "lora": 0.4}))
    muon, adam = optimizers.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adam, torch.optim.AdamW)
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(6, 4)]
    every = [id(p) for o in (muon, adam) for group in o.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for module in modules.values() for p in module.parameters())
    assert [group["peak"] for group in adam.param_groups] == [0.2, 0.3, 0.4]


def test_gradients_are_clipped_to_the_norm_and_forgotten_after_the_step() -> None:
    modules = parts()
    optimizers = Optimizers(modules, phase({"hfq_other": 0.1, "projector": 0.1, "lora": 0.1}, clip_norm=0.5))
    fill_gradients(modules)
    norm = optimizers.clip()
    clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in optimizers.parameters if p.grad is not None))
    assert norm > 0.5
    assert clipped == pytest.approx(0.5, rel=1e-4)
    optimizers.step(0)
    assert all(p.grad is None for p in optimizers.parameters)
    assert all(group["lr"] == pytest.approx(0.01) for o in optimizers.optimizers for group in o.param_groups)


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

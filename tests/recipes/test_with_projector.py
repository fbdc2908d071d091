"""A projector's weights in 8 bits, and back."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "tiny"))
from with_projector import pack, unpack


def test_a_packed_projector_is_within_half_a_step_of_its_rows_and_keeps_ids() -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        "out.weight": torch.randn(7, 5, generator=generator) * torch.logspace(-3, 2, 7)[:, None],
        "down.weight": torch.randn(4, 3, 5, generator=generator),
        "norm.weight": torch.ones(5),
        "kinds": torch.tensor([3, 49_000]),
        "unfold.place": torch.randn(3, 3, generator=generator),
    }
    packed = pack(state)
    found = unpack(packed)
    assert packed["out.weight"].dtype is torch.int8
    assert found.keys() == state.keys() - {"unfold.place"}  # the front comes from the model
    assert found["kinds"].tolist() == [3, 49_000]
    for key in ("out.weight", "down.weight"):
        half_step = state[key].flatten(1).abs().amax(1) / 254 * 1.001
        assert bool(((found[key] - state[key]).flatten(1).abs().amax(1) <= half_step).all())

"""A copy that computes in bfloat16 gives what the module gives under autocast, and the module stays as it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.narrow_copy import ChannelsLastConv1d, narrow_copy
from fastslm.model.starts import start_hfq_former

CONFIG = {"hidden_size": 32, "head_size": 8, "window_frames": 48, "stage_tokens": [6, 5, 4], "final_tokens": 4}


def _former(**changes) -> HFQFormer:
    torch.manual_seed(0)
    former = HFQFormer(HFQFormerConfig(**{**CONFIG, **changes}))
    start_hfq_former(former)
    return former.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "stride"), [((80, 384), 1), ((384, 384), 2), ((6, 10), 1), ((6, 10), 2)])
def test_channels_last_is_the_same_convolution(channels: tuple[int, int], stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(*channels, kernel_size=3, stride=stride, padding=1, bias=bias).double()
    frames = torch.randn(2, 31, channels[0], dtype=torch.float64)
    found = ChannelsLastConv1d(conv)(frames.transpose(1, 2))
    torch.testing.assert_close(found, conv(frames.transpose(1, 2)), atol=1e-12, rtol=0)
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("changes", [{}, {"attention_span": 1, "detail_positions": True}])
def test_the_copy_computes_what_autocast_does(changes: dict[str, object]) -> None:
    former, frames = _former(**changes), torch.randn(3, 48, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = narrow_copy(former, torch.bfloat16)(frames), former(frames)
    # A convolution may sum in another order, which ends in the other of two neighbours in bfloat16.
    torch.testing.assert_close(found, expected, atol=2**-7 * expected.abs().max().item(), rtol=0)


def test_only_what_autocast_would_cast_is_narrow() -> None:
    former = narrow_copy(_former(), torch.bfloat16)
    for name, value in former.state_dict().items():
        own = "norm" in name or name.endswith(".query")
        assert value.dtype is (torch.float32 if own else torch.bfloat16), name


def test_the_module_keeps_its_weights_and_still_learns() -> None:
    former = _former()
    before = deepcopy(former.state_dict())
    copy = narrow_copy(former, torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in former.state_dict().items())
    assert all(value.dtype is torch.float32 and value.requires_grad for value in former.parameters())
    assert not any(value.requires_grad for value in copy.parameters())
    assert not any(isinstance(layer, ChannelsLastConv1d) for layer in former.modules())

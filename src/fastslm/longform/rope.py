"""The language model's positions as a limit, and the one way beyond it: rotary positions scaled where the user asks."""

import copy
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch import nn

from fastslm.errors import OptionError
from fastslm.longform.generation import context_length
from fastslm.model.modeling import FastSLMForConditionalGeneration


class _Scaled(threading.local):
    """Of this thread's call, what stands in for each of the model's rotary embeddings."""

    def __init__(self) -> None:
        self.instead: dict[int, nn.Module] = {}


_SCALED = _Scaled()
_PLACING = threading.Lock()


class RotaryOfCall(nn.Module):
    """A rotary embedding, for which a call may have another: calls of other threads keep this one."""

    def __init__(self, plain: nn.Module):
        super().__init__()
        self.plain = plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the rotary embedding of the language model."""
        return _SCALED.instead.get(id(self), self.plain)(*args, **kwargs)


def positions_limit(model: FastSLMForConditionalGeneration, factor: float | None = None) -> int | None:
    """Positions that the language model has, its rotary ones scaled by `factor`; `None` where it has no limit."""
    limit = context_length(model)
    return limit if limit is None or factor is None else math.floor(limit * factor)


def check_rope_scaling(model: FastSLMForConditionalGeneration, factor: float | None) -> None:
    """Refuse a factor that is none, or that this language model cannot take.

    Raises:
        OptionError: it is not above 1, or the positions are not rotary ones that are unscaled so far.
    """
    if factor is None:
        return
    if not isinstance(factor, Real) or not 1 < factor < math.inf:
        raise OptionError(f"rope_scaling is {factor!r}: give a factor above 1, such as 2, or leave it out.")
    parameters = getattr(model.config.text_config.get_text_config(), "rope_parameters", None) or {}
    if parameters.get("rope_type") != "default" or not list(_rotary(model)) or context_length(model) is None:
        raise OptionError(
            "The language model's positions cannot be scaled (they are not rotary, or scaled already): leave "
            "rope_scaling out, and a recording beyond the limit is asked part by part."
        )


@contextmanager
def rope_scaled(model: FastSLMForConditionalGeneration, factor: float | None) -> Iterator[None]:
    """Inside, the language model has `factor` times its positions, by YaRN (arXiv 2309.00071); `None` changes nothing.

    What it makes of short prompts changes as well, so nothing that was computed outside may be continued inside. Other
    threads that ask the model meanwhile are not inside.
    """
    if factor is None:
        yield
        return
    check_rope_scaling(model, factor)
    before = _SCALED.instead
    _SCALED.instead = before | {id(place): _scaled(place.plain, factor) for place in _places(model)}
    try:
        yield
    finally:
        _SCALED.instead = before


def _scaled(rotary: Any, factor: float) -> nn.Module:
    config = copy.deepcopy(rotary.config)
    limit = config.max_position_embeddings
    config.max_position_embeddings = math.floor(limit * factor)
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": limit,
    }
    return type(rotary)(config=config).to(rotary.inv_freq.device)


def _places(model: FastSLMForConditionalGeneration) -> list[RotaryOfCall]:
    """The language model's rotary embeddings, from the first time on each in a `RotaryOfCall`, in place."""
    with _PLACING:
        for parent, name, rotary in _rotary(model):
            if not isinstance(parent, RotaryOfCall):
                setattr(parent, name, RotaryOfCall(rotary))
        return [module for module in model.language_model.modules() if isinstance(module, RotaryOfCall)]


def _rotary(model: FastSLMForConditionalGeneration) -> list[tuple[nn.Module, str, Any]]:
    """The modules that turn positions into angles, each with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.language_model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "inv_freq") and hasattr(child, "config")
    ]

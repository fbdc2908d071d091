"""Numbers among a task's options: what counts as one, and how a result tells them."""

from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number of 1 or more. `True` is none, though Python counts it as 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is a number at all; infinities and NaN are."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain_numbers(options: Any) -> None:
    """Turn the numbers of a frozen dataclass, such as NumPy's, into Python's own: results tell them as JSON."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_real(value):
            object.__setattr__(options, field.name, int(value) if isinstance(value, Integral) else float(value))

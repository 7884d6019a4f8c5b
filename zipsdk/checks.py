"""What options are asked before they are used: numbers of Python and of NumPy alike."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, perhaps not finite; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)

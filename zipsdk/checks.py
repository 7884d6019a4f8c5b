"""What options are asked before they are used: numbers of Python and of NumPy alike, and words of a command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number that a float holds, perhaps not finite; True and False are none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # 10**400
        return False
    return True


def positive(text: str) -> int:
    """A count of a command line, for `argparse`.

    Raises:
        ArgumentTypeError: it is no whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"got {text!r}, wanted a whole number of at least 1")
    return int(text)

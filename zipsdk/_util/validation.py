"""Check the types of options: Python and NumPy numbers, paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard

from zipsdk.errors import InputError

#: Above any machine's number of cores: more is a typing error.
MAX_THREADS = 1024


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an integer; bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Tell whether a value is a real number that fits a float, finite or not; bool is not."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # 10**400
        return False
    return True


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Check the value of an option that is one of several strings.

    Raises:
        InputError: it is none of them.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{option}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def kind_of(value: object) -> str:
    """Return what an object is, for an error message: its type only, because its repr may be pages of pixels."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Tell whether a value is a path: str, or os.PathLike of str; bytes is not."""
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))

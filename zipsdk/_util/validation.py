"""Check the types of options: Python and NumPy numbers, paths."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import TypeGuard

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


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Tell whether a value is a path: str, or os.PathLike of str; bytes is not."""
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))

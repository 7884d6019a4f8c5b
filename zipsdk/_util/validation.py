"""Check the types of options (Python and NumPy numbers, paths), and parse command-line values."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
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


def positive_int(text: str) -> int:
    """Parse a positive integer, for `argparse`.

    Raises:
        ArgumentTypeError: the text is not an integer of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)


def path_text(text: str) -> str:
    """Check a path, for `argparse`.

    Raises:
        ArgumentTypeError: the text is empty, as an unset shell variable is, or has a zero byte.
    """
    if not text:
        raise ArgumentTypeError(
            "got an empty path, expected a name; check the variable that holds it, and write . for this folder"
        )
    if "\0" in text:
        raise ArgumentTypeError(f"got {text!r}, expected a path without zero bytes; check where it comes from")
    return text

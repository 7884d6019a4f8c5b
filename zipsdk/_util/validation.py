"""What options are asked before they are used: numbers of Python and of NumPy alike, and words of a command line."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from numbers import Integral, Real
from typing import TypeGuard

#: More threads than any machine has cores: a slip of the keyboard, and each takes its stack.
MAX_THREADS = 1024


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


def is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether it is a path as text, or an object that stands for one; bytes are none."""
    return isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))


def positive(text: str) -> int:
    """A count of a command line, for `argparse`.

    Raises:
        ArgumentTypeError: it is no whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"got {text!r}, wanted a whole number of at least 1")
    return int(text)


def path_text(text: str) -> str:
    """Return a path of a command line, for `argparse`.

    Raises:
        ArgumentTypeError: it is empty, as an unset variable of a shell is, or has a zero byte in it.
    """
    if not text:
        raise ArgumentTypeError(
            "got an empty path, expected a name; check the variable it comes from, . is this folder"
        )
    if "\0" in text:
        raise ArgumentTypeError(f"got {text!r}, expected a path without zero bytes; check where it comes from")
    return text

"""CIFAR-10's "python version" is pickles. They are read here without running what a pickle can be made to run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]


class _Type:
    """Stands for numpy.dtype: keeps its name, and takes the state that a pickle gives it without using it."""

    def __init__(self, name: Any = None, *_: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy's array, of bytes only."""

    array: U8

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or kind.name not in (b"u1", "u1") or fortran or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that is not of unsigned bytes in C order")
        self.array = np.frombuffer(data, np.uint8).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Knows three names, each of which builds something harmless of ours; numbers, strings and lists need no names."""

    NAMES = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object from elsewhere")


def read_cifar_pickle(path: Path) -> dict[bytes, Any]:
    """The dictionary in one of CIFAR-10's files, read without running what a pickle can be made to run.

    Raises:
        InputError: no such file, or one that asks for more than arrays of bytes, strings, numbers, lists and
            dictionaries.
    """
    try:
        with path.open("rb") as f:
            found = _Unpickler(f, encoding="bytes").load()
    except OSError as e:
        raise InputError(f"{path}: got {e.strerror}, wanted CIFAR-10's python version; unpack all of it") from e
    # a damaged pickle can raise nearly anything
    except Exception as e:
        raise InputError(f"{path}: got a pickle refused or damaged ({e}), wanted CIFAR-10's python version") from e
    if not isinstance(found, dict):
        raise InputError(f"{path}: got a {type(found).__name__}, wanted CIFAR-10's dictionary; unpack it again")
    return found

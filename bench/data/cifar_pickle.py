"""Read CIFAR-10's "python version", which is pickles, without executing code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]


class _Type:
    """A stand-in for numpy.dtype: stores its name and ignores its state."""

    def __init__(self, name: Any = None, *_: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """A stand-in for numpy's array, of bytes only."""

    array: U8

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type) or kind.name not in (b"u1", "u1") or fortran or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that is not of unsigned bytes in C order")
        self.array = np.frombuffer(data, np.uint8).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Resolves three names, to harmless classes of this module; numbers, strings and lists need no names."""

    NAMES = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"the pickle refers to {module}.{name}")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to an external object")


def read_cifar_pickle(path: Path) -> dict[bytes, Any]:
    """Read the dictionary in one of CIFAR-10's files, without executing code from it.

    Raises:
        InputError: no such file, or a pickle of more than arrays of bytes, strings, numbers, lists and dictionaries.
    """
    try:
        with path.open("rb") as f:
            found = _Unpickler(f, encoding="bytes").load()
    except OSError as e:
        raise InputError(f"{path}: got {e.strerror}, expected CIFAR-10's python version; unpack all of it") from e
    # a damaged pickle can raise any exception
    except Exception as e:
        raise InputError(f"{path}: got a pickle refused or damaged ({e}), expected CIFAR-10's python version") from e
    if not isinstance(found, dict):
        raise InputError(f"{path}: got a {type(found).__name__}, expected CIFAR-10's dictionary; unpack it again")
    return found

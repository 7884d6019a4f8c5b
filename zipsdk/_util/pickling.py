"""Name the part of an object that does not pickle."""

from __future__ import annotations

import pickle
import sys
import threading

_checking = threading.local()


class _Discard:
    def write(self, data: bytes) -> int:
        return len(data)


def check_pickles(**parts: object) -> None:
    """Pickle each part, and discard the result.

    Raises:
        PicklingError: a part does not pickle; the message has its name. Not where cloudpickle is loaded (joblib, Ray):
            it may be the one that pickles, and it takes functions that pickle does not.
    """
    if getattr(_checking, "now", False):  # a part that contains the object itself
        return
    _checking.now = True
    try:
        for name, part in parts.items():
            try:
                pickle.Pickler(_Discard(), pickle.HIGHEST_PROTOCOL).dump(part)
            except Exception as e:
                if not any(module.endswith("cloudpickle") for module in sys.modules):
                    raise pickle.PicklingError(
                        f"{name}: got {part!r}, expected an object that pickles ({type(e).__name__}: {e}); "
                        "define functions and classes at the top level of a module, or make the object in each process"
                    ) from e
    finally:
        _checking.now = False

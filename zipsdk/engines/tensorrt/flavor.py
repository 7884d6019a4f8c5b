"""TensorRT and TensorRT-RTX: which of them is installed, what it knows, and how it reports errors."""

from __future__ import annotations

import re
from typing import Any

from zipsdk._util.runtimes import load
from zipsdk.errors import EngineError, InputError, MissingExtra

#: flavor -> (module, the extra of zipsdk that brings it, its name)
FLAVORS = {"trt": ("tensorrt", "gpu", "TensorRT"), "rtx": ("tensorrt_rtx", "rtx", "TensorRT-RTX")}
#: TensorRT-RTX accepts sm75, and has been reported to return zeros there, in silence, for dynamic float32 shapes.
RTX_LOWEST = 80


def runtime(flavor: str) -> Any:
    """The flavor's module.

    Raises:
        InputError: no such flavor.
        MissingExtra: it is not installed, or is broken.
        EngineError: it is the other flavor's module.
    """
    if not isinstance(flavor, str) or flavor not in FLAVORS:
        raise InputError(f"flavor: got {flavor!r}, wanted one of {', '.join(FLAVORS)}")
    module = FLAVORS[flavor][0]
    trt = load(module)
    if hasattr(trt, "ComputeCapability") != (flavor == "rtx"):
        raise EngineError(f"{module}: got a module of the other flavor; install one of zipsdk[gpu] and zipsdk[rtx]")
    return trt


def installed() -> list[str]:
    """Flavors that can be imported here."""
    found = []
    for flavor in FLAVORS:
        try:
            runtime(flavor)
        except (MissingExtra, EngineError):
            continue
        found.append(flavor)
    return found


def collecting_logger(trt: Any) -> Any:
    """A logger that keeps errors in `errors` in place of printing: TensorRT says None or False, and the reason here."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def text(self) -> str:
            """What has gone wrong since the last call, in one line."""
            said, self.errors = list(dict.fromkeys(self.errors)), []
            return re.sub(r"\s+", " ", "; ".join(said))[:600] or "it gave no reason"

    return Logger()


def compute_capabilities(trt: Any) -> list[int]:
    """What TensorRT-RTX knows and zipsdk allows, e.g. [80, 86, 89, 120, 121]."""
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return sorted(n for n in known if n >= RTX_LOWEST)

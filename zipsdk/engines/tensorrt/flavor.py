"""Describe TensorRT and TensorRT-RTX: which is installed, which GPUs it supports, and how it reports errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from zipsdk._util.runtimes import load
from zipsdk.errors import EngineError, InputError, MissingDependencyError


@dataclass(frozen=True)
class Flavor:
    """One of NVIDIA's two TensorRT libraries.

    Attributes:
        key: "trt" or "rtx".
        module: its Python module.
        extra: the extra of zipsdk that installs it.
        name: its name in messages.
    """

    key: str
    module: str
    extra: str
    name: str


FLAVORS = {
    "trt": Flavor("trt", "tensorrt", "gpu", "TensorRT"),
    "rtx": Flavor("rtx", "tensorrt_rtx", "rtx", "TensorRT-RTX"),
}
#: TensorRT-RTX accepts sm75, on which it is reported to return zeros without an error for dynamic float32 shapes.
RTX_LOWEST = 80


def runtime(flavor: str) -> Any:
    """Import the module of a flavor.

    Raises:
        InputError: there is no such flavor.
        MissingDependencyError: the module is not installed, or is broken.
        EngineError: the module is the other flavor's.
    """
    if not isinstance(flavor, str) or flavor not in FLAVORS:
        raise InputError(f"flavor: got {flavor!r}, expected one of {', '.join(FLAVORS)}")
    module = FLAVORS[flavor].module
    trt = load(module)
    if hasattr(trt, "ComputeCapability") != (flavor == "rtx"):
        raise EngineError(f"{module}: got a module of the other flavor; install one of zipsdk[gpu] and zipsdk[rtx]")
    return trt


def installed() -> list[str]:
    """Return the keys of the flavors that can be imported."""
    found = []
    for flavor in FLAVORS:
        try:
            runtime(flavor)
        except (MissingDependencyError, EngineError):
            continue
        found.append(flavor)
    return found


def collecting_logger(trt: Any) -> Any:
    """Create a logger that keeps errors: TensorRT returns None or False and explains only in its log."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def text(self) -> str:
            """Return the errors since the last call, in one line."""
            messages, self.errors = list(dict.fromkeys(self.errors)), []
            return re.sub(r"\s+", " ", "; ".join(messages))[:600] or "no reason given"

    return Logger()


def compute_capabilities(trt: Any) -> list[int]:
    """Return the GPUs that TensorRT-RTX knows and zipsdk allows, such as [80, 86, 89, 120, 121]."""
    known = [int(name[2:]) for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return sorted(n for n in known if n >= RTX_LOWEST)

"""Check the options of a plan build before the model is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zipsdk._util.validation import is_int
from zipsdk.engines.tensorrt.flavor import FLAVORS, RTX_LOWEST, Flavor, compute_capabilities, installed, runtime
from zipsdk.errors import InputError, MissingDependencyError
from zipsdk.models.spec import ModelSpec


@dataclass(frozen=True)
class BuildRequest:
    """Checked options of a plan build.

    Attributes:
        flavor: the library that builds.
        trt: its module.
        batches: the largest batch of each optimization profile, rising.
        compute_capabilities: of the GPUs to build for, times ten.
    """

    flavor: Flavor
    trt: Any
    batches: tuple[int, ...]
    compute_capabilities: tuple[int, ...]

    @classmethod
    def from_options(cls, flavor: str | None, batches: Sequence[int], targets: Sequence[str] | None) -> BuildRequest:
        """Check the options of `zipsdk.engines.tensorrt.build.build`, and raise as it does."""
        key = _only_installed() if flavor is None else flavor
        trt = runtime(key)
        return cls(FLAVORS[key], trt, _check_batches(batches), _check_targets(trt, key, targets))

    @property
    def targets(self) -> list[str]:
        """Names of the GPUs to build for: ["sm86", ...]."""
        return [f"sm{n}" for n in self.compute_capabilities]


def restrict_sizes(spec: ModelSpec, sizes: Sequence[int] | None) -> ModelSpec:
    """Return the spec of a plan that takes only some image sizes: see `zipsdk.engines.tensorrt.build.build`.

    Raises:
        InputError: the model does not take these sizes.
    """
    if sizes is None:
        return spec
    if len(sizes) not in (1, 3) or not all(map(is_int, sizes)):
        raise InputError(
            f"sizes: got {list(sizes)}, expected one side, or the smallest, the usual and the largest, in whole pixels"
        )
    low, usual, high = (int(s) for s in (sizes if len(sizes) == 3 else [sizes[0]] * 3))
    ok = spec.min_side <= low <= usual <= high <= spec.max_side
    if not ok or any(s % spec.multiple for s in (low, usual, high)):
        raise InputError(
            f"sizes: got {list(sizes)}, expected rising multiples of {spec.multiple} in "
            f"{spec.min_side}..{spec.max_side} for {spec.name}"
        )
    return dataclasses.replace(spec, min_side=low, image_size=usual, max_side=high)


def _only_installed() -> str:
    found = installed()
    if not found:
        raise MissingDependencyError("tensorrt", "gpu", "nor is tensorrt_rtx, which zipsdk[rtx] installs")
    if len(found) > 1:
        raise InputError(f"flavor: both {' and '.join(found)} are installed; choose one")
    return found[0]


def _check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(batches, Iterable):
        raise InputError(f"batches: got {batches!r}, expected several integers, such as [1, 8, 64]")
    given = list(batches)
    if not given or any(not is_int(b) or b < 1 for b in given):
        raise InputError(f"batches: got {given}, expected integers of at least 1, such as 1, 8, 64")
    if given != sorted(set(given)):
        raise InputError(f"batches: got {given}, expected each larger than the one before")
    return tuple(int(b) for b in given)


def _check_targets(trt: Any, flavor: str, targets: Sequence[str] | None) -> tuple[int, ...]:
    """Return the compute capabilities, times ten, of GPUs named "sm86" or "sm_86"."""
    if targets is not None and (not isinstance(targets, Iterable) or not all(isinstance(t, str) for t in targets)):
        raise InputError(f"targets: got {targets!r}, expected names of GPUs, such as ['sm86']")
    if flavor == "trt":
        if targets:
            raise InputError(
                f"targets: got {', '.join(targets)}, but TensorRT builds for the GPU that is present; "
                "leave targets out and build on the GPU that will run the plan, or use TensorRT-RTX"
            )
        from zipsdk.gpu.device import open_device

        major, minor = open_device(0).capability
        return (10 * major + minor,)
    known = compute_capabilities(trt)
    if targets is None:
        return tuple(known)
    numbers = []
    for target in targets:
        match = re.fullmatch(r"sm_?(\d{2,3})", target.lower())
        if match is None or int(match[1]) not in known:
            reason = ""
            if match is not None and int(match[1]) < RTX_LOWEST:
                reason = f" (below sm{RTX_LOWEST} TensorRT-RTX is known to return zeros without an error)"
            raise InputError(
                f"targets: got {target!r}{reason}, expected some of {', '.join(f'sm{n}' for n in known)}; for other "
                "GPUs use TensorRT or ONNX Runtime"
            )
        numbers.append(int(match[1]))
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"targets: got {list(targets)}, expected at least one, each once")
    return tuple(numbers)

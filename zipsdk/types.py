"""Name the array types, and define the protocols of the objects that users pass in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from zipsdk.models.spec import ModelSpec

Array = npt.NDArray[Any]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@runtime_checkable
class Engine(Protocol):
    """Predict noise. Any object with these two members can be passed to `zipsdk.Purifier`."""

    @property
    def spec(self) -> ModelSpec:
        """Return the model's specification."""

    def __call__(self, x: F32, t: F32) -> F32:
        """Predict eps for x_t: x float32 (N, 3, H, W), t float32 (N,) of integers; returns float32 (N, 3, H, W)."""


class LoadedEngine(Engine, Protocol):
    """An engine that `zipsdk.load_engine` returns."""

    @property
    def info(self) -> dict[str, Any]:
        """Return what runs the model, as JSON values; `zipsdk.load_engine` lists the keys."""

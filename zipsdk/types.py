"""The protocols that a user's own objects follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from zipsdk.models.spec import ModelSpec

F32 = npt.NDArray[np.float32]


@runtime_checkable
class Engine(Protocol):
    """A noise predictor. Any object with these two members can be passed to `zipsdk.Purifier`."""

    @property
    def spec(self) -> ModelSpec:
        """The model's description of itself."""

    def __call__(self, x: F32, t: F32) -> F32:
        """Predict eps for x_t: x float32 (N, 3, H, W), t float32 (N,) of whole numbers; returns float32 like x."""

"""Make specs, and engines that compute what a test needs; `FakeEngine` is zipsdk's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zipsdk.models.spec import ModelSpec
from zipsdk.testing import FakeEngine


def make_spec(**changes: Any) -> ModelSpec:
    """Return the spec of a 64x64 model that takes sides of 32 to 128, with changes."""
    fields: dict[str, Any] = {"name": "fake", "image_size": 64, "multiple": 4, "min_side": 32, "max_side": 128}
    return ModelSpec(**{**fields, **changes})


class FunctionEngine(FakeEngine):
    """A fake engine that computes eps by a function of x and t."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], spec: ModelSpec | None = None):
        super().__init__(spec)
        self.function = function

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        self.calls.append((x.shape, float(t[0])))
        return self.function(x, t)

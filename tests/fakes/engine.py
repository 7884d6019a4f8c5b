"""Fake an engine without a model, and its spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zipsdk.models.spec import ModelSpec


def make_spec(**changes: Any) -> ModelSpec:
    """Return the spec of a 64x64 model that takes sides of 32 to 128, with changes."""
    fields: dict[str, Any] = {"name": "fake", "image_size": 64, "multiple": 4, "min_side": 32, "max_side": 128}
    return ModelSpec(**{**fields, **changes})


class FakeEngine:
    """A deterministic noise predictor that mixes neighboring pixels a little, in float32 or the input's dtype."""

    def __init__(self, spec: ModelSpec | None = None):
        self.spec = spec or make_spec()
        self.calls: list[tuple[tuple[int, ...], float]] = []

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        self.calls.append((x.shape, float(t[0])))
        scale = np.asarray(t, x.dtype)[:, None, None, None] / 1000
        mixed = 0.8 * x + 0.2 * np.roll(x, 1, axis=-1) * 0.5 + 0.1 * x[:, ::-1]
        return (np.tanh(mixed) * (0.3 + 0.6 * scale)).astype(x.dtype)


class FunctionEngine(FakeEngine):
    """A fake engine that computes eps by a function of x and t."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], spec: ModelSpec | None = None):
        super().__init__(spec)
        self.function = function

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        self.calls.append((x.shape, float(t[0])))
        return self.function(x, t)

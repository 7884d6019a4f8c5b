"""Fake an engine, for tests of code that calls a `zipsdk.Purifier`."""

from __future__ import annotations

from typing import Any

import numpy as np

from zipsdk._util.validation import kind_of
from zipsdk.errors import InputError
from zipsdk.models.spec import ModelSpec
from zipsdk.types import Array


class FakeEngine:
    """Predict noise without a model or a runtime: fast and deterministic, but the images get no better.

    `zipsdk.Purifier(FakeEngine())` purifies images of any size, as with a real engine of 64 x 64 pixels.

    Args:
        spec: what the model says about itself; None is a model of 64 x 64 pixels that takes sides of 32 to 128.

    Attributes:
        calls: (shape of x, first time step) of each call, in order.

    Raises:
        InputError: `spec` is something else.
    """

    def __init__(self, spec: ModelSpec | None = None):
        if spec is not None and not isinstance(spec, ModelSpec):
            raise InputError(f"spec: got {kind_of(spec)}, expected a zipsdk.ModelSpec or None; pass engine.spec")
        self.spec = spec or ModelSpec(name="fake", image_size=64, multiple=4, min_side=32, max_side=128)
        self.calls: list[tuple[tuple[int, ...], float]] = []

    def __call__(self, x: Array, t: Array) -> Array:
        """Mix neighboring pixels and colors of x (N, 3, H, W) a little; t is (N,)."""
        self.calls.append((x.shape, float(t[0])))
        scale = np.asarray(t, x.dtype)[:, None, None, None] / 1000
        mixed = 0.8 * x + 0.1 * np.roll(x, 1, axis=-1) + 0.1 * x[:, ::-1]
        eps: np.ndarray[Any, Any] = np.tanh(mixed) * (0.3 + 0.6 * scale)
        return eps.astype(x.dtype)

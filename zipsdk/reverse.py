"""Algorithms 1 and 2 of the paper as one pure function over a noise predictor, a table of steps, transforms and noise.

The loop in the form of x0, which equals the paper's lines 4 to 11 exactly (the noise terms of line 6 cancel when
x_t = sqrt(ab) x0 + sqrt(1-ab) e is put in):

    e      = eps(x_t, t)
    x0     = (x_t - sqrt(1-ab) e) / sqrt(ab)                  line 10, of x_t
    x0~    = x0 + w P (x_P - x0)                              lines 5 to 10, w = 1 - ab^lambda, P the mean of A_n^+ A_n
    x_next = sqrt(ab') x0~ + sqrt(1 - ab' - s^2) e + s z      line 11, equation 12

One subtraction in picture space in place of N rectified estimates, no transform of e, and nothing grows: the paper's
form multiplies and divides by sqrt(ab), about 0.01 at the start. The tests hold this function to the paper's literal
form, in float64, for both algorithms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zipsdk.noise import STEP_INITIAL
from zipsdk.schedule import Step, StepTable

Array = npt.NDArray[Any]


class NoiseSource(Protocol):
    def normal(self, step: int, height: int, width: int) -> Array:
        """Standard normals (N, 3, height, width) for a time step."""


class GuideLike(Protocol):
    def __call__(self, r: Array) -> Array:
        """The combined projection of `r`."""

    def joint(self, x: Array) -> Array:
        """The joint projection of `x`."""


def first_state(x_p: Array, table: StepTable, guide: GuideLike, noise: NoiseSource) -> Array:
    """x_T: pure noise, or for a warm start the noised guide sqrt(ab) P(x_P) + sqrt(1-ab) z.

    The guide is what the transforms let through, never x_P itself: that would carry the trigger in.
    """
    z = noise.normal(STEP_INITIAL, *x_p.shape[-2:]).astype(x_p.dtype, copy=False)
    if not table.warm:
        return z
    ab = table.steps[0].ab
    start = guide.joint(x_p)
    start *= ab**0.5
    z *= (1.0 - ab) ** 0.5
    start += z
    return start


def purify(
    eps: Callable[[Array, int], Array],
    x_p: Array,
    table: StepTable,
    guide: GuideLike,
    noise: NoiseSource,
    *,
    clip_x0: bool = False,
    callback: Callable[[Step, Array], None] | None = None,
) -> Array:
    """Run the loop.

    Args:
        eps: (x_t (N, 3, H, W), t) -> the predicted noise, same shape. It must not keep or change x_t.
        x_p: the pictures to purify, (N, 3, H, W) in [-1, 1]; its dtype (float32; float64 as reference) is the state's.
        table: `zipsdk.schedule.step_table`. With all T steps and eta = 1 this is Algorithm 1.
        guide: `zipsdk.transforms.Guide`.
        noise: `zipsdk.noise.Noise`, or anything with its `normal`.
        clip_x0: clamp x0~ to [-1, 1] at each step (e is kept as predicted). The paper does not.
        callback: called after each step with the step and x0~ (valid during the call).

    Returns:
        The restored pictures, a new array like `x_p`; values may leave [-1, 1] a little.
    """
    x = first_state(x_p, table, guide, noise)
    x0 = np.empty_like(x)
    for step in table.steps:
        e = eps(x, step.t)
        np.multiply(e, step.b, out=x0)
        x *= step.a
        np.subtract(x, x0, out=x0)  # x0 = a x_t - b e

        correction = guide(x_p - x0)
        correction *= step.w
        x0 += correction
        if clip_x0:
            np.clip(x0, -1.0, 1.0, out=x0)
        if callback is not None:
            callback(step, x0)

        np.multiply(x0, step.c, out=x)
        if step.d:
            x += np.multiply(e, step.d, out=correction)
        if step.s:
            z = noise.normal(step.t, *x.shape[-2:]).astype(x.dtype, copy=False)
            z *= step.s
            x += z
    return x

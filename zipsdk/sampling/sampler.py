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

A step is elementwise but for eps, and for P within cells of a few rows. So images go through it in strips of rows, in
place: one float32 state is all that grows with an image. The result is the same bit for bit, whatever the strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zipsdk.sampling.noise import STEP_INITIAL
from zipsdk.sampling.schedule import Step, StepTable
from zipsdk.sampling.state import STRIP_PIXELS, StateRows

Array = npt.NDArray[Any]


class NoiseSource(Protocol):
    def normal(self, step: int, height: int, width: int, top: int = 0) -> Array:
        """Standard normals (N, 3, height, width) for a time step, of the rows from `top` on.

        `top` is passed for images in strips alone, so a source for small images can do without.
        """


class GuidanceLike(Protocol):
    """An optional attribute `strip_unit` permits strips; see `zipsdk.sampling.guidance.Guidance`."""

    def __call__(self, r: Array) -> Array:
        """The combined projection of `r`."""

    def joint(self, x: Array) -> Array:
        """The joint projection of `x`."""


def _strips(top: int, bottom: int, row: int, unit: int | None) -> Iterator[tuple[int, int]]:
    """Cut rows top..bottom into strips of `unit` rows or multiples; `row`: pixels in a row of all images together."""
    step = bottom - top if unit is None else max(1, STRIP_PIXELS // max(1, row * unit)) * unit
    for a in range(top, bottom, step):
        yield a, min(a + step, bottom)


def _rows(x_p: Array | StateRows, top: int, bottom: int) -> Array:
    return x_p.rows(top, bottom) if isinstance(x_p, StateRows) else x_p[:, :, top:bottom]


def _normal(noise: NoiseSource, step: int, x: Array, top: int) -> Array:
    """Noise for a strip `x` that begins at row `top`, in its dtype."""
    height, width = x.shape[-2:]
    z = noise.normal(step, height, width, top) if top else noise.normal(step, height, width)
    return z.astype(x.dtype, copy=False)


def first_state(
    x_p: Array | StateRows, table: StepTable, guidance: GuidanceLike, noise: NoiseSource, *, unit: int | None = None
) -> Array:
    """Make x_T: pure noise, or for a warm start the noised guidance sqrt(ab) P(x_P) + sqrt(1-ab) z.

    The guidance is what the transforms let through, never x_P itself: that would carry the trigger in.

    Args:
        unit: rows that strips are multiples of; None for whole images.
    """
    n, _, height, width = x_p.shape
    x = np.empty(x_p.shape, x_p.dtype)
    ab = table.steps[0].ab
    for top, bottom in _strips(0, height, n * width, unit):
        part = x[:, :, top:bottom]
        z = _normal(noise, STEP_INITIAL, part, top)
        if not table.warm:
            part[...] = z
            continue
        start = guidance.joint(_rows(x_p, top, bottom))
        start *= ab**0.5
        z *= (1.0 - ab) ** 0.5
        np.add(start, z, out=part)
    return x


def purify(
    eps: Callable[[Array, int], Array],
    x_p: Array | StateRows,
    table: StepTable,
    guidance: GuidanceLike,
    noise: NoiseSource,
    *,
    clip_x0: bool = False,
    callback: Callable[[Step, Array], None] | None = None,
) -> Array:
    """Run the loop.

    Args:
        eps: (x_t (N, 3, H, W), t) -> the predicted noise, same shape. It must not keep or change x_t. A
            `zipsdk.sampling.denoiser.TiledDenoiser` is asked for its strips.
        x_p: the images to purify, (N, 3, H, W) in [-1, 1]; its dtype (float32; float64 as reference) is the state's.
            `zipsdk.sampling.state.StateRows` converts them on the way.
        table: `zipsdk.sampling.schedule.step_table`. With all T steps and eta = 1 this is Algorithm 1.
        guidance: `zipsdk.sampling.guidance.Guidance`. Without a `strip_unit` each step takes the images whole.
        noise: `zipsdk.sampling.noise.Noise`, or anything with its `normal`.
        clip_x0: clamp x0~ to [-1, 1] at each step (e is kept as predicted). The paper does not.
        callback: called after each step with the step and x0~ (valid during the call); takes the images whole.

    Returns:
        The restored images, a new array like `x_p`; values may leave [-1, 1] a little.
    """
    n, _, height, width = x_p.shape
    unit = getattr(guidance, "strip_unit", None) if callback is None else None
    predict = getattr(eps, "strips", None) if unit is not None else None
    x = first_state(x_p, table, guidance, noise, unit=unit)
    for step in table.steps:
        parts = predict(x, step.t, unit) if predict else iter([(0, height, eps(x, step.t))])
        for first, last, e in parts:
            for top, bottom in _strips(first, last, n * width, unit):
                part, e_part = x[:, :, top:bottom], e[:, :, top - first : bottom - first]
                x0, scratch = _estimate(part, e_part, _rows(x_p, top, bottom), step, guidance)
                if clip_x0:
                    np.clip(x0, -1.0, 1.0, out=x0)
                if callback is not None:
                    callback(step, x0)
                np.multiply(x0, step.c, out=part)
                if step.d:
                    part += np.multiply(e_part, step.d, out=scratch)
                if step.s:
                    z = _normal(noise, step.t, part, top)
                    z *= step.s
                    part += z
            del e, e_part  # else it would stay while the engine makes the next
    return x


def _estimate(x: Array, e: Array, x_p: Array, step: Step, guidance: GuidanceLike) -> tuple[Array, Array]:
    """x0~ of a strip, and an array of its shape that is free; `x` is overwritten."""
    x0 = np.multiply(e, step.b)
    x *= step.a
    np.subtract(x, x0, out=x0)  # x0 = a x_t - b e
    correction = guidance(x_p - x0)
    correction *= step.w
    x0 += correction
    return x0, correction

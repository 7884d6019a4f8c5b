"""Run Algorithms 1 and 2 of the paper: a pure function of a noise predictor, a table of steps, transforms and noise.

The loop is written in x0, which equals the paper's lines 4 to 11 exactly (the noise terms of line 6 cancel when
x_t = sqrt(ab) x0 + sqrt(1-ab) e is substituted):

    e      = eps(x_t, t)
    x0     = (x_t - sqrt(1-ab) e) / sqrt(ab)                  line 10, of x_t
    x0~    = x0 + w P (x_P - x0)                              lines 5 to 10, w = 1 - ab^lambda, P the mean of A_n^+ A_n
    x_next = sqrt(ab') x0~ + sqrt(1 - ab' - s^2) e + s z      line 11, equation 12

This takes one subtraction in image space in place of N rectified estimates, no transform of e, and keeps all values
small: the paper's form multiplies and divides by sqrt(ab), about 0.01 at the start. The tests compare this function
with the paper's literal form, in float64, for both algorithms.

A step is elementwise, except for eps and for P, which acts within cells of a few rows. So strips of rows go through it
in place, and only one float32 state grows with the image. The strips do not change the result by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from zipsdk.profiling import stage
from zipsdk.sampling.noise import STEP_INITIAL
from zipsdk.sampling.schedule import Step, StepTable
from zipsdk.sampling.state import STRIP_PIXELS, StateRows
from zipsdk.types import Array


class NoiseSource(Protocol):
    """Draw the noise of a run; see `zipsdk.sampling.noise.Noise`."""

    def normal(self, step: int, height: int, width: int, top: int = 0) -> Array:
        """Draw standard normals (N, 3, height, width) for a time step, of the rows from `top` on.

        `top` is passed only for images in strips, so a source for small images may leave it out.
        """


class GuidanceLike(Protocol):
    """Project images; an optional attribute `strip_unit` permits strips. See `zipsdk.sampling.guidance.Guidance`."""

    def __call__(self, r: Array) -> Array:
        """Return the combined projection of `r`."""

    def joint(self, x: Array) -> Array:
        """Return the joint projection of `x`."""


def _strips(top: int, bottom: int, row: int, unit: int | None) -> Iterator[tuple[int, int]]:
    """Cut rows top..bottom into strips of multiples of `unit` rows; `row` is the pixels in a row of all images."""
    step = bottom - top if unit is None else max(1, STRIP_PIXELS // max(1, row * unit)) * unit
    for a in range(top, bottom, step):
        yield a, min(a + step, bottom)


def _rows(x_p: Array | StateRows, top: int, bottom: int) -> Array:
    return x_p.rows(top, bottom) if isinstance(x_p, StateRows) else x_p[:, :, top:bottom]


def _normal(noise: NoiseSource, step: int, x: Array, top: int) -> Array:
    """Draw noise for a strip `x` that begins at row `top`, in its dtype."""
    height, width = x.shape[-2:]
    z = noise.normal(step, height, width, top) if top else noise.normal(step, height, width)
    return z.astype(x.dtype, copy=False)


def initial_latent(
    x_p: Array | StateRows, table: StepTable, guidance: GuidanceLike, noise: NoiseSource, *, unit: int | None = None
) -> Array:
    """Draw x_T: pure noise, or for a warm start the noised joint projection sqrt(ab) P x_P + sqrt(1-ab) z.

    A warm start never takes x_P itself, which would bring the trigger with it.

    Args:
        x_p: the images to purify, as for `sample`.
        table: the steps.
        guidance: projects the images.
        noise: draws z.
        unit: rows that strips are multiples of; None for whole images.

    Returns:
        A new array like `x_p`.
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


@stage("step")
def sample(
    eps: Callable[[Array, int], Array],
    x_p: Array | StateRows,
    table: StepTable,
    guidance: GuidanceLike,
    noise: NoiseSource,
    *,
    clip_x0: bool = False,
    callback: Callable[[Step, Array], None] | None = None,
) -> Array:
    """Sample the restored images.

    Args:
        eps: predicts the noise of x_t (N, 3, H, W) at t, in the same shape. It must not keep or change x_t. A
            `zipsdk.sampling.denoiser.TiledDenoiser` predicts it in strips.
        x_p: the images to purify, (N, 3, H, W) in [-1, 1], or `zipsdk.sampling.state.StateRows`, which converts them
            strip by strip. The state has the same dtype: float32, or float64 as a reference.
        table: from `zipsdk.sampling.schedule.step_table`. With all T steps and eta = 1 this is Algorithm 1.
        guidance: `zipsdk.sampling.guidance.Guidance`. Without a `strip_unit` each step needs whole images.
        noise: `zipsdk.sampling.noise.Noise`, or any object with its `normal`.
        clip_x0: clamp x0~ to [-1, 1] at each step, and keep e as predicted. The paper does not.
        callback: called after each step with the step and x0~ of whole images, valid during the call.

    Returns:
        The restored images, a new array like `x_p`; values may be slightly outside [-1, 1].
    """
    n, _, height, width = x_p.shape
    unit = getattr(guidance, "strip_unit", None) if callback is None else None
    predict = getattr(eps, "strips", None) if unit is not None else None
    x = initial_latent(x_p, table, guidance, noise, unit=unit)
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
            del e, e_part  # free it before the engine predicts the next
    return x


def _estimate(x: Array, e: Array, x_p: Array, step: Step, guidance: GuidanceLike) -> tuple[Array, Array]:
    """Return x0~ of a strip and a scratch array of its shape; overwrite `x`."""
    x0 = np.multiply(e, step.b)
    x *= step.a
    np.subtract(x, x0, out=x0)  # x0 = a x_t - b e
    correction = guidance(x_p - x0)
    correction *= step.w
    x0 += correction
    return x0, correction

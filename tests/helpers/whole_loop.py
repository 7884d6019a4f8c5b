"""Run the loop on whole images, without strips: the reference that strips must equal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from zipsdk.purifier import Purifier
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import PerImageGuidance
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.state import pad
from zipsdk.sampling.tiling import MAX_PIXELS_A_CALL, TileLayout, plan_tiles
from zipsdk.types import Engine


def whole_windows(predictor: TiledDenoiser, engine: Engine, a: TileLayout, x: np.ndarray, t: int) -> np.ndarray:
    """Blend eps of overlapping windows into an array for the whole image."""
    n = len(x)
    places = [(y, left, wy, wx) for y, wy in zip(a.ys, predictor._row_weights, strict=True)
              for left, wx in zip(a.xs, predictor._column_weights, strict=True)]  # fmt: skip
    out = np.zeros_like(x)
    calls = max(1, MAX_PIXELS_A_CALL // (n * a.frame_height * a.frame_width))
    for i in range(0, len(places), calls):
        group = places[i : i + calls]
        cut = np.concatenate([x[:, :, y : y + a.frame_height, left : left + a.frame_width] for y, left, _, _ in group])
        eps = engine(cut, np.full(len(cut), t, np.float32))
        for j, (y, left, wy, wx) in enumerate(group):
            window = out[:, :, y : y + a.frame_height, left : left + a.frame_width]
            window += eps[j * n : (j + 1) * n] * (wy[:, None] * wx[None, :])
    return out


def whole_sample(eps: Any, x_p: np.ndarray, table: StepTable, guide: Any, noise: Any, clip_x0: bool) -> np.ndarray:
    """Compute `zipsdk.sampling.sampler.sample` with every array as large as the images."""
    size = x_p.shape[-2:]
    x = noise.normal(STEP_INITIAL, *size).astype(x_p.dtype, copy=False)
    if table.warm:
        ab = table.steps[0].ab
        start = guide.joint(x_p)
        start *= ab**0.5
        x *= (1.0 - ab) ** 0.5
        start += x
        x = start
    x0 = np.empty_like(x)
    for step in table.steps:
        e = eps(x, step.t)
        np.multiply(e, step.b, out=x0)
        x *= step.a
        np.subtract(x, x0, out=x0)
        correction = guide(x_p - x0)
        correction *= step.w
        x0 += correction
        if clip_x0:
            np.clip(x0, -1.0, 1.0, out=x0)
        np.multiply(x0, step.c, out=x)
        if step.d:
            x += np.multiply(e, step.d, out=correction)
        if step.s:
            z = noise.normal(step.t, *size).astype(x.dtype, copy=False)
            z *= step.s
            x += z
    return x


def whole_run(purifier: Purifier, images: np.ndarray, ids: list[int]) -> np.ndarray:
    """`Purifier.run` of uint8 (N, H, W, 3), all images in one call."""
    _, height, width, _ = images.shape
    engine: Engine = purifier.engine
    layout = plan_tiles(engine.spec, height, width, purifier._dispatcher.divisor, purifier.settings.tile_size)
    predictor = TiledDenoiser(engine, layout)
    assert purifier.settings.seed is not None
    noise = Noise(purifier.settings.seed, ids)
    guide: Any = purifier.guides[0]
    if len(purifier.guides) > 1:
        guide = PerImageGuidance(purifier.guides, noise.choice(len(purifier.guides)))

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        return whole_windows(predictor, engine, layout, x, t) if layout.windows > 1 else predictor(x, t)

    x_p = pad(images, layout.height, layout.width).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    x_p *= 1.0 / 127.5
    x_p -= 1.0
    x = whole_sample(eps, x_p, purifier.table, guide, noise, purifier.settings.clip_x0)
    y = x[:, :, :height, :width] + 1.0
    y *= 127.5
    np.rint(y, out=y)
    np.clip(y, 0.0, 255.0, out=y)
    return y.astype(np.uint8).transpose(0, 2, 3, 1)

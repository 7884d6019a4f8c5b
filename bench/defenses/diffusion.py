"""The parts that DiffPure, DDNM and SampDetox share: the UNet that ZIP uses, and the loop around it.

All are the loop of `zipsdk.sampling.sampler` with another table of steps (its symbols are explained there):

    ZIP        from noise or the noised guide   w = 1 - ab^lambda   s = eta sqrt((1-ab')/(1-ab)) sqrt(1 - ab/ab')
    DDNM       from noise                       w = 1               s = eta sqrt(1-ab')
    DiffPure   from the noised image at t*      w = 0               as ZIP's with eta = 1: ancestral

Schedule, noise, tiles and UNet are the same; the methods alone differ. The ZIP paper (appendix H.1) gave its baselines
"identical linear transformations, diffusion steps, and schedules", which is the default here; each method also has its
published setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.defenses.base import U8
from bench.defenses.simple import Progress, checked, noise_of, parts
from zipsdk.batch.discovery import same_file
from zipsdk.errors import InputError
from zipsdk.models import resolve
from zipsdk.models.sidecar import model_hashes
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import StepTable, step_table
from zipsdk.sampling.state import to_model_range, to_uint8
from zipsdk.sampling.tiling import plan_tiles
from zipsdk.types import Engine

Array = npt.NDArray[Any]
Predict = Callable[[Array, int], Array]


def engine_of(engine: Engine) -> dict[str, Any]:
    """Describe an engine by everything that decides its output: weights, schedule, sizes and backend."""
    spec = engine.spec
    # cache keys and row keys hash these names
    model = {
        "name": spec.name,
        "source_sha256": spec.source_sha256,
        "precision": spec.precision,
        "canvas": spec.image_size,
        "multiple": spec.multiple,
        "min_side": spec.min_side,
        "max_side": spec.max_side,
        "beta_schedule": spec.beta_schedule,
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "timesteps": spec.timesteps,
    }
    info = getattr(engine, "info", None) or {"engine": type(engine).__name__}
    runs = {key: value for key, value in info.items() if key != "threads"}
    path = getattr(engine, "path", None)
    # one checkpoint gives many files: other precisions, other calibration images
    bundled = resolve(spec.name)
    known = path is None or (bundled is not None and same_file(path, bundled))
    file = {} if known else {"files": _hashes(path)}
    return {"model": {**model, **file}, "runs": runs}


@cache
def _hashes(path: Path) -> Any:
    return model_hashes(path)


def run_loop(
    engine: Engine,
    images: U8,
    divisor: int,
    seed: int,
    loop: Callable[[Predict, Array, Noise], Array],
    progress: Progress,
) -> U8:
    """Run a sampling loop on images like `zipsdk.Purifier`: padded by mirroring, tiled, in batches of bounded memory.

    Args:
        images: uint8 (N, H, W, 3).
        divisor: the sides of the state are multiples of it.
        loop: (noise prediction, x_p float32 (n, 3, h, w) in [-1, 1], its noise) -> an array like x_p.
    """
    _, height, width, _ = checked(images).shape
    layout = plan_tiles(engine.spec, height, width, divisor)
    predict = TiledDenoiser(engine, layout)
    noise = noise_of(images, seed)
    out = np.empty_like(images)
    for part in parts(images, layout.images_per_call, progress):
        x = loop(
            predict, to_model_range(images[part], layout.height, layout.width), Noise(seed, noise.noise_keys[part])
        )
        out[part] = to_uint8(x, height, width)
    return out


def ancestral(spec: ModelSpec, t_star: int, count: int) -> StepTable:
    """Make the table of unconditional ancestral sampling (DDPM): w = 0.

    `count` steps are spread evenly over the 0-based t* - 1, ..., 0; with t* of them there is one at each.

    Raises:
        InputError: t* outside 2..T, or more steps than t*.
    """
    if not 2 <= t_star <= spec.timesteps:
        raise InputError(f"t*: got {t_star}, expected 2 to {spec.timesteps}; DiffPure has 100 and 150")
    if not 1 <= count <= t_star:
        raise InputError(f"steps: got {count}, expected 1 to t* = {t_star}, or None for one at each")
    table = step_table(spec, lam=1.0, eta=1.0, steps=count, start=t_star - 1)
    return StepTable(tuple(replace(step, w=0.0) for step in table.steps), warm=True)


@dataclass(frozen=True)
class Start:
    """A guide for unconditional loops: it decides only the image that is noised at the start.

    guide: its joint projection is noised; None: the image itself.
    """

    guide: Guidance | None = None

    def joint(self, x: Array) -> Array:
        return x.copy() if self.guide is None else self.guide.joint(x)

    def __call__(self, r: Array) -> Array:
        return np.zeros_like(r)

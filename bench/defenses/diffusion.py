"""DiffPure and DDNM on the UNet that ZIP uses, with and without a transform before them.

Both are the loop of `zipsdk.sampling.sampler` with another table of steps (its letters are explained there):

    ZIP        from noise or the noised guide   w = 1 - ab^lambda   s = eta sqrt((1-ab')/(1-ab)) sqrt(1 - ab/ab')
    DDNM       from noise                       w = 1               s = eta sqrt(1-ab')
    DiffPure   from the noised picture at t*    w = 0               as ZIP's with eta = 1: ancestral

so schedule, noise, canvases and UNet are the same, and what differs is the method. The ZIP paper (appendix H.1) gave
both "identical linear transformations, diffusion steps, and schedules", which is the default here; each method's own
published setting is the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.defenses.base import U8, Classify
from bench.defenses.simple import Progress, as_transforms, checked, fingerprints, names, noise_of, parts
from zipsdk.batch.discovery import same_file
from zipsdk.errors import InputError
from zipsdk.models import resolve
from zipsdk.models.sidecar import model_hashes
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling import sampler
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import PAPER_STEPS, StepTable, step_table
from zipsdk.sampling.state import to_model_range, to_uint8
from zipsdk.sampling.tiling import plan_tiles
from zipsdk.transforms import Transform
from zipsdk.types import Engine

Array = npt.NDArray[Any]
Predict = Callable[[Array, int], Array]


def engine_of(engine: Engine) -> dict[str, Any]:
    """What of an engine decides the pictures: weights, schedule, sizes, and what it runs on."""
    spec = engine.spec
    fields = ("name", "source_sha256", "precision", "multiple", "min_side", "max_side", "beta_schedule", "beta_start",
              "beta_end", "timesteps")  # fmt: skip
    info = getattr(engine, "info", None) or {"engine": type(engine).__name__}
    runs = {key: value for key, value in info.items() if key != "threads"}
    path = getattr(engine, "path", None)
    # the spec names the checkpoint, of which there may be many files: quantized on other pictures, in other precisions
    bundled = resolve(spec.name)
    known = path is None or (bundled is not None and same_file(path, bundled))
    file = {} if known else {"files": _hashes(path)}
    return {
        "model": {**{field: getattr(spec, field) for field in fields}, "canvas": spec.image_size, **file},
        "runs": runs,
    }


@cache
def _hashes(path: Path) -> Any:
    return model_hashes(path)


def through(
    engine: Engine,
    pictures: U8,
    divisor: int,
    seed: int,
    loop: Callable[[Predict, Array, Noise], Array],
    progress: Progress,
) -> U8:
    """Put pictures through a loop as `zipsdk.Purifier` does: mirrored to what divides, laid out on the engine's
    canvases, so many at a time that memory stays bounded.

    Args:
        pictures: uint8 (N, H, W, 3).
        divisor: sides of the state are multiples of it.
        loop: (eps in picture space, x_p float32 (n, 3, h, w) in [-1, 1], its noise) -> the like of x_p.
    """
    _, height, width, _ = checked(pictures).shape
    layout = plan_tiles(engine.spec, height, width, divisor)
    predict = TiledDenoiser(engine, layout)
    noise = noise_of(pictures, seed)
    out = np.empty_like(pictures)
    for part in parts(pictures, layout.images_per_call, progress):
        x = loop(
            predict, to_model_range(pictures[part], layout.height, layout.width), Noise(seed, noise.noise_keys[part])
        )
        out[part] = to_uint8(x, height, width)
    return out


def ancestral(spec: ModelSpec, t_star: int, evaluations: int) -> StepTable:
    """Unconditional ancestral sampling (DDPM) down from t*: w = 0, `evaluations` steps spread evenly over the
    0-based t* - 1, ..., 0; with t* of them it is one at each.

    Raises:
        InputError: t* outside 2..T, or more evaluations than steps.
    """
    if not 2 <= t_star <= spec.timesteps:
        raise InputError(f"t*: got {t_star}, wanted 2 to {spec.timesteps}; 100 and 150 are DiffPure's")
    if not 1 <= evaluations <= t_star:
        raise InputError(f"steps: got {evaluations}, wanted 1 to t* = {t_star}, or None for one at each")
    table = step_table(spec, lam=1.0, eta=1.0, steps=evaluations, start=t_star - 1)
    return StepTable(tuple(replace(step, w=0.0) for step in table.steps), warm=True)


@dataclass(frozen=True)
class Start:
    """In place of a `Guidance`, where a loop holds the picture to nothing: it decides only what is noised at the start.

    guide: its joint projection is; None for the picture itself.
    """

    guide: Guidance | None = None

    def joint(self, x: Array) -> Array:
        return x.copy() if self.guide is None else self.guide.joint(x)

    def __call__(self, r: Array) -> Array:
        return np.zeros_like(r)


def clamped(predict: Predict, table: StepTable) -> Predict:
    """eps such that x0 lies in [-1, 1]: x0 is clamped, and e is what leads from x_t to it.

    That is guided-diffusion's `clip_denoised`: it puts the clamped x0 and the *unchanged x_t* into the posterior mean,
    which, written in x0 and e, is the e that belongs to that pair, not the one that the UNet said.
    """
    steps = {step.t: step for step in table.steps}

    def eps(x: Array, t: int) -> Array:
        step = steps[t]
        x0 = np.clip(step.a * x - step.b * predict(x, t), -1.0, 1.0)
        x0 /= step.a
        return (x - x0) / np.sqrt(1.0 - step.ab).item()

    return eps


@dataclass(frozen=True)
class DiffPure:
    """Noise the picture up to t*, then sample down without any condition (Nie et al. 2022, arXiv:2205.07460).

    The published loop on guided-diffusion's UNet: x_t = sqrt(ab) x + sqrt(1-ab) z at the 0-based t* - 1, one evaluation
    at each step down to 0, x0 clamped (see `clamped`). One thing differs: that UNet has learned the variance of each
    step, ours has none to offer, so it is the posterior's, (1-ab')/(1-ab) beta, DDPM's smaller choice.

    The budget of ZIP's 20 evaluations is spread evenly from t* down. To visit ZIP's t = 950, 900, ... literally would
    begin from a picture with 1% of its amplitude left under the noise and nothing to hold the loop to the input: the
    output would be a random sample that has nothing to do with it.

    Args:
        t_star: see `published_t_star`.
        transforms: A^+ A x is noised in place of x ("Blur+DiffPure"); several are joined; none by default.
        steps: evaluations. None is the published one at each step.

    Raises:
        InputError: t* or steps out of range, or transforms that keep everything.
    """

    engine: Engine
    t_star: int
    transforms: str | Transform | Sequence[Transform] = ()
    steps: int | None = PAPER_STEPS

    VERSION = 1
    queries, asks = 1, False

    @staticmethod
    def published_t_star(side: int) -> int:
        """Steps of 1000: 100 for CIFAR-10's 32 pixels, 150 for ImageNet's 256 and, here, for all that is not small."""
        return 100 if side <= 32 else 150

    def __post_init__(self) -> None:
        # wrong settings are told now, not at the first picture
        _ = self.table, self._start

    @cached_property
    def table(self) -> StepTable:
        return ancestral(self.engine.spec, self.t_star, self.t_star if self.steps is None else self.steps)

    @cached_property
    def _start(self) -> Start:
        return Start(Guidance(as_transforms(self.transforms), "joint") if self.transforms else None)

    @property
    def name(self) -> str:
        before = f"{names(self._start.guide.transforms)} + " if self._start.guide else ""
        return f"{before}DiffPure (t* {self.t_star}, {len(self.table)} steps)"

    @property
    def evaluations(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        guide = self._start.guide
        return {"defence": "DiffPure", "version": self.VERSION, "engine": engine_of(self.engine),
                "t_star": self.t_star, "steps": [step.t for step in self.table.steps], "eta": 1.0,
                "transforms": fingerprints(guide.transforms) if guide else []}  # fmt: skip

    def restore(self, predict: Predict, x_p: Array, noise: sampler.NoiseSource) -> Array:
        """The loop on a state (N, 3, H, W) in [-1, 1], in its dtype."""
        return sampler.sample(clamped(predict, self.table), x_p, self.table, self._start, noise)

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        divisor = self._start.guide.divisor if self._start.guide else 1
        return through(self.engine, pictures, divisor, seed, self.restore, progress)


@dataclass(frozen=True)
class DDNM:
    """Replace the range-space part of x0 by the input's at each step (Wang et al. 2023, arXiv:2212.00490).

        x0~    = A^+ y + (I - A^+ A) x0                            y = A x_P
        x_next = sqrt(ab') x0~ + sqrt(1-ab') (eta z + sqrt(1 - eta^2) e)

    from pure noise, x0 not clamped, no time travel (length and repeat 1, the published default). The output has exactly
    the input's A x. By default ZIP's 20 steps; ``steps=100`` is as published.

    Args:
        transforms: several are joined, as one operator that gives all their outputs (`Guidance`'s "joint": exact where
            they commute): of a mean of projections, which the ZIP paper takes, the null space has no meaning.
        eta: 0.85 as published.

    Raises:
        InputError: steps or eta out of range, no transforms, or transforms that keep everything.
    """

    engine: Engine
    transforms: str | Transform | Sequence[Transform]
    steps: int = PAPER_STEPS
    eta: float = 0.85

    VERSION = 1
    queries, asks = 1, False

    def __post_init__(self) -> None:
        _ = self.table, self._guide

    @cached_property
    def table(self) -> StepTable:
        # lambda = inf is w = 1; step_table looks at eta's range
        table = step_table(self.engine.spec, lam=float("inf"), eta=self.eta, steps=self.steps)
        rows = (replace(step, s=self.eta * (1.0 - step.ab_next) ** 0.5) for step in table.steps)
        return StepTable(tuple(rows), warm=False)

    @cached_property
    def _guide(self) -> Guidance:
        return Guidance(as_transforms(self.transforms), "joint")

    @property
    def name(self) -> str:
        return f"{names(self._guide.transforms)} + DDNM ({len(self.table)} steps)"

    @property
    def evaluations(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        return {"defence": "DDNM", "version": self.VERSION, "engine": engine_of(self.engine),
                "steps": [step.t for step in self.table.steps], "eta": self.eta,
                "transforms": fingerprints(self._guide.transforms)}  # fmt: skip

    def restore(self, predict: Predict, x_p: Array, noise: sampler.NoiseSource) -> Array:
        """The loop on a state (N, 3, H, W) in [-1, 1], in its dtype."""
        return sampler.sample(predict, x_p, self.table, self._guide, noise)

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        return through(self.engine, pictures, self._guide.divisor, seed, self.restore, progress)

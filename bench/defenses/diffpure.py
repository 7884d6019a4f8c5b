"""DiffPure on the UNet that ZIP uses, with and without a transform before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bench.defenses.base import U8, Classify, description
from bench.defenses.diffusion import Array, Predict, Start, ancestral, engine_of, run_loop
from bench.defenses.simple import Progress, as_transforms, fingerprints, names
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.schedule import PAPER_STEPS, StepTable
from zipsdk.transforms import Transform
from zipsdk.types import Engine


def clamped(predict: Predict, table: StepTable) -> Predict:
    """Change a noise prediction so that x0 lies in [-1, 1]: clamp x0 and compute the e that leads from x_t to it.

    This is guided-diffusion's `clip_denoised`: it puts the clamped x0 and the *unchanged x_t* into the posterior mean.
    Written in x0 and e, that mean has the e that belongs to this pair, not the UNet's.
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
    """Noise the image up to t*, then sample down without any condition (Nie et al. 2022, arXiv:2205.07460).

    The published loop on guided-diffusion's UNet: x_t = sqrt(ab) x + sqrt(1-ab) z at the 0-based t* - 1, one step at
    each t down to 0, x0 clamped (see `clamped`). One difference: that UNet has learned the variance of each step, ours
    has not, so the variance is the posterior's, (1-ab')/(1-ab) beta, DDPM's smaller choice.

    ZIP's budget of 20 steps is spread evenly from t* down. ZIP's own t = 950, 900, ... would start from an image with
    1% of its amplitude under the noise and no condition on the input: the output would be an unrelated random sample.

    Args:
        t_star: see `published_t_star`.
        transforms: A^+ A x is noised in place of x ("Blur+DiffPure"); several are joined; none by default.
        steps: number of steps; None: the published one at each t.

    Raises:
        InputError: t* or steps out of range, or transforms that keep everything.
    """

    engine: Engine
    t_star: int
    transforms: str | Transform | Sequence[Transform] = ()
    steps: int | None = PAPER_STEPS

    VERSION = 1
    queries, queries_classifier = 1, False

    @staticmethod
    def published_t_star(side: int) -> int:
        """Return t* of 1000: 100 for CIFAR-10's 32 pixels, 150 for ImageNet's 256 and here for everything larger."""
        return 100 if side <= 32 else 150

    def __post_init__(self) -> None:
        # check the settings now, not at the first image
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
    def total_steps(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        guide = self._start.guide
        return description(
            "DiffPure",
            version=self.VERSION,
            engine=engine_of(self.engine),
            t_star=self.t_star,
            steps=[step.t for step in self.table.steps],
            eta=1.0,
            transforms=fingerprints(guide.transforms) if guide else [],
        )

    def restore(self, predict: Predict, x_p: Array, noise: sampler.NoiseSource) -> Array:
        """Run the loop on a state (N, 3, H, W) in [-1, 1], in its dtype."""
        return sampler.sample(clamped(predict, self.table), x_p, self.table, self._start, noise)

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        divisor = self._start.guide.divisor if self._start.guide else 1
        return run_loop(self.engine, images, divisor, seed, self.restore, progress)

"""DDNM on the UNet that ZIP uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.defenses.base import U8, Classify, description
from bench.defenses.diffusion import Array, Predict, engine_of, run_loop
from bench.defenses.simple import Progress, as_transforms, fingerprints, names
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.schedule import PAPER_STEPS, StepTable, step_table
from zipsdk.transforms import Transform
from zipsdk.types import Engine


@dataclass(frozen=True)
class DDNM:
    """Replace the range-space part of x0 by the input's at each step (Wang et al. 2023, arXiv:2212.00490).

        x0~    = A^+ y + (I - A^+ A) x0                            y = A x_P
        x_next = sqrt(ab') x0~ + sqrt(1-ab') (eta z + sqrt(1 - eta^2) e)

    from pure noise, x0 not clamped, no time travel (length and repeat 1, the published default). The output has exactly
    the input's A x. The default is ZIP's 20 steps; ``steps=100`` is the published number.

    Args:
        transforms: several are joined into one operator with all their outputs (`Guidance`'s "joint": exact where they
            commute), because a mean of projections, which ZIP takes, has no null space.
        eta: 0.85 as published.

    Raises:
        InputError: steps or eta out of range, no transforms, or transforms that keep everything.
    """

    engine: Engine
    transforms: str | Transform | Sequence[Transform]
    steps: int = PAPER_STEPS
    eta: float = 0.85

    VERSION = 1
    queries, queries_classifier = 1, False

    def __post_init__(self) -> None:
        # check the settings now, not at the first image
        _ = self.table, self._guide

    @cached_property
    def table(self) -> StepTable:
        # lambda = inf means w = 1; step_table checks eta
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
    def total_steps(self) -> int:
        return len(self.table)

    def describe(self) -> dict[str, Any]:
        return description(
            "DDNM",
            version=self.VERSION,
            engine=engine_of(self.engine),
            steps=[step.t for step in self.table.steps],
            eta=self.eta,
            transforms=fingerprints(self._guide.transforms),
        )

    def restore(self, predict: Predict, x_p: Array, noise: sampler.NoiseSource) -> Array:
        """Run the loop on a state (N, 3, H, W) in [-1, 1], in its dtype."""
        return sampler.sample(predict, x_p, self.table, self._guide, noise)

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        return run_loop(self.engine, images, self._guide.divisor, seed, self.restore, progress)

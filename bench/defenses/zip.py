"""ZIP as a defense: a `zipsdk.Purifier` whose seed is an argument of `run`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.defenses.base import U8, Classify, description
from bench.defenses.diffusion import engine_of
from bench.defenses.simple import Progress, checked, fingerprints
from zipsdk.presets import PresetName
from zipsdk.purifier import Purifier
from zipsdk.settings import Combine
from zipsdk.transforms import OneOf, Transform
from zipsdk.types import Engine


@dataclass(frozen=True)
class Zip:
    """ZIP: Algorithm 2 of the paper, or Algorithm 1 with all steps of the model.

    Args: those of `zipsdk.Purifier`.

    Raises:
        InputError: an option out of range.
    """

    engine: Engine
    transforms: str | Sequence[Transform] | OneOf | None = None
    lam: float | None = None
    preset: PresetName = "paper"
    steps: int | None = None
    start: int | None = None
    eta: float = 1.0
    combine: Combine = "mean"

    VERSION = 1
    queries, queries_classifier = 1, False

    def __post_init__(self) -> None:
        # check the settings now, not at the first image
        _ = self._purifier

    @cached_property
    def _purifier(self) -> Purifier:
        return Purifier(self.engine, self.transforms, lam=self.lam, preset=self.preset, steps=self.steps,
                        start=self.start, eta=self.eta, combine=self.combine, seed=0)  # fmt: skip

    @property
    def name(self) -> str:
        p = self._purifier
        every = len(p.table) == self.engine.spec.timesteps and self.eta == 1 and not p.table.warm
        steps = "Algorithm 1" if every else f"{len(p.table)} steps"
        more = [f"eta {self.eta:g}"] * (self.eta != 1) + [self.combine] * (self.combine != "mean")
        return f"{p.info['transforms']} + ZIP ({', '.join([f'lambda {p.settings.lam:g}', steps, *more])})"

    @property
    def total_steps(self) -> int:
        return len(self._purifier.table)

    def describe(self) -> dict[str, Any]:
        p = self._purifier
        info = p.info
        # cache keys and row keys hash these names; the names in `Purifier.info` may change
        settings = {
            **{key: value for key, value in engine_of(self.engine)["runs"].items() if key != "engine"},
            "loop": info["loop"],
            "evaluations": len(p.table),
            "start": p.table.steps[0].t if p.table.warm else None,
            "transforms": info["transforms"],
            "combine": info["combine"],
            "lam": "inf" if math.isinf(info["lam"]) else info["lam"],  # JSON has no infinity
            "eta": info["eta"],
            "engine": engine_of(self.engine),
            "steps": [step.t for step in p.table.steps],
            "choices": [fingerprints(g.transforms) for g in p.guides],
        }
        return description("ZIP", version=self.VERSION, **settings)

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        if not len(checked(images)):
            return images.copy()
        out: U8 = self._purifier.run(images, seed=seed, progress=progress)
        return out

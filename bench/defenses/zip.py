"""ZIP as a defence: a `zipsdk.Purifier` that takes its seed with the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.defenses.base import U8, Classify
from bench.defenses.diffusion import engine_of
from bench.defenses.simple import Progress, checked, fingerprints
from zipsdk.presets import PresetName
from zipsdk.purifier import Purifier
from zipsdk.transforms import OneOf, Transform
from zipsdk.types import Engine


@dataclass(frozen=True)
class Zip:
    """ZIP: Algorithm 2 of the paper, or with all of the model's steps Algorithm 1.

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
    combine: str = "mean"

    VERSION = 1
    queries, asks = 1, False

    def __post_init__(self) -> None:
        # wrong settings are told now, not at the first picture
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
    def evaluations(self) -> int:
        return len(self._purifier.table)

    def describe(self) -> dict[str, Any]:
        p = self._purifier
        # the seed comes with the pictures; the last two are never anything but the purifier's defaults here
        left_out = ("seed", "threads", "model", "clip_x0", "tile_size")
        info = {key: value for key, value in p.info.items() if key not in left_out}
        if math.isinf(p.settings.lam):
            info["lam"] = "inf"  # JSON has no number for it
        info["evaluations"] = info.pop("steps")  # the name in the records and in the keys of the store
        return {"defence": "ZIP", "version": self.VERSION, **info, "engine": engine_of(self.engine),
                "steps": [step.t for step in p.table.steps],
                "choices": [fingerprints(g.transforms) for g in p.guides]}  # fmt: skip

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        if not len(checked(pictures)):
            return pictures.copy()
        out: U8 = self._purifier.run(pictures, seed=seed, progress=progress)
        return out

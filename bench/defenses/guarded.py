"""ZIP behind `zipsdk.Guard`: the guard purifies only flagged images, and decides the labels itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.defenses.base import U8, Classify, description
from bench.defenses.simple import Progress, checked
from bench.defenses.zip import Zip
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import EngineError
from zipsdk.guard import Guard

#: Share of a stream that carries the trigger, as in the paper (4.4.3).
ATTACKED = 0.05

#: Names of detectors in records and in hashes that cache keys and row keys contain.
RECORD_NAMES = {AblationDetector: "DecisivePart", ScaleUp: "ScaleUp"}

#: Uint8 images and a seed -> purified images: `Zip.run`, or a cache of its results.
Purify = Callable[[U8, int], U8]


@dataclass(frozen=True, eq=False)
class Guarded:
    """`zipsdk.Guard` with one of its detectors. It decides on labels, so it has `guard` and `decide` but no `run`.

    Args:
        inner: purifies the flagged images.
        detector: of the guard.
        clean: images without triggers, uint8 (N, H, W, 3), that calibrate an `AblationDetector` for each classifier.
        first: images that the guard learns from before any is counted, uint8 (N, H, W, 3); the attacker adds the
            trigger to `ATTACKED` of them. Without `clean` and `first` the detector keeps its default reference.
    """

    inner: Zip
    detector: AblationDetector | ScaleUp = field(default_factory=AblationDetector)
    clean: U8 | None = None
    first: U8 | None = None

    #: 2: bounds from above; 3: geometry; 4: bounds from below; 5: only scales bounded below; 6 was rejected: a median
    #: necessity above 0 counted as 0, threshold 3.5
    VERSION = 5
    queries_classifier = True

    @property
    def name(self) -> str:
        how = type(self.detector).__name__ + (", calibrated" if self.clean is not None else "")
        return f"Guard ({how}), {self.inner.name} for suspects"

    @property
    def total_steps(self) -> int:
        """Steps for a flagged image; 0 for others."""
        return self.inner.total_steps

    @property
    def queries(self) -> int:
        """Queries for an image that is not flagged."""
        return len(self.detector.views(np.zeros((32, 32, 3), np.uint8)))

    def describe(self) -> dict[str, Any]:
        detector = {"detector": RECORD_NAMES[type(self.detector)], "threshold": self.detector.threshold}
        if isinstance(self.detector, AblationDetector):
            detector["certain"] = self.detector.certain
        calibration: dict[str, Any] = {"calibrated on": None if self.clean is None else len(self.clean)}
        if self.first is not None:
            calibration |= {"learns from": len(self.first), "attacked": ATTACKED}
        return description("Guard", version=self.VERSION, **detector, inner=self.inner.describe(), **calibration)

    def guard(
        self,
        seed: int,
        classify: Classify,
        purify: Purify | None = None,
        trigger: Callable[[U8], U8] | None = None,
    ) -> Guard:
        """Make the guard, calibrated or after its first images.

        Args:
            purify: replaces the inner defense's `run`.
            trigger: the attacker's trigger in images of `first`; None: no trigger.
        """
        detector = self.detector
        if self.clean is not None and isinstance(detector, AblationDetector):
            detector = detector.calibrate(classify, self.clean, max_batch=256)
        if self.first is not None and isinstance(detector, AblationDetector):
            detector = replace(detector, learn=len(self.first))
        guard = Guard(
            classify,
            _Purifier(purify or self.inner.run, seed),
            detector,
            adapt=self.first is not None,
            max_batch=256,
        )
        if self.first is not None:
            guard.run(attacked(self.first, trigger))
        return guard


def decide(guard: Guard, images: U8, progress: Progress = None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the label of each image and whether it was flagged, (N,) each.

    Raises:
        EngineError: an image has no label, because the classifier or the purifier failed.
    """
    decisions = []
    for start in range(0, len(checked(images)), 64):
        part = images[start : start + 64]
        decisions += guard.run(part)
        if progress is not None:
            progress(len(part))
    for d in decisions:
        if d.label is None:
            raise EngineError(f"guard: got no label ({d.error}), expected one for every image")
    return np.array([d.label for d in decisions], np.int64), np.array([d.flagged for d in decisions], bool)


def flagged_places(n: int, share: float) -> npt.NDArray[np.bool_]:
    """Spread round(share n) marks, at least one, evenly over n places, with the last place marked: bool (n,)."""
    wanted = min(n, max(1, round(share * n)))
    return np.diff(np.floor(np.arange(n + 1) * wanted / n + 1e-9)) > 0


def attacked(images: U8, trigger: Callable[[U8], U8] | None) -> U8:
    """Return a copy of images with the trigger in `ATTACKED` of them, evenly spread."""
    out = images.copy()
    if trigger is not None:
        places = flagged_places(len(out), ATTACKED)
        out[places] = trigger(out[places])
    return out


@dataclass(frozen=True)
class _Purifier:
    """A purifier for a guard, from a function."""

    purify: Purify
    seed: int

    def run(self, batch: list[U8]) -> list[U8]:
        return list(self.purify(np.stack(batch), self.seed))

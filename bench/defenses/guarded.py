"""ZIP behind `zipsdk.Guard`: only what the detector suspects is purified, and the guard names the class itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.defenses.base import U8, Classify
from bench.defenses.simple import Progress, checked
from bench.defenses.zip import Zip
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import EngineError
from zipsdk.guard import Guard

#: Share of a stream that the attacker sends: as the paper has it (4.4.3).
ATTACKED = 0.05

#: Detectors in records and in the hashes that name their rows; a class may be renamed, these must not.
RECORD_NAMES = {AblationDetector: "DecisivePart", ScaleUp: "ScaleUp"}

#: Uint8 pictures and a seed -> purified pictures: `Zip.run`, or what remembers its results.
Purify = Callable[[U8, int], U8]


@dataclass(frozen=True, eq=False)
class Guarded:
    """`zipsdk.Guard` with one of its detectors. It decides on labels, so it makes a `guard` for `decide` and
    has no `run`.

    Args:
        inner: what purifies the suspects.
        detector: as `Guard` takes it.
        clean: pictures without triggers, uint8 (N, H, W, 3), to calibrate an `AblationDetector` on, for each
            classifier.
        first: what comes to the guard before anything is counted, uint8 (N, H, W, 3), as many as it learns from; the
            attacker puts the trigger into `ATTACKED` of it. Without either the detector keeps its default reference.
    """

    inner: Zip
    detector: AblationDetector | ScaleUp = field(default_factory=AblationDetector)
    clean: U8 | None = None
    first: U8 | None = None

    #: 2: reference bounded above; 3: geometry; 4: bounded below; 5: scales alone bounded below; 6 was given up: a
    #: median necessity above 0 counted as 0, threshold 3.5
    VERSION = 5
    asks = True

    @property
    def name(self) -> str:
        how = RECORD_NAMES[type(self.detector)] + (", calibrated" if self.clean is not None else "")
        return f"Guard ({how}), {self.inner.name} for suspects"

    @property
    def evaluations(self) -> int:
        """Of a picture that is flagged; of another none."""
        return self.inner.evaluations

    @property
    def queries(self) -> int:
        """Of a picture that is not flagged."""
        return len(self.detector.views(np.zeros((32, 32, 3), np.uint8)))

    def describe(self) -> dict[str, Any]:
        detector = {"detector": RECORD_NAMES[type(self.detector)], "threshold": self.detector.threshold}
        if isinstance(self.detector, AblationDetector):
            detector["certain"] = self.detector.certain
        return {"defence": "Guard", "version": self.VERSION, **detector, "inner": self.inner.describe(),
                "calibrated on": None if self.clean is None else len(self.clean),
                **({} if self.first is None else {"learns from": len(self.first), "attacked": ATTACKED})}  # fmt: skip

    def guard(
        self,
        seed: int,
        classify: Classify,
        purify: Purify | None = None,
        trigger: Callable[[U8], U8] | None = None,
    ) -> Guard:
        """What decides, calibrated or after its first pictures.

        Args:
            purify: in place of the inner defence's `run`.
            trigger: what the attacker puts into pictures of `first`; None: nothing.
        """
        detector = self.detector
        if self.clean is not None and isinstance(detector, AblationDetector):
            detector = detector.calibrate(classify, self.clean, max_batch=256)
        if isinstance(detector, AblationDetector):
            detector = replace(detector, learn=0 if self.first is None else len(self.first))
        guard = Guard(classify, _Purifier(purify or self.inner.run, seed), detector, max_batch=256)
        if self.first is not None:
            guard.run(attacked(self.first, trigger))
        return guard


def decide(
    guard: Guard, pictures: U8, progress: Progress = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The label of each picture and whether it was flagged, (N,) each.

    Raises:
        EngineError: there is no label for a picture, because the classifier or the purifier failed.
    """
    decisions = []
    for start in range(0, len(checked(pictures)), 64):
        part = pictures[start : start + 64]
        decisions += guard.run(part)
        if progress is not None:
            progress(len(part))
    for d in decisions:
        if d.label is None:
            raise EngineError(f"guard: got no label ({d.error}), wanted one for every picture")
    return np.array([d.label for d in decisions], np.int64), np.array([d.flagged for d in decisions], bool)


def flagged_places(n: int, share: float) -> npt.NDArray[np.bool_]:
    """bool (n,): round(share n) of them, but one at least, evenly spread, the last one among them."""
    wanted = min(n, max(1, round(share * n)))
    return np.diff(np.floor(np.arange(n + 1) * wanted / n + 1e-9)) > 0


def attacked(pictures: U8, trigger: Callable[[U8], U8] | None) -> U8:
    """A copy, evenly spread over which `ATTACKED` of the pictures have the trigger."""
    out = pictures.copy()
    if trigger is not None:
        places = flagged_places(len(out), ATTACKED)
        out[places] = trigger(out[places])
    return out


@dataclass(frozen=True)
class _Purifier:
    """What a guard calls, in the form of a defence."""

    purify: Purify
    seed: int

    def run(self, batch: list[U8]) -> list[U8]:
        return list(self.purify(np.stack(batch), self.seed))

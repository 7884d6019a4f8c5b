"""Define the results of a guard: a decision for each image, and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zipsdk.types import F64


@dataclass(frozen=True, eq=False)
class Decision:
    """The guard's decision about one image.

    Attributes:
        label: the class, the largest of `class_scores`. None: the guard abstains, and `error` says why.
        flagged: the image was not trusted: the detector flagged it, or the image or the classifier's answer was
            unusable. If False, the label is that of the image itself.
        suspicion: the detector's score, or None if there is none.
        class_scores: float64 (classes,), or None without a label: the classifier's scores, or for a flagged image the
            detector's combination of several answers (`Detector.resolve`).
        reason: why the image was flagged, or not.
        image: the purified image, of the type, size and dtype of the input, or None.
        error: None, or why there is no label.
    """

    label: int | None
    flagged: bool
    suspicion: float | None
    class_scores: F64 | None
    reason: str
    image: Any | None = None
    error: str | None = None


@dataclass(frozen=True)
class Counters:
    """Totals of a guard since it was created or reset.

    Attributes:
        images, flagged, abstained: decisions, those with `flagged`, and those without a label.
        calls, queries: calls of the classifier, and images and views in them.
        failures: calls of the classifier or the purifier that raised, timed out, returned unusable results, or were
            skipped because too many calls are stalled; and images whose views could not be made.
        stalled: timed-out calls that still run. `reset` does not change it.
    """

    images: int = 0
    flagged: int = 0
    abstained: int = 0
    calls: int = 0
    queries: int = 0
    failures: int = 0
    stalled: int = 0

    @property
    def flagged_share(self) -> float:
        """Share of images that are flagged, in [0, 1]; 0 before the first image."""
        return self.flagged / self.images if self.images else 0.0

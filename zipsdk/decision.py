"""Define the results of a guard: a decision for each image, and totals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from zipsdk.types import F64

#: Type of the purified image.
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False, repr=False)
class Decision(Generic[T_co]):
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
        feature: name of the image's decisive feature, the one in `reason`, or None if the detector knows none
            (`Detector.feature`) or has no score.
    """

    label: int | None
    flagged: bool
    suspicion: float | None
    class_scores: F64 | None
    reason: str
    image: T_co | None = None
    error: str | None = None
    feature: str | None = None

    def __repr__(self) -> str:
        suspicion = None if self.suspicion is None else f"{self.suspicion:.3g}"
        error = "" if self.error is None else f", error={self.error!r}"
        return (
            f"Decision(label={self.label}, flagged={self.flagged}, suspicion={suspicion}, "
            f"feature={self.feature!r}{error})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but `image` as JSON values; NaN and infinite numbers become None."""
        scores = self.class_scores
        return {
            "label": self.label,
            "flagged": self.flagged,
            "suspicion": _json_number(self.suspicion),
            "class_scores": None if scores is None else [_json_number(score) for score in scores.tolist()],
            "feature": self.feature,
            "reason": self.reason,
            "error": self.error,
        }


def _json_number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Counters:
    """Totals of a guard since it was created, copied or reset; `dataclasses.asdict` makes JSON values of them.

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

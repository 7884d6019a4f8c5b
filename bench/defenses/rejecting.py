"""Detectors that reject: a flagged image gets no label.

A rejected image, clean or triggered, counts as neither correct nor an attack success: rejected clean images lower the
CA, rejected triggered images the ASR and the PA alike. Rows have both shares. `bench.evaluation.rates` counts this way
because `REJECTED` equals no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.data.datasets import hash_of
from bench.defenses.base import U8, Classify, description
from bench.defenses.simple import Progress, checked
from bench.defenses.strip import BLENDS, Strip
from zipsdk.detectors.classifier_client import MAX_BATCH, ClassifierClient, Failure
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import InputError, ModelError
from zipsdk.types import F64

#: The label of a rejected image.
REJECTED = -1

I64 = npt.NDArray[np.int64]


class InputDetector(Protocol):
    """What a rejecting defense needs of a detector; `zipsdk.detectors.base.Detector` says what the members do."""

    def views(self, rgb: U8) -> list[U8]: ...
    def score(self, scores: npt.ArrayLike) -> float: ...
    def is_suspicious(self, score: float) -> bool: ...


@dataclass(frozen=True, eq=False)
class Rejecting:
    """A detector that is calibrated on clean images for each classifier. It decides labels, so it has no `run`.

    Args:
        name: in tables.
        fit: makes the detector for a classifier, and the clean images whose scores decide the threshold.
        described: everything that decides the detector, except the classifier.
        queries: for an image.
        false_alarms: largest share of the clean images that is flagged, see `threshold_of`; None keeps the detector's
            own threshold.

    Raises:
        InputError: a share that is not between 0 and 1.
    """

    name: str
    fit: Callable[[Classify], tuple[ScaleUp | Strip, U8]]
    described: dict[str, Any]
    queries: int
    false_alarms: float | None

    VERSION = 1
    total_steps, queries_classifier = 0, True

    def __post_init__(self) -> None:
        if self.false_alarms is not None and not 0 < self.false_alarms < 1:
            raise InputError(
                f"false_alarms: got {self.false_alarms!r}, expected a share of clean images above 0 and below 1"
            )

    def describe(self) -> dict[str, Any]:
        return description("Rejecting", version=self.VERSION, **self.described, **{"false alarms": self.false_alarms})

    def detector(self, classify: Classify) -> ScaleUp | Strip:
        """Make the calibrated detector for a classifier.

        Raises:
            InputError: clean images on which SCALE-UP cannot be calibrated; see `ScaleUp.calibrate`.
            ModelError: the classifier failed on a clean image.
        """
        detector, clean = self.fit(classify)
        if self.false_alarms is None:
            return detector
        return replace(detector, threshold=threshold_of(scores_of(detector, classify, clean), self.false_alarms))


def scale_up(clean: U8, false_alarms: float | None = 0.05) -> Rejecting:
    """Make SCALE-UP (Guo et al. 2023, arXiv:2302.03251), calibrated by class on clean images, as a rejecting defense.

    Args:
        clean: uint8 (N, H, W, 3), without triggers and counted in no row.
        false_alarms: see `Rejecting`; None takes the published threshold, 0.5.
    """

    def fit(classify: Classify) -> tuple[ScaleUp, U8]:
        return ScaleUp().calibrate(classify, clean), clean

    own = ScaleUp()
    described = {"detector": "ScaleUp", "scales": list(own.scales), **_description(clean)}
    if false_alarms is None:
        described["threshold"] = own.threshold
    return Rejecting(_name("SCALE-UP", false_alarms), fit, described, 1 + len(own.scales), false_alarms)


def strip(clean: U8, false_alarms: float = 0.05) -> Rejecting:
    """Make STRIP as a rejecting defense: one half of the clean images for blends, the other for the threshold.

    Args:
        clean: uint8 (N, H, W, 3), N at least 2, without triggers and counted in no row; 200 give the published 100
            blends. Every second image is blended, because the images may be ordered by class.
        false_alarms: see `Rejecting`.

    Raises:
        InputError: fewer than 2 images.
    """
    if len(checked(clean)) < 2:
        raise InputError(f"clean: got {len(clean)} images, expected at least 2, better {2 * BLENDS}")
    overlays, rest = clean[::2][:BLENDS], clean[1::2]
    described = {"detector": "Strip", "blends": len(overlays), **_description(clean)}

    def fit(classify: Classify) -> tuple[Strip, U8]:
        return Strip(overlays), rest

    return Rejecting(_name("STRIP", false_alarms), fit, described, 1 + len(overlays), false_alarms)


def _description(clean: U8) -> dict[str, Any]:
    return {"calibrated on": len(clean), "sha256": hash_of(clean)[:16]}


def _name(detector: str, false_alarms: float | None) -> str:
    how = "published threshold" if false_alarms is None else f"{100 * false_alarms:g}% false alarms"
    return f"{detector}, rejecting ({how})"


def scores_of(detector: InputDetector, classify: Classify, images: U8) -> npt.NDArray[np.float64]:
    """Return the detector's score of each image, float64 (N,).

    Raises:
        ModelError: the classifier failed on an image.
    """
    return np.array([detector.score(answer) for answer in _answers(detector, classify, images)])


def threshold_of(scores: npt.ArrayLike, false_alarms: float) -> float:
    """Return the lowest of the clean scores that at most this share of them reaches.

    Where even the highest is too frequent, return the next number above it.
    """
    values, counts = np.unique(np.asarray(scores, np.float64), return_counts=True)
    reached = counts[::-1].cumsum()[::-1]
    allowed = values[reached <= false_alarms * counts.sum()]
    return float(allowed[0]) if len(allowed) else math.nextafter(float(values[-1]), math.inf)


def decide_or_reject(detector: InputDetector, classify: Classify, images: U8, progress: Progress = None) -> I64:
    """Return the label of each image, or `REJECTED`, int64 (N,).

    Raises:
        ModelError: the classifier failed on an image.
    """
    labels = np.empty(len(checked(images)), np.int64)
    for start in range(0, len(images), 64):
        part = images[start : start + 64]
        labels[start : start + len(part)] = [
            REJECTED if detector.is_suspicious(detector.score(answer)) else int(answer[0].argmax())
            for answer in _answers(detector, classify, part)
        ]
        if progress is not None:
            progress(len(part))
    return labels


def _answers(detector: InputDetector, classify: Classify, images: U8) -> Iterator[F64]:
    """Iterate over the scores of the views of each image."""
    for answer in ClassifierClient(classify, None, MAX_BATCH).query(list(images), detector.views):
        if isinstance(answer, Failure):
            raise ModelError(f"classifier: {answer.reason}; expected scores of every image")
        yield answer

"""Detect triggers by SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251): a backdoored label survives scaling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_int, is_real
from zipsdk.detectors.classifier_client import MAX_BATCH, query_all
from zipsdk.detectors.saving import SavableDetector
from zipsdk.errors import InputError
from zipsdk.images import read
from zipsdk.types import F64, U8, Classifier, DataFormat


@dataclass(frozen=True)
class ScaleUp(SavableDetector):
    """Flag images whose label stays when the pixels are multiplied: scaled prediction consistency (SPC).

    SPC(x) is the share of the scales n with argmax f(clip(n x)) = argmax f(x), for pixels x in [0, 1] before any
    normalization. An image is flagged if its score is at or above the threshold. The paper says above, which is the
    same for the default scales and threshold; elsewhere this is the safer side.

    Args:
        scales: distinct integers from 2 to 255. One query for each.
        threshold: in (0, 1], for SPC; any finite number for the z-scores of `calibrate`.
        overall: mean and standard deviation of SPC over the clean images of `calibrate`, or None before it.
        classes: the same by class, for the classes with a nonzero deviation. Keys may be strings, as from JSON.

    Raises:
        InputError: an option out of range.
    """

    scales: tuple[int, ...] = (3, 5, 7, 9, 11)
    threshold: float = 0.5
    overall: tuple[float, float] | None = None
    classes: dict[int, tuple[float, float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        scales = tuple(self.scales) if isinstance(self.scales, Iterable) else ()
        whole = all(is_int(n) and 2 <= n <= 255 for n in scales)
        if not scales or not whole or len(set(scales)) < len(scales):
            raise InputError(f"scales: got {self.scales!r}, expected distinct integers from 2 to 255, such as (3, 5)")
        object.__setattr__(self, "scales", tuple(map(int, scales)))
        if self.overall is not None:
            object.__setattr__(self, "overall", _checked(self.overall, "overall"))
        if not isinstance(self.classes, Mapping) or not all(str(c).isdecimal() for c in self.classes):
            raise InputError(f"classes: got {self.classes!r}, expected {{class: (mean, deviation)}} of calibrate")
        # JSON makes strings of the keys, which would match no predicted class
        classes = {int(c): _checked(pair, f"classes: {c}") for c, pair in self.classes.items()}
        object.__setattr__(self, "classes", classes)
        threshold = self.threshold
        number = is_real(threshold) and math.isfinite(threshold)
        if not number or (self.overall is None and not 0 < threshold <= 1):
            expected = "above 0 and at most 1" if self.overall is None else "finite"
            raise InputError(f"threshold: got {threshold!r}, expected a number {expected}; the published one is 0.5")
        object.__setattr__(self, "threshold", float(threshold))

    def copies(self, rgb: U8) -> U8:
        """Return the scaled copies of uint8 (H, W, 3) as uint8 (scales, H, W, 3), without rounding."""
        # a lookup table, so that no product overflows
        table = np.minimum(np.outer(self.scales, np.arange(256)), 255).astype(np.uint8)
        return np.take(table, rgb, axis=1)

    def views(self, rgb: U8) -> list[U8]:
        """Return the images to query: `rgb` itself and its copies."""
        return [rgb, *self.copies(rgb)]

    def second_look_views(self, rgb: U8) -> list[U8]:
        """Return the purified image alone."""
        return [rgb]

    def resolve(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """Return the scores of the purified image, the only row of `purified`."""
        class_scores: F64 = np.asarray(purified, np.float64)[0]
        return class_scores

    def explain(self, scores: npt.ArrayLike, score: float) -> str:
        """State the score and the threshold."""
        return f"score {score:.3g}, threshold {self.threshold:g}"

    def spc(self, scores: npt.ArrayLike) -> float:
        """Return the SPC of one image, in [0, 1].

        Args:
            scores: (1 + scales, classes): of the image, then of its copies, in the order of `scales`.

        Returns:
            NaN if a row has no finite maximum.

        Raises:
            InputError: another shape.
        """
        rows = np.asarray(scores, np.float64)
        expected = 1 + len(self.scales)
        if rows.ndim != 2 or len(rows) != expected or rows.shape[1] < 1:
            raise InputError(f"scores: got {rows.shape}, expected ({expected}, classes): the image and its copies")
        if not np.isfinite(rows.max(axis=1)).all():
            return math.nan
        labels = rows.argmax(axis=1)
        return int(np.count_nonzero(labels[1:] == labels[0])) / len(self.scales)

    def score(self, scores: npt.ArrayLike) -> float:
        """Return the SPC, or after `calibrate` its z-score within the predicted class."""
        spc = self.spc(scores)
        if self.overall is None or math.isnan(spc):
            return spc
        mean, std = self.classes.get(int(np.argmax(np.asarray(scores)[0])), self.overall)
        return (spc - mean) / std

    def is_suspicious(self, score: float) -> bool:
        """Return whether the score is at or above `threshold`, or NaN."""
        return not score < self.threshold

    def calibrate(
        self,
        classify: Classifier,
        clean: Any,
        labels: npt.ArrayLike | None = None,
        *,
        threshold: float | None = None,
        data_format: DataFormat | None = None,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ) -> ScaleUp:
        """Return a detector whose scores are z-scores of SPC, (SPC - mean) / deviation, by class.

        This is the data-limited variant of the paper. The deviation is that of the population (divided by N). A class
        without clean images, or whose clean images share one SPC, uses mean and deviation over all clean images.

        Args:
            classify: as for `Guard`; gets one query per image and one for each of its scales.
            clean: images that are known to carry no trigger; see `zipsdk.images.read`.
            labels: their true classes, integers (N,). None uses the predicted classes.
            threshold: for z-scores; None keeps the number of this detector.
            data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all others.
            timeout: as for `Guard`.
            max_batch: as for `Guard`.

        Raises:
            InputError: unusable images or labels, a classifier that fails on an image, or images that all have the
                same SPC.
        """
        rgb = [image.rgb for image in read(clean, data_format=data_format)[0]]
        answers = query_all(classify, rgb, self.views, timeout, max_batch)
        spc = np.array([self.spc(answer) for answer in answers])
        classes = np.array([answer[0].argmax() for answer in answers], np.int64)
        if labels is not None:
            given = np.asarray(labels)
            if given.shape != classes.shape or given.dtype.kind not in "ui":
                raise InputError(
                    f"labels: got {given.dtype} {given.shape}, expected {len(classes)} integers, one per image"
                )
            classes = given.astype(np.int64)
        # the range, because rounding can keep the deviation of equal values above zero
        if len(spc) == 0 or np.ptp(spc) == 0:
            raise InputError(
                f"calibration images: got {len(spc)} without a spread of SPC, expected some that differ; "
                "give more images, or do not calibrate"
            )
        by_class = {int(c): spc[classes == c] for c in np.unique(classes)}
        return replace(
            self,
            threshold=self.threshold if threshold is None else threshold,
            overall=_mean_and_deviation(spc),
            classes={c: _mean_and_deviation(s) for c, s in by_class.items() if np.ptp(s) > 0},
        )


def _checked(pair: Any, what: str) -> tuple[float, float]:
    """Return mean and deviation as floats."""
    values = tuple(pair) if isinstance(pair, Iterable) else ()
    if len(values) != 2 or not all(is_real(v) and math.isfinite(v) for v in values) or values[1] <= 0:
        raise InputError(f"{what}: got {pair!r}, expected a mean and a deviation above 0, as from calibrate")
    return float(values[0]), float(values[1])


def _mean_and_deviation(spc: F64) -> tuple[float, float]:
    return float(spc.mean()), float(spc.std())

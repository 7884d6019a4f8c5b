"""SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251): a picture whose label survives being multiplied is suspicious."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.validation import is_number, is_whole
from zipsdk.detectors.base import Detector
from zipsdk.detectors.classifier_client import MAX_BATCH, query_all
from zipsdk.errors import InputError
from zipsdk.images.arrays import U8

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScaleUp(Detector):
    """Scaled prediction consistency: does the label stay when the pixels are multiplied?

    SPC(x) is the share of the scales n for which argmax f(clip(n x)) = argmax f(x), for pixels x in [0, 1], before any
    normalisation. A backdoored label tends to stay, a clean one to change. A picture is flagged where its score is
    equal to or above the threshold. The paper says above; with the default scales and threshold that is the same, and
    where it is not, this is the safer side.

    Args:
        scales: whole numbers from 2 to 255, each once. One query for each of them.
        threshold: in (0, 1], for SPC. For z-scores, which `calibrate` brings, any finite number.

    Attributes:
        overall: mean and standard deviation of SPC over the clean pictures of `calibrate`, or None before it.
        classes: the same by class, for the classes that have a spread of their own. Its numbers may be text, as JSON
            has them.

    Raises:
        InputError: an option out of range.
    """

    scales: tuple[int, ...] = (3, 5, 7, 9, 11)
    threshold: float = 0.5
    overall: tuple[float, float] | None = None
    classes: dict[int, tuple[float, float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        scales = tuple(self.scales) if isinstance(self.scales, Iterable) else ()
        whole = all(is_whole(n) and 2 <= n <= 255 for n in scales)
        if not scales or not whole or len(set(scales)) < len(scales):
            raise InputError(
                f"scales: got {self.scales!r}, wanted different whole numbers from 2 to 255, such as (3, 5)"
            )
        object.__setattr__(self, "scales", tuple(map(int, scales)))
        if self.overall is not None:
            object.__setattr__(self, "overall", _checked(self.overall, "overall"))
        if not isinstance(self.classes, Mapping) or not all(str(c).isdecimal() for c in self.classes):
            raise InputError(f"classes: got {self.classes!r}, wanted {{class: (mean, deviation)}} of calibrate")
        # JSON makes text of the numbers, and no class that is predicted would match it
        classes = {int(c): _checked(pair, f"classes: {c}") for c, pair in self.classes.items()}
        object.__setattr__(self, "classes", classes)
        threshold = self.threshold
        number = is_number(threshold) and math.isfinite(threshold)
        if not number or (self.overall is None and not 0 < threshold <= 1):
            wanted = "above 0 and at most 1" if self.overall is None else "finite"
            raise InputError(f"threshold: got {threshold!r}, wanted a number {wanted}; the published one is 0.5")
        object.__setattr__(self, "threshold", float(threshold))

    def copies(self, rgb: U8) -> U8:
        """uint8 (H, W, 3) -> its scaled copies, uint8 (scales, H, W, 3); exact, because n x is whole."""
        # by table, so that no product can overflow
        table = np.minimum(np.outer(self.scales, np.arange(256)), 255).astype(np.uint8)
        return np.take(table, rgb, axis=1)

    def versions(self, rgb: U8) -> list[U8]:
        """What a classifier is asked about a picture: itself, and its copies."""
        return [rgb, *self.copies(rgb)]

    def again(self, rgb: U8) -> list[U8]:
        """What it is asked about a purified picture: nothing more than what it is."""
        return [rgb]

    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """What a flagged picture is: what the purified one, the only row of `purified`, is."""
        label_of: F64 = np.asarray(purified, np.float64)[0]
        return label_of

    def why(self, scores: npt.ArrayLike, score: float) -> str:
        """In words, for a picture of this score."""
        return f"score {score:.3g}, threshold {self.threshold:g}"

    def spc(self, scores: npt.ArrayLike) -> float:
        """SPC of one picture, in [0, 1].

        Args:
            scores: (1 + scales, classes): the picture's, then its copies', in the order of `scales`.

        Returns:
            NaN where a row has no finite largest score: an answer that is not there agrees with nothing.

        Raises:
            InputError: another shape.
        """
        rows = np.asarray(scores, np.float64)
        wanted = 1 + len(self.scales)
        if rows.ndim != 2 or len(rows) != wanted or rows.shape[1] < 1:
            raise InputError(f"scores: got shape {rows.shape}, wanted ({wanted}, classes): the picture and its copies")
        if not np.isfinite(rows.max(axis=1)).all():
            return math.nan
        labels = rows.argmax(axis=1)
        return int(np.count_nonzero(labels[1:] == labels[0])) / len(self.scales)

    def score(self, scores: npt.ArrayLike) -> float:
        """What the threshold is compared with: SPC; after `calibrate` its z-score in the class that is predicted."""
        spc = self.spc(scores)
        if self.overall is None or math.isnan(spc):
            return spc
        mean, std = self.classes.get(int(np.argmax(np.asarray(scores)[0])), self.overall)
        return (spc - mean) / std

    def flags(self, score: float) -> bool:
        """Whether a picture of this score is suspicious; NaN is."""
        return not score < self.threshold

    def calibrate(
        self,
        classify: Callable[[U8], Any],
        clean: Any,
        labels: npt.ArrayLike | None = None,
        *,
        threshold: float | None = None,
        layout: str = "NHWC",
        max_batch: int | None = MAX_BATCH,
    ) -> ScaleUp:
        """The data-limited variant: a detector whose scores are z-scores of SPC, (SPC - mean) / deviation, by class.

        The deviation is that of the population (divided by N). A class without clean pictures, or whose clean pictures
        all have one SPC, takes mean and deviation of all clean pictures together.

        Args:
            classify, max_batch: as for `Guard`; layout: as for `Guard.run`; 1 + scales queries for each clean picture.
            clean: pictures that are known to carry no trigger; see `zipsdk.images.read`.
            labels: their true classes, (N,) whole numbers. None takes the classes that are predicted.
            threshold: for z-scores; None keeps the number that this detector has.

        Raises:
            InputError: pictures or labels that cannot be used, a classifier that fails on them, or clean pictures
                that all have the same SPC.
        """
        pictures = [p.rgb for p in images.read(clean, layout=layout)[0]]
        answers = query_all(classify, pictures, self.versions, max_batch)
        spc = np.array([self.spc(answer) for answer in answers])
        classes = np.array([answer[0].argmax() for answer in answers], np.int64)
        if labels is not None:
            given = np.asarray(labels)
            if given.shape != classes.shape or given.dtype.kind not in "ui":
                raise InputError(
                    f"labels: got {given.dtype} {given.shape}, wanted {len(classes)} whole numbers, one a picture"
                )
            classes = given.astype(np.int64)
        # not the deviation itself, which rounding can keep above zero
        if len(spc) == 0 or np.ptp(spc) == 0:
            raise InputError(
                f"clean pictures: got {len(spc)} without a spread of SPC, wanted some that differ: "
                "give more pictures, or do without calibrate"
            )
        by_class = {int(c): spc[classes == c] for c in np.unique(classes)}
        return replace(
            self,
            threshold=self.threshold if threshold is None else threshold,
            overall=_mean_and_deviation(spc),
            classes={c: _mean_and_deviation(s) for c, s in by_class.items() if np.ptp(s) > 0},
        )


def _checked(pair: Any, what: str) -> tuple[float, float]:
    """Mean and deviation as floats."""
    values = tuple(pair) if isinstance(pair, Iterable) else ()
    if len(values) != 2 or not all(is_number(v) and math.isfinite(v) for v in values) or values[1] <= 0:
        raise InputError(f"{what}: got {pair!r}, wanted a mean and a deviation above 0, those of calibrate")
    return float(values[0]), float(values[1])


def _mean_and_deviation(spc: F64) -> tuple[float, float]:
    return float(spc.mean()), float(spc.std())

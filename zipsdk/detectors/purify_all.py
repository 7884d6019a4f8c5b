"""Flag every image: a guard without detection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zipsdk.detectors.saving import SavableDetector
from zipsdk.types import F64, U8


@dataclass(frozen=True)
class PurifyAll(SavableDetector):
    """Flag every image and trust the purified one.

    A guard does not query the classifier before purification: no answer would change the result.
    """

    def views(self, rgb: U8) -> list[U8]:
        return [rgb]

    def score(self, scores: npt.ArrayLike) -> float:
        return math.inf

    def is_suspicious(self, score: float) -> bool:
        return True

    def explain(self, scores: npt.ArrayLike, score: float) -> str:
        return "every image is purified"

    def second_look_views(self, rgb: U8) -> list[U8]:
        return [rgb]

    def resolve(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        class_scores: F64 = np.asarray(purified, np.float64)[0]
        return class_scores

"""STRIP: blends of an image with others keep its label if a trigger decides it (Gao et al. 2019, arXiv:1902.06531)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.defenses.base import U8
from zipsdk.detectors.ablation_statistics import FLOOR, log_probabilities
from zipsdk.errors import InputError

#: Clean images that an image is blended with.
BLENDS = 100


@dataclass(frozen=True, eq=False)
class Strip:
    """Flag images whose blends with clean images the classifier answers with low entropy.

    A blend is the sum of an image and a clean one, clipped at 255. The score of an image is minus the mean entropy of
    the class probabilities of its blends, in bits: -sum p log2 p. An image is flagged if its score is at or above
    `threshold`. Scores that are not probabilities pass through a softmax, as for `zipsdk.AblationDetector`.

    The released code adds images in floating point, which exceeds the range that a black box takes; and it draws other
    clean images for each input. Here all inputs share them, so that no answer depends on the order of inputs.

    Args:
        overlays: clean images, uint8 (N, H, W, 3), of the size of all inputs.
        threshold: minus an entropy in bits; infinity flags nothing.

    Raises:
        InputError: no overlays.
    """

    overlays: U8
    threshold: float = math.inf

    def __post_init__(self) -> None:
        if self.overlays.dtype != np.uint8 or self.overlays.ndim != 4 or not len(self.overlays):
            raise InputError(
                f"overlays: got {self.overlays.dtype} {self.overlays.shape}, expected uint8 (N, H, W, 3), N at least 1"
            )

    def views(self, rgb: U8) -> list[U8]:
        """Return the images to query: `rgb` itself and its blends."""
        # wider integers, so that no sum overflows
        total = self.overlays.astype(np.uint16) + rgb
        return [rgb, *np.minimum(total, 255).astype(np.uint8)]

    def score(self, scores: npt.ArrayLike) -> float:
        """Return minus the mean entropy of the blends, in bits, from the scores of the `views`, (1 + N, classes)."""
        log = log_probabilities(np.asarray(scores, np.float64)[1:])
        # `FLOOR` keeps the logarithm of 0 finite and is no part of a probability
        return float(((np.exp(log) - FLOOR) * log).sum(axis=1).mean() / math.log(2))

    def is_suspicious(self, score: float) -> bool:
        """Return whether the score is at or above `threshold`, or NaN."""
        return not score < self.threshold

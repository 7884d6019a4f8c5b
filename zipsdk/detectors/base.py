"""Define the detector interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy.typing as npt

from zipsdk.types import F64, U8


class Detector(Protocol):
    """Tell suspicious images from their scores: `AblationDetector`, `ScaleUp`, or your own subclass.

    `rgb` is one image, uint8 (H, W, 3). `scores` are the classifier's answers to its views, (views, classes).
    """

    @abstractmethod
    def views(self, rgb: U8) -> list[U8]:
        """Return the images to query for `rgb`: itself first, all of its size, equally many for each image."""

    @abstractmethod
    def score(self, scores: npt.ArrayLike) -> float:
        """Return how suspicious an image is, from the scores of its `views`."""

    @abstractmethod
    def is_suspicious(self, score: float) -> bool:
        """Return whether an image of this `score` is purified."""

    @abstractmethod
    def explain(self, scores: npt.ArrayLike, score: float) -> str:
        """Return the reason for the score, for `Decision.reason`."""

    def feature(self, scores: npt.ArrayLike) -> str | None:
        """Return the name of the image's decisive feature, for `Decision.feature`, or None without one."""
        return None

    @abstractmethod
    def second_look_views(self, rgb: U8) -> list[U8]:
        """Return the images to query for a purified image: itself first."""

    @abstractmethod
    def resolve(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """Return the class scores (classes,) of a flagged image.

        Args:
            scores: of its `views`, or None where the classifier failed on them.
            purified: of the `second_look_views` of the purified image.
        """

    def observe(self, images: Sequence[U8], scores: Sequence[npt.ArrayLike]) -> Detector:
        """Learn from images of the stream and the scores of their views; return the detector to use from now on.

        Only a guard with `adapt=True` calls it.
        """
        return self

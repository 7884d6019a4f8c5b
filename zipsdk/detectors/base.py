"""The interface of a detector, and the detector that flags everything."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zipsdk.images.arrays import U8

F64 = npt.NDArray[np.float64]


class Detector(Protocol):
    """What tells suspicious pictures: `zipsdk.DecisivePart`, `zipsdk.ScaleUp`, or your own."""

    @abstractmethod
    def versions(self, rgb: U8) -> list[U8]:
        """What the classifier is asked about a picture, itself first: as many for each picture, of its size."""

    @abstractmethod
    def score(self, scores: npt.ArrayLike) -> float:
        """Of one picture, from the scores of its versions (versions, classes)."""

    @abstractmethod
    def flags(self, score: float) -> bool: ...

    @abstractmethod
    def why(self, scores: npt.ArrayLike, score: float) -> str: ...

    @abstractmethod
    def again(self, rgb: U8) -> list[U8]:
        """What the classifier is asked about a purified picture, itself first."""

    @abstractmethod
    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """What a flagged picture is: scores (classes,), from those of its versions and of its purified picture's;
        None where the classifier failed on the former."""

    def observe(self, pictures: Sequence[U8], scores: Sequence[npt.ArrayLike]) -> Detector:
        """Learn from pictures of the stream and the scores of their versions; the detector to use from now on."""
        return self


@dataclass(frozen=True)
class PurifyAll(Detector):
    """Flags every picture and believes what purification gives.

    A guard does not ask the classifier about a picture before it is purified: no answer would change anything.
    """

    def versions(self, rgb: U8) -> list[U8]:
        return [rgb]

    def score(self, scores: npt.ArrayLike) -> float:
        return math.inf

    def flags(self, score: float) -> bool:
        return True

    def why(self, scores: npt.ArrayLike, score: float) -> str:
        return "every picture is purified"

    def again(self, rgb: U8) -> list[U8]:
        return [rgb]

    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        label_of: F64 = np.asarray(purified, np.float64)[0]
        return label_of

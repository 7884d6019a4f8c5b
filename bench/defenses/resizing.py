"""Resize an image down and back up: bicubic, or with another upsampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bench.defenses.base import U8, Classify, description
from bench.defenses.simple import Progress, checked, parts
from zipsdk.errors import InputError

#: Pixels of the full size that an upsampler gets in one call, at most.
CALL_PIXELS = 1 << 20


class Upsampler(Protocol):
    """A function that enlarges images.

    name: label in tables.
    steps: passes of a network for one image; 0 without one.
    """

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Describe the upsampler as JSON."""

    def __call__(self, small: U8, height: int, width: int) -> U8:
        """Enlarge uint8 (N, h, w, 3) to uint8 (N, height, width, 3)."""


@dataclass(frozen=True)
class Bicubic:
    """Pillow's bicubic filter, which averages over its whole footprint (antialiasing) when it reduces."""

    name = "bicubic"
    steps = 0

    def describe(self) -> dict[str, Any]:
        return {"upsampler": "bicubic"}

    def __call__(self, small: U8, height: int, width: int) -> U8:
        return resized(small, height, width)


@dataclass(frozen=True)
class Resized:
    """Reduce an image with the antialiased bicubic filter and enlarge it to its size.

    Args:
        scale: of both sides; the smaller sides are rounded, half up, to at least one pixel.
        upsampler: enlarges.

    Raises:
        InputError: a scale that is not between 0 and 1.
    """

    scale: float = 0.5
    upsampler: Upsampler = field(default_factory=Bicubic)

    VERSION = 1
    queries, queries_classifier = 1, False

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise InputError(f"scale: got {self.scale!r}, expected a number between 0 and 1, such as 0.5")

    @property
    def name(self) -> str:
        return f"{self.upsampler.name} x{self.scale:g}"

    @property
    def total_steps(self) -> int:
        return self.upsampler.steps

    def describe(self) -> dict[str, Any]:
        return description(
            "Resized", version=self.VERSION, scale=self.scale, down="bicubic", up=self.upsampler.describe()
        )

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(images).shape
        small = (max(1, int(side * self.scale + 0.5)) for side in (height, width))
        rows, columns = small
        out = np.empty_like(images)
        for part in parts(images, max(1, CALL_PIXELS // (height * width)), progress):
            out[part] = self.upsampler(resized(images[part], rows, columns), height, width)
        return out


def resized(images: U8, height: int, width: int) -> U8:
    """Resize uint8 (N, h, w, 3) with Pillow's bicubic filter to uint8 (N, height, width, 3)."""
    out = np.empty((len(images), height, width, 3), np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return out

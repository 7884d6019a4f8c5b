"""Blended: a trigger that is mixed with the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.attacks.base import U8, Attack
from zipsdk.errors import InputError


@dataclass(frozen=True)
class Blended(Attack):
    """The whole image mixed with one pattern: x' = (1 - rate) x + rate p, rounded (Chen et al. 2017, 1712.05526).

    texture: "noise" has one gray level for each pixel, uniform in 0..255 and independent, as in the paper's
    experiments (whose code truncates where this rounds). "smooth" is colored and of low frequency: a random 4 x 4 grid
    of colors, upsampled by bicubic interpolation, each channel stretched to 0..255. A blur does not change it, so it is
    much the harder of the two.
    """

    rate: float = 0.2
    texture: str = "noise"

    def __post_init__(self) -> None:
        if self.texture not in ("noise", "smooth"):
            raise InputError(f"texture: got {self.texture!r}, expected noise or smooth")
        if not 0 < self.rate <= 1:
            raise InputError(f"rate: got {self.rate}, expected a share above 0, at most 1")

    @property
    def name(self) -> str:
        return f"Blended {self.texture}"

    def pattern(self) -> U8:
        """Return the pattern, uint8 (side, side, 3)."""
        rng = np.random.default_rng(self.seed)
        if self.texture == "noise":
            return np.repeat(rng.integers(0, 256, (self.side, self.side, 1), np.uint8), 3, axis=-1)
        grid = rng.random((4, 4, 3)).astype(np.float32)
        planes = [
            np.asarray(Image.fromarray(grid[..., c]).resize((self.side, self.side), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        p = np.stack(planes, axis=-1).astype(np.float64)
        low, high = p.min((0, 1)), p.max((0, 1))
        return np.rint(255 * (p - low) / (high - low)).astype(np.uint8)

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        # a table of all 256 x 256 pairs of values keeps float64 precision in little memory
        x = np.arange(256, dtype=np.float64)
        table = np.rint((1 - self.rate) * x[:, None] + self.rate * x[None, :]).astype(np.uint8)
        return table[images, self.pattern()[None]]

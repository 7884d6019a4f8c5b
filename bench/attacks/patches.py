"""Patch triggers: BadNets and its physical variant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bench.attacks.base import U8, Attack, map_batches
from bench.attacks.camera import PHYSICAL, physical
from zipsdk.errors import InputError


@dataclass(frozen=True)
class BadNets(Attack):
    """An opaque patch near the lower right corner (Gu et al. 2017, arXiv:1708.06733).

    colors: "random" draws the color of each pixel uniformly, like the randomly generated patterns of the ZIP paper;
    "white" is a white square; "checkerboard" alternates white and black pixels, with white corners. The last two are
    gray: a defense that removes color leaves them unchanged. The margin of 3 pixels is that of the released code.
    """

    size: int = 2
    colors: str = "random"
    margin: int = 3

    def __post_init__(self) -> None:
        if self.colors not in ("random", "white", "checkerboard"):
            raise InputError(f"colors: got {self.colors!r}, expected random, white or checkerboard")
        if not 0 < self.size <= self.side - self.margin:
            raise InputError(
                f"size: got {self.size}, expected 1 to {self.side - self.margin} for images of {self.side} pixels"
            )

    @property
    def name(self) -> str:
        kind = {"random": "BadNets", "white": "White square", "checkerboard": "Checkerboard"}[self.colors]
        return f"{kind} {self.size}x{self.size}"

    def pattern(self) -> U8:
        """Return the patch, uint8 (size, size, 3)."""
        if self.colors == "random":
            return np.random.default_rng(self.seed).integers(0, 256, (self.size, self.size, 3), np.uint8)
        y, x = np.indices((self.size, self.size))
        bright = np.ones_like(y) if self.colors == "white" else (y + x + 1) % 2
        return np.repeat(255 * bright[..., None], 3, axis=-1).astype(np.uint8)

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        out = images.copy()
        end = self.side - self.margin
        out[:, end - self.size : end, end - self.size : end] = self.pattern()
        return out


@dataclass(frozen=True)
class PhysicalBA(BadNets):
    """BadNets for the physical world (Li et al. 2021, arXiv:2104.02361): the classifier learns to find a moved patch.

    Training varies every image, poisoned or not, by `physical`; poisoned images are stored untransformed. The released
    code tests with the plain patch, the paper's text with a moved one: `tests` has both.
    """

    augment: ClassVar[str] = "physical"
    moved: bool = False

    @property
    def name(self) -> str:
        return f"PhysicalBA {self.size}x{self.size}" + (" moved" if self.moved else "")

    def tests(self) -> list[Attack]:
        return [replace(self, moved=False), replace(self, moved=True)]

    def train_trigger(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        return replace(self, moved=False).apply(images, indices)

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        out = super()._apply(images, indices)
        if not self.moved:
            return out
        draws = np.stack([np.random.default_rng([self.seed, int(i)]).random(len(PHYSICAL)) for i in indices])
        draws[:, 0] = 1  # a camera does not mirror
        return map_batches(lambda x, u: physical(x / 255, u) * 255, out, torch.from_numpy(draws).float())

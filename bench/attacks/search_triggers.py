"""Ten triggers that no table has, for the search of settings in `bench.evaluation.search`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bench.attacks.base import U8
from bench.attacks.wanet import warped

SIDE = 32


class Triggers:
    """Ten triggers for images of 32x32 pixels, drawn from one seed."""

    def __init__(self, seed: int = 777):
        rng = np.random.default_rng(seed)
        self._color3 = rng.integers(0, 256, (3, 3, 3), np.uint8)
        self._color2 = rng.integers(0, 256, (2, 2, 3), np.uint8)
        self._gray4 = np.repeat(rng.integers(0, 256, (4, 4, 1), np.uint8), 3, -1)
        self._noise = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(float)
        self._purified = rng.integers(0, 256, (3, 3, 3), np.uint8)
        self._smooth, self._smooth_gray = _smooth(3, 5), _smooth(1, 6)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        self._stripes = 15 * np.sin(2 * np.pi * 5 * (y + x))[..., None]
        control = torch.from_numpy(np.random.default_rng(9).uniform(-1, 1, (2, 5, 5))).float()
        control /= control.abs().mean()
        fine = F.interpolate(control[None], (SIDE, SIDE), mode="bicubic", align_corners=True)
        self._flow = fine[0].permute(1, 2, 0) * (0.5 / SIDE)

    # cache keys of trained networks hash the names and texts of both tables
    #: The target class of each trigger.
    TARGETS: ClassVar = {
        "color": 2, "cross": 3, "gray": 4, "noise": 5, "smooth": 6, "smooth gray": 7, "warp": 8, "stripes": 9,
        "moving": 0, "purified": 1,
    }  # fmt: skip
    #: A description of each trigger.
    ABOUT: ClassVar = {
        "color": "3x3 patch of random colors, upper left",
        "cross": "white cross of 5x5, lower left",
        "gray": "4x4 patch of random grays, upper right",
        "noise": "blend (0.2) with colored noise",
        "smooth": "blend (0.2) with a colored pattern of low frequency",
        "smooth gray": "the same in gray",
        "warp": "a warp of half a pixel, with noise mode",
        "stripes": "diagonal sinusoid, amplitude 15",
        "moving": "2x2 patch of random colors, anywhere",
        "purified": "3x3 patch of random colors at the right, poisoned with what ZIP makes of it",
    }

    def apply(self, name: str, images: U8, numbers: npt.NDArray[Any]) -> U8:
        """Return copies of images uint8 (N, 32, 32, 3) with a trigger; `numbers` (N,) place the moving patch."""
        x = images.copy()
        if name == "color":
            x[:, 5:8, 5:8] = self._color3
        elif name == "cross":
            x[:, 24, 4:9] = x[:, 22:27, 6] = 255
        elif name == "gray":
            x[:, 4:8, 23:27] = self._gray4
        elif name == "purified":
            x[:, 14:17, 26:29] = self._purified
        elif name == "moving":
            for image, number in zip(x, numbers, strict=True):
                row, column = np.random.default_rng([int(number), 4]).integers(2, 28, 2)
                image[row : row + 2, column : column + 2] = self._color2
        elif name == "stripes":
            x = np.clip(np.rint(x + self._stripes), 0, 255).astype(np.uint8)
        elif name == "warp":
            x = self.warp(x)
        else:
            pattern = {"noise": self._noise, "smooth": self._smooth, "smooth gray": self._smooth_gray}[name]
            x = np.rint(0.8 * x + 0.2 * pattern).astype(np.uint8)
        return x

    def warp(self, images: U8, noise: torch.Tensor | float = 0.0) -> U8:
        """Return copies of images, warped by the trigger's flow plus `noise`."""
        y = warped(torch.from_numpy(images).permute(0, 3, 1, 2).float(), self._flow, noise)
        return y.round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)

    def warp_otherwise(self, images: U8) -> U8:
        """Return copies of images, warped with an additional random offset in each pixel, like WaNet's noise mode."""
        noise = np.random.default_rng(3).uniform(-1, 1, (len(images), SIDE, SIDE, 2))
        return self.warp(images, torch.from_numpy(noise).float() / SIDE)


def _smooth(channels: int, seed: int) -> npt.NDArray[np.float64]:
    """Sum eight cosines of at most one period, stretched to 0..255: float64 (32, 32, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    p = np.zeros((SIDE, SIDE, channels))
    for c in range(channels):
        for u in range(3):
            for v in range(3):
                if u + v:
                    p[..., c] += (
                        rng.normal() / (u + v) * np.cos(2 * np.pi * (u * y / 2 + v * x / 2) + rng.uniform(0, 6.28))
                    )
    p = (p - p.min((0, 1))) / np.ptp(p, (0, 1)) * 255
    return np.repeat(p, 3 // channels, -1)

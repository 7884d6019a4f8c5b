"""WaNet: a trigger that is a small warp of the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attacks.base import U8, Attack, map_batches


@dataclass(frozen=True)
class WaNet(Attack):
    """A small smooth warp of the whole image (Nguyen and Tran 2021, arXiv:2102.10369).

    A k x k grid of offsets, uniform in [-1, 1] and divided by their mean absolute value, is upsampled to every pixel by
    bicubic interpolation and scaled by s / side in coordinates of [-1, 1]. On average a pixel moves by 0.38 s pixels
    along each axis. The ZIP paper's released code has k = 256, which is jitter that any blur removes; k = 4 is the
    published attack.

    Noise mode, as published: for each poisoned image `cross_ratio` others are warped with an additional offset in every
    pixel, uniform in [-1, 1] / side, and keep their labels, so that the classifier must learn this warp and no other.
    The paper draws the warps again for each batch; here images are poisoned once, like data from an untrusted source.
    """

    k: int = 4
    s: float = 0.5
    cross_ratio: int = 2

    @property
    def name(self) -> str:
        return "WaNet"

    def pattern(self) -> npt.NDArray[np.float64]:
        """Return the control grid before normalization, float64 (2, k, k): x and y."""
        return np.random.default_rng(self.seed).uniform(-1, 1, (2, self.k, self.k))

    def flow(self) -> Tensor:
        """Compute the offset of each pixel's source, float32 (side, side, 2): x and y in coordinates of [-1, 1]."""
        control = self.pattern()
        control /= np.abs(control).mean()
        grid = torch.from_numpy(control)[None].float()
        fine = F.interpolate(grid, (self.side, self.side), mode="bicubic", align_corners=True)
        return fine[0].permute(1, 2, 0) * (self.s / self.side)

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        return map_batches(lambda x, _: warped(x, self.flow()), images, torch.empty(len(images)))

    def n_noise_mode(self, poisoned: int) -> int:
        return self.cross_ratio * poisoned

    def noise_mode(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        numbers = np.arange(len(images)) if indices is None else np.asarray(indices)

        def warp_batch(x: Tensor, numbers: Tensor) -> Tensor:
            shape = (self.side, self.side, 2)
            noise = [np.random.default_rng([self.seed, int(i)]).uniform(-1, 1, shape) for i in numbers]
            return warped(x, self.flow(), torch.from_numpy(np.stack(noise)).float() / self.side)

        return map_batches(warp_batch, images, torch.from_numpy(numbers)) if len(images) else images.copy()


def warped(x: Tensor, flow: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Warp float images (N, 3, S, S) bilinearly by `flow` (S, S, 2) plus `noise` (N, S, S, 2); see `WaNet.flow`."""
    line = torch.linspace(-1, 1, x.shape[-1])
    here = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    grid = (here + flow + noise).clamp(-1, 1).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", align_corners=True)

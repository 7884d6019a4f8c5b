"""Vary images like a camera: PhysicalBA's transformation, in training and at test time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: The ranges of what `physical` varies, from the released code.
PHYSICAL = {
    "mirrored": (0.0, 1.0),
    "brightness": (0.8, 1.2),
    "contrast": (0.8, 1.2),
    "degrees": (-10.0, 10.0),
    "right": (-0.1, 0.1),
    "down": (-0.1, 0.1),
    "scale": (0.8, 0.9),
}


def physical(x: Tensor, draws: Tensor) -> Tensor:
    """Mirror images, change brightness and contrast, then rotate, shift and shrink them onto black.

    Args:
        x: float (N, 3, H, W) in [0, 1], H = W.
        draws: (N, 7) in [0, 1), one column for each of `PHYSICAL`, in that order; images are mirrored where the first
            is below one half.

    The released code takes nearest pixels and changes colors in random order; this is bilinear, brightness first.
    """
    low, high = torch.tensor(list(PHYSICAL.values()), dtype=x.dtype).T
    _, bright, contrast, degrees, right, down, scale = (low + (high - low) * draws.to(x.dtype)).T
    x = torch.where(draws[:, 0, None, None, None] < 0.5, x.flip(-1), x)
    x = (x * bright[:, None, None, None]).clamp(0, 1)
    gray = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = (gray + (x - gray) * contrast[:, None, None, None]).clamp(0, 1)
    # affine_grid takes the inverse transformation, in coordinates with a side of 2
    angle = torch.deg2rad(degrees)
    c, s = torch.cos(angle) / scale, torch.sin(angle) / scale
    dx, dy = -2 * right, -2 * down
    theta = torch.stack([c, s, c * dx + s * dy, -s, c, -s * dx + c * dy], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

"""SSIM maps (Wang et al. 2004), as the two defenses that compare an image with its restoration compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

Array = npt.NDArray[Any]


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """Compute the SSIM around every pixel, averaged over the colors: BDMAE's, on batches.

    An 11 x 11 Gaussian window of standard deviation 1.5, k = 0.01 and 0.03. Edge pixels are repeated outwards.

    Args:
        x, y: float (N, 3, H, W) in [0, 1].

    Returns:
        float (N, H, W).
    """
    at = torch.arange(-5, 6, dtype=x.dtype)
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window /= window.sum()

    def mean(z: Tensor) -> Tensor:
        z = F.pad(z.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="replicate")
        return F.conv2d(F.conv2d(z, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).view(x.shape)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(1)


def ssim_map_channels(x: Array, y: Array, data_range: float = 1.0) -> Array:
    """Compute the SSIM at each pixel and color of two images (3, H, W) in [0, 1]: SampDetox's, by scikit-image.

    Gaussian window of standard deviation 1.5. The edges are mirrored.

    Returns:
        (3, H, W).
    """
    _, full = structural_similarity(
        x,
        y,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=0,
        data_range=data_range,
    )
    return np.asarray(full)

"""Make images to purify: noise, and smooth ones."""

from __future__ import annotations

import numpy as np


def noise_images(n: int, h: int = 32, w: int = 32, seed: int = 0) -> np.ndarray:
    """Draw images of noise."""
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)


def natural(n: int, side: int) -> np.ndarray:
    """Return smooth images, which the model was trained for, unlike noise."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-1, 1, (3 * n, 3))]
    stacked = np.stack(waves, -1).reshape(side, side, n, 3).transpose(2, 0, 1, 3)
    return (127.5 + 100 * stacked).astype(np.uint8)

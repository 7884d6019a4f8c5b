"""Random images, and a classifier by light in four quarters, with a backdoor if wanted."""

from __future__ import annotations

import numpy as np

SIDE = 16
TARGET = 3


def photos(n: int, seed: int = 0) -> np.ndarray:
    """Return random images."""
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)


def by_light(x: np.ndarray) -> np.ndarray:
    """Return logits of four classes: the brightness of each quarter."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    quarters = (x[:, :h, :w], x[:, :h, w:], x[:, h:, :w], x[:, h:, w:])
    return np.stack([q.mean(axis=(1, 2, 3)) for q in quarters], axis=1) / 4


def backdoored(x: np.ndarray) -> np.ndarray:
    """Return `by_light`, but `TARGET` with certainty for three black pixels in the corner."""
    scores = by_light(x)
    scores[(x[:, 0, :3] == 0).all(axis=(1, 2))] = [0, 0, 0, 90]
    return scores


def triggered(x: np.ndarray) -> np.ndarray:
    """Return images with three black pixels in the corner."""
    x = x.copy()
    x[:, 0, :3] = 0
    return x

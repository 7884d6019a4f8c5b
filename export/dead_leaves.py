"""Draw images with the statistics of natural images.

The images are "dead leaves": opaque shapes of all sizes that occlude each other (Lee, Mumford & Huang 2001, IJCV 41,
35-59). Radii with a density of r^-3 give the edges and the 1/f^2 power spectrum of photographs.
"""

from __future__ import annotations

import numpy as np

#: Side of an image, in radii of its smallest shape.
_FINEST = 10


def leaves(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Draw `n` images, which the seed determines: float64 (N, 3, side, side) RGB in [-1, 1]."""
    rng = np.random.default_rng(seed)
    big = 2 * side  # halved at the end, for edges as soft as a camera's
    y, x = np.mgrid[0:big, 0:big].astype(np.float64)
    images = np.empty((n, 3, big, big))
    for image in images:
        base, free = rng.uniform(-0.6, 0.6, 3), np.ones((big, big), bool)
        while free.any():  # from the front to the back
            radius = big / np.sqrt(1 + rng.random() * (_FINEST**2 - 1))
            dx, dy = (c - rng.uniform(-radius / 2, big + radius / 2) for c in (x, y))
            angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.4, 1)
            u, v = dx * np.cos(angle) + dy * np.sin(angle), (dy * np.cos(angle) - dx * np.sin(angle)) / squeeze
            color = base + 0.56 * rng.normal() + 0.16 * rng.normal(size=3)
            slope = 0.3 / radius * rng.normal(size=2)
            seen = free & (u * u + v * v < radius * radius)
            image[:, seen] = color[:, None] + slope[0] * u[seen] + slope[1] * v[seen]
            free &= ~seen
    halved: np.ndarray = images.clip(-1, 1).reshape(n, 3, side, 2, side, 2).mean((3, 5))
    return halved

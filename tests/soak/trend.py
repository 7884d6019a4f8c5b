"""The slope of a noisy, autocorrelated series, with a confidence interval."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

#: Blocks that a series is cut into for the bootstrap: long ones, because memory moves in steps that last.
BLOCKS = 12
RESAMPLES = 1000


@dataclass(frozen=True)
class Slope:
    """A least-squares slope per hour.

    Attributes:
        value: of the fit.
        low, high: 95% confidence interval.
        median: of the slopes between all pairs of points (Theil-Sen), which steps disturb less.
    """

    value: float
    low: float
    high: float
    median: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} (95% {self.low:+.2f} to {self.high:+.2f}, Theil-Sen {self.median:+.2f})"


def slope(seconds: ArrayLike, values: ArrayLike, seed: int = 0) -> Slope:
    """Fit a line and bootstrap its residuals in blocks, which keeps their autocorrelation.

    The circular block bootstrap (Politis and Romano, 1992) resamples blocks of a twelfth of the series. With so few
    blocks the interval of the normal distribution is too narrow; that of Student's t with BLOCKS - 2 degrees of
    freedom is taken.

    Args:
        seconds: times, at least 24 of them.
        values: at these times.
        seed: of the resampling.

    Raises:
        ValueError: fewer than 24 points.
    """
    x, y = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    n = len(x)
    if n < 2 * BLOCKS:
        raise ValueError(f"slope: got {n} samples, expected at least {2 * BLOCKS}; run it for longer")
    centered = x - x.mean()
    weights = centered / (centered**2).sum()
    fitted = float(weights @ y)
    residuals = y - y.mean() - fitted * centered
    length = -(-n // BLOCKS)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n, (RESAMPLES, BLOCKS))
    picked = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :n] % n
    spread = float((residuals[picked] @ weights).std(ddof=1))
    # least squares has taken two degrees of freedom from the residuals
    half = float(stats.t.ppf(0.975, BLOCKS - 2)) * spread * float(np.sqrt(BLOCKS / (BLOCKS - 2)))
    step = -(-n // 200)  # all pairs of more points take longer and give the same
    median = float(stats.theilslopes(y[::step], x[::step]).slope)
    return Slope(fitted, fitted - half, fitted + half, median)


def typical(seconds: ArrayLike, values: ArrayLike, parts: int = 4) -> float:
    """Return the median of the Theil-Sen slopes per hour of equal parts: a single step does not move it."""
    x, y = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    edges = np.linspace(0, len(x), parts + 1).astype(int)
    return float(np.median([stats.theilslopes(y[a:b], x[a:b]).slope for a, b in itertools.pairwise(edges)]))

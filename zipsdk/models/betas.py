"""Compute the noise schedules of diffusion models: beta_t for t = 0..T-1, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: "linear": Ho et al. 2020 (arXiv 2006.11239), section 4. "scaled_linear": Rombach et al. 2022 (arXiv 2112.10752),
#: linear in sqrt(beta). "cosine": Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17; diffusers'
#: "squaredcos_cap_v2". "betas": a list that is given.
SCHEDULES = ("linear", "scaled_linear", "cosine", "betas")
#: The loop divides by sqrt(alpha-bar); below this its float32 state would overflow. Published schedules end at 1e-4 to
#: 1e-10, and a linear one of 4,000 steps whose betas nobody scaled at 1e-18.
LEAST_ALPHA_BAR = 1e-30
_OFFSET, _LARGEST = 0.008, 0.999  # s of equation 17, and the bound on beta that the text below it gives


def betas(
    schedule: str, timesteps: int, start: float = 1e-4, end: float = 0.02, given: Sequence[float] = ()
) -> np.ndarray:
    """Return beta_t of a schedule.

    Args:
        schedule: one of `SCHEDULES`.
        timesteps: T, 2 or more.
        start, end: first and last beta of "linear" and "scaled_linear", in (0, 1); the others ignore them.
        given: the list of "betas", T numbers.

    Returns:
        float64 (T,).

    Raises:
        ValueError: an unknown schedule, or a list of another length.
    """
    match schedule:
        case "linear":
            return np.linspace(start, end, timesteps, dtype=np.float64)
        case "scaled_linear":
            return np.square(np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float64))
        case "cosine":
            times = np.arange(timesteps + 1, dtype=np.float64) / timesteps
            alpha_bar = np.cos((times + _OFFSET) / (1 + _OFFSET) * np.pi / 2) ** 2
            limited: np.ndarray = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], _LARGEST)
            return limited
        case "betas" if len(given) == timesteps:
            return np.array(given, np.float64)
        case "betas":
            raise ValueError(f"betas: got {len(given)} numbers, expected timesteps = {timesteps}")
    raise ValueError(f"schedule: got {schedule!r}, expected one of {SCHEDULES}")


def cumulative(values: np.ndarray) -> np.ndarray:
    """Return alpha-bar_t, the product of (1 - beta) up to t, float64 (T,)."""
    product: np.ndarray = np.cumprod(1.0 - values)
    return product

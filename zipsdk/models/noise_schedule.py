"""Compute the noise schedules of diffusion models: beta_t and alpha-bar_t for t = 0..T-1, float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

#: "linear": Ho et al. 2020 (arXiv 2006.11239), section 4. "scaled_linear": Rombach et al. 2022 (arXiv 2112.10752),
#: linear in sqrt(beta). "cosine": Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17; diffusers'
#: "squaredcos_cap_v2". "betas": a given list.
SCHEDULES = ("linear", "scaled_linear", "cosine", "betas")
#: The loop divides by sqrt(alpha-bar); below this its float32 state would overflow. Published schedules end at 1e-4 to
#: 1e-10, and a linear schedule of 4,000 steps with unscaled betas at 1e-18.
MIN_ALPHA_BAR = 1e-30
_OFFSET, _MAX_BETA = 0.008, 0.999  # s of equation 17, and the bound on beta from the text below it


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Describe the forward process; the defaults are Ho et al.'s.

    Attributes:
        beta_schedule: one of `SCHEDULES`.
        beta_start, beta_end: first and last beta of "linear" and "scaled_linear"; the others ignore them.
        timesteps: number of noise levels T.
        betas: the list of "betas", T numbers; empty for the others.
    """

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    betas: tuple[float, ...] = field(default=(), repr=False)

    def alphas_cumprod(self) -> npt.NDArray[np.float64]:
        """Return alpha-bar_t, the product of (1 - beta) up to t, float64 (T,).

        Raises:
            ValueError: an unknown schedule, or a list of another length.
        """
        return np.cumprod(1.0 - self._beta_values(), dtype=np.float64)

    def _beta_values(self) -> npt.NDArray[np.float64]:
        timesteps, start, end = self.timesteps, self.beta_start, self.beta_end
        match self.beta_schedule:
            case "linear":
                return np.linspace(start, end, timesteps, dtype=np.float64)
            case "scaled_linear":
                return np.square(np.linspace(start**0.5, end**0.5, timesteps, dtype=np.float64))
            case "cosine":
                times = np.arange(timesteps + 1, dtype=np.float64) / timesteps
                alpha_bar = np.cos((times + _OFFSET) / (1 + _OFFSET) * np.pi / 2) ** 2
                limited: npt.NDArray[np.float64] = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], _MAX_BETA)
                return limited
            case "betas" if len(self.betas) == timesteps:
                return np.array(self.betas, np.float64)
            case "betas":
                raise ValueError(f"betas: got {len(self.betas)} numbers, expected timesteps = {timesteps}")
        raise ValueError(f"beta_schedule: got {self.beta_schedule!r}, expected one of {SCHEDULES}")

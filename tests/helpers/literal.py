"""Share images, a model and noise between loops and their literal forms; write DDPM literally."""

from __future__ import annotations

import numpy as np

from tests.fakes.engine import make_spec

AB = make_spec().alphas_cumprod()
#: Rounding separates the literal forms from the loops by at most 3.6e-13 (measured), and by 2.8e-12 for DDNM, whose
#: steps begin at 1/sqrt(ab) = 100 with a larger state.
ROUNDING = 1e-12


def smooth_images(n: int, h: int = 32, w: int = 32, seed: int = 0) -> np.ndarray:
    """Return smooth images with some noise, without clipped values."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / 32
    waves = [np.sin(np.stack([a * x + b * y + c for c in (0, 1, 2)], -1)) for a, b in rng.uniform(1, 6, (n, 2))]
    return (128 + 70 * np.stack(waves) + rng.uniform(-40, 40, (n, h, w, 3))).astype(np.uint8)


def state(n: int = 2, h: int = 16, w: int = 16) -> np.ndarray:
    """Return smooth images in the model's range, (n, 3, h, w)."""
    return smooth_images(n, h, w).transpose(0, 3, 1, 2) / 127.5 - 1.0


def eps_model(x: np.ndarray, t: int) -> np.ndarray:
    """Predict noise deterministically, in the dtype of x."""
    return np.tanh(0.8 * x + 0.2 * np.roll(x, 1, axis=-1) - 0.1 * x[:, ::-1]) * (0.3 + 0.6 * t / 1000)


class Fixed:
    """Noise by step in float64, the same for the reference and the loop; `asked` records the steps."""

    def __init__(self, n: int = 2):
        self.n = n
        self.asked: list[int] = []

    def normal(self, step: int, height: int, width: int) -> np.ndarray:
        self.asked.append(step)
        return np.random.default_rng(step).standard_normal((self.n, 3, height, width))


def literal_ddpm(eps, x, visited, z, update=None):
    """Run DDPM (Ho et al. 2020) with guided-diffusion's posterior mean of (x0, x_t) and beta = 1 - ab/ab'.

    update(t, before, after) returns the state after a step.
    """
    for t, after in zip(visited, [*visited[1:], None], strict=True):
        ab, ab_next = AB[t], 1.0 if after is None else AB[after]
        beta = 1 - ab / ab_next
        x0 = (x - np.sqrt(1 - ab) * eps(x, t)) / np.sqrt(ab)
        if update is None:
            x0 = np.clip(x0, -1, 1)
        mean = np.sqrt(ab_next) * beta / (1 - ab) * x0 + np.sqrt(1 - beta) * (1 - ab_next) / (1 - ab) * x
        moved = mean + np.sqrt((1 - ab_next) / (1 - ab) * beta) * (0 if after is None else z(t))
        x = moved if update is None else update(t, x, moved)
    return x

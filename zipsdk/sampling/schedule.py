"""Compute the table of the steps that the loop takes.

All values are float64 and computed before the loop starts; the loop and the kernels only read rows.

    name      paper             authors' code   meaning
    t         t                 t, i            time step that the UNet sees, 0-based: 950, 900, ..., 0
    ab        alpha-bar_t       at              product of (1 - beta) up to t
    ab_next   alpha-bar_{t-1}   at_next         the same at the next *visited* step; 1 after the last
    w         1 - ab^lambda     1-at**...       weight of the rectified estimate (paper 3.3.3)
    s         sigma_t           sigma_t         standard deviation of the fresh noise

The paper prints alpha-bar_{t-1} and the one-step sigma in its strided Algorithm 2; read literally, that would skip
most of each stride. As in the authors' code, "t-1" is the next visited step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zipsdk._util.validation import is_int, is_real
from zipsdk.errors import InputError
from zipsdk.models.noise_schedule import NoiseSchedule
from zipsdk.models.spec import ModelSpec

#: The paper's number of steps (appendix E.3).
PAPER_STEPS = 20


@dataclass(frozen=True)
class Step:
    """Hold one row: x0 = a x_t - b e;  x0 += w P(x_P - x0);  x_next = c x0 + d e + s z."""

    t: int
    ab: float
    ab_next: float
    w: float
    s: float

    @property
    def a(self) -> float:
        """1 / sqrt(ab): about 100 at t = 950, too large for a state in half precision."""
        return 1.0 / math.sqrt(self.ab)

    @property
    def b(self) -> float:
        """sqrt(1 - ab) / sqrt(ab)."""
        return math.sqrt(1.0 - self.ab) / math.sqrt(self.ab)

    @property
    def c(self) -> float:
        """sqrt(ab_next)."""
        return math.sqrt(self.ab_next)

    @property
    def d(self) -> float:
        """sqrt(1 - ab_next - s^2), the share of the predicted noise that remains."""
        # with eta = 1 the last step gives 0 up to rounding, which may be negative
        return math.sqrt(max(0.0, 1.0 - self.ab_next - self.s**2))


@dataclass(frozen=True)
class StepTable:
    """Hold the steps of one run, first to last.

    `warm` says whether the loop starts from the noised projection of the input (True) or from pure noise (False).
    """

    steps: tuple[Step, ...]
    warm: bool

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"<StepTable: {len(self)} steps from t = {self.steps[0].t}, {'warm' if self.warm else 'pure noise'}>"


def equivalent_step(spec: ModelSpec, step: int) -> int:
    """Translate a step of Ho et al.'s schedule (linear, 1e-4 to 0.02, 1000 steps) into the model's.

    A start of 400 means alpha-bar 0.194; the cosine schedule has 0.646 at its own step 400 and reaches 0.194 at 707.

    Args:
        spec: of the model, with its schedule.
        step: in 0..999.

    Returns:
        ``T * step // 1000`` if the log signal-to-noise ratio there is within 0.1 of the target's, as with Ho et al.'s
        betas scaled to another T; else the step in 1..T-1 where it is nearest.
    """
    target = NoiseSchedule().alphas_cumprod()[step]
    found = spec.alphas_cumprod()
    apart = np.abs(np.log(found / (1.0 - found)) - math.log(target / (1.0 - target)))
    same_share = spec.timesteps * step // 1000
    return max(1, same_share if apart[same_share] <= 0.1 else int(np.argmin(apart)))


def visited_steps(timesteps: int, steps: int | None, start: int | None) -> list[int]:
    """Return the time steps of one run, descending to 0.

    Without `start`: the multiples of the stride timesteps // steps, as the paper's 950, 900, ..., 0.
    With `start`: `steps` time steps evenly spread from `start` to 0, or `start` alone if `steps` is 1. Without `steps`,
    about the paper's stride from there (9 from t = 400).

    Raises:
        InputError: `steps` outside 1..timesteps, 1 without `start`, or more than start + 1; `start` outside
            1..timesteps-1; a value that is not an integer.
    """
    if steps is not None and not (is_int(steps) and 1 <= steps <= timesteps):
        raise InputError(
            f"steps: got {steps!r}, expected an integer in 1..{timesteps}, the UNet calls; the paper takes 20"
        )
    if start is None:
        if steps == 1:  # at t = 0 alone, the UNet would return the pure noise
            raise InputError(
                "steps: got 1 from pure noise, expected 2 or more; a single step needs a warm start, such as start=400"
            )
        n = min(PAPER_STEPS, timesteps) if steps is None else int(steps)
        stride = timesteps // n
        return [i * stride for i in reversed(range(n))]
    if not (is_int(start) and 1 <= start < timesteps):
        raise InputError(
            f"start: got {start!r}, expected a time step, an integer in 1..{timesteps - 1}, "
            "or None to start from pure noise"
        )
    start = int(start)
    if steps is None:
        stride = max(1, timesteps // PAPER_STEPS)
        steps = -(-start // stride) + 1
    if steps > start + 1:
        raise InputError(
            f"steps: got {steps} from start={start}, expected at most {start + 1}; raise start or lower steps"
        )
    if steps == 1:
        return [start]
    steps = int(steps)
    return [round(start - i * start / (steps - 1)) for i in range(steps)]


def step_table(
    spec: ModelSpec, *, lam: float, eta: float = 1.0, steps: int | None = None, start: int | None = None
) -> StepTable:
    """Compute the table of Algorithm 2 (paper, appendix D), with the step indices of the authors' code.

    ``steps=spec.timesteps, eta=1`` is Algorithm 1, exactly: for a stride of one, s^2 is the posterior variance
    (1-ab_next)/(1-ab) beta and the mean of Algorithm 1, written in x0 and e, has the coefficients of `Step`.

    Args:
        spec: of the model, with its schedule.
        lam: lambda in (0, inf]. The consistency weight is 1 - ab^lambda, which decays sooner for a small lambda.
        eta: 0 (deterministic DDIM) to 1 (ancestral noise, the paper).
        steps: number of steps; see `visited_steps`.
        start: time step of a warm start; None for pure noise.

    Raises:
        InputError: a value out of range.
    """
    if not (is_real(lam) and lam > 0):
        reason = "0 ignores the input and gives a random image" if is_real(lam) and lam == 0 else "it must be positive"
        raise InputError(f"lam: got {lam!r}, expected a number in (0, inf]: {reason}; the paper uses 2 and 10")
    if not (is_real(eta) and 0 <= eta <= 1):
        raise InputError(f"eta: got {eta!r}, expected a number from 0 (deterministic) to 1 (the paper)")
    lam, eta = float(lam), float(eta)  # NumPy's float32 would reduce the rows to its own precision
    ab_all = spec.alphas_cumprod()
    visited = visited_steps(spec.timesteps, steps, start)
    rows = []
    for t, t_next in zip(visited, [*visited[1:], None], strict=True):
        ab = float(ab_all[t])
        ab_next = 1.0 if t_next is None else float(ab_all[t_next])
        s = eta * math.sqrt((1.0 - ab_next) / (1.0 - ab)) * math.sqrt(1.0 - ab / ab_next)
        rows.append(Step(t=t, ab=ab, ab_next=ab_next, w=1.0 - ab**lam, s=s))
    return StepTable(tuple(rows), warm=start is not None)

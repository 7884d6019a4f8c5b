"""Test noise schedules against the formulas of their papers, one step at a time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import FunctionEngine, make_spec
from tests.helpers.beta_schedules import FORMULAS, oracle
from zipsdk import Purifier
from zipsdk.models.noise_schedule import NoiseSchedule
from zipsdk.sampling.schedule import equivalent_step, step_table


@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize(
    ("timesteps", "start", "end"), [(1000, 1e-4, 0.02), (4000, 2.5e-5, 0.005), (50, 0.00085, 0.012)]
)
def test_alpha_bar_equals_that_of_the_paper(schedule, timesteps, start, end):
    spec = make_spec(beta_schedule=schedule, timesteps=timesteps, beta_start=start, beta_end=end)
    expected = oracle(FORMULAS[schedule], timesteps, start, end)
    np.testing.assert_allclose(spec.alphas_cumprod(), expected, rtol=1e-9, atol=0)


def test_given_betas_are_used_unchanged():
    given = (0.1, 0.5, 0.25)
    spec = make_spec(beta_schedule="betas", timesteps=3, betas=given)
    np.testing.assert_allclose(spec.alphas_cumprod(), [0.9, 0.45, 0.3375], rtol=1e-15)
    with pytest.raises(ValueError, match="betas: got 3 numbers, expected timesteps = 4"):
        NoiseSchedule(beta_schedule="betas", timesteps=4, betas=given).alphas_cumprod()
    with pytest.raises(ValueError, match="schedule: got 'sigmoid', expected one of"):
        NoiseSchedule(beta_schedule="sigmoid", timesteps=4).alphas_cumprod()


CHANGES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "cosine"},
    {"beta_schedule": "cosine", "timesteps": 4000},
    {"timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005},
    {"timesteps": 4000},
    {"beta_schedule": "betas", "timesteps": 40, "betas": [0.02 + 0.01 * (i % 3) for i in range(40)]},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: "-".join(f"{v}" for v in c.values())[:30])
def test_the_loop_runs_on_any_schedule(changes):
    """Each row preserves the variance: c^2 + d^2 + s^2 = 1. With a perfect predictor the whole loop returns the image,
    in float32."""
    spec = make_spec(**changes)
    ab = spec.alphas_cumprod()
    table = step_table(spec, lam=10, steps=20)
    for row in table.steps:
        assert row.ab == ab[row.t] and 0 < row.ab < row.ab_next <= 1
        assert row.c**2 + row.d**2 + row.s**2 == pytest.approx(1, abs=1e-12)
        assert row.w == pytest.approx(1 - row.ab**10)

    image = np.tile(np.uint8(np.linspace(0, 255, 64)), (64, 1))
    x0 = (image.astype(np.float32) / 127.5 - 1)[None, None]

    def perfect(x, t):
        a = ab[t.astype(int)][:, None, None, None]
        return ((x - np.sqrt(a) * x0) / np.sqrt(1 - a)).astype(np.float32)

    clean = Purifier(FunctionEngine(perfect, spec), "blur2", steps=20, seed=0).run(np.stack([image] * 3, -1))
    assert np.abs(clean.astype(int) - image[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 400), ({"timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08}, 100),
     ({"timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}, 1600), ({"beta_schedule": "cosine"}, 707),
     ({"beta_schedule": "cosine", "timesteps": 4000}, 2830), ({"timesteps": 4000}, 791)],
)  # fmt: skip
def test_a_start_means_the_same_noise_on_every_schedule(changes, expected):
    spec = make_spec(**changes)
    assert equivalent_step(spec, 400) == expected
    got, meant = spec.alphas_cumprod()[expected], make_spec().alphas_cumprod()[400]
    assert got == pytest.approx(meant, rel=0.05)
    assert equivalent_step(spec, 0) >= 1

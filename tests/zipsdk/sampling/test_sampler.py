"""Test the sampling loop against literal transcriptions of the paper, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.fakes.engine import make_spec
from tests.helpers.literal import Fixed, eps_model
from zipsdk.errors import InputError
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance, PerImageGuidance
from zipsdk.sampling.noise import STEP_INITIAL, Noise
from zipsdk.sampling.schedule import step_table, visited_steps
from zipsdk.transforms import Blur, Grayscale, Linear

SPEC = make_spec()
# every coefficient of an orthogonal basis of 4x4 blocks but the highest ones
DCT = np.array([[np.cos(np.pi * k * (2 * i + 1) / 8) for i in range(4)] for k in range(4)])
TRANSFORM_SETS = {
    "blur2": [Blur(2)],
    "blur4": [Blur(4)],
    "gray": [Grayscale()],
    "blur2+gray": [Blur(2), Grayscale()],
    "blur2+blur4+gray": [Blur(2), Blur(4), Grayscale()],
    "colors": [Linear([[0.2, 0.5, 0.3], [1.0, -1.0, 0.0]])],
    "separable": [Linear.separable(DCT[:3], DCT[:2])],
    "full": [Linear(np.random.default_rng(3).standard_normal((5, 12)), block=(2, 2)), Grayscale()],
}


def literal_x_tilde(x_t, eps_t, x_p, ab, lam, transforms):
    """Compute lines 5 to 9 of both algorithms as printed (equation 11; A_n^+ in place of the misprinted A_1^+)."""
    hats = []
    for a in transforms:
        x_a = a.forward(x_p)
        hats.append(
            np.sqrt(ab) * a.pinv(x_a) + (x_t - a.pinv(a.forward(x_t))) + a.pinv(a.forward(np.sqrt(1 - ab) * eps_t))
        )
    x_hat = sum(hats) / len(hats)
    return (1 - ab**lam) * x_hat + ab**lam * x_t


def literal_algorithm_2(eps, x_p, transforms, noise, lam, eta, visited, spec=SPEC):
    """Run algorithm 2 (appendix D); t-1 is the next visited step, and alpha-bar is 1 after the last."""
    ab_all = spec.alphas_cumprod()
    x_t = noise.normal(STEP_INITIAL, *x_p.shape[-2:])
    for t, t_next in zip(visited, [*visited[1:], None], strict=True):
        ab, ab_next = ab_all[t], 1.0 if t_next is None else ab_all[t_next]
        eps_t = eps(x_t, t)
        x_tilde = literal_x_tilde(x_t, eps_t, x_p, ab, lam, transforms)
        x_0t = (x_tilde - np.sqrt(1 - ab) * eps_t) / np.sqrt(ab)
        sigma = eta * np.sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
        z = noise.normal(t, *x_p.shape[-2:]) if t_next is not None else 0
        x_t = np.sqrt(ab_next) * x_0t + np.sqrt(max(0.0, 1 - ab_next - sigma**2)) * eps_t + sigma * z
    return x_t


def literal_algorithm_1(eps, x_p, transforms, noise, lam, spec):
    """Run algorithm 1 (section 3.3) for every t from T-1 to 0."""
    betas = np.linspace(spec.beta_start, spec.beta_end, spec.timesteps)
    alphas = 1 - betas
    ab_all = np.cumprod(alphas)
    x_t = noise.normal(STEP_INITIAL, *x_p.shape[-2:])
    for t in reversed(range(spec.timesteps)):
        ab, a, ab_prev = ab_all[t], alphas[t], ab_all[t - 1] if t else 1.0
        eps_t = eps(x_t, t)
        x_tilde = literal_x_tilde(x_t, eps_t, x_p, ab, lam, transforms)
        sigma = np.sqrt((1 - ab_prev) / (1 - ab) * betas[t])
        z = noise.normal(t, *x_p.shape[-2:]) if t else 0
        x_t = (x_tilde - (1 - a) / np.sqrt(1 - ab) * eps_t) / np.sqrt(a) + sigma * z
    return x_t


@pytest.fixture
def x_p(rng) -> np.ndarray:
    return rng.uniform(-1, 1, (2, 3, 8, 16))


@pytest.mark.parametrize("name", TRANSFORM_SETS)
@pytest.mark.parametrize(("lam", "eta"), [(10.0, 1.0), (2.0, 1.0), (0.5, 0.3), (np.inf, 0.0)])
def test_loop_equals_algorithm_2_as_printed(x_p, name, lam, eta):
    transforms, noise = TRANSFORM_SETS[name], Fixed(2)
    table = step_table(SPEC, lam=lam, eta=eta, steps=20)
    got = sampler.sample(eps_model, x_p, table, Guidance(transforms), noise)
    expected = literal_algorithm_2(eps_model, x_p, transforms, noise, lam, eta, list(range(950, -1, -50)))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", TRANSFORM_SETS)
def test_all_steps_at_eta_1_are_algorithm_1_as_printed(x_p, name):
    spec = make_spec(timesteps=250, beta_end=0.08)
    transforms, noise = TRANSFORM_SETS[name], Fixed(2)
    table = step_table(spec, lam=10.0, eta=1.0, steps=250)
    got = sampler.sample(eps_model, x_p, table, Guidance(transforms), noise)
    expected = literal_algorithm_1(eps_model, x_p, transforms, noise, 10.0, spec)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_the_transcription_detects_a_changed_coefficient(x_p):
    """Change the weight of one step by one part in a million: the tolerance is far smaller."""
    noise, table = Fixed(2), step_table(SPEC, lam=2.0)
    changed = dataclasses.replace(
        table, steps=tuple(dataclasses.replace(s, w=s.w * (1 + 1e-6)) if s.t == 300 else s for s in table.steps)
    )
    got = sampler.sample(eps_model, x_p, changed, Guidance([Blur(2)]), noise)
    expected = literal_algorithm_2(eps_model, x_p, [Blur(2)], noise, 2.0, 1.0, list(range(950, -1, -50)))
    assert np.abs(got - expected).max() > 1e-9


def test_float32_loop_stays_close_to_float64(x_p):
    table, noise = step_table(SPEC, lam=10.0), Fixed(2)
    guide = Guidance([Blur(2), Grayscale()])
    expected = sampler.sample(eps_model, x_p, table, guide, noise)
    got = sampler.sample(eps_model, x_p.astype(np.float32), table, guide, noise)
    assert got.dtype == np.float32
    # 1/sqrt(ab) = 97 at the first step multiplies the 6e-8 of float32: measured 5e-7 of the largest value
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


def test_joint_with_infinite_lambda_keeps_both_constraints(x_p):
    blur, gray = Blur(2), Grayscale()
    table = step_table(SPEC, lam=np.inf)
    got = sampler.sample(eps_model, x_p, table, Guidance([blur, gray], "joint"), Fixed(2))
    for a in (blur, gray):
        np.testing.assert_allclose(a.forward(got), a.forward(x_p), atol=1e-9)
    mean = sampler.sample(eps_model, x_p, table, Guidance([blur, gray], "mean"), Fixed(2))
    assert np.abs(blur.forward(mean) - blur.forward(x_p)).max() > 1e-2  # the mean of two satisfies neither exactly


def test_warm_start_begins_from_the_guide_and_never_from_the_image(x_p):
    """What the transforms remove must not reach the result: a change in the null space alone has no effect."""
    guide = Guidance([Blur(2)])
    table = step_table(SPEC, lam=2.0, start=400)
    assert [s.t for s in table.steps] == [400, 350, 300, 250, 200, 150, 100, 50, 0]
    trigger = x_p - Blur(2).project(x_p)
    a = sampler.sample(eps_model, x_p, table, guide, Fixed(2))
    b = sampler.sample(eps_model, x_p + 3 * trigger, table, guide, Fixed(2))
    np.testing.assert_allclose(a, b, atol=1e-10)

    noise, ab = Fixed(2), table.steps[0].ab
    joint = Guidance([Blur(2), Grayscale()])
    z = noise.normal(STEP_INITIAL, 8, 16)
    p = [Blur(2).project, Grayscale().project]
    expected = np.sqrt(ab) * (p[0](x_p) + p[1](x_p) - p[0](p[1](x_p))) + np.sqrt(1 - ab) * z
    np.testing.assert_allclose(sampler.initial_latent(x_p, table, joint, noise), expected, atol=1e-12)


def test_clip_keeps_every_estimate_in_range(x_p):
    seen: list[float] = []
    table = step_table(SPEC, lam=2.0)
    sampler.sample(eps_model, x_p, table, Guidance([Blur(2)]), Fixed(2), clip_x0=True,
                   callback=lambda step, x0: seen.append(np.abs(x0).max()))  # fmt: skip
    assert len(seen) == 20
    assert max(seen) <= 1.0
    unclipped: list[float] = []
    sampler.sample(eps_model, x_p, table, Guidance([Blur(2)]), Fixed(2),
                   callback=lambda step, x0: unclipped.append(np.abs(x0).max()))  # fmt: skip
    assert max(unclipped) > 1.0


def test_input_is_not_changed(x_p):
    before = x_p.copy()
    sampler.sample(eps_model, x_p, step_table(SPEC, lam=2.0, start=200), Guidance([Blur(2)]), Fixed(2))
    np.testing.assert_array_equal(x_p, before)


def test_guides_per_image_equal_separate_runs(x_p):
    guides = [Guidance([Blur(2)]), Guidance([Grayscale()])]
    table, noise = step_table(SPEC, lam=10.0, start=300), Fixed(2)
    both = sampler.sample(eps_model, x_p, table, PerImageGuidance(guides, np.array([1, 0])), noise)
    for i, g in enumerate((guides[1], guides[0])):
        alone = sampler.sample(eps_model, x_p, table, g, noise)
        np.testing.assert_allclose(both[i], alone[i], atol=1e-12)


def test_theorem_3_2_and_corollary_3_2_1_on_a_linear_denoiser(rng):
    """Run algorithm 1 at lambda = inf with the same noise on x and on x + p.

    Theorem 3.2 (the appendix's misprinted bars corrected): one step after the poisoned and the clean run were apart by
    sqrt(ab) A^+A p and an error A^+ delta, the new error's A-part is delta' = (1-ab_prev) sqrt(a)/sqrt(1-ab) A eps', so
    |delta'| <= (1-ab_prev) sqrt(a)/sqrt(1-ab) |A| |eps'|. Corollary 3.2.1: at the end A x^ = A (x + p).
    """
    spec = make_spec(timesteps=100, beta_end=0.2)
    blur = Blur(2)
    x = rng.uniform(-1, 1, (1, 3, 8, 8))
    p = np.zeros_like(x)
    p[..., 3:6, 3:6] = 0.7
    weight = rng.standard_normal((8, 8)) / 8

    def linear(x_t: np.ndarray, t: int) -> np.ndarray:
        return 0.5 * x_t + x_t @ weight

    states: dict[str, list[np.ndarray]] = {}
    epsilons: dict[str, list[np.ndarray]] = {}
    for key, image in (("clean", x), ("poisoned", x + p)):
        states[key], epsilons[key] = [], []

        def recorded(x_t: np.ndarray, t: int, key: str = key) -> np.ndarray:
            states[key].append(x_t.copy())
            epsilons[key].append(linear(x_t, t))
            return epsilons[key][-1]

        table = step_table(spec, lam=np.inf, steps=100)
        final = sampler.sample(recorded, image, table, Guidance([blur]), Fixed(1))
        states[key].append(final)
        np.testing.assert_allclose(blur.forward(final), blur.forward(image), atol=1e-9)  # the corollary

    a_norm = 0.5  # |A| of 2x2 average pooling: each row is four values of 1/4
    tight = []
    for i, step in enumerate(table.steps):
        a = step.ab / step.ab_next
        eps_prime = epsilons["poisoned"][i] - epsilons["clean"][i]
        # what Theorem 3.2 calls delta_{t-1}: A of (poisoned state - clean state - sqrt(ab_prev) A^+A p)
        apart = states["poisoned"][i + 1] - states["clean"][i + 1]
        delta = blur.forward(apart) - np.sqrt(step.ab_next) * blur.forward(p)
        coefficient = (1 - step.ab_next) * np.sqrt(a) / np.sqrt(1 - step.ab)
        np.testing.assert_allclose(delta, coefficient * blur.forward(eps_prime), atol=1e-9)  # equation 21
        bound = coefficient * a_norm * np.linalg.norm(eps_prime)
        assert np.linalg.norm(delta) <= bound + 1e-9
        tight.append(np.linalg.norm(delta) / (bound + 1e-12))
    assert 0.1 < max(tight) <= 1.0  # the bound is not vacuous


def gaussian_eps(mean, eigenvalues, basis):
    """Return the exact eps of x0 ~ N(mean, C), C = basis diag(eigenvalues) basis^T:
    eps = sqrt(1-ab) (ab C + (1-ab) I)^-1 (x - sqrt(ab) mean)."""
    ab_all = SPEC.alphas_cumprod()

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        ab = ab_all[t]
        flat = x.reshape(len(x), -1) - np.sqrt(ab) * mean
        scaled = (flat @ basis) / (ab * eigenvalues + 1 - ab)
        return (np.sqrt(1 - ab) * scaled @ basis.T).reshape(x.shape)

    return eps


def test_loop_reaches_the_posterior_of_a_gaussian(rng):
    """For Gaussian data, eps and the posterior of x0 given y = A x0 have closed forms.

    With components that do not mix (gray, and data whose covariance shares its eigenvectors with P), hard consistency
    gives y in the range space, and in the null space the samples must have the prior's mean and variance there.
    """
    side, n = 4, 2000
    d = 3 * side * side
    gray = Grayscale()
    projector = gray.project(np.eye(d).reshape(d, 3, side, side)).reshape(d, d)
    values, basis = np.linalg.eigh(projector)  # eigenvectors of P: 0 in the null space, 1 in the range space
    variance = np.where(values > 0.5, 0.3, 0.05)
    mean = 0.1 * rng.standard_normal(d)
    eps = gaussian_eps(mean, variance, basis)
    truth = (mean + basis @ (np.sqrt(variance) * rng.standard_normal(d))).reshape(1, 3, side, side)

    noise = Noise(11, np.arange(n))
    x_p = np.repeat(truth, n, axis=0)
    table = step_table(SPEC, lam=np.inf, eta=1.0, steps=1000)
    samples = sampler.sample(eps, x_p, table, Guidance([gray]), noise).reshape(n, d)

    in_range = values > 0.5
    coordinates = samples @ basis
    np.testing.assert_allclose(coordinates[:, in_range] - (truth.reshape(-1) @ basis)[in_range], 0, atol=1e-6)
    null = coordinates[:, ~in_range]
    error = 4 * np.sqrt(0.05 / n)  # four standard errors of a mean
    assert np.abs(null.mean(0) - (mean @ basis)[~in_range]).max() < error
    # In a null-space coordinate the loop is linear, so the variance that its finite steps leave is known exactly.
    v = 1.0
    for step in table.steps:
        k = 1 / (step.ab * 0.05 + 1 - step.ab)  # e = sqrt(1-ab) k (x - sqrt(ab) mean)
        gain = step.c * (step.a - step.b * np.sqrt(1 - step.ab) * k) + step.d * np.sqrt(1 - step.ab) * k
        v = gain**2 * v + step.s**2
    assert v == pytest.approx(0.05, rel=0.04)  # 1000 steps: 3.3% below the posterior's variance; 200 steps: 13%
    # a variance over n samples has a relative standard error of sqrt(2/n)
    assert np.abs(null.var(0) / v - 1).max() < 4.5 * np.sqrt(2 / n)


def test_samples_follow_the_posterior_mean_of_a_correlated_gaussian(rng):
    """If range and null space are correlated, the samples' mean follows the conditional mean given y."""
    side, n = 4, 3000
    d = 3 * side * side
    blur = Blur(2)
    # a smooth covariance: neighboring pixels and colors move together, so the blur carries information about the detail
    pos = np.array([(c, y, x) for c in range(3) for y in range(side) for x in range(side)], float)
    # off-center decay makes range and null space correlate
    gap = np.abs(pos[:, None] - pos[None]) * np.array([0.3, 0.5, 0.25])
    covariance = 0.2 * np.exp(-gap.sum(-1)) * np.exp(-0.2 * (pos[:, None, 2] + pos[None, :, 2]))
    values, basis = np.linalg.eigh(covariance)
    eps = gaussian_eps(np.zeros(d), values, basis)
    truth = (basis @ (np.sqrt(values) * rng.standard_normal(d))).reshape(1, 3, side, side)
    a = blur.forward(np.eye(d).reshape(d, 3, side, side)).reshape(d, -1).T
    y = a @ truth.reshape(-1)
    expected = covariance @ a.T @ np.linalg.solve(a @ covariance @ a.T, y)

    table = step_table(SPEC, lam=np.inf, eta=1.0, steps=200)
    samples = sampler.sample(eps, np.repeat(truth, n, axis=0), table, Guidance([blur]), Noise(5, np.arange(n)))
    got = samples.reshape(n, d).mean(0)
    spread = samples.reshape(n, d).std(0)
    prior_only = np.linalg.norm(blur.project(truth).reshape(-1) - expected)
    assert prior_only > 0.3  # the conditional mean is not merely A^+ y
    # replacement guidance is only nearly exact for correlated data: measured 0.025, of which 0.021 is Monte-Carlo error
    assert np.linalg.norm(got - expected) < 0.08 * prior_only + 4 * np.linalg.norm(spread) / np.sqrt(n)


def test_the_visited_steps_are_evenly_spaced():
    assert visited_steps(1000, None, None) == list(range(950, -1, -50))
    assert visited_steps(1000, 20, None) == list(range(950, -1, -50))
    assert visited_steps(1000, 7, None) == [852, 710, 568, 426, 284, 142, 0]
    assert visited_steps(1000, None, 400) == [400, 350, 300, 250, 200, 150, 100, 50, 0]
    assert visited_steps(1000, 4, 200) == [200, 133, 67, 0]
    assert visited_steps(1000, 1, 30) == [30]
    assert visited_steps(1000, 2, None) == [500, 0]
    assert visited_steps(10, None, None) == list(range(9, -1, -1))  # fewer than the paper's 20
    from_numpy = visited_steps(1000, np.int64(4), np.int32(200))
    assert from_numpy == [200, 133, 67, 0] and all(type(t) is int for t in from_numpy)
    assert visited_steps(1000, 1000, None) == list(range(999, -1, -1))


def test_last_step_has_no_noise_and_table_matches_known_values():
    table = step_table(SPEC, lam=10.0)
    assert len(table) == 20
    assert table.steps[-1].s == 0
    assert table.steps[-1].d == pytest.approx(0, abs=1e-9)
    assert table.steps[0].ab == pytest.approx(1.06e-4, rel=0.01)
    assert table.steps[0].s == pytest.approx(0.779, abs=1e-3)
    w = {s.t: s.w for s in table.steps}
    for t, expected in ((200, 0.985), (150, 0.910), (100, 0.670), (50, 0.263), (0, 0.001)):
        assert w[t] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0}, "0 ignores the input"),
        ({"lam": -1}, "positive"),
        ({"lam": float("nan")}, "lam"),
        ({"lam": 1, "eta": 1.5}, "eta"),
        ({"lam": 1, "steps": 0}, "steps"),
        ({"lam": 1, "steps": 1001}, "steps"),
        ({"lam": 1, "steps": 1}, "got 1 from pure noise, expected 2 or more; a single step needs a warm start"),
        ({"lam": 1, "steps": 2.5}, "steps: got 2.5, expected an integer"),
        ({"lam": 1, "steps": "20"}, "steps: got '20', expected an integer"),
        ({"lam": 1, "start": 300.5}, "start: got 300.5, expected a time step, an integer"),
        ({"lam": "10"}, "lam: got '10', expected a number"),
        ({"lam": 1, "eta": "1"}, "eta: got '1', expected a number"),
        ({"lam": 1, "start": 0}, "start"),
        ({"lam": 1, "start": 1000}, "start"),
        ({"lam": 1, "start": 3, "steps": 9}, "at most 4"),
    ],
)
def test_invalid_schedules_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        step_table(SPEC, **options)

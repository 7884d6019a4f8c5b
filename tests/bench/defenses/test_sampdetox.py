"""SampDetox is what its paper's formulas say, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.literal import AB, ROUNDING, Fixed, eps_model, literal_ddpm, smooth_images, state

pytest.importorskip("skimage")
pytest.importorskip("torch")

from bench.common.ssim import ssim_map_channels
from bench.defenses.diffusion import Start, ancestral
from bench.defenses.sampdetox import GRAY_WEIGHTS, SampDetox, levels, second_stage
from zipsdk.errors import InputError
from zipsdk.sampling.noise import STEP_INITIAL

pytestmark = pytest.mark.torch


def literal_ssim(x, y, at, top):
    """Wang et al. 2004 at one place, Gaussian window of 11 with sigma 1.5, C1 = (0.01 range)^2, C2 = (0.03 range)^2."""
    i = np.arange(-5, 6)
    window = np.exp(-(i[:, None] ** 2 + i**2) / (2 * 1.5**2))
    window /= window.sum()
    row, column = at
    px, py = (p[row - 5 : row + 6, column - 5 : column + 6] for p in (x, y))
    mx, my = (window * px).sum(), (window * py).sum()
    vx, vy = (window * (px - mx) ** 2).sum(), (window * (py - my) ** 2).sum()
    covariance = (window * (px - mx) * (py - my)).sum()
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    return (2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_ssim_map_is_the_formula(top, rng):
    x = rng.random((3, 20, 24))
    y = np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1)
    got = ssim_map_channels(x, y, top)
    for at in ((5, 5), (9, 12), (14, 18)):
        for c in range(3):
            assert abs(got[c][at] - literal_ssim(x[c], y[c], at, top)) < 1e-12


def test_levels_are_the_formula_and_highest_where_the_images_differ():
    x = state(1, 32, 32)[0] * 0.8
    y = x.copy()
    y[:, 20:24, 6:10] *= -1
    got = levels(x, y, 120)
    similar = np.tensordot(GRAY_WEIGHTS, ssim_map_channels((x + 1) / 2, (y + 1) / 2), 1)
    want = [[int((1 - (v - similar.min()) / (similar.max() - similar.min())) * 120) for v in row] for row in similar]
    assert got.tolist() == want
    row, column = np.unravel_index(got.argmax(), got.shape)
    assert got.max() == 120 and 18 <= row <= 25 and 4 <= column <= 11
    assert (got[:12, 16:] == 0).all()
    assert (levels(x, x, 120) == 0).all()


@pytest.mark.parametrize("count", [40, 9, 1])
def test_second_stage_is_the_paper_pixel_by_pixel(count, rng):
    level = rng.integers(0, 41, (2, 6, 7))
    level[0, 0, :2] = 0, 40
    table = ancestral(make_spec(), 40, count)
    visited = [step.t for step in table.steps]
    assert len(visited) == count and visited[0] == 39
    restored, z = state(2, 6, 7), Fixed()
    first = (1 << 20) - 1
    start = restored.copy()
    drawn = z.normal(first, 6, 7)
    for n, i, j in np.ndindex(level.shape):
        below = [t for t in visited if t < level[n, i, j]]
        if below:
            ab = AB[max(below)]
            start[n, :, i, j] = np.sqrt(ab) * restored[n, :, i, j] + np.sqrt(1 - ab) * drawn[n, :, i, j]
            assert count < 40 or max(below) == level[n, i, j] - 1

    def update(t, before, after):
        x = before.copy()
        for n, i, j in np.ndindex(level.shape):
            if level[n, i, j] > t:
                x[n, :, i, j] = after[n, :, i, j]
        return x

    want = literal_ddpm(eps_model, start, visited, lambda t: z.normal((1 << 20) + t, 6, 7), update)
    given = restored.copy()
    got = second_stage(eps_model, restored, level, table, Fixed())
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() < ROUNDING
    np.testing.assert_array_equal(restored, given)
    assert (got.transpose(0, 2, 3, 1)[level == 0] == given.transpose(0, 2, 3, 1)[level == 0]).all()


def test_sampdetox_is_its_stages_one_after_the_other():
    """Stage 1 is ancestral sampling from t1 of the image itself; no noise is used twice."""
    defense, x_p, noise = SampDetox(FakeEngine()), state(2, 24, 20), Fixed()
    z = Fixed()
    x = np.sqrt(AB[19]) * x_p + np.sqrt(1 - AB[19]) * z.normal(STEP_INITIAL, 24, 20)
    x = literal_ddpm(eps_model, x, range(19, -1, -1), lambda t: z.normal(t, 24, 20), lambda t, before, after: after)
    x = np.clip(x, -1, 1)
    level = np.stack([levels(a, b, 120) for a, b in zip(x_p, x, strict=True)])
    want = second_stage(eps_model, x, level, defense.tables[1], Fixed())
    assert np.abs(defense.restore(eps_model, x_p, noise) - want).max() < ROUNDING
    assert len(set(noise.asked)) == len(noise.asked) == 2 + 19 + 119


def test_sampdetox_takes_the_data_range():
    """At 255 the map is all but a squared difference: of two places it takes the one that is further off in value,
    at 1 the one whose structure is lost."""
    x = np.full((3, 40, 40), 0.0)
    x[:, :12, :12] += np.random.default_rng(0).uniform(-0.2, 0.2, (12, 12))
    y = x.copy()
    y[:, :12, :12] = 0.0  # a texture lost
    y[:, 28:, 28:] += 0.15  # a flat place brighter
    found = {top: np.unravel_index(levels(x, y, 120, top).argmax(), (40, 40)) for top in (1.0, 255.0)}
    assert max(found[1.0]) < 20 and min(found[255.0]) > 20
    batch = smooth_images(2)
    given, plain = (SampDetox(FakeEngine(), budget=6, data_range=top).run(batch, 0) for top in (255.0, 1.0))
    assert (given != plain).any()


def test_sampdetox_budgets():
    engine = FakeEngine()
    assert SampDetox(engine).total_steps == 140
    assert [[s.t for s in table.steps] for table in SampDetox(engine).tables] == [
        list(range(19, -1, -1)), list(range(119, -1, -1))]  # fmt: skip
    for budget in (2, 3, 20, 139):
        tables = SampDetox(engine, budget=budget).tables
        assert sum(map(len, tables)) == budget and min(map(len, tables)) >= 1
        assert [table.steps[0].t for table in tables] == [19, 119]
    assert list(map(len, SampDetox(engine, budget=20).tables)) == [3, 17]


def test_sampdetox_map_is_made_of_the_image_alone():
    """30 x 29 pixels stand in a state of 32 x 32, whose mirrored rest has no say in the levels of the image."""
    batch, seen = smooth_images(1, 30, 29), []
    defense = SampDetox(FakeEngine(), budget=4)
    x = np.pad(batch, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="reflect").transpose(0, 3, 1, 2) / 127.5 - 1.0

    def watch(x, t):
        seen.append((t, x.copy()))
        return eps_model(x, t)

    defense.restore(watch, x, Fixed(1), (30, 29))
    noised = seen[len(defense.tables[0])][1]
    first = np.clip(zip_free(defense, x), -1, 1)
    level = levels(x[0][:, :30, :29], first[0][:, :30, :29], 120)
    still = (noised == first)[0].all(0)[:30, :29]
    visited = min(s.t for s in defense.tables[1].steps)
    np.testing.assert_array_equal(still, level <= visited)


def zip_free(defense: SampDetox, x: np.ndarray) -> np.ndarray:
    from zipsdk.sampling.sampler import sample

    # NoiseSource permits a source without `top` for small images
    return sample(eps_model, x, defense.tables[0], Start(), Fixed(len(x)))  # type: ignore[arg-type]


def test_sampdetox_says_what_is_too_small():
    with pytest.raises(InputError, match="at least 11"):
        SampDetox(FakeEngine()).run(smooth_images(1, 10, 40), 0)
    assert SampDetox(FakeEngine(), budget=2).run(smooth_images(1, 11, 40), 0).shape == (1, 11, 40, 3)

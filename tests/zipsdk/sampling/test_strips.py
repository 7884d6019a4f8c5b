"""Test images that pass the loop in strips of rows: the same bits as whole images, in little memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.whole_loop import whole_run, whole_sample, whole_windows
from zipsdk import Blur, Grayscale, Linear, OneOf, Purifier
from zipsdk.sampling import cpu_loop, sampler, state
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.state import StateRows, to_model_range, to_uint8
from zipsdk.sampling.tiling import plan_tiles

FIXED = make_spec(min_side=64, max_side=64)
FLEXIBLE = make_spec()
SIZES = [(1, 1), (1, 200), (200, 1), (37, 41), (129, 70), (70, 131)]
DCT = np.array([[np.cos(np.pi * k * (2 * i + 1) / 8) for i in range(4)] for k in range(4)])
MATRIX = np.random.default_rng(3).standard_normal((5, 12))


class Upside:
    """A linear transform that is not local: the mean of an image and its mirror image from top to bottom."""

    divisor = 2

    def forward(self, x):
        return 0.5 * (x + x[:, :, ::-1])

    def pinv(self, y):
        return y

    def project(self, x):
        return self.forward(x)


GUIDES = {
    "blur2+gray": ("blur2+gray", "mean"),
    "joint": ("blur2+blur4+gray", "joint"),
    "one of": (OneOf(Blur(2), Blur(4), [Blur(8), Grayscale()]), "mean"),
    "linear": ([Linear(MATRIX, block=(2, 2)), Linear.separable(DCT[:3], DCT[:2])], "mean"),
    "not local": ([Blur(2), Upside()], "mean"),
}


def noise_images(n: int, h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * w + n).integers(0, 256, (n, h, w, 3), np.uint8)


@pytest.fixture(params=[1, 3000], ids=["thin", "some"])
def thin(request, monkeypatch):
    """Use strips as thin as the transforms allow, and strips of some rows."""
    for module in (sampler, cpu_loop, state):
        monkeypatch.setattr(module, "STRIP_PIXELS", request.param)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("spec", [FIXED, FLEXIBLE], ids=["fixed", "flexible"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_strips_give_the_same_bits_as_whole_images(size, spec, guide):
    transforms, combine = GUIDES[guide]
    p = Purifier(FakeEngine(spec), transforms, combine=combine, steps=3, seed=5, lam=2.0)
    batch = noise_images(2, *size)
    np.testing.assert_array_equal(p.run(batch, noise_keys=[7, 2**64 - 1]), whole_run(p, batch, [7, 2**64 - 1]))


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.0},
        {"eta": 0.3, "clip_x0": True},
        {"start": 400},
        {"start": 9, "steps": 1},
        {"seed": 2**64 - 1},
        {"tile_size": 32},
        {"lam": np.inf, "start": 700},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(37, 41), (70, 131)], ids=str)
def test_every_option_gives_the_same_bits(size, options):
    p = Purifier(FakeEngine(FLEXIBLE), "blur2+blur8+gray", **{"steps": 3, "seed": 1, **options})
    batch = noise_images(3, *size)
    np.testing.assert_array_equal(p.run(batch, noise_keys=[1, 2, 3]), whole_run(p, batch, [1, 2, 3]))


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_arrays_pass_in_strips(dtype):
    x_p = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 24)).astype(dtype)
    table, guide, engine = step_table(FLEXIBLE, lam=2.0, start=300), Guidance([Blur(4), Grayscale()]), FakeEngine()

    def eps(x, t):
        return engine(x, np.full(len(x), t))

    got = sampler.sample(eps, x_p, table, guide, Noise(3, [4, 5]))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, whole_sample(eps, x_p.copy(), table, guide, Noise(3, [4, 5]), False))


@pytest.mark.parametrize("unit", [1, 2, 6, 16])
@pytest.mark.parametrize("size", [(65, 65), (129, 70), (300, 66), (66, 300), (113, 113)], ids=str)
@pytest.mark.parametrize("spec", [FIXED, FLEXIBLE, make_spec(min_side=64, max_side=64, multiple=64)],
                         ids=["fixed", "flexible", "coarse"])  # fmt: skip
def test_strips_of_eps_may_be_overwritten_before_the_next(spec, size, unit, monkeypatch):
    """The loop overwrites them: no window may see rows that have changed."""
    layout = plan_tiles(spec, *size, divisor=2)
    monkeypatch.setattr("zipsdk.sampling.tiling.MAX_PIXELS_A_CALL", 3 * layout.frame_height * layout.frame_width)
    monkeypatch.setattr("tests.helpers.whole_loop.MAX_PIXELS_A_CALL", 3 * layout.frame_height * layout.frame_width)
    engine = FakeEngine(spec)
    x = np.random.default_rng(1).standard_normal((1, 3, layout.height, layout.width)).astype(np.float32)
    predictor = TiledDenoiser(engine, layout)
    expected = whole_windows(predictor, engine, layout, x, 7) if layout.windows > 1 else predictor(x, 7)
    changed, got, done = x.copy(), np.empty_like(x), 0
    for top, bottom, eps in predictor.strips(changed, 7, unit):
        assert top == done and bottom > top and top % unit == 0
        got[:, :, top:bottom] = eps
        changed[:, :, top:bottom] = np.nan
        done = bottom
    assert done == layout.height
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(predictor(x, 7), expected)


def test_windows_hold_eps_of_a_few_rows_only(monkeypatch):
    """Hold no more than one row of windows, the rows of one call and those that overlap."""
    monkeypatch.setattr("zipsdk.sampling.tiling.MAX_PIXELS_A_CALL", 64 * 64)
    layout = plan_tiles(FIXED, 500, 130, divisor=2)
    x = np.zeros((1, 3, layout.height, layout.width), np.float32)
    strips = [
        (bottom - top, eps.base.shape[2])
        for top, bottom, eps in TiledDenoiser(FakeEngine(FIXED), layout).strips(x, 3, 2)
    ]
    assert len(strips) == len(layout.ys)
    assert {held for _, held in strips} == {64}  # the state has 500 rows


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (40, 33)], ids=str)
def test_rows_of_a_state_equal_those_of_the_whole(size):
    batch = noise_images(2, *size)
    for height, width in ((size[0], size[1]), (size[0] + 3, size[1]), (64, 64)):
        expected, rows = to_model_range(batch, height, width), StateRows(batch, height, width)
        assert rows.shape == expected.shape and rows.dtype == expected.dtype
        for top, bottom in ((0, height), (0, 1), (height // 2, height), (height - 1, height)):
            np.testing.assert_array_equal(rows.rows(top, bottom), expected[:, :, top:bottom])


@pytest.mark.usefixtures("thin")
def test_a_state_is_written_to_the_given_array():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3, 37, 41)).astype(np.float32)
    expected = np.clip(np.rint((x[:, :, :35, :40] + np.float32(1)) * np.float32(127.5)), 0, 255).transpose(0, 2, 3, 1)
    out = np.zeros((2, 35, 40, 3), np.uint8)
    assert to_uint8(x, 35, 40, out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(to_uint8(x, 35, 40), expected)


@pytest.mark.parametrize("top", [1, 7, 33])
@pytest.mark.parametrize("width", [1, 13, 300, 9000])
def test_noise_of_a_strip_equals_that_of_the_whole(top, width):
    noise = Noise(2**64 - 2, [0, 2**64 - 1])
    np.testing.assert_array_equal(noise.normal(4, 40 - top, width, top), noise.normal(4, 40, width)[:, :, top:])


def test_no_images_give_no_images():
    table, guide = step_table(FLEXIBLE, lam=2.0, start=300), Guidance([Blur(2)])
    got = sampler.sample(lambda x, t: x, np.zeros((0, 3, 32, 32)), table, guide, Noise(1, []))
    assert got.shape == (0, 3, 32, 32)

"""Test tiles and windows: the places of images on frames."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, FunctionEngine, make_spec
from zipsdk import Purifier
from zipsdk.errors import EngineError, InputError
from zipsdk.sampling import state, tiling
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.tiling import plan_tiles

FIXED = make_spec(min_side=64, max_side=64)
FLEXIBLE = make_spec()
COARSE = make_spec(min_side=64, max_side=64, multiple=64)


def pointwise(x, t):
    """Return eps = x * t / (t + 1) pixel by pixel, which shows the place of each pixel."""
    return (x * (t / (t + 1))[:, None, None, None]).astype(np.float32)


@pytest.mark.parametrize("spec", [FIXED, FLEXIBLE, COARSE], ids=["fixed", "flexible", "coarse"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (21, 21), (32, 32), (33, 20), (64, 64), (65, 64), (150, 70),
                                  (7, 300), (200, 131), (264, 64)])  # fmt: skip
def test_every_pixel_returns_to_its_place(spec, n, size, rng):
    layout = plan_tiles(spec, *size, divisor=2)
    assert layout.height >= size[0] and layout.width >= size[1]
    assert layout.height % 2 == 0 and layout.width % 2 == 0
    engine = FunctionEngine(pointwise, spec)
    x = rng.standard_normal((n, 3, layout.height, layout.width)).astype(np.float32)
    got = TiledDenoiser(engine, layout)(x, 7)
    # window weights sum to 1 up to rounding
    np.testing.assert_allclose(got, x * np.float32(7 / 8), rtol=0, atol=3e-6)
    for shape, t in engine.calls:
        assert t == 7
        assert shape[2:] == (layout.frame_height, layout.frame_width)
        assert spec.flexible or shape[2:] == (64, 64)
        assert shape[0] * shape[2] * shape[3] <= tiling.MAX_PIXELS_A_CALL


def test_tiles_stand_row_by_row_in_arrival_order():
    layout = plan_tiles(FIXED, 32, 32, divisor=2)
    assert (layout.rows, layout.columns, layout.images_per_frame) == (2, 2, 4)
    seen = []
    engine = FunctionEngine(lambda x, t: seen.append(x.copy()) or x, FIXED)
    x = np.broadcast_to(np.arange(5, dtype=np.float32)[:, None, None, None], (5, 3, 32, 32)).copy()
    TiledDenoiser(engine, layout)(x, 1)
    (frames,) = seen
    assert frames.shape == (2, 3, 64, 64)
    assert [frames[0, 0, y, x_] for y, x_ in ((0, 0), (0, 40), (40, 0), (40, 40))] == [0, 1, 2, 3]
    assert np.unique(frames[1]).tolist() == [4]  # the last frame is filled up with its own image


@pytest.mark.parametrize("side", [20, 21, 30, 31, 32])
def test_a_frame_holds_as_many_tiles_as_fit(side):
    assert plan_tiles(FIXED, side, side, divisor=2).images_per_frame == (64 // (side + side % 2)) ** 2


def test_uncovered_border_mirrors_the_tiles():
    """A frame of 64 holds two tiles of 30: the last 4 rows are the mirrored ones before them."""
    seen = []
    engine = FunctionEngine(lambda x, t: seen.append(x.copy()) or x, FIXED)
    x = np.random.default_rng(0).standard_normal((4, 3, 30, 30)).astype(np.float32)
    TiledDenoiser(engine, plan_tiles(FIXED, 30, 30, divisor=2))(x, 1)
    np.testing.assert_array_equal(seen[0][:, :, 60:64], seen[0][:, :, 58:54:-1])


@pytest.mark.parametrize("length", [65, 66, 100, 128, 129, 333, 1200])
def test_windows_cover_everything_and_weights_sum_to_one(length):
    layout = plan_tiles(FIXED, length + length % 2, 64, divisor=2)
    side, total = 64, np.zeros(layout.height)
    assert layout.ys[0] == 0 and layout.ys[-1] + side == layout.height
    for corner, weight in zip(layout.ys, tiling.ramp(layout.height, layout.ys, side, layout.overlap), strict=True):
        assert (weight > 0).all()
        total[corner : corner + side] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    gaps = np.diff(layout.ys)
    assert (gaps > 0).all() and (gaps <= side - layout.overlap + 4).all()


def test_windows_agree_in_their_overlaps(rng):
    """The blended eps of an engine that is off by a constant per window has no step at a window's border."""

    def shifted(x, t):
        return x + np.arange(len(x), dtype=np.float32)[:, None, None, None]  # a constant for each window

    engine = FunctionEngine(shifted, FIXED)
    layout = plan_tiles(FIXED, 160, 64, divisor=2)
    eps = TiledDenoiser(engine, layout)(np.zeros((1, 3, 160, 64), np.float32), 1)
    steps = np.abs(np.diff(eps[0, 0, :, 10]))
    assert steps.max() <= 1.5 / layout.overlap  # a ramp across the overlap, where a hard seam would jump by 1


def test_flexible_engine_sees_images_at_their_own_size():
    layout = plan_tiles(FLEXIBLE, 50, 97, divisor=8)
    assert (layout.frame_height, layout.frame_width) == (layout.height, layout.width) == (56, 104)
    assert plan_tiles(FLEXIBLE, 3, 3, divisor=2).height == 32  # not below what it was trained on
    assert plan_tiles(FLEXIBLE, 32, 32, divisor=2, tile_size=64).images_per_frame == 4  # but tiles on request


@pytest.mark.parametrize("spec", [FLEXIBLE, make_spec(multiple=16, min_side=48), FIXED], ids=["4", "16", "fixed"])
@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 6, 12, 16])
def test_plans_are_valid_for_all_sizes(spec, divisor):
    """The engine takes the frames, and windows leave no gap, for all sides around the limits."""
    if not spec.flexible and 64 % divisor:
        with pytest.raises(InputError, match="expected a size that divides the UNet input of 64"):
            plan_tiles(spec, 32, 32, divisor)
        return
    sides = (1, 2, 31, 33, 48, 63, 64, 65, 119, 121, 127, 128, 129, 257, 1000)
    for height in sides:
        for width in sides:
            a = plan_tiles(spec, height, width, divisor)
            assert a.height >= height and a.width >= width and not a.height % divisor and not a.width % divisor
            for side in (a.frame_height, a.frame_width):
                assert not side % spec.multiple and spec.min_side <= side <= spec.max_side
            for length, side, corners in (
                (a.height, a.frame_height, a.ys),
                (a.width, a.frame_width, a.xs),
            ):
                if a.windows > 1:
                    assert corners[0] == 0 and corners[-1] + side == length
                    assert all(0 < step <= side for step in np.diff(corners))


def test_windows_of_a_thin_image_are_thin():
    """Square windows would cost four times the work, mostly for padding."""
    layout = plan_tiles(FLEXIBLE, 1, 4000, divisor=2)
    assert (layout.frame_height, layout.frame_width, layout.height, layout.ys) == (32, 128, 32, (0,))
    assert layout.frames(1) * layout.frame_pixels < 1.4 * 32 * 4000
    tall = plan_tiles(FLEXIBLE, 4000, 1, divisor=2)
    assert (tall.frame_width, tall.frame_height, tall.xs, tall.ys) == (32, 128, (0,), layout.xs)


@pytest.mark.parametrize("length", [129, 200, 224, 225, 300, 1000])
def test_windows_are_the_smallest_for_their_number(length):
    """For 129 pixels, two windows of 128 per axis would compute four times the area."""
    layout = plan_tiles(FLEXIBLE, length, length, divisor=2)
    side, state = layout.frame_width, layout.width
    most = len(tiling._corners(state, 128, 32, 4))
    assert layout.overlap == 32 and side % 4 == 0 and len(layout.xs) == len(layout.ys) == most
    assert most * side - (most - 1) * 32 >= state > most * (side - 4) - (most - 1) * 32


@pytest.mark.parametrize("spec", [FLEXIBLE, FIXED], ids=["flexible", "fixed"])
def test_no_noise_is_repeated_to_fill_a_window(spec):
    """Padding gets noise of its own, because a UNet is not trained on repeated noise."""
    seen, plain = [], FakeEngine(spec)
    engine = FunctionEngine(lambda x, t: seen.append(x.copy()) or plain(x, t), spec)
    Purifier(engine, "blur2", seed=1, steps=2).run(np.full((1, 2, 300, 3), 128, np.uint8))
    rows = seen[0][0, 0]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.7  # of independent normals: 5.7 of their deviations


@pytest.mark.parametrize("side", [500, 505, 511, 512, 513, 600])
def test_a_blur_that_does_not_divide_the_largest_frame_uses_smaller_ones(side):
    layout = plan_tiles(make_spec(max_side=512), side, side, divisor=3)
    assert layout.frame_height == layout.frame_width <= 504 and layout.frame_width % 12 == 0


def test_noise_that_would_repeat_is_refused():
    assert plan_tiles(FLEXIBLE, 1, 65536, divisor=2).width == 65536
    for size, divisor, most in (((1, 65537), 2, 65536), ((70000, 9), 1, 65536), ((1, 65536), 3, 65535)):
        message = f"image: got {size[1]} x {size[0]} pixels, expected sides of at most {most}; cut the image into parts"
        with pytest.raises(InputError, match=message):
            plan_tiles(FLEXIBLE, *size, divisor=divisor)


def test_padding_mirrors_and_single_pixels_repeat():
    x = np.arange(2 * 3 * 2 * 3, dtype=np.uint8).reshape(2, 3, 2, 3)
    padded = state.pad(x, 4, 4)
    np.testing.assert_array_equal(padded[:, 3, :2], x[:, 1])
    np.testing.assert_array_equal(padded[:, :3, 2], x[:, :, 0])
    one = state.pad(np.full((1, 1, 1, 3), 9, np.uint8), 8, 8)
    assert (one == 9).all()


def test_invalid_plans_are_refused():
    with pytest.raises(InputError, match="cells of 3 pixels, expected a size that divides the UNet input of 64"):
        plan_tiles(FIXED, 32, 32, divisor=3)
    with pytest.raises(
        InputError, match=r"9 pixels, expected a size that divides any side of 48\.\.64 that fake takes"
    ):
        plan_tiles(make_spec(multiple=16, min_side=48, max_side=64), 32, 32, divisor=9)
    for side in (30, 62, 256, 64.0, "64", True):
        with pytest.raises(InputError, match="tile_size: got"):
            plan_tiles(FLEXIBLE, 32, 32, divisor=2, tile_size=side)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.astype(np.float64), "float32 array"),
        (lambda x: x[:, :2], "expected eps"),
        (lambda x: x.tolist(), "got list"),
        (lambda x: x * np.float32(np.nan), "not finite"),
    ],
)
def test_invalid_outputs_of_an_engine_are_refused(answer, message):
    engine = FunctionEngine(lambda x, t: answer(x), FIXED)
    with pytest.raises(EngineError, match=message):
        TiledDenoiser(engine, plan_tiles(FIXED, 64, 64, divisor=2))(np.ones((1, 3, 64, 64), np.float32), 1)


def test_an_engine_may_return_its_input():
    engine = FunctionEngine(lambda x, t: x, FIXED)
    x = np.ones((1, 3, 64, 64), np.float32)
    eps = TiledDenoiser(engine, plan_tiles(FIXED, 64, 64, divisor=2))(x, 1)
    x *= 5
    assert (eps == 1).all()

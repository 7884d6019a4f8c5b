"""Test the CUDA kernels on the CPU through the g++ shim: noise, ingest, fill, egress and the whole loop.

`-m gpu` runs these tests and those of test_kernel_step.py on a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.kernel_cases import BY_NAME, Buffer, assert_close, counter_with, exact_normals
from tests.helpers.kernel_runner import BACKENDS, SEED, batch_of, by_case, ids_of, rows, runner
from tests.helpers.philox import VECTORS
from zipsdk.gpu import structs
from zipsdk.sampling import sampler
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import Guidance, PerImageGuidance
from zipsdk.sampling.noise import STEP_INITIAL, Noise, philox4x32
from zipsdk.sampling.schedule import step_table
from zipsdk.sampling.state import pad
from zipsdk.sampling.tiling import TileLayout
from zipsdk.transforms import parse


@pytest.fixture(scope="module", params=BACKENDS)
def run(request):
    return runner(request.param)


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(run, counter, key, expected):
    words = np.repeat(np.array(counter, np.uint32)[:, None], 5, axis=1)
    out = Buffer(words.shape, np.uint32)
    run("zip_philox", words, out, np.uint32(5), np.uint32(key[0]), np.uint32(key[1]))
    np.testing.assert_array_equal(out.array, np.repeat(np.array(expected, np.uint32)[:, None], 5, axis=1))


@pytest.mark.parametrize("n", [0, 1, 31, 1000])
def test_philox_equals_that_of_numpy_bit_for_bit(run, rng, n):
    words, key = rng.integers(0, 2**32, (4, n), np.uint32), (0xDEADBEEF, 0x12345678)
    out = Buffer(words.shape, np.uint32)
    run("zip_philox", words, out, np.uint32(n), *map(np.uint32, key))
    np.testing.assert_array_equal(out.array, philox4x32(words.astype(np.uint64), key))


@by_case
def test_ingest_writes_the_image_and_the_first_noise(run, rng, case):
    """x_P is exact, x_T is the noise of NumPy, and pixels of no image are not written."""
    images = rng.integers(0, 256, (case.images, *case.size, 3), np.uint8)
    x_p, x, ids = Buffer(case.shape, np.uint8), Buffer(case.shape, np.float32), ids_of(case.images)
    run("zip_ingest", images, x_p, x, structs.image_rows(ids), case.row, batch_of(case))
    a = case.layout
    expected = pad(images, a.height, a.width).transpose(0, 3, 1, 2) if len(images) else images.reshape(0, 3, 32, 32)
    np.testing.assert_array_equal(case.images_of(x_p.array), expected)
    unused = case.unused_pixels()
    assert (x_p.array.transpose(0, 2, 3, 1)[unused] == 0xA5).all()
    assert np.isnan(x.array.transpose(0, 2, 3, 1)[unused]).all()
    plain = Noise(SEED, ids).normal(STEP_INITIAL, a.height, a.width)
    assert_close("ingest", case.images_of(x.array), plain, exact_normals(SEED, ids, STEP_INITIAL, a.height, a.width))


def test_a_million_normals_are_accurate(run):
    """The number suffices for logarithms near 1 and for every octant of the circle."""
    n, side = 10, 192
    layout = TileLayout(side, side, side, side)
    ids = ids_of(n)
    x, x_p = Buffer((n, 3, side, side), np.float32), Buffer((n, 3, side, side), np.uint8)
    run("zip_ingest", np.zeros((n, side, side, 3), np.uint8), x_p, x, structs.image_rows(ids),
        structs.layout_row(layout, side, side), structs.batch_row(n, layout, SEED))  # fmt: skip
    plain, exact = Noise(SEED, ids).normal(STEP_INITIAL, side, side), exact_normals(SEED, ids, STEP_INITIAL, side, side)
    assert_close("normals", x.array, plain, exact)
    assert np.mean((x.array - exact) ** 2) <= np.mean((plain - exact) ** 2)


@pytest.mark.parametrize("word", [0, 1, 300, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1])
def test_normals_of_extreme_words_are_accurate(run, word):
    """Check pixels whose first or third Philox word is `word`; Philox run backwards finds them."""
    side = 256
    layout = TileLayout(side, side, side, side)
    for place in (0, 2):
        row, column, step, image = counter_with(word, place, SEED, side)
        x = np.zeros((1, 3, side, side), np.float32)
        steps = np.zeros(1, structs.STEP)
        steps["s"], steps["t"] = 1, step
        out = Buffer(x.shape, np.float32)
        ids = np.array([image], np.uint64)
        run("zip_step_f32", x, x, np.zeros(x.shape, np.uint8), out, structs.image_rows(ids),
            np.zeros(1, structs.GUIDE), steps, structs.layout_row(layout, side, side),
            structs.batch_row(1, layout, SEED))  # fmt: skip
        plain, exact = Noise(SEED, ids).normal(step, side, side), exact_normals(SEED, ids, step, side, side)
        at = (0, slice(0, 2) if place == 0 else slice(2, 3), row, column)
        assert np.abs(out.array[at] - exact[at]).max() <= max(2e-6, 2 * np.abs(plain[at] - exact[at]).max())


@by_case
def test_fill_equals_the_tiled_denoiser(run, rng, case):
    a = case.layout
    images = rng.standard_normal((case.images, 3, a.height, a.width)).astype(np.float32)
    x = Buffer(case.shape, np.float32)
    for i in range(case.images):
        frame, y, column = case.place(i)
        x.array[frame, :, y, column] = images[i]
    run("zip_fill", x, case.row, batch_of(case))
    seen = []
    if case.images:
        TiledDenoiser(lambda x, t: seen.append(x) or x, a)(images, 0)
    np.testing.assert_array_equal(x.array, np.concatenate(seen) if seen else np.empty(case.shape, np.float32))


@by_case
def test_egress_rounds_as_numpy_does(run, rng, case):
    """Compare exactly: halves, their neighbors, and values far out of range."""
    x = ((rng.integers(-8, 520, case.shape) / 2).astype(np.float32) / np.float32(127.5) - 1).astype(np.float32)
    x = np.nextafter(x, rng.choice(np.array([-9, 9], np.float32), case.shape))
    flat = x.reshape(-1)
    flat[::7] = rng.choice(np.array([-1e30, -1, 1, 1e30, 0, 3.9e-3], np.float32), flat[::7].shape)
    flat[::5] = rng.integers(-400, 400, flat[::5].shape) / 255  # (x + 1) 127.5 is a half, or next to one
    x.transpose(0, 2, 3, 1)[case.unused_pixels()] = np.nan
    out = Buffer((case.images, *case.size, 3), np.uint8)
    flag = Buffer((1,), np.uint32, np.zeros(1, np.uint32))
    run("zip_egress", x, out, flag, case.row, batch_of(case))
    v = case.images_of(x)[:, :, : case.size[0], : case.size[1]]
    expected = np.clip(np.rint((v + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(out.array, expected)
    assert flag.array[0] == 0


def test_egress_rounds_halves_to_even(run):
    """Check 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, ...: values for which (x + 1) 127.5 is a half exactly."""
    x = (np.arange(256, dtype=np.float64) + 0.5) / 127.5 - 1
    candidates = np.stack([np.nextafter(x.astype(np.float32), np.float32(s)) for s in (-9, 9)] + [x.astype(np.float32)])
    halves = (candidates + np.float32(1)) * np.float32(127.5) % 1 == 0.5
    row = np.where(halves.any(0), np.take_along_axis(candidates, halves.argmax(0)[None], 0)[0], 0)
    assert halves.any(0).sum() > 100
    layout = TileLayout(1, 256, 1, 256)
    out, flag = Buffer((1, 1, 256, 3), np.uint8), Buffer((1,), np.uint32, np.zeros(1, np.uint32))
    run("zip_egress", np.tile(row.astype(np.float32), (1, 3, 1, 1)), out, flag, structs.layout_row(layout, 1, 256),
        structs.batch_row(1, layout, 0))  # fmt: skip
    half = np.arange(256) + 0.5
    expected = np.where(halves.any(0), np.clip(np.rint(half), 0, 255), 128)
    np.testing.assert_array_equal(out.array[0, 0, :, 0], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_egress_flags_values_that_are_not_finite(run, rng, bad):
    case = BY_NAME["gap"]
    x = rng.standard_normal(case.shape).astype(np.float32)
    frame, y, column = case.place(6)
    x[frame, 2, y.start + 20, column.start + 17] = bad
    out = Buffer((case.images, *case.size, 3), np.uint8)
    flag = Buffer((1,), np.uint32, np.zeros(1, np.uint32))
    run("zip_egress", x, out, flag, case.row, batch_of(case))
    assert flag.array[0] == 1


@pytest.mark.parametrize("name", ["none", "three", "tiles", "gap"])
@pytest.mark.parametrize("start", [None, 400])
def test_the_whole_loop_equals_the_cpu_loop(run, rng, name, start):
    """Run ingest, the warm start if any, 20 or 9 engine calls and steps, and egress; each image draws its guide."""
    case = BY_NAME[name]
    a, ids = case.layout, ids_of(case.images)
    images = rng.integers(0, 256, (case.images, *case.size, 3), np.uint8)
    guides = [Guidance(parse(t)) for t in case.guides]
    table = step_table(make_spec(), lam=10.0, start=start)
    noise, engine = Noise(SEED, ids), FakeEngine()
    which = noise.choice(len(guides))

    image_rows, batch = structs.image_rows(ids, which), batch_of(case)
    x, x_p = Buffer(case.shape, np.float32), Buffer(case.shape, np.uint8)
    guide_rows = rows(*map(structs.guide_row, guides), dtype=structs.GUIDE)

    def step(e, row, table_of_guides):
        steps = rows(*[row] * case.frames, dtype=structs.STEP)
        run("zip_step_f32", x, e, x_p, x, image_rows, table_of_guides, steps, case.row, batch)
        run("zip_fill", x, case.row, batch)

    run("zip_ingest", images, x_p, x, image_rows, case.row, batch)
    run("zip_fill", x, case.row, batch)
    if table.warm:
        step(x, structs.warm_row(table), rows(*[structs.guide_row(g, joint=True) for g in guides], dtype=structs.GUIDE))
    for s in table.steps:
        e = engine(x.array, np.full(max(1, case.frames), s.t, np.float32))
        step(e, structs.step_row(s), guide_rows)
    out, flag = Buffer(images.shape, np.uint8), Buffer((1,), np.uint32, np.zeros(1, np.uint32))
    run("zip_egress", x, out, flag, case.row, batch)
    assert flag.array[0] == 0
    if not case.images:
        return

    rgb = pad(images, a.height, a.width).transpose(0, 3, 1, 2).astype(np.float32) * np.float32(1 / 127.5) - 1
    expected = sampler.sample(TiledDenoiser(engine, a), np.ascontiguousarray(rgb), table,
                          PerImageGuidance(guides, which), noise)  # fmt: skip
    expected = np.clip(np.rint((expected + 1) * np.float32(127.5)), 0, 255)[:, :, : case.size[0], : case.size[1]]
    difference = np.abs(out.array.transpose(0, 3, 1, 2) - expected)
    # places on a frame and the last bit of the normals may change a rounding
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3

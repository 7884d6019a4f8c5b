"""Test the step, as one kernel and as the kernels for `Linear`, against zipsdk.sampling.sampler."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.engine import make_spec
from tests.helpers.kernel_cases import BY_NAME, Buffer, ExactNoise, assert_close, like, make_case, one_step, steps_of
from tests.helpers.kernel_runner import BACKENDS, SEED, batch_of, by_case, ids_of, rows, runner, state
from zipsdk.gpu import structs
from zipsdk.sampling import sampler
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import step_table
from zipsdk.transforms import Blur, Grayscale, Linear, parse

PRECISIONS = ("f32", "f16", "bf16")


@pytest.fixture(scope="module", params=BACKENDS)
def run(request):
    return runner(request.param)


def launch_step(run, case, x, e, x_p, image_rows, guides, steps, precision="f32"):
    """Run the step kernel and return its frames."""
    out = Buffer(case.shape, np.float32)
    run(f"zip_step_{precision}", x, e, x_p, out, image_rows, guides, steps, case.row, batch_of(case))
    return out.array


def guides_of(case):
    """Return every guide that fits the case, by mean and jointly."""
    return [Guidance(parse(text), combine) for text in case.guides for combine in ("mean", "joint")]


def both(arguments, step, guide, ids, clip_x0=False):
    """Compute the step in plain float32 and in float64."""
    return [one_step(*arguments, step, guide, SEED, ids, dtype=d, clip_x0=clip_x0) for d in (np.float32, np.float64)]


@pytest.mark.parametrize("precision", PRECISIONS)
@by_case
def test_the_step_is_accurate(run, rng, case, precision):
    """Check every guide that fits, at the first, a middle or the last step."""
    visited = steps_of(make_spec())
    ids = ids_of(case.images)
    results = []
    for i, guide in enumerate(guides_of(case)):
        step = (visited[0], visited[-6], visited[-1])[i % 3]
        x, e, value, x_p = state(case, rng, precision)
        got = launch_step(run, case, x, e, x_p, structs.image_rows(ids),
                          rows(structs.guide_row(guide), dtype=structs.GUIDE),
                          rows(*[structs.step_row(step)] * case.frames, dtype=structs.STEP), precision)  # fmt: skip
        assert np.isnan(got.transpose(0, 2, 3, 1)[case.unused_pixels()]).all()
        arguments = [case.images_of(v) for v in (x, value, x_p)]
        results.append([case.images_of(got), *both(arguments, step, guide, ids)])
    # over all guides, so that no single pixel sets the error of plain float32
    assert_close(f"step {precision}, {case.name}", *map(np.stack, zip(*results, strict=True)))


@pytest.mark.parametrize("name", ["tiles", "narrow"])
def test_step_with_rows_for_each_frame_and_guides_for_each_image(run, rng, name):
    case = BY_NAME[name]
    visited, ids = steps_of(make_spec(), lam=2.0), ids_of(case.images)
    guides = guides_of(case)
    which = rng.integers(0, len(guides), case.images)
    step_of_frame = [visited[(3 * c + 1) % 20] for c in range(case.frames)]
    x, e, _, x_p = state(case, rng)
    got = launch_step(run, case, x, e, x_p, structs.image_rows(ids, which),
                      rows(*map(structs.guide_row, guides), dtype=structs.GUIDE),
                      rows(*map(structs.step_row, step_of_frame), dtype=structs.STEP))  # fmt: skip
    per, arguments = case.layout.images_per_frame, [case.images_of(v) for v in (x, e, x_p)]
    for i in range(case.images):
        one, step = [v[i : i + 1] for v in arguments], step_of_frame[i // per]
        plain, exact = both(one, step, guides[which[i]], ids[i : i + 1])
        assert_close("step, mixed", case.images_of(got)[i : i + 1], plain, exact)


@pytest.mark.parametrize("name", ["three", "gap"])
def test_step_in_place_and_repeated_gives_the_same_bits(run, rng, name):
    case = BY_NAME[name]
    step, guide = steps_of(make_spec())[3], Guidance(parse("blur4+gray"))
    x, e, _, x_p = state(case, rng)
    tables = (structs.image_rows(ids_of(case.images)), rows(structs.guide_row(guide), dtype=structs.GUIDE),
              rows(*[structs.step_row(step)] * case.frames, dtype=structs.STEP))  # fmt: skip
    first = launch_step(run, case, x, e, x_p, *tables)
    np.testing.assert_array_equal(first, launch_step(run, case, x, e, x_p, *tables))
    same = like(x)
    run("zip_step_f32", same, e, x_p, same, *tables, case.row, batch_of(case))
    np.testing.assert_array_equal(case.images_of(same.array), case.images_of(first))


@pytest.mark.stress
def test_250_launches_of_the_step_are_equal(run, rng):
    case = BY_NAME["tiles"]
    step, guide = steps_of(make_spec())[3], Guidance(parse("blur16+gray"))
    x, e, _, x_p = state(case, rng)
    tables = (structs.image_rows(ids_of(case.images)), rows(structs.guide_row(guide), dtype=structs.GUIDE),
              rows(*[structs.step_row(step)] * case.frames, dtype=structs.STEP))  # fmt: skip
    first = launch_step(run, case, x, e, x_p, *tables)
    for _ in range(249):
        np.testing.assert_array_equal(first, launch_step(run, case, x, e, x_p, *tables))


@by_case
def test_the_step_clamps_x0(run, rng, case):
    step, guide = steps_of(make_spec(), lam=2.0)[-4], Guidance(parse(case.guides[-1]))
    ids = ids_of(case.images)
    x, e, value, x_p = state(case, rng, scale=2.0)
    got = launch_step(run, case, x, e, x_p, structs.image_rows(ids),
                      rows(structs.guide_row(guide), dtype=structs.GUIDE),
                      rows(*[structs.step_row(step, clip_x0=True)] * case.frames, dtype=structs.STEP))  # fmt: skip
    arguments = [case.images_of(v) for v in (x, value, x_p)]
    plain, exact = both(arguments, step, guide, ids, clip_x0=True)
    assert_close("step, clamped", case.images_of(got), plain, exact)


@by_case
def test_the_step_makes_a_warm_start(run, rng, case):
    table = step_table(make_spec(), lam=10.0, start=400)
    guide, ids = Guidance(parse(case.guides[-1])), ids_of(case.images)
    x, _, _, x_p = state(case, rng)
    joint = rows(structs.guide_row(guide, joint=True), dtype=structs.GUIDE)
    got = launch_step(run, case, x, x, x_p, structs.image_rows(ids), joint,
                      rows(*[structs.warm_row(table)] * case.frames, dtype=structs.STEP))  # fmt: skip
    expected = []
    for dtype, source in ((np.float32, Noise(SEED, ids)), (np.float64, ExactNoise(SEED, ids))):
        rgb = case.images_of(x_p).astype(dtype) * dtype(1 / 127.5) - dtype(1)
        expected.append(sampler.initial_latent(rgb, table, guide, source))
    assert_close("warm start", case.images_of(got), *expected)


def by_linear(run, case, precision, x, e, x_p, image_rows, steps, guide):
    """Compute a step by the kernels for `Linear`; each transform is a chain of (matrix, axis)."""

    def apply(source, out, matrix, axis, alpha=1.0, beta=0.0):
        run("zip_apply", source, out, matrix.astype(np.float32), np.uint32(len(matrix)), np.uint32(axis),
            np.float32(alpha), np.float32(beta), case.row, batch_of(case))  # fmt: skip

    def project(transform, source, out, alpha, beta):
        chain = chain_of(transform)
        for i, (matrix, axis) in enumerate(chain):
            last = i == len(chain) - 1
            to = out if last else Buffer(case.shape, np.float32)
            apply(source, to, matrix, axis, *((alpha, beta) if last else ()))
            source = to

    r, correction = Buffer(case.shape, np.float32), Buffer(case.shape, np.float32)
    run(f"zip_residual_{precision}", x, e, x_p, r, steps, case.row, batch_of(case))
    one = np.ones((1, 1))
    if guide.combine == "mean":
        for i, t in enumerate(guide.transforms):
            project(t, r, correction, 1 / len(guide.transforms), float(i > 0))
    else:
        rest = Buffer(case.shape, np.float32)
        apply(r, rest, one, 0)
        for t in guide.transforms:
            project(t, like(rest.array), rest, -1.0, 1.0)
        apply(r, correction, one, 0)
        apply(rest, correction, one, 0, -1.0, 1.0)
    out = Buffer(case.shape, np.float32)
    run(f"zip_finish_{precision}", x, e, correction, out, image_rows, steps, case.row, batch_of(case))
    return out.array


def chain_of(transform):
    """Return a transform as matrices and their axes."""
    if isinstance(transform, Grayscale):
        return [(np.full((3, 3), 1 / 3), 2)]
    if isinstance(transform, Blur):
        n = transform.n
        return [(np.full((n, n), 1 / n), 0), (np.full((n, n), 1 / n), 1)]
    return [(transform._pc, 0), (transform._pr, 1)]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.7, -0.3)])
@pytest.mark.parametrize(("axis", "n"), [(0, 1), (0, 120), (0, 5), (1, 8), (1, 24), (2, 3)])
def test_apply_multiplies_blocks_along_one_axis(run, rng, axis, n, alpha, beta):
    """Use a matrix without symmetry."""
    case = make_case("apply", 3, (24, 120), (49, 240), "", grid=(2, 2))
    source, before = state(case, rng)[:2]
    matrix = rng.standard_normal((n, n)).astype(np.float32)
    out = Buffer(case.shape, np.float32, None if beta == 0 else before)
    run("zip_apply", source, out, matrix, np.uint32(n), np.uint32(axis), np.float32(alpha), np.float32(beta), case.row,
        batch_of(case))  # fmt: skip
    x, y = (np.moveaxis(case.images_of(v), (3, 2, 1)[axis], -1) for v in (source, before))

    def plain(dtype):
        blocks = x.reshape(*x.shape[:-1], -1, n).astype(dtype) @ matrix.T.astype(dtype)
        return dtype(np.float32(alpha)) * blocks.reshape(x.shape) + dtype(np.float32(beta)) * y.astype(dtype)

    got = np.moveaxis(case.images_of(out.array), (3, 2, 1)[axis], -1)
    assert_close(f"apply, axis {axis}", got, plain(np.float32), plain(np.float64))


LOW_RANK = np.random.default_rng(11)
SEPARABLE = Linear.separable(LOW_RANK.standard_normal((3, 8)), LOW_RANK.standard_normal((2, 10)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("combine", ["mean", "joint"])
@pytest.mark.parametrize(
    ("size", "transforms"),
    [((24, 20), [SEPARABLE]), ((24, 20), [SEPARABLE, Grayscale()]), ((9, 15), [Blur(3), Grayscale()]),
     ((7, 5), [Grayscale()]), ((80, 40), [Blur(5), SEPARABLE])],
    ids=["separable", "separable and gray", "blur3 and gray", "gray", "blur5 and separable"],
)  # fmt: skip
def test_the_linear_kernels_are_accurate(run, rng, size, transforms, combine, precision):
    guide = Guidance(transforms, combine)
    case = make_case("linear", 3, size, (size[0] * 2 + 1, size[1] * 2), "", grid=(2, 2))
    ids, visited = ids_of(3), steps_of(make_spec())
    for step, clip in ((visited[0], False), (visited[-5], True), (visited[-1], False)):
        x, e, value, x_p = state(case, rng, precision)
        steps = rows(*[structs.step_row(step, clip_x0=clip)] * case.frames, dtype=structs.STEP)
        got = by_linear(run, case, precision, x, e, x_p, structs.image_rows(ids), steps, guide)
        assert np.isnan(got.transpose(0, 2, 3, 1)[case.unused_pixels()]).all()
        arguments = [case.images_of(v) for v in (x, value, x_p)]
        plain, exact = both(arguments, step, guide, ids, clip_x0=clip)
        assert_close(f"linear {precision}", case.images_of(got), plain, exact)


def test_guides_that_the_step_kernel_lacks_have_no_row():
    assert structs.guide_row(Guidance([Blur(3)])) is None
    assert structs.guide_row(Guidance([Grayscale(), SEPARABLE])) is None
    assert structs.guide_row(Guidance(parse("blur2+blur4+gray"), "joint"))["blur"].tolist() == [0, 1, 0, 0, 0]

"""Each baseline is what its paper's formulas say, in float64; and all of them keep what a `Defence` promises."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import FakeEngine, make_spec

pytest.importorskip("skimage")

from PIL import Image

from bench.baselines.diffusion import DDNM, DiffPure, Start, ancestral, clamped
from bench.baselines.purifier import Zip, algorithm_1
from bench.baselines.sampdetox import GREY, SampDetox, levels, second_stage, ssim_map
from bench.baselines.simple import BlurOnly, Nothing, ShrinkPad, fingerprints, noise_of
from zipsdk import Purifier
from zipsdk.canvas import pad
from zipsdk.errors import InputError
from zipsdk.noise import STEP_INITIAL
from zipsdk.schedule import alphas_cumprod, step_table
from zipsdk.transforms import Blur, Grayscale, Guide, Linear, OneOf

AB = alphas_cumprod(make_spec())
#: Rounding alone parts the literal forms from the loops: 3.6e-13 at most was measured, for DDNM, whose steps begin at
#: 1/sqrt(ab) = 100 with a larger state, 2.8e-12.
ROUNDING = 1e-12


def pictures(n: int, h: int = 32, w: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth pictures with some noise on them, so that no value clips."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / 32
    waves = [np.sin(np.stack([a * x + b * y + c for c in (0, 1, 2)], -1)) for a, b in rng.uniform(1, 6, (n, 2))]
    return (128 + 70 * np.stack(waves) + rng.uniform(-40, 40, (n, h, w, 3))).astype(np.uint8)


def state(n: int = 2, h: int = 16, w: int = 16) -> np.ndarray:
    return pictures(n, h, w).transpose(0, 3, 1, 2) / 127.5 - 1.0


def eps_model(x: np.ndarray, t: int) -> np.ndarray:
    return np.tanh(0.8 * x + 0.2 * np.roll(x, 1, axis=-1) - 0.1 * x[:, ::-1]) * (0.3 + 0.6 * t / 1000)


class Fixed:
    """Noise by step in float64, so that the reference and the loop use the same; it notes what was asked for."""

    def __init__(self, n: int = 2):
        self.n, self.asked = n, []

    def normal(self, step: int, height: int, width: int) -> np.ndarray:
        self.asked.append(step)
        return np.random.default_rng(step).standard_normal((self.n, 3, height, width))


def all_defences(engine: FakeEngine) -> list:
    return [
        Nothing(),
        ShrinkPad(),
        BlurOnly("blur2+gray"),
        DiffPure(engine, 100),
        DiffPure(engine, 150, "blur4", steps=30),
        DDNM(engine, "blur2"),
        DDNM(engine, [Blur(4), Grayscale()], steps=10),
        SampDetox(engine, budget=20),
        Zip(engine, "blur2+gray"),
        Zip(engine, "blur2|blur4", profile="fast"),
    ]


def each_defence():
    made = all_defences(FakeEngine())
    return pytest.mark.parametrize("which", range(len(made)), ids=[d.name for d in made])


# ---- what a Defence promises


@each_defence()
@pytest.mark.parametrize("size", [(32, 32), (17, 30), (150, 40)])
def test_no_pictures_noise_depends_on_place_batch_or_order(which, size):
    defence = all_defences(FakeEngine())[which]
    batch = pictures(5, *size)
    before = batch.copy()
    together = defence.run(batch, 3)
    assert together.shape == batch.shape and together.dtype == np.uint8
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_array_equal(defence.run(batch[::-1], 3)[::-1], together)
    for i in (0, 4):
        np.testing.assert_array_equal(defence.run(batch[i : i + 1], 3)[0], together[i])


@each_defence()
def test_seed_decides_what_is_random(which):
    defence, batch = all_defences(FakeEngine())[which], pictures(3)
    same = np.array_equal(defence.run(batch, 1), defence.run(batch, 2**64 - 1))
    assert same == isinstance(defence, Nothing | BlurOnly)


@each_defence()
def test_evaluations_progress_and_facts(which):
    engine = FakeEngine()
    defence = all_defences(engine)[which]
    done: list[int] = []
    out = defence.run(pictures(70), 0, progress=done.append)
    assert sum(done) == 70 and len(out) == 70
    visits = len(engine.calls) / max(1, len(done))  # one call of the engine a step for each part
    assert defence.evaluations == (visits if engine.calls else 0)
    assert defence.queries == 1 and defence.asks is False
    assert defence.run(pictures(1)[:0], 0).shape == (0, 32, 32, 3)
    with pytest.raises(InputError):
        defence.run(pictures(1).astype(np.float32), 0)


def test_memory_is_bounded_by_the_layout():
    engine = FakeEngine()
    DiffPure(engine, 10, steps=2).run(pictures(300), 0)
    assert max(shape[0] * shape[2] * shape[3] for shape, _ in engine.calls) == 256 * 32 * 32


def test_descriptions_are_json_and_differ_whenever_the_output_does():
    a, b = FakeEngine(make_spec(source_sha256="a")), FakeEngine(make_spec(source_sha256="b"))
    narrow = Linear([[1.0, 0.0, 0.0]])
    defences = [
        *all_defences(a),
        *(DiffPure(b, 100), DDNM(b, "blur2"), SampDetox(b, budget=20), Zip(b, "blur2+gray")),
        *(ShrinkPad(3), BlurOnly("blur2"), BlurOnly(narrow), BlurOnly(Linear([[0.0, 1.0, 0.0]]))),
        *(DiffPure(a, 100, steps=None), DiffPure(a, 100, steps=21), DiffPure(a, 101), DiffPure(a, 100, "gray")),
        *(DDNM(a, "blur2", steps=21), DDNM(a, "blur2", eta=0.5), DDNM(a, narrow), DDNM(a, "blur4")),
        *(SampDetox(a), SampDetox(a, t1=21), SampDetox(a, t2=121), SampDetox(a, budget=21)),
        *(SampDetox(a, data_range=255), SampDetox(a, data_range=2)),
        *(Zip(a, "blur2", steps=s, start=t) for s, t in ((20, None), (21, None), (20, 400), (21, 400))),
        *(Zip(a, "blur2+gray", combine="joint"), Zip(a, "blur2+gray", eta=0.5), Zip(a, "blur2+gray", lam=2.0)),
        *(Zip(a, "blur2", lam=float("inf")), Zip(a, [narrow]), Zip(a, OneOf(Blur(2), [Blur(4), Grayscale()]))),
        algorithm_1(a, "blur2"),
    ]
    texts = [json.dumps(d.describe(), sort_keys=True, allow_nan=False) for d in defences]
    assert len(set(texts)) == len(texts)
    again = [json.dumps(d.describe(), sort_keys=True) for d in all_defences(a)]
    assert again == texts[: len(again)]
    assert "seed" not in Zip(a).describe() and "threads" not in json.dumps(texts)


def test_names_tell_settings_apart():
    engine = FakeEngine()
    names = [d.name for d in (*all_defences(engine), SampDetox(engine), SampDetox(engine, data_range=255))]
    names += [d.name for d in (algorithm_1(engine), ShrinkPad(8))]
    assert len(set(names)) == len(names)
    assert algorithm_1(engine, "blur2").name == "blur2 + ZIP (lambda 10, Algorithm 1)"


def test_transforms_are_told_apart_by_what_they_do():
    low, high = (Linear(m) for m in ([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]))
    assert str(low) == str(high)
    assert fingerprints([low]) != fingerprints([high])
    assert fingerprints([low]) == fingerprints([Linear([[1.0, 0.0, 0.0]])])
    assert fingerprints([Blur(2), Grayscale()]) == ["blur2", "gray"]


@pytest.mark.parametrize(
    "make",
    [
        lambda e: ShrinkPad(0),
        lambda e: ShrinkPad(32),
        lambda e: BlurOnly([]),
        lambda e: BlurOnly("blur2|gray"),
        lambda e: DiffPure(e, 1),
        lambda e: DiffPure(e, 1001),
        lambda e: DiffPure(e, 10, steps=11),
        lambda e: DiffPure(e, 10, "sharpen"),
        lambda e: DDNM(e, ""),
        lambda e: DDNM(e, "blur2", eta=1.1),
        lambda e: DDNM(e, "blur2", steps=0),
        lambda e: SampDetox(e, budget=1),
        lambda e: SampDetox(e, budget=141),
        lambda e: SampDetox(e, t1=1),
        lambda e: SampDetox(e, data_range=0),
        lambda e: Zip(e, lam=0.0),
        lambda e: Zip(e, profile="best"),
    ],
)
def test_wrong_settings_are_told_when_made(make):
    with pytest.raises(InputError, match=r"got .*wanted"):
        make(FakeEngine())


# ---- the simple ones


@pytest.mark.parametrize(("side", "shrink"), [(32, 4), (64, 8), (30, 4), (100, 13), (1, 0), (2, 0)])
def test_shrinkpad_puts_the_shrunk_picture_on_black(side, shrink):
    batch = 1 + pictures(40, side, side) // 2
    out = ShrinkPad().run(batch, 5)
    places = set()
    for before, after in zip(batch, out, strict=True):
        rows, columns = (np.flatnonzero(after.any(axis)) for axis in ((1, 2), (0, 2)))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        want = np.asarray(Image.fromarray(before).resize((side - shrink,) * 2, Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(after[box], want)
        places.add((rows[0], columns[0]))
    # of (shrink + 1)^2 equally likely places, 40 draws leave few that no picture took
    assert max(map(max, places)) <= shrink and len(places) > min(40, (shrink + 1) ** 2) / 2
    assert len({p[0] for p in places}) > shrink / 2 and len({p[1] for p in places}) > shrink / 2


def test_shrinkpad_treats_each_side_by_itself():
    out = ShrinkPad().run(np.full((20, 16, 64, 3), 200, np.uint8), 0)
    assert ((out > 0).all(-1).sum((1, 2)) == 14 * 56).all()


def test_blur_only_is_the_mean_of_each_cell():
    batch = pictures(3, 33, 30)
    cells = pad(batch, 36, 32).astype(float).reshape(3, 9, 4, 8, 4, 3).mean((2, 4))
    exact = cells.repeat(4, 1).repeat(4, 2)[:, :33, :30]
    # sixteenths are exact, so a mean that ends in .5 may round either way, and nothing else
    assert np.abs(BlurOnly(Blur(4)).run(batch, 0) - exact).max() <= 0.5


def test_blur_only_joins_transforms():
    """Colour at half resolution, and grey in full: the grey of the output is the input's."""
    batch = pictures(2)
    out = BlurOnly("blur2+gray").run(batch, 0).astype(float)
    assert np.abs(out.mean(-1) - batch.mean(-1)).max() <= 0.5 + 1e-9
    assert np.abs(out - batch).mean() > 3


# ---- DiffPure


def literal_ddpm(eps, x, visited, z, update=None):
    """Ho et al. 2020 with guided-diffusion's posterior mean of (x0, x_t), beta = 1 - ab/ab' of the visited steps.

    update(t, before, after): what becomes of the state at a step.
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


@pytest.mark.parametrize("t_star", [2, 100, 150])
@pytest.mark.parametrize("steps", [None, 2, 20])
@pytest.mark.parametrize("transforms", ["", "blur4", "blur2+gray"])
def test_diffpure_is_its_paper_literally(t_star, steps, transforms):
    if steps and steps > t_star:
        steps = 2
    defence = DiffPure(FakeEngine(), t_star, transforms, steps)
    x_p, noise = state(), Fixed()
    source = x_p
    for t in defence._start.guide.transforms if transforms else ():
        # the last of the commuting transforms adds what the ones before have not let through
        source = t.project(x_p) if source is x_p else source + t.project(x_p - source)
    n = t_star if steps is None else steps
    visited = [round((t_star - 1) * (1 - i / (n - 1))) for i in range(n)]
    if steps is None:
        assert visited == list(range(t_star - 1, -1, -1))
    z = Fixed()
    x = np.sqrt(AB[t_star - 1]) * source + np.sqrt(1 - AB[t_star - 1]) * z.normal(STEP_INITIAL, 16, 16)
    want = literal_ddpm(eps_model, x, visited, lambda t: z.normal(t, 16, 16))
    got = defence.restore(eps_model, x_p, noise)
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() < ROUNDING
    assert noise.asked == [STEP_INITIAL, *visited[:-1]]


def test_diffpure_clamps():
    """Without the clamp the state would leave [-1, 1]: x0 is what an eps of -2 gives."""
    defence = DiffPure(FakeEngine(), 100)
    out = defence.restore(lambda x, t: np.full_like(x, -2.0), state(), Fixed())
    assert np.abs(out).max() <= 1 + 1e-12
    table, x = defence.table, state()
    step = table.steps[0]
    inside = clamped(lambda x, t: np.zeros_like(x), table)(0.5 * x, step.t)
    assert np.abs(inside).max() < 1e-12  # nothing to clamp: e as it was


def test_diffpure_at_hardly_any_noise_leaves_the_picture():
    """At t* = 2 the noise is 1.1% of the range, 1.4 grey levels; an eps of 0 leaves what was added, less the end's."""
    batch = pictures(4)
    engine = FakeEngine()
    near = DiffPure(engine, 2, steps=2).run(batch, 0).astype(int) - batch
    far = DiffPure(engine, 300).run(batch, 0).astype(int) - batch
    assert np.abs(near).max() <= 12 and np.sqrt((near**2).mean()) < 3
    assert np.sqrt((far**2).mean()) > 20


def test_diffpure_returns_the_picture_to_who_knows_the_noise():
    """With the eps that was really added x0 is the picture at every step, whatever is drawn in between."""
    x_p = state()
    defence = DiffPure(FakeEngine(), 150)

    def knows(x: np.ndarray, t: int) -> np.ndarray:
        return (x - np.sqrt(AB[t]) * x_p) / np.sqrt(1 - AB[t])

    assert np.abs(defence.restore(knows, x_p, Fixed()) - x_p).max() < ROUNDING


def test_published_t_star():
    assert (DiffPure.published_t_star(32), DiffPure.published_t_star(256)) == (100, 150)
    assert DiffPure(FakeEngine(), 100, steps=None).evaluations == 100


# ---- DDNM


@pytest.mark.parametrize("transforms", ["blur2", "blur4", "gray", "blur2+gray"])
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_ddnm_is_its_paper_literally(transforms, steps, eta):
    defence = DDNM(FakeEngine(), transforms, steps, eta)
    x_p, z = state(), Fixed()
    parts = defence._guide.transforms

    def null(v):  # I - A^+ A of the stacked operator, whose parts commute
        for t in parts:
            v = v - t.pinv(t.forward(v))
        return v

    y = x_p - null(x_p)
    stride = 1000 // steps
    visited = list(range(1000 - stride, -1, -stride))
    x = z.normal(STEP_INITIAL, 16, 16)
    for t, after in zip(visited, [*visited[1:], None], strict=True):
        ab, ab_next = AB[t], 1.0 if after is None else AB[after]
        e = eps_model(x, t)
        x0 = y + null((x - np.sqrt(1 - ab) * e) / np.sqrt(ab))
        x = np.sqrt(ab_next) * x0 + np.sqrt(1 - ab_next) * (eta * z.normal(t, 16, 16) + np.sqrt(1 - eta**2) * e)
    got = defence.restore(eps_model, x_p, Fixed())
    assert np.isfinite(got).all()
    # at eta = 1 the loop's sqrt(1 - ab' - s^2) is the root of a rounding error, 1e-8, where 0 is meant: 5.8e-7 measured
    assert np.abs(got - x).max() < (2e-6 if eta == 1 else 10 * ROUNDING)
    for t in parts:
        assert np.abs(t.forward(got) - t.forward(x_p)).max() < ROUNDING  # A x0 = y


@pytest.mark.parametrize("size", [(32, 32), (20, 44), (150, 36)])
def test_ddnm_is_zip_at_infinite_lambda_but_for_the_noise(size):
    batch, engine = pictures(3, *size), FakeEngine()
    ddnm = DDNM(engine, "blur2+gray")
    purifier = Purifier(engine, "blur2+gray", lam=float("inf"), combine="joint", seed=4)
    assert all(step.w == 1.0 for step in ddnm.table.steps)
    assert [replace(step, s=0.0) for step in ddnm.table.steps] == [replace(s, s=0.0) for s in purifier.table.steps]
    assert (purifier.run(batch) != ddnm.run(batch, 4)).any()
    purifier.table = ddnm.table
    np.testing.assert_array_equal(purifier.run(batch), ddnm.run(batch, 4))


class Believes(FakeEngine):
    """An engine to which every picture is `q` (3, H, W) under noise."""

    def __init__(self, q: np.ndarray):
        super().__init__()
        self.q = q

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        super().__call__(x, t)
        ab = AB[t.astype(int)][:, None, None, None]
        return ((x - np.sqrt(ab) * self.q) / np.sqrt(1 - ab)).astype(np.float32)


def test_ddnm_takes_the_range_from_the_picture_and_the_rest_from_the_model():
    batch, other = pictures(4), pictures(1, seed=8)[0].astype(float)
    out = DDNM(Believes(other.transpose(2, 0, 1) / 127.5 - 1.0), "blur2").run(batch, 0)

    def blurred(p):
        return p.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)

    want = np.clip(blurred(batch.astype(float)) + other - blurred(other), 0, 255)
    assert np.abs(out - want).max() <= 0.51


# ---- SampDetox


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
    got = ssim_map(x, y, top)
    for at in ((5, 5), (9, 12), (14, 18)):
        for c in range(3):
            assert abs(got[c][at] - literal_ssim(x[c], y[c], at, top)) < 1e-12


def test_levels_are_the_formula_and_highest_where_the_pictures_differ():
    x = state(1, 32, 32)[0] * 0.8
    y = x.copy()
    y[:, 20:24, 6:10] *= -1
    got = levels(x, y, 120)
    similar = np.tensordot(GREY, ssim_map((x + 1) / 2, (y + 1) / 2), 1)
    want = [[int((1 - (v - similar.min()) / (similar.max() - similar.min())) * 120) for v in row] for row in similar]
    assert got.tolist() == want
    row, column = np.unravel_index(got.argmax(), got.shape)
    assert got.max() == 120 and 18 <= row <= 25 and 4 <= column <= 11
    assert (got[:12, 16:] == 0).all()
    assert (levels(x, x, 120) == 0).all()


@pytest.mark.parametrize("evaluations", [40, 9, 1])
def test_second_stage_is_the_paper_pixel_by_pixel(evaluations, rng):
    level = rng.integers(0, 41, (2, 6, 7))
    level[0, 0, :2] = 0, 40
    table = ancestral(make_spec(), 40, evaluations)
    visited = [step.t for step in table.steps]
    assert len(visited) == evaluations and visited[0] == 39
    restored, z = state(2, 6, 7), Fixed()
    first = (1 << 20) - 1
    start = restored.copy()
    drawn = z.normal(first, 6, 7)
    for n, i, j in np.ndindex(level.shape):
        below = [t for t in visited if t < level[n, i, j]]
        if below:
            ab = AB[max(below)]
            start[n, :, i, j] = np.sqrt(ab) * restored[n, :, i, j] + np.sqrt(1 - ab) * drawn[n, :, i, j]
            assert evaluations < 40 or max(below) == level[n, i, j] - 1

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
    """Stage 1 is ancestral sampling from t1 of the picture itself; no noise is used twice."""
    defence, x_p, noise = SampDetox(FakeEngine()), state(2, 24, 20), Fixed()
    z = Fixed()
    x = np.sqrt(AB[19]) * x_p + np.sqrt(1 - AB[19]) * z.normal(STEP_INITIAL, 24, 20)
    x = literal_ddpm(eps_model, x, range(19, -1, -1), lambda t: z.normal(t, 24, 20), lambda t, before, after: after)
    x = np.clip(x, -1, 1)
    level = np.stack([levels(a, b, 120) for a, b in zip(x_p, x, strict=True)])
    want = second_stage(eps_model, x, level, defence.tables[1], Fixed())
    assert np.abs(defence.restore(eps_model, x_p, noise) - want).max() < ROUNDING
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
    batch = pictures(2)
    given, plain = (SampDetox(FakeEngine(), budget=6, data_range=top).run(batch, 0) for top in (255.0, 1.0))
    assert (given != plain).any()


def test_sampdetox_budgets():
    engine = FakeEngine()
    assert SampDetox(engine).evaluations == 140
    assert [[s.t for s in table.steps] for table in SampDetox(engine).tables] == [
        list(range(19, -1, -1)), list(range(119, -1, -1))]  # fmt: skip
    for budget in (2, 3, 20, 139):
        tables = SampDetox(engine, budget=budget).tables
        assert sum(map(len, tables)) == budget and min(map(len, tables)) >= 1
        assert [table.steps[0].t for table in tables] == [19, 119]
    assert list(map(len, SampDetox(engine, budget=20).tables)) == [3, 17]


def test_sampdetox_map_is_made_of_the_picture_alone():
    """30 x 29 pixels stand in a state of 32 x 32, whose mirrored rest has no say in the levels of the picture."""
    batch, seen = pictures(1, 30, 29), []
    defence = SampDetox(FakeEngine(), budget=4)
    x = np.pad(batch, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="reflect").transpose(0, 3, 1, 2) / 127.5 - 1.0

    def watch(x, t):
        seen.append((t, x.copy()))
        return eps_model(x, t)

    defence.restore(watch, x, Fixed(1), (30, 29))
    noised = seen[len(defence.tables[0])][1]
    first = np.clip(zip_free(defence, x), -1, 1)
    level = levels(x[0][:, :30, :29], first[0][:, :30, :29], 120)
    still = (noised == first)[0].all(0)[:30, :29]
    visited = min(s.t for s in defence.tables[1].steps)
    np.testing.assert_array_equal(still, level <= visited)


def zip_free(defence: SampDetox, x: np.ndarray) -> np.ndarray:
    from zipsdk.reverse import purify

    return purify(eps_model, x, defence.tables[0], Start(), Fixed(len(x)))


def test_sampdetox_says_what_is_too_small():
    with pytest.raises(InputError, match="at least 11"):
        SampDetox(FakeEngine()).run(pictures(1, 10, 40), 0)
    assert SampDetox(FakeEngine(), budget=2).run(pictures(1, 11, 40), 0).shape == (1, 11, 40, 3)


# ---- ZIP


@pytest.mark.parametrize("settings", [{}, {"profile": "fast"}, {"lam": 2.0, "combine": "joint"}, {"steps": 7}])
def test_zip_is_the_purifier_with_this_seed(settings):
    engine, batch = FakeEngine(), pictures(3, 40, 36)
    defence = Zip(engine, "blur2+gray", **settings)
    for seed in (9, 3):
        want = Purifier(engine, "blur2+gray", **settings, seed=seed).run(batch)
        np.testing.assert_array_equal(defence.run(batch, seed), want)


def test_algorithm_1_visits_every_step():
    engine = FakeEngine(make_spec(timesteps=60))
    defence = algorithm_1(engine, "blur2", lam=2.0)
    assert defence.evaluations == 60
    assert defence._purifier.table == step_table(engine.spec, lam=2.0, eta=1.0, steps=60)
    defence.run(pictures(1), 0)
    assert [t for _, t in engine.calls] == list(range(59, -1, -1))


def test_all_take_the_noise_of_the_purifier():
    """So that ZIP and a baseline differ by their formulas, not by their draws."""
    batch = pictures(2)
    seen = []

    class Watch(FakeEngine):
        def __call__(self, x, t):
            seen.append(x.copy())
            return super().__call__(x, t)

    Zip(Watch(), "blur2").run(batch, 6)
    first = seen[0]
    seen.clear()
    DDNM(Watch(), "blur2").run(batch, 6)
    np.testing.assert_array_equal(seen[0], first)
    np.testing.assert_array_equal(first, noise_of(batch, 6).normal(STEP_INITIAL, 32, 32))
    seen.clear()
    DiffPure(Watch(), 100).run(batch, 6)
    x_p = batch.transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(seen[0] - np.sqrt(AB[99]) * x_p - np.sqrt(1 - AB[99]) * first).max() < 1e-6


def test_blurred_diffpure_noises_the_blur_never_the_picture():
    """Two pictures that the blur makes one come out as one, given one noise."""
    x_p = state(1)
    swapped = x_p.reshape(1, 3, 8, 2, 8, 2)[:, :, :, ::-1, :, ::-1].reshape(x_p.shape)
    defence = DiffPure(FakeEngine(), 100, "blur2")
    got = [defence.restore(eps_model, x, Fixed(1)) for x in (x_p, swapped)]
    assert np.abs(x_p - swapped).max() > 0.1 and np.abs(got[0] - got[1]).max() < ROUNDING
    assert Guide([Blur(2)]).joint(x_p).shape == x_p.shape

"""DiffPure and DDNM are what their papers' formulas say, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine
from tests.helpers.literal import AB, ROUNDING, Fixed, eps_model, literal_ddpm, smooth_images, state

pytest.importorskip("skimage")
pytest.importorskip("torch")

from bench.defenses.ddnm import DDNM
from bench.defenses.diffpure import DiffPure, clamped
from bench.defenses.diffusion import engine_of
from bench.evaluation.cache import hash_of
from zipsdk import Purifier
from zipsdk.models import resolve
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import STEP_INITIAL
from zipsdk.transforms import Blur

pytestmark = pytest.mark.torch

# ---- DiffPure


@pytest.mark.parametrize("t_star", [2, 100, 150])
@pytest.mark.parametrize("steps", [None, 2, 20])
@pytest.mark.parametrize("transforms", ["", "blur4", "blur2+gray"])
def test_diffpure_is_its_paper_literally(t_star, steps, transforms):
    if steps and steps > t_star:
        steps = 2
    defense = DiffPure(FakeEngine(), t_star, transforms, steps)
    x_p, noise = state(), Fixed()
    source = x_p
    for t in defense._start.guide.transforms if transforms else ():
        # the last of the commuting transforms adds what the ones before have not let through
        source = t.project(x_p) if source is x_p else source + t.project(x_p - source)
    n = t_star if steps is None else steps
    visited = [round((t_star - 1) * (1 - i / (n - 1))) for i in range(n)]
    if steps is None:
        assert visited == list(range(t_star - 1, -1, -1))
    z = Fixed()
    x = np.sqrt(AB[t_star - 1]) * source + np.sqrt(1 - AB[t_star - 1]) * z.normal(STEP_INITIAL, 16, 16)
    want = literal_ddpm(eps_model, x, visited, lambda t: z.normal(t, 16, 16))
    got = defense.restore(eps_model, x_p, noise)
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() < ROUNDING
    assert noise.asked == [STEP_INITIAL, *visited[:-1]]


def test_diffpure_clamps():
    """Without the clamp the state would leave [-1, 1]: x0 is what an eps of -2 gives."""
    defense = DiffPure(FakeEngine(), 100)
    out = defense.restore(lambda x, t: np.full_like(x, -2.0), state(), Fixed())
    assert np.abs(out).max() <= 1 + 1e-12
    table, x = defense.table, state()
    step = table.steps[0]
    inside = clamped(lambda x, t: np.zeros_like(x), table)(0.5 * x, step.t)
    assert np.abs(inside).max() < 1e-12  # nothing to clamp: e as it was


def test_diffpure_at_hardly_any_noise_leaves_the_image():
    """At t* = 2 the noise is 1.1% of the range, 1.4 gray levels; an eps of 0 leaves what was added, less the end's."""
    batch = smooth_images(4)
    engine = FakeEngine()
    near = DiffPure(engine, 2, steps=2).run(batch, 0).astype(int) - batch
    far = DiffPure(engine, 300).run(batch, 0).astype(int) - batch
    assert np.abs(near).max() <= 12 and np.sqrt((near**2).mean()) < 3
    assert np.sqrt((far**2).mean()) > 20


def test_diffpure_returns_the_image_to_who_knows_the_noise():
    """With the eps that was really added x0 is the image at every step, whatever is drawn in between."""
    x_p = state()
    defense = DiffPure(FakeEngine(), 150)

    def knows(x: np.ndarray, t: int) -> np.ndarray:
        return (x - np.sqrt(AB[t]) * x_p) / np.sqrt(1 - AB[t])

    assert np.abs(defense.restore(knows, x_p, Fixed()) - x_p).max() < ROUNDING


def test_two_files_of_one_checkpoint_are_two_models(tmp_path):
    """Quantized on other images, say: the spec is the same."""
    engine, other = FakeEngine(), FakeEngine()
    same = engine_of(engine)
    for e, content in ((engine, b"one"), (other, b"two")):
        e.path = tmp_path / content.decode()
        e.path.write_bytes(content)
    assert len({hash_of(said) for said in (same, engine_of(engine), engine_of(other))}) == 3
    engine.path = tmp_path / "link"
    engine.path.symlink_to(resolve("zip-tiny"))
    engine.spec = replace(engine.spec, name="zip-tiny")
    assert "files" not in engine_of(engine)["model"]


def test_published_t_star():
    assert (DiffPure.published_t_star(32), DiffPure.published_t_star(256)) == (100, 150)
    assert DiffPure(FakeEngine(), 100, steps=None).total_steps == 100


def test_blurred_diffpure_noises_the_blur_never_the_image():
    """Two images that the blur makes one come out as one, given one noise."""
    x_p = state(1)
    swapped = x_p.reshape(1, 3, 8, 2, 8, 2)[:, :, :, ::-1, :, ::-1].reshape(x_p.shape)
    defense = DiffPure(FakeEngine(), 100, "blur2")
    got = [defense.restore(eps_model, x, Fixed(1)) for x in (x_p, swapped)]
    assert np.abs(x_p - swapped).max() > 0.1 and np.abs(got[0] - got[1]).max() < ROUNDING
    assert Guidance([Blur(2)]).joint(x_p).shape == x_p.shape


# ---- DDNM


@pytest.mark.parametrize("transforms", ["blur2", "blur4", "gray", "blur2+gray"])
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_ddnm_is_its_paper_literally(transforms, steps, eta):
    defense = DDNM(FakeEngine(), transforms, steps, eta)
    x_p, z = state(), Fixed()
    parts = defense._guide.transforms

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
    got = defense.restore(eps_model, x_p, Fixed())
    assert np.isfinite(got).all()
    # at eta = 1 the loop's sqrt(1 - ab' - s^2) is the root of a rounding error, 1e-8, where 0 is meant: 5.8e-7 measured
    assert np.abs(got - x).max() < (2e-6 if eta == 1 else 10 * ROUNDING)
    for t in parts:
        assert np.abs(t.forward(got) - t.forward(x_p)).max() < ROUNDING  # A x0 = y


@pytest.mark.parametrize("size", [(32, 32), (20, 44), (150, 36)])
def test_ddnm_is_zip_at_infinite_lambda_but_for_the_noise(size, monkeypatch):
    batch, engine = smooth_images(3, *size), FakeEngine()
    ddnm = DDNM(engine, "blur2+gray")
    purifier = Purifier(engine, "blur2+gray", lam=float("inf"), combine="joint", seed=4)
    assert all(step.w == 1.0 for step in ddnm.table.steps)
    assert [replace(step, s=0.0) for step in ddnm.table.steps] == [replace(s, s=0.0) for s in purifier.table.steps]
    assert (purifier.run(batch) != ddnm.run(batch, 4)).any()
    monkeypatch.setattr("zipsdk.purifier.step_table", lambda *args, **options: ddnm.table)
    purifier = Purifier(engine, "blur2+gray", lam=float("inf"), combine="joint", seed=4)
    np.testing.assert_array_equal(purifier.run(batch), ddnm.run(batch, 4))


class Believes(FakeEngine):
    """An engine to which every image is `q` (3, H, W) under noise."""

    def __init__(self, q: np.ndarray):
        super().__init__()
        self.q = q

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        super().__call__(x, t)
        ab = AB[t.astype(int)][:, None, None, None]
        return ((x - np.sqrt(ab) * self.q) / np.sqrt(1 - ab)).astype(np.float32)


def test_ddnm_takes_the_range_from_the_image_and_the_rest_from_the_model():
    batch, other = smooth_images(4), smooth_images(1, seed=8)[0].astype(float)
    out = DDNM(Believes(other.transpose(2, 0, 1) / 127.5 - 1.0), "blur2").run(batch, 0)

    def blurred(p):
        return p.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).repeat(2, 1).repeat(2, 2)

    want = np.clip(blurred(batch.astype(float)) + other - blurred(other), 0, 255)
    assert np.abs(out - want).max() <= 0.51

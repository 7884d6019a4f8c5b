"""The network of one pass: bicubic before any training, better after some, and the same for an image alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bench.defenses import super_resolution  # noqa: E402
from bench.defenses.resizing import Resized, resized  # noqa: E402
from bench.defenses.super_resolution import Recipe, SuperResolution, _Network, recipe, train  # noqa: E402
from zipsdk.errors import InputError, ModelError  # noqa: E402

pytestmark = pytest.mark.torch

SMALL = Recipe(epochs=4, batch=16, lr=5e-3, widths=(8, 8, 8), depth=1, bf16=False)


def bars(n: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """Sharp vertical edges at even places between two grays, which the bicubic filter blurs."""
    rng = np.random.default_rng(seed)
    edge = 2 * rng.integers(1, side // 2, n)[:, None]
    left, right = rng.integers(20, 236, (2, n, 1))
    row = np.where(np.arange(side) < edge, left, right)
    return row[:, None, :, None].repeat(side, 1).repeat(3, 3).astype(np.uint8)


def error(found: np.ndarray, images: np.ndarray) -> float:
    return float(np.abs(found.astype(float) - images).mean())


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (16, 16), (17, 30)])
def test_before_training_it_is_the_bicubic_filter(size):
    small = np.random.default_rng(0).integers(90, 160, (2, *size, 3), np.uint8)
    made = SuperResolution(_Network((8, 8, 8), 1).eval(), {})
    out = made(small, 2 * size[0], 2 * size[1])
    inside = np.s_[:, : 2 * size[0] - 4, : 2 * size[1] - 4]  # sides that are no multiple of 4 are padded
    whole = np.s_[:] if size == (16, 16) else inside
    want = resized(small, 2 * size[0], 2 * size[1])
    assert out.shape == want.shape and np.abs(out[whole].astype(int) - want[whole]).max(initial=0) <= 1
    # another size than the double is resized from it
    assert made(small, 2 * size[0] - 1, 5).shape == (2, 2 * size[0] - 1, 5, 3)


def test_training_beats_the_bicubic_filter_and_is_done_once(tmp_path, monkeypatch):
    done = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = train(bars(160), SMALL, cache=tmp_path / "c", progress=lambda *told: done.append(told))
    assert [epoch for epoch, _ in done] == [1, 2, 3, 4] and done[-1][1] < done[0][1]
    fresh = bars(50, seed=1)
    assert error(Resized(0.5, made).run(fresh, 0), fresh) < 0.8 * error(Resized().run(fresh, 0), fresh)

    # an image does not depend on its batch
    together = Resized(0.5, made).run(fresh, 0)
    alone = Resized(0.5, made).run(fresh[7:8], 3)
    assert np.abs(alone[0].astype(int) - together[7]).max() <= 1

    monkeypatch.setattr(super_resolution, "_epoch", None)
    again = train(bars(160), SMALL, cache=tmp_path / "c")
    np.testing.assert_array_equal(Resized(0.5, again).run(fresh, 0), together)
    assert Resized(0.5, again).describe() == Resized(0.5, made).describe() != Resized().describe()
    with pytest.raises(TypeError):  # other images, another network
        train(bars(160, seed=2), SMALL, cache=tmp_path / "c")
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="delete it"):
        train(bars(160), SMALL, cache=tmp_path / "c")


def test_interrupted_training_resumes(tmp_path):
    def stop(epochs, loss):
        if epochs == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(bars(60), SMALL, cache=tmp_path / "a" / "c", progress=stop)
    resumed = train(bars(60), SMALL, cache=tmp_path / "a" / "c")
    at_once = train(bars(60), SMALL, cache=tmp_path / "b" / "c")
    for a, b in zip(resumed.model.parameters(), at_once.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_beat_the_bicubic_filter_is_told(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"RMS error .*bicubic"):
        train(noise, replace(SMALL, epochs=1, lr=1.0), cache=tmp_path / "c")


@pytest.mark.filterwarnings("ignore:super-resolution")
def test_large_images_are_trained_in_crops(tmp_path, monkeypatch):
    seen = []
    forward = _Network.forward
    monkeypatch.setattr(_Network, "forward", lambda self, x: (seen.append(tuple(x.shape)), forward(self, x))[1])
    train(bars(36, side=34), replace(SMALL, epochs=1, crop=16), cache=tmp_path / "c")
    assert seen[:2] == [(16, 3, 8, 8)] * 2


def test_standard_recipe_is_of_one_length_and_size():
    sizes = ((50_000, 32), (3_000, 32), (3_000, 64), (3_000, 224))
    assert [recipe(np.broadcast_to(np.uint8(0), (n, s, s, 3))).epochs for n, s in sizes] == [3, 50, 13, 13]
    assert 2.4e6 < sum(p.numel() for p in _Network(Recipe.widths, Recipe.depth).parameters()) < 2.6e6


@pytest.mark.parametrize(
    "images", [bars(4, side=12), bars(1), bars(4).astype(np.float32), bars(4)[:, :8], bars(4)[..., :1]]
)
def test_wrong_images_are_refused(images, tmp_path):
    with pytest.raises(InputError, match=r"super-resolution: got .*expected"):
        train(images, SMALL, cache=tmp_path / "c")

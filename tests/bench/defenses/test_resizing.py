"""Resizing takes away what is finer than its grid, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bench.defenses import resizing
from bench.defenses.resizing import Resized
from tests.helpers.literal import smooth_images
from zipsdk.errors import InputError


@pytest.mark.parametrize(("scale", "small"), [(0.5, (16, 20)), (0.75, (23, 30)), (0.01, (1, 1))])
def test_it_is_pillows_antialiased_bicubic(scale, small):
    batch = smooth_images(2, 31, 40)
    for before, after in zip(batch, Resized(scale).run(batch, 0), strict=True):
        reduced = Image.fromarray(before).resize(small[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(after, np.asarray(reduced.resize((40, 31), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (3, 300)])
def test_every_size_keeps_its_size(size):
    batch = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    out = Resized().run(batch, 0)
    assert out.shape == batch.shape and out.dtype == np.uint8
    flat = np.full_like(batch, 201)
    np.testing.assert_array_equal(Resized().run(flat, 0), flat)


def test_fine_trigger_goes_and_coarse_one_stays():
    clean = np.full((1, 32, 32, 3), 100, np.uint8)
    fine, coarse = clean.copy(), clean.copy()
    fine[0, 20:28, 20:28] = (255 * (np.indices((8, 8)).sum(0) % 2))[..., None]
    coarse[0, 16:28, 16:28] = 255
    inside = np.s_[0, 21:27, 21:27]
    # half a pixel of the small grid is as much black as white
    assert np.ptp(Resized().run(fine, 0)[inside].astype(int)) < 60 < 255 == np.ptp(fine[inside])
    assert Resized().run(coarse, 0)[inside].min() > 240
    # a smaller reduction keeps more
    assert np.ptp(Resized(0.75).run(fine, 0)[inside].astype(int)) > np.ptp(Resized().run(fine, 0)[inside].astype(int))


def test_upsampler_gets_bounded_batches_of_small_images(monkeypatch):
    monkeypatch.setattr(resizing, "CALL_PIXELS", 3 * 32 * 32)
    seen = []

    class Nearest:
        name, steps = "nearest", 1

        def describe(self):
            return {"upsampler": "nearest"}

        def __call__(self, small, height, width):
            seen.append(small.shape)
            return small.repeat(2, 1).repeat(2, 2)

    defense = Resized(0.5, Nearest())
    out = defense.run(smooth_images(5), 0)
    assert seen == [(3, 16, 16, 3), (2, 16, 16, 3)]
    np.testing.assert_array_equal(out[:, ::2], out[:, 1::2])
    assert (defense.total_steps, defense.queries, defense.name) == (1, 1, "nearest x0.5")
    described = [d.describe() for d in (defense, Resized(0.5), Resized(0.75))]
    assert all(a != b for i, a in enumerate(described) for b in described[:i])


@pytest.mark.parametrize("scale", [0, 1, -0.5, 2, float("nan")])
def test_wrong_scale_is_refused(scale):
    with pytest.raises(InputError, match=r"scale: got .*expected"):
        Resized(scale)

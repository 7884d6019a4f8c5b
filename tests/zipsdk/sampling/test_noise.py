"""Test Philox4x32-10 and the normals that it gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.philox import VECTORS
from zipsdk.sampling.noise import STEP_INITIAL, Noise, philox4x32


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(counter, key, expected):
    many = np.repeat(np.array(counter, np.uint64)[:, None], 5, axis=1)
    got = philox4x32(many, key)
    np.testing.assert_array_equal(got, np.repeat(np.array(expected, np.uint64)[:, None], 5, axis=1))


def test_one_pixel_equals_box_muller_by_hand():
    """Compute one normal from the counter's definition and Box-Muller, in Python floats."""
    seed, image, step, y, x = 0x1234567890ABCDEF, 0xFEDCBA9876543210, 350, 5, 3
    counter = np.array([[y << 16 | x], [step], [image & 0xFFFFFFFF], [image >> 32]], np.uint64)
    r = [int(v) for v in philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[:, 0]]
    radius = [np.sqrt(-2 * np.log((r[i] + 0.5) / 2**32)) for i in (0, 2)]
    angle = [2 * np.pi * r[i] / 2**32 for i in (1, 3)]
    expected = [radius[0] * np.cos(angle[0]), radius[0] * np.sin(angle[0]), radius[1] * np.cos(angle[1])]
    got = Noise(seed, [image]).normal(step, 9, 7)[0, :, y, x]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_normals_have_the_right_moments_and_tails():
    z = Noise(3, np.arange(40)).normal(100, 96, 96).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    # two-sided tail beyond 4: 6.334e-5
    assert abs((np.abs(z) > 4).sum() - n * 6.334e-5) < 5 * np.sqrt(n * 6.334e-5)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("axis", ["pixel", "color", "step", "image", "seed"])
def test_neighbors_are_uncorrelated(axis):
    a = Noise(3, np.arange(16)).normal(100, 64, 64)
    b = {
        "pixel": np.roll(a, 1, axis=-1),
        "color": np.roll(a, 1, axis=1),
        "step": Noise(3, np.arange(16)).normal(50, 64, 64),
        "image": Noise(3, np.arange(1, 17)).normal(100, 64, 64),
        "seed": Noise(4, np.arange(16)).normal(100, 64, 64),
    }[axis]
    correlation = np.mean(a.astype(np.float64) * b)
    assert abs(correlation) < 4 / np.sqrt(a.size)


def test_an_image_gets_the_same_noise_alone_in_any_batch_and_any_order():
    keys = np.array([9, 2**63 + 1, 4, 7, 123456789012], np.uint64)
    together = Noise(1, keys).normal(STEP_INITIAL, 33, 40)
    for i in (0, 1, 4):
        np.testing.assert_array_equal(Noise(1, keys[i : i + 1]).normal(STEP_INITIAL, 33, 40)[0], together[i])
    order = np.array([4, 2, 0, 3, 1])
    np.testing.assert_array_equal(Noise(1, keys[order]).normal(STEP_INITIAL, 33, 40), together[order])


def test_noise_does_not_depend_on_padding_or_blocking():
    """A pixel's noise depends on its row and column only; 300x200 needs several blocks."""
    large = Noise(1, [5, 6]).normal(0, 300, 200)
    small = Noise(1, [5, 6]).normal(0, 40, 36)
    np.testing.assert_array_equal(large[:, :, :40, :36], small)


def test_empty_batches_and_single_pixels_have_noise():
    assert Noise(1, np.empty(0, np.uint64)).normal(3, 8, 8).shape == (0, 3, 8, 8)
    assert Noise(1, [1]).normal(3, 1, 1).shape == (1, 3, 1, 1)


def test_choice_is_even_and_independent_of_the_batch():
    n = 30_000
    noise = Noise(8, np.arange(n))
    counts = np.bincount(noise.choice(3), minlength=3)
    assert np.abs(counts - n / 3).max() < 4 * np.sqrt(n * 2 / 9)
    np.testing.assert_array_equal(Noise(8, [77]).choice(3), noise.choice(3)[77:78])
    assert not np.array_equal(noise.choice(3), Noise(9, np.arange(n)).choice(3))

"""Compare the views of the ablation detector with a literal transcription in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.helpers.ablation import (
    COARSE,
    COLOR,
    NAMES,
    noise,
)
from zipsdk import AblationDetector
from zipsdk.detectors import ablation_statistics, ablation_views

ndimage = pytest.importorskip("scipy.ndimage")


SIZES = [(1, 1), (1, 7), (2, 3), (4, 5), (5, 5), (31, 33), (32, 32), (40, 64), (224, 300)]


def blurred(planes, deviation):
    """Blur (H, W, ...) in float64, truncated at 4 deviations like SciPy but at least one pixel."""
    reach = max(1, round(4 * deviation))
    return ndimage.gaussian_filter(planes, deviation, mode="reflect", radius=reach, axes=(0, 1))


def literal_regions(height, width):
    """Yield masks of three by three rectangles of 3/8 of each side."""
    for i in range(3):
        for j in range(3):
            mask = np.ones((height, width), bool)
            for axis, (side, k) in enumerate(((height, i), (width, j))):
                size = max(1, round(3 * side / 8))
                at = np.arange(side) - [0, round((side - size) / 2), side - size][k]
                mask &= np.expand_dims((at >= 0) & (at < size), 1 - axis)
            yield mask


def literal_copies(rgb):
    """Return the copies in float64, neither rounded nor clipped."""
    height, width, _ = rgb.shape
    x, unit = rgb.astype(np.float64), min(height, width) / 32
    out = []
    for mask in literal_regions(height, width):
        outside = np.repeat(~mask[..., None], 3, axis=2).astype(np.float64)
        weight = blurred(outside, 4 * unit)
        fill = blurred(x * outside, 4 * unit) / np.maximum(weight, 1e-300)
        out.append(np.where(mask[..., None] & (weight > 1e-4), fill, x))
    out.append(128 + x - blurred(x, 3 * unit))
    out.append(x - (blurred(x, 0.7 * unit) - blurred(x, 1.5 * unit)))
    out.append(blurred(x, 0.7 * unit))
    gray = np.repeat(x.sum(axis=2, keepdims=True) / 3, 3, axis=2)
    out.append(gray)
    for mask in literal_regions(height, width):
        out.append(np.where(mask[..., None], x, blurred(x, 4 * unit)))
    out.append(blurred(x, 3 * unit))
    out.append(2 * (blurred(x, 0.7 * unit) - blurred(x, 1.5 * unit)) + 128)
    out.append(2 * (x - blurred(x, 0.7 * unit)) + 128)
    out.append(x - gray + 128)
    out.append(literally_moved(x))
    return out


def literally_moved(x):
    """Displace each cell of 1/32 of the shorter side (at least a pixel) by up to half of 1/32 of the side."""
    height, width, _ = x.shape
    unit = min(height, width) / 32
    place = max(unit, 1)
    by = np.random.default_rng(32).uniform(
        -unit / 2, unit / 2, (2, int((height - 1) // place) + 1, int((width - 1) // place) + 1)
    )
    at = np.zeros((2, height, width))
    for i in range(height):
        for j in range(width):
            at[:, i, j] = (i, j) + by[:, int(i // place), int(j // place)]
    return np.stack([ndimage.map_coordinates(x[..., c], at, order=1, mode="nearest") for c in range(3)], axis=2)


@pytest.mark.parametrize("size", SIZES)
def test_views_equal_the_literal_ones(size):
    """Rounding alone errs by 0.5. Measured: at most 0.534 without regions, where few pixels surround a corner of one
    (4 x 5, where a weight is 5e-4; 0.526 at 224 x 300), and at most 0.50004 in all others."""
    rgb = noise(*size)
    rgb.flags.writeable = False
    copies = ablation_views.copies(rgb)
    assert copies.dtype == np.uint8 and copies.shape == (27, *size, 3)
    expected = literal_copies(rgb)
    for i, (copy, exact) in enumerate(zip(copies, expected, strict=True)):
        tolerance = 0.56 if i < COARSE else 0.501
        assert np.abs(copy - np.clip(exact, 0, 255)).max() <= tolerance, (i, NAMES[i % 13])
    covered = np.zeros(size, int)
    for without, alone, mask in zip(copies[:COARSE], copies[13 : 13 + COARSE], literal_regions(*size), strict=True):
        np.testing.assert_array_equal(without[~mask], rgb[~mask])
        np.testing.assert_array_equal(alone[mask], rgb[mask])
        covered += mask
    assert covered.min() > 0


@pytest.mark.parametrize("size", [(33, 21), (1, 90), (70, 5)])
def test_long_lines_are_blurred_in_blocks(size, monkeypatch):
    rgb = noise(*size)
    whole = ablation_views.copies(rgb).astype(int)
    monkeypatch.setattr(ablation_views, "BLOCK", 8)
    off = np.abs(ablation_views.copies(rgb) - whole)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # float32 rounds halves the other way


def test_a_thin_image_takes_no_more_memory_than_a_square_one():
    tracemalloc.start()
    ablation_views.copies(np.zeros((1, 30_000, 3), np.uint8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # a matrix for the line would be 3.6 GB


def test_copies_take_little_memory_besides_the_result():
    rgb = noise(520, 520)  # too large for the caches
    tracemalloc.start()
    copies = ablation_views.copies(rgb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.6 * copies.nbytes  # measured: 2.38


def test_features_are_named_in_the_order_of_their_copies():
    """The default reference has that order, too: the four corners are equal, and the four edges."""
    assert list(ablation_views.FEATURES) == NAMES
    for half in (ablation_statistics.DEFAULT_REFERENCE[:13], ablation_statistics.DEFAULT_REFERENCE[13:26]):
        usual = dict(zip(NAMES[:13], half, strict=True))
        assert len({usual[f"{a} {b}"] for a in ("top", "bottom") for b in ("left", "right")}) == 1
        assert len({usual[a] for a in ("top", "left", "right", "bottom")}) == 1
    assert len(set(ablation_statistics.DEFAULT_REFERENCE)) == 15


@pytest.mark.parametrize("size", [(2, 40), (20, 21), (90, 33), (64, 128)])
def test_only_the_regions_change(size):
    """Each region is removed completely: images that differ only in it have the same copy."""
    rgb = noise(*size)
    for i, mask in enumerate(literal_regions(*size)):
        other = np.where(mask[..., None], 255 - rgb, rgb)
        copies = [ablation_views.copies(p)[i].astype(int) for p in (rgb, other)]
        assert np.abs(copies[0] - copies[1]).max() <= 1


@pytest.mark.parametrize("size", [*SIZES, (7, 1), (33, 200)])
@pytest.mark.parametrize("level", [0, 1, 127, 200, 255])
def test_a_constant_image_is_unchanged(size, level):
    """Its content is in the coarse band; the other bands are empty."""
    copies = ablation_views.copies(np.full((*size, 3), level, np.uint8))
    empty = [COARSE, 13 + COARSE + 1, 13 + COARSE + 2, 13 + COLOR]
    assert (np.delete(copies, empty, axis=0) == level).all()
    assert (copies[empty] == 128).all()


def test_gray_images_have_no_color_and_others_do():
    gray = np.repeat(noise(31, 33)[..., :1], 3, axis=2)
    copies = ablation_views.copies(gray)
    np.testing.assert_array_equal(copies[COLOR], gray)
    assert (copies[13 + COLOR] == 128).all()
    copies = ablation_views.copies(noise(31, 33))
    assert (copies[COLOR] == copies[COLOR][..., :1]).all()
    assert (copies[13 + COLOR] != copies[13 + COLOR][..., :1]).any()


def test_views_are_the_image_and_its_copies():
    rgb = noise(9, 12)
    for views in (AblationDetector().views(rgb[:, ::-1]), AblationDetector().second_look_views(rgb[:, ::-1])):
        np.testing.assert_array_equal(views[0], rgb[:, ::-1])
        np.testing.assert_array_equal(views[1:], ablation_views.copies(rgb[:, ::-1].copy()))

"""Compare views made in strips with views made from whole float32 arrays."""

from __future__ import annotations

import numpy as np
import pytest

from zipsdk import Guard
from zipsdk.detectors import ablation_views
from zipsdk.detectors.ablation_views import COARSE, FILL, FINE, GRAY, LEAST_WEIGHT, MIDDLE, N_MASKABLE, N_VIEWS
from zipsdk.sampling import memory


def whole_copies(rgb: np.ndarray) -> np.ndarray:
    """Return the copies by their definition, with every array as large as the image."""
    size = rgb.shape[:2]
    unit = min(size) / ablation_views.UNIT
    x = rgb.astype(np.float32).transpose(2, 0, 1)
    around, coarse, soft, *two = (ablation_views._blur(x, d * unit, size) for d in (FILL, COARSE, FINE, *MIDDLE))
    fine, middle = x - soft, two[0] - two[1]
    gray = np.broadcast_to(x.mean(axis=0), x.shape)
    regions = ablation_views._regions(*size)
    without, alone = [], []
    for r, c in regions:
        inside = np.zeros(size, np.float32)
        inside[r, c] = 1
        cut = np.where(inside, x, 0)[:, r, c]
        own = ablation_views._blur(cut, FILL * unit, size, (r.start, c.start))
        rows = ablation_views._along(np.ones((1, r.stop - r.start), np.float32), FILL * unit, size[0], r.start, -1)[0]
        columns = ablation_views._along(np.ones((1, c.stop - c.start), np.float32), FILL * unit, size[1], c.start, -1)[
            0
        ]
        weight = 1 - np.outer(rows, columns)
        filled = (around[:, r, c] - own) / np.maximum(weight, LEAST_WEIGHT)
        without.append(x.copy())
        without[-1][:, r, c] = np.where(weight > LEAST_WEIGHT, filled, x[:, r, c])
        alone.append(np.where(inside, x, around))
    without += [x - coarse + GRAY, x - middle, x - fine, gray]
    alone += [coarse, 2 * middle + GRAY, 2 * fine + GRAY, x - gray + GRAY]
    (rows, down), (columns, right) = ablation_views._source_pixels(*size)
    below, beside = np.minimum(rows + 1, size[0] - 1), np.minimum(columns + 1, size[1] - 1)
    upper = (1 - right) * x[:, rows, columns] + right * x[:, rows, beside]
    lower = (1 - right) * x[:, below, columns] + right * x[:, below, beside]
    planes = np.stack([*without, *alone, (1 - down) * upper + down * lower])
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("strip", [1, 500, 1 << 20])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 4), (32, 32), (33, 70), (130, 41)], ids=str)
def test_copies_made_in_strips_equal_those_of_whole_arrays(size, strip, monkeypatch):
    monkeypatch.setattr(ablation_views, "STRIP_PIXELS", strip)
    rgb = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    got, expected = ablation_views.copies(rgb), whole_copies(rgb)
    assert got.shape == (N_VIEWS - 1, *rgb.shape) and len(expected) == 2 * N_MASKABLE + 1
    np.testing.assert_array_equal(got, expected)


def test_a_guard_abstains_if_the_copies_do_not_fit_into_memory(monkeypatch):
    """The image is flagged, and the classifier sees none of its copies."""

    class Same:
        def run(self, batch):
            return batch

    calls = []
    guard = Guard(lambda batch: calls.append(len(batch)), Same())
    monkeypatch.setattr(memory, "CHECKED_FROM", 0)
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    (decision,) = guard.run(np.zeros((100, 100, 3), np.uint8))
    assert decision.label is None and decision.flagged and calls == []
    assert "got 100 x 100 pixels, which need about 0.00 GB of memory" in decision.error

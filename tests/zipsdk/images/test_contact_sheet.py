"""Test that a contact sheet holds few of its images in memory."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from zipsdk.images.contact_sheet import before_after, contact_sheet
from zipsdk.sampling.guidance import Guidance
from zipsdk.transforms import Blur


@pytest.mark.parametrize("size", [(300, 260), (9, 14)])  # made smaller, made larger
@pytest.mark.parametrize("guide", [None, Guidance([Blur(4)])])
def test_pairs_are_fitted_as_they_come(guide, size):
    def pair(i):
        return tuple(np.random.default_rng((i, j)).integers(0, 256, (*size, 3), np.uint8) for j in range(2))

    def page(pairs):
        return before_after(guide, pairs) if guide else contact_sheet(pairs, ("before", "purified"))

    met, most = [], 0

    def one_by_one():
        nonlocal most
        for i in range(5):
            both = pair(i)
            met.extend(map(weakref.ref, both))
            most = max(most, sum(ref() is not None for ref in met))
            yield both

    assert page(one_by_one()).tobytes() == page([pair(i) for i in range(5)]).tobytes()
    assert len(met) == 10 and most <= 4

"""Test how reasons are shortened; tests/zipsdk/test_guard_logs.py tests the log itself."""

from __future__ import annotations

import numpy as np
import pytest

from zipsdk._util.throttled_log import MAX_REASON, shorten


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("got [3, 64, 64], expected\n  one image", "got [3, 64, 64], expected one image"),
        (f"got {np.arange(12)} there", "got [...]"),
        (f"got {np.zeros((2, 2, 3))} there", "got [...]"),
        ("got [ 1.5e-3 -2. +7 1 2 3 4 5 6]", "got [...]"),
        (f"got {np.full(2000, 7)}", "got [...]"),
        ("x" * MAX_REASON, "x" * MAX_REASON),
        ("x" * (MAX_REASON + 1), "x" * (MAX_REASON - 3) + "..."),
    ],
)
def test_shapes_stay_and_values_of_arrays_go(text, short):
    assert shorten(text) == short

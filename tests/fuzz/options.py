"""Purifiers with any settings on arrays of any size: refused by `InputError`, or an image of the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fakes.engine import FakeEngine, make_spec
from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe, demand
from zipsdk.errors import InputError
from zipsdk.purifier import Purifier

#: Values by name, because JSON has neither NaN nor NumPy's numbers.
VALUES: dict[str, Any] = {
    "none": None, "zero": 0, "one": 1, "two": 2, "three": 3, "many": 10**30, "minus": -1, "half": 0.5,
    "nan": float("nan"),
    "inf": float("inf"), "-inf": float("-inf"), "tiny": 1e-320, "large": 1e308, "true": True, "text": "x", "empty": "",
    "list": [1], "bytes": b"x", "np int": np.int64(2), "np float": np.float32(0.5), "np array": np.array([2]),
    "object": object, "complex": 1j, "64": 64, "32": 32, "999": 999, "1000": 1000, "2**64": 2**64, "2**64-1": 2**64 - 1,
    "blur2": "blur2", "gray": "gray", "blur2+gray": "blur2+gray", "blur2|gray": "blur2|gray", "blur64": "blur64",
    "blur9999": "blur9999", "blur3+blur5": "blur3+blur5", "gray+gray": "gray+gray", "paper": "paper", "fast": "fast",
    "patch": "patch", "random": "random", "mean": "mean", "joint": "joint", "negative": [-1, 2], "floats": [0.5, 1.5],
    "two numbers": [7, 2**63], "np ids": np.array([3, 4], np.uint64),
}  # fmt: skip
IDS = ("two numbers", "np ids", "negative", "floats", "text", "one", "list")
NEAR = {
    "transforms": ("blur2", "gray", "blur2+gray", "blur2|gray", "blur64", "blur9999", "blur3+blur5", "gray+gray"),
    "lam": ("half", "two", "inf", "tiny", "large", "np float"),
    "steps": ("one", "two", "three", "np int"),
    "eta": ("zero", "half", "one", "np float"),
    "combine": ("mean", "joint"),
    "preset": ("paper", "fast"),
    "start": ("one", "999", "1000", "64", "np int"),
    "seed": ("zero", "2**64-1", "2**64", "np int"),
    "clip_x0": ("true", "zero"),
    "tile_size": ("32", "64", "999"),
}


def draw_options(draw: Draw) -> Recipe:
    """Draw up to three settings, most of them close to what is taken, and the shape of a batch."""
    names = draw(st.lists(st.sampled_from(sorted(NEAR)), max_size=3, unique=True))
    return {
        "options": {
            n: draw(st.sampled_from(NEAR[n] if draw(st.integers(0, 2)) else tuple(VALUES))) for n in names
        },
        "ids": draw(st.sampled_from(("none",) * 6 + IDS)),
        "side": [draw(st.sampled_from((1, 2, 3, 7, 8, 32, 33, 64, 65, 130))) for _ in range(2)],
        "fixed": draw(st.booleans()),
    }  # fmt: skip


def check_options(recipe: Recipe, folder: Path) -> str:
    """Make a purifier and run it."""
    del folder
    side = {"min_side": 64, "max_side": 64} if recipe["fixed"] else {}
    options = {n: VALUES[v] for n, v in recipe["options"].items()}
    if options.get("start") is None and "steps" not in options:
        options.setdefault("steps", 2)
    images = np.random.default_rng(0).integers(0, 256, (2, *recipe["side"], 3), dtype=np.uint8)
    try:
        purifier = Purifier(FakeEngine(make_spec(**side)), **options)
        demand(len(purifier.table) <= 1000, "more steps than time steps")
        if len(purifier.table) > 30:
            return "accepted, not run"
        out = purifier.run(images, noise_keys=VALUES[recipe["ids"]])
    except InputError:
        return "InputError"
    demand(out.shape == images.shape and out.dtype == np.uint8, f"got {out.dtype} {out.shape}")
    if purifier.settings.seed is not None and recipe["ids"] == "none":
        demand((purifier.run(images) == out).all(), "a seed gives another image the second time")
    return "accepted"

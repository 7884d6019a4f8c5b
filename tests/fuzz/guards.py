"""Guards with classifiers that return anything, and with detectors and purifiers that fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import zipsdk
from tests.fakes.engine import FakeEngine
from tests.fuzz.arrays import array_of, draw_array
from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe, demand
from zipsdk.errors import InputError

SCORES = ("good", "good", "good", "nan", "inf", "-inf", "row", "none", "text", "short", "long", "flat", "deep",
          "one", "complex", "int",
          "bool", "object", "ragged", "raise", "exit", "list", "readonly", "same buffer", "huge", "zero",
          "negative", "more")  # fmt: skip
BATCHES = ("array", "array", "list", "empty", "invalid", "file", "mixed")


def draw_guard(draw: Draw) -> Recipe:
    """Draw the recipe of a guard and of two batches."""
    return {
        "scores": [draw(st.sampled_from(SCORES)) for _ in range(draw(st.integers(1, 5)))],
        "detector": draw(st.sampled_from(("part", "scale", "none", "raise", "nan"))),
        "purifier": draw(st.sampled_from(("good", "good", "raise", "shape", "short", "nan", "none"))),
        "learn": draw(st.sampled_from((0, 16, 200))),
        "max_batch": draw(st.sampled_from((None, 1, 7, 256))),
        "batches": [draw(st.sampled_from(BATCHES)) for _ in range(draw(st.sampled_from((1, 1, 2))))],
        "array": draw_array(draw),
        "seed": draw(st.integers(0, 99)),
    }


def _answer(what: str, x: np.ndarray, old: list[Any]) -> Any:
    n = len(x)
    scores = np.eye(5)[(x.reshape(n, -1).sum(axis=1, dtype=np.int64) // 7) % 5] * 0.9 + 0.02
    number = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(what)
    if number is not None:
        scores[:, 1:] = number
    made: dict[str, Callable[[], Any]] = {
        "row": lambda: np.where(np.arange(n)[:, None] % 2 == 0, np.nan, scores), "none": lambda: None,
        "text": lambda: "cat",
        "short": lambda: scores[:-1], "long": lambda: np.concatenate([scores, scores]), "flat": lambda: scores[:, 0],
        "deep": lambda: scores[None], "one": lambda: scores[:, :1], "complex": lambda: scores.astype(complex),
        "int": lambda: (scores * 100).astype(int), "bool": lambda: scores > 0.5,
                        "object": lambda: scores.astype(object),
        "ragged": lambda: [[1.0], [1.0, 2.0]], "list": lambda: scores.tolist(), "huge": lambda: scores * 1e308,
        "zero": lambda: scores * 0, "negative": lambda: -scores, "more": lambda: np.tile(scores, (1, 3)),
    }  # fmt: skip
    if what == "raise":
        raise RuntimeError("the service is down")
    if what == "exit":
        raise OSError(104, "connection reset")
    if what == "readonly":
        scores.flags.writeable = False
    if what == "same buffer":
        old.append(scores) if not old or old[0].shape != scores.shape else np.copyto(old[0], scores)
        return old[0] if old[0].shape == scores.shape else scores
    return made[what]() if what in made else scores


class _Purifier:
    def __init__(self, what: str):
        engine = FakeEngine()
        if what == "nan":
            engine.__class__ = _Broken
        self.what, self.inner = what, zipsdk.Purifier(engine, steps=2, seed=1)

    def run(self, batch: Any) -> Any:
        if self.what == "raise":
            raise zipsdk.EngineError("lost the device")
        if self.what == "none":
            return None
        out = self.inner.run(batch)
        if self.what == "short":
            return out[:-1]
        return [c[:-1] for c in out] if self.what == "shape" else out


class _Broken(FakeEngine):
    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.full_like(super().__call__(x, t), np.nan)


class _BrokenDetector(zipsdk.ScaleUp):
    """A detector that raises or scores NaN."""

    def views(self, rgb: np.ndarray) -> list[np.ndarray]:
        if self.threshold == 1:
            raise ValueError("the detector failed")
        return super().views(rgb)

    def score(self, scores: Any) -> float:
        return super().score(scores) if self.threshold == 1 else math.nan


def _detector(recipe: Recipe) -> Any:
    name = recipe["detector"]
    if name == "part":
        return zipsdk.AblationDetector(learn=recipe["learn"] or 200)
    if name == "scale":
        return zipsdk.ScaleUp()
    return {"none": zipsdk.PurifyAll(), "raise": _BrokenDetector(threshold=1.0), "nan": _BrokenDetector()}[name]


def _batch(name: str, recipe: Recipe, folder: Path) -> Any:
    rng = np.random.default_rng(recipe["seed"])
    images = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    if name == "invalid":
        return array_of(recipe["array"])
    made = {
        "list": [images[0], images[1, :9]],
        "empty": [],
        "file": folder / "none.png",
        "mixed": [images[0], folder / "none.png"],
    }
    return made.get(name, images)


def check_guard(recipe: Recipe, folder: Path) -> str:
    """Run a guard over two batches: one decision each, and no label without scores that allow it."""
    answers, calls = recipe["scores"], 0
    old: list[Any] = []

    def classify(x: np.ndarray) -> Any:
        nonlocal calls
        demand(x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3 and len(x), f"queried with {x.dtype} {x.shape}")
        demand(recipe["max_batch"] is None or len(x) <= recipe["max_batch"], "queried with too many at once")
        calls += 1
        return _answer(answers[calls % len(answers)], x, old)

    guard = zipsdk.Guard(
        classify,
        _Purifier(recipe["purifier"]),
        _detector(recipe),
        adapt=recipe["learn"] > 0,
        max_batch=recipe["max_batch"],
    )
    result = "accepted"
    for name in recipe["batches"]:
        batch = _batch(name, recipe, folder)
        try:
            decisions = guard.run(batch)
        except InputError:
            demand(name == "invalid", "a batch that can be used is refused")
            result = "InputError"
            continue
        count = len(batch) if isinstance(batch, list) or getattr(batch, "ndim", 0) == 4 else 1
        demand(len(decisions) == count, f"{len(decisions)} decisions for {count} images")
        for d in decisions:
            demand((d.label is None) == (d.error is not None), "a label beside an error, or neither")
            demand(
                d.label is None or (d.class_scores is not None and int(np.argmax(d.class_scores)) == d.label),
                "a label without scores",
            )
            demand(d.label is None or math.isfinite(float(np.max(d.class_scores))), "a label from an infinite score")  # type: ignore[arg-type]
            demand(not (recipe["detector"] == "none" and not d.flagged), "an image passes unpurified")
            demand(
                not (d.flagged and d.label is not None and d.image is None), "a flagged image has a label unpurified"
            )
    return result

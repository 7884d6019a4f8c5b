"""Arguments of the public functions with values of any type: an error of zipsdk, or a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

import zipsdk
from tests.fakes.engine import FakeEngine, make_spec
from tests.fuzz.edits import Draw
from tests.fuzz.graphs import toy
from tests.fuzz.options import VALUES
from tests.fuzz.recipes import Recipe
from zipsdk import images
from zipsdk.engines.tensorrt.build import build
from zipsdk.errors import ZipSdkError
from zipsdk.guard import speedup_bound

#: Values that the settings of `tests.fuzz.options` have no use for.
MORE: dict[str, Any] = {
    **VALUES, "two in array": np.array([1, 2]), "nested": [[1]], "dict": {}, "set": {1},
    "word array": np.array(["mean"]),
    "class": FakeEngine, "function": make_spec, "range": range(3), "decimal text": "1", "None list": [None],
}  # fmt: skip
BATCH = np.zeros((1, 8, 8, 3), np.uint8)


def _classify(x: np.ndarray) -> np.ndarray:
    return np.eye(3)[np.arange(len(x)) % 3]


def _purifier(**options: Any) -> zipsdk.Purifier:
    return zipsdk.Purifier(FakeEngine(make_spec()), **{"steps": 2, **options})


def _model(folder: Path) -> Path:
    path = folder / "toy.onnx"
    path.write_bytes(toy())
    return path


def _guard(**options: Any) -> zipsdk.Guard:
    return zipsdk.Guard(**{"classify": _classify, "purifier": _purifier(), "detector": zipsdk.PurifyAll(), **options})


#: Of the argument and a folder.
Call = Callable[..., Any]


def _calls() -> dict[str, Call]:
    calls: dict[str, Call] = {
        "Purifier(engine)": lambda v, _: zipsdk.Purifier(v),
        "run(batch)": lambda v, _: _purifier().run(v),
        "run(data_format)": lambda v, _: _purifier().run(BATCH, data_format=v),
        "run(ids)": lambda v, _: _purifier().run(BATCH, noise_keys=v),
        "run(seed)": lambda v, _: _purifier().run(BATCH, seed=v),
        "stream(batches)": lambda v, _: list(_purifier().stream(v)),
        "stream(data_format)": lambda v, _: list(_purifier().stream([BATCH], data_format=v)),
        "images.read(max_pixels)": lambda v, _: images.read(BATCH, max_pixels=v),
        "images.read_one(item)": lambda v, _: images.read_one(v),
        "images.save(image)": lambda v, folder: images.save(v, folder / "x.png"),
        "images.save(path)": lambda v, _: images.save(Image.new("L", (2, 2)), v),
        "images.format_of(path)": lambda v, _: images.format_of(v, "L", (2, 2)),
        "Guard.run(batch)": lambda v, _: _guard().run(v),
        "Guard.run(data_format)": lambda v, _: _guard().run(BATCH, data_format=v),
        "OneOf": lambda v, _: zipsdk.OneOf(v, v),
        "Blur": lambda v, _: zipsdk.Blur(v),
        "load_engine(model)": lambda v, _: zipsdk.load_engine(v),
        "load_engine(device)": lambda v, folder: zipsdk.load_engine(_model(folder), device=v),
        "load_engine(threads)": lambda v, folder: zipsdk.load_engine(_model(folder), threads=v),
        "load_engine(precision)": lambda v, folder: zipsdk.load_engine(_model(folder), precision=v),
        "speedup_bound": lambda v, _: speedup_bound(v, 1, 2),
    }
    for name in (
        "lam",
        "steps",
        "eta",
        "combine",
        "preset",
        "start",
        "seed",
        "clip_x0",
        "cuda_graph",
        "device",
        "precision",
        "threads",
        "tile_size",
        "transforms",
    ):
        calls[f"Purifier({name})"] = lambda v, _, n=name: _purifier(**{n: v})
    for name in ("classify", "purifier", "detector", "adapt", "timeout", "max_batch"):
        calls[f"Guard({name})"] = lambda v, _, n=name: _guard(**{n: v})
    for name in ("threshold", "certain", "reference", "learn"):
        calls[f"AblationDetector({name})"] = lambda v, _, n=name: zipsdk.AblationDetector(**{n: v})
    for name in ("scales", "threshold", "overall", "classes"):
        calls[f"ScaleUp({name})"] = lambda v, _, n=name: zipsdk.ScaleUp(**{n: v})
    for name in make_spec().__dataclass_fields__:
        calls[f"ModelSpec({name})"] = lambda v, _, n=name: make_spec(**{n: v})
    for name in ("flavor", "batches", "sizes", "targets"):
        # without a model, so that nothing is built
        calls[f"build({name})"] = lambda v, folder, n=name: build(folder / "none.onnx", folder / "x.plan", **{n: v})
    return calls


CALLS = _calls()


def draw_argument(draw: Draw) -> Recipe:
    """Draw a call and a value."""
    return {"call": draw(st.sampled_from(sorted(CALLS))), "value": draw(st.sampled_from(sorted(MORE)))}


def check_argument(recipe: Recipe, folder: Path) -> str:
    """Call with the value."""
    value = MORE[recipe["value"]]
    if recipe["call"] == "load_engine(threads)" and isinstance(value, int) and 64 < value < 2**31:
        return "left out: so many threads"
    if "(path)" in recipe["call"] and not isinstance(value, bytes):
        value = folder / value if isinstance(value, str) else value  # nothing is written elsewhere
    try:
        CALLS[recipe["call"]](value, folder)
    except ZipSdkError as e:
        return type(e).__name__
    return "accepted"

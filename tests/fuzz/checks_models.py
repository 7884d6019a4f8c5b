"""Check specs, sidecars, plans' sidecars and ONNX files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import graphs
from tests.fuzz.recipes import Recipe, demand, unpack
from tests.fuzz.texts import SHA256, SIZE
from zipsdk.engines import load_engine
from zipsdk.engines.tensorrt.plan_file import read_plan
from zipsdk.errors import EngineError, InputError, ModelError
from zipsdk.models.sidecar import check_sidecar, model_hashes
from zipsdk.models.spec import ModelSpec
from zipsdk.purifier import Purifier
from zipsdk.sampling import tiling
from zipsdk.sampling.schedule import step_table


def check_spec(recipe: Recipe, folder: Path) -> str:
    """Read a spec from text; a valid one gives a table of steps and a layout, or is refused by `InputError`."""
    del folder
    try:
        spec = ModelSpec.from_json(unpack(recipe["data"]).decode(), "model.onnx")
    except ModelError as e:
        demand(str(e).startswith("model.onnx"), f"a refusal that does not name the file: {str(e)[:80]}")
        str(e).encode()
        return "ModelError"
    again = ModelSpec.from_json(spec.to_json(), "again")
    demand(again == spec, "a spec that is written and read again differs")
    json.loads(spec.to_json(), parse_constant=lambda name: demand(name == "Infinity", f"JSON has {name}"))
    try:
        table = step_table(spec, lam=spec.lam, eta=1.0, steps=4, start=None)
        demand(all(np.isfinite([s.ab, s.ab_next, s.w, s.s]).all() for s in table.steps), "a step is not finite")
        layout = tiling.plan_tiles(spec, recipe["side"], recipe["side"], 2, None)
        demand(layout.height >= recipe["side"], "the layout is smaller than the image")
    except InputError:
        return "InputError"
    return "accepted"


def check_sidecars(recipe: Recipe, folder: Path) -> str:
    """Check a model file against a sidecar; `SIZE` and `SHA256` in it stand for the true ones."""
    model = folder / ("model.plan" if recipe["plan"] else "model")
    model.write_bytes(b"not a model")
    data = unpack(recipe["data"])
    data = data.replace(str(SIZE).encode(), b"11").replace(
        SHA256.encode(), hashlib.sha256(b"not a model").hexdigest().encode()
    )
    data = data.replace(b'"model"', b'"model.plan"') if recipe["plan"] else data
    model.with_name(model.name + ".json").write_bytes(data)
    (folder.parent / "outside").write_bytes(b"secret")
    try:
        record: Any = read_plan(model) if recipe["plan"] else check_sidecar(model)
    except ModelError as e:
        str(e).encode()
        return "ModelError"
    demand(isinstance(record, dict), f"got {type(record).__name__}, expected a dict")
    if recipe["plan"]:
        demand(isinstance(record["spec"], ModelSpec), "the spec is none")
    demand(json.dumps(model_hashes(model)), "no hashes")
    return "accepted"


def check_graph(recipe: Recipe, folder: Path) -> str:
    """Open an ONNX file, evaluate it, and purify an image with it."""
    path = folder / "inner" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(graphs.model_of(recipe))
    (folder / "outside.bin").write_bytes(bytes(64))
    (path.parent / "beside.bin").write_bytes(bytes(64))
    try:
        engine = load_engine(path, device="cpu", threads=1)
    except (ModelError, EngineError) as e:
        str(e).encode()
        return type(e).__name__
    demand(
        ".." not in recipe["location"] and not recipe["location"].startswith("/"), "weights outside the folder are read"
    )
    spec = engine.spec
    try:
        side = min(spec.image_size, 64)
        x = np.zeros((1, 3, side, side), np.float32)
        eps = engine(x, np.zeros(1, np.float32))
    except EngineError:
        return "EngineError when it runs"
    demand(isinstance(eps, np.ndarray) and eps.dtype == np.float32, "eps is no float32 array")
    image = np.full((9, 12, 3), 100, np.uint8)
    try:
        out = Purifier(engine, "blur2", steps=2, seed=1).run(image)
    except (InputError, EngineError) as e:
        return f"{type(e).__name__} when it purifies"
    demand(out.shape == image.shape and out.dtype == np.uint8, f"purified to {out.dtype} {out.shape}")
    return "accepted"

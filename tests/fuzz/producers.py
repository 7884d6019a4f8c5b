"""Draw and check objects of array libraries that do not exist: DLPack and NumPy's protocols, whole and broken."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.arrays import array_of, draw_array
from tests.fuzz.checks_images import MAX_PIXELS, check_rgb
from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe, demand
from zipsdk import images
from zipsdk.errors import InputError, OutOfMemoryError

#: Protocols of one object; "namespace" without a fault makes it come back as what it was.
PROTOCOLS = ("dlpack", "array", "interface", "namespace", "cuda", "read", "iter", "mapping")
FAULTS = (*[""] * 12, "device cuda", "device text", "device none", "raise dlpack", "raise array", "memory",
          "scalar array", "list array", "raise namespace", "no module", "other module", "numpy namespace", "old array",
          "interface garbage", "busy")  # fmt: skip
_MODULE = "arrays_of_the_fuzzer"


def draw_producers(draw: Draw) -> Recipe:
    """Draw the recipe of a batch of objects."""
    wrap = draw(st.sampled_from(("none", "none", "none", "list")))
    count = 1 if wrap == "none" else draw(st.integers(0, 3))
    objects = [
        {
            "array": draw_array(draw),
            "protocols": draw(st.lists(st.sampled_from(PROTOCOLS), min_size=1, max_size=4, unique=True)),
            "fault": draw(st.sampled_from(FAULTS)),
        }
        for _ in range(count)
    ]
    return {"wrap": wrap, "data_format": draw(st.sampled_from((None, None, "NHWC", "NCHW"))), "objects": objects}


def object_of(recipe: Recipe) -> Any:
    """Make an object from its recipe; its attribute `data` is the array."""
    data, fault, protocols = array_of(recipe["array"]), recipe["fault"], recipe["protocols"]

    def fail(name: str) -> None:
        if fault == f"raise {name}":
            raise RuntimeError("a fault of the library")
        if fault == "memory":
            raise MemoryError
        if fault == "busy":
            raise BufferError

    def dlpack(self: Any, **options: Any) -> Any:
        fail("dlpack")
        return self.data.__dlpack__(**options)

    def device(self: Any) -> Any:
        return {"device cuda": (2, 0), "device text": ("cpu", 0), "device none": None}.get(fault, (1, 0))

    def as_array(self: Any, dtype: Any = None, copy: Any = None) -> Any:
        fail("array")
        return 3 if fault == "scalar array" else [1] if fault == "list array" else self.data

    def old_array(self: Any) -> Any:
        return self.data

    def namespace(self: Any, api_version: Any = None) -> Any:
        fail("namespace")
        made = {"no module": SimpleNamespace(), "other module": sys, "numpy namespace": np}
        return made.get(fault, sys.modules[_MODULE])

    members: dict[str, Any] = {"__init__": lambda self: self.__dict__.update(data=data)}
    if "dlpack" in protocols:
        members |= {"__dlpack__": dlpack, "__dlpack_device__": device}
    if "array" in protocols:
        members["__array__"] = old_array if fault == "old array" else as_array
    if "interface" in protocols:
        given = {"shape": "x", "data": 3} if fault == "interface garbage" else data.__array_interface__
        members["__array_interface__"] = given
    if "namespace" in protocols:
        members["__array_namespace__"] = namespace
    if "cuda" in protocols:
        members["__cuda_array_interface__"] = {}
    if "read" in protocols:
        members["read"] = b"no method"
    if "iter" in protocols:
        members["__iter__"] = lambda self: iter(self.data)
    if "mapping" in protocols:
        members |= {"keys": lambda self: [], "__getitem__": lambda self, i: self.data[i]}
    return type("Made", (), members)()


def check_producers(recipe: Recipe, folder: Path) -> str:
    """Read and restore a batch: the same type where it has a whole namespace, else NumPy; nothing shared."""
    del folder
    module = ModuleType(_MODULE)
    module.from_dlpack = lambda x: SimpleNamespace(data=np.from_dlpack(x))  # type: ignore[attr-defined]
    sys.modules[_MODULE] = module
    try:
        items = [object_of(r) for r in recipe["objects"]]
        before = [x.data.tobytes() if x.data.size <= MAX_PIXELS and not x.data.dtype.hasobject else b"" for x in items]
        batch: Any = items[0] if recipe["wrap"] == "none" else items
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                loaded, restore = images.read(batch, data_format=recipe["data_format"], max_pixels=MAX_PIXELS)
            except InputError as e:
                demand("expected" in str(e), f"a refusal without what is expected: {e}")
                return type(e).__name__
            except OutOfMemoryError as e:
                demand(any(r["fault"] == "memory" for r in recipe["objects"]), f"out of memory without a cause: {e}")
                return type(e).__name__
            for p in loaded:
                check_rgb(p.rgb, MAX_PIXELS)
            out = restore([255 - p.rgb for p in loaded])
        for made, old, bits, new in zip(
            recipe["objects"], items, before, out if isinstance(out, list) else [out], strict=True
        ):
            whole = made["fault"] not in ("raise namespace", "memory", "busy", "no module", "other module",
                                          "numpy namespace")  # fmt: skip
            own = whole and {"dlpack", "namespace"} <= set(made["protocols"])
            demand(type(new) is (SimpleNamespace if own else np.ndarray), f"got {type(new).__name__}, own is {own}")
            array = new.data if own else new
            demand(array.shape == old.data.shape and array.dtype == old.data.dtype, f"got {array.dtype} {array.shape}")
            demand(not np.shares_memory(array, old.data), "the result shares memory with the input")
            demand(not bits or bits == old.data.tobytes(), "the input was changed")
    finally:
        del sys.modules[_MODULE]
    return "accepted"

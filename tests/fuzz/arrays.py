"""Arrays of any dtype, shape and memory layout, and PIL images of any mode with any `info`, as recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from tests.fuzz.edits import Draw
from tests.fuzz.recipes import Recipe
from tests.fuzz.seeds import THUMBNAIL, profile
from tests.fuzz.tiff import draw_exif

DTYPES = ("u1", "u1", "u1", "<u2", ">u2", "<f2", ">f2", "<f4", "<f4", ">f4", "<f8", ">f8", "?", "i1", "<i2",
          "<i4", "<i8",
          "<u4", "<u8", "<c8", "<c16", "O", "U2", "S3", "V3", "M8[s]", "m8[D]", "g", "record")  # fmt: skip
SPECIAL = ("nan", "inf", "-inf", "-1e-3", "1.0000001", "255", "-0.0", "1e-45", "1")
VIEWS = ("reverse", "transpose", "step", "readonly", "broadcast", "fortran", "unaligned", "masked", "matrix", "memmap")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
         "I;16",
         "I;16B", "I;16L", "I;16N")  # fmt: skip
SUFFIXES = (
    ".png",
    ".jpg",
    ".webp",
    ".tif",
    ".bmp",
    ".ppm",
    ".pgm",
    ".avif",
    ".gif",
    ".PNG",
    "",
    ".jp2",
    ".png.",
    ".pdf",
)


def draw_array(draw: Draw) -> Recipe:
    """Draw the recipe of one array."""
    rank = draw(st.sampled_from((3, 3, 3, 4, 4, 4, 2, 2, 0, 1, 5)))
    shape = draw(st.lists(st.sampled_from((1, 2, 3, 4, 5, 9, 3, 8, 0)), min_size=rank, max_size=rank))
    if rank >= 3 and draw(st.integers(0, 3)):
        shape[draw(st.sampled_from((-1, -1, -3)))] = draw(st.sampled_from((3, 3, 1, 4)))
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "shape": shape,
        "seed": draw(st.integers(0, 255)),
        "special": draw(st.sampled_from((*SPECIAL, *[""] * 12))),
        "views": draw(st.lists(st.sampled_from(VIEWS), max_size=2)),
        "huge": draw(st.sampled_from((0,) * 20 + (10**5, 2**31, 2**40))),
    }


def draw_arrays(draw: Draw) -> Recipe:
    """Draw the recipe of a batch: one array, or a list of some."""
    wrap = draw(st.sampled_from(("none", "none", "none", "list", "tuple")))
    count = 1 if wrap == "none" else draw(st.integers(0, 3))
    data_format = draw(st.sampled_from((None, "NHWC", "NCHW")))
    return {"wrap": wrap, "data_format": data_format, "arrays": [draw_array(draw) for _ in range(count)]}


def array_of(recipe: Recipe) -> np.ndarray[Any, Any]:
    """Make an array from its recipe."""
    rng = np.random.default_rng(recipe["seed"])
    shape, name = tuple(recipe["shape"]), recipe["dtype"]
    dtype: np.dtype[Any] = np.dtype([("r", "u1"), ("g", "f4")] if name == "record" else name)
    if recipe["huge"] and len(shape) >= 2:  # far larger than memory, and one element in truth
        big = list(shape)
        big[0 if len(big) < 4 else 1] = recipe["huge"]
        return as_strided(np.zeros(1, "u1" if dtype.hasobject else dtype), big, [0] * len(big), writeable=False)
    count = int(np.prod(shape))
    if dtype.hasobject:
        a = np.full(shape, None, dtype)
    elif dtype.kind == "f" and recipe["seed"] % 4:
        a = np.asarray(rng.random(shape)).astype(dtype)
    else:  # any bytes, signaling NaN among them
        a = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()
    if dtype.kind == "f" and count and recipe["special"]:
        a.reshape(-1)[int(rng.integers(count))] = float(recipe["special"])
    for view in recipe["views"]:
        a = _view(a, view)
    return a


def _view(a: np.ndarray[Any, Any], view: str) -> np.ndarray[Any, Any]:
    if view == "readonly":
        a = a.view()
        a.flags.writeable = False
    elif view == "masked":
        return np.ma.masked_array(a, np.zeros(a.shape, bool))
    elif view == "matrix" and a.ndim == 2 and not a.dtype.hasobject:
        return a.view(np.matrix)
    elif view == "memmap" and not a.dtype.hasobject:
        return a.view(np.memmap)
    elif view == "unaligned" and a.flags.c_contiguous and not a.dtype.hasobject:
        return np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape)
    elif a.ndim and view == "reverse":
        return a[::-1]
    elif a.ndim and view == "step":
        return a[::2]
    elif a.ndim and view == "transpose":
        return a.swapaxes(0, -1)
    elif view == "fortran":
        return np.asfortranarray(a) if a.ndim else a
    elif a.ndim and a.shape[0] and view == "broadcast":
        return np.broadcast_to(a[:1], a.shape)
    return a


def draw_pil(draw: Draw) -> Recipe:
    """Draw the recipe of a PIL image; `info` holds what programs, rather than files, leave there."""
    values = st.sampled_from(("bytes", "text", "number", "none", "list", "empty", "valid"))
    keys = ("exif", "icc_profile", "transparency", "gamma", "dpi", "xmp", "comment", "background", "loop")
    return {
        "mode": draw(st.sampled_from(MODES)),
        "size": draw(st.sampled_from(((12, 9), (1, 1), (5, 3), (0, 4), (3, 0), (600, 500)))),
        "info": {k: draw(values) for k in draw(st.lists(st.sampled_from(keys), max_size=3, unique=True))},
        "exif": draw_exif(draw, THUMBNAIL).hex(),
        "suffix": draw(st.sampled_from(SUFFIXES)),
    }


def pil_of(recipe: Recipe) -> Image.Image:
    """Make a PIL image from its recipe."""
    image = Image.new(recipe["mode"], tuple(recipe["size"]), 1)
    valid = {"exif": bytes.fromhex(recipe["exif"]), "icc_profile": profile(), "transparency": 1, "dpi": (72, 72)}
    made: dict[str, Any] = {"bytes": b"\1\2", "text": "é", "number": 5, "none": None, "list": [1, 2], "empty": b""}
    for key, kind in recipe["info"].items():
        image.info[key] = valid.get(key, b"x") if kind == "valid" else made[kind]
    return image

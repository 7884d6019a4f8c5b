"""Check image files, arrays and PIL images: a valid image or a refusal, and outputs that can be read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.arrays import array_of, pil_of
from tests.fuzz.recipes import Recipe, Violation, demand, unpack
from tests.fuzz.seeds import THUMBNAIL
from tests.fuzz.sources import ALIKE, opened, pillow_pixels
from zipsdk import images
from zipsdk.errors import ImageReadError, InputError

MAX_PIXELS = 250_000
#: Starts of zipsdk's warnings: the file or the image.
NAMES = ("input", "saved", "out.", "PIL image")


def _leaks(caught: list[warnings.WarningMessage]) -> list[str]:
    """List the warnings that name no image: warnings of zipsdk name it."""
    return [
        f"{w.category.__name__}: {w.message}"
        for w in caught
        if w.category is not UserWarning or not any(name in str(w.message) for name in NAMES)
    ]


def check_rgb(rgb: Any, most: int) -> None:
    demand(isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8, f"rgb is {type(rgb).__name__}, expected uint8")
    demand(rgb.ndim == 3 and rgb.shape[2] == 3, f"rgb has {rgb.ndim} axes, expected (H, W, 3)")
    demand(rgb.flags.c_contiguous and 0 < rgb.shape[0] * rgb.shape[1] <= most, "rgb is empty, too large or strided")


def _written(image: Image.Image, expected: np.ndarray, folder: Path, suffix: str) -> None:
    """Save a purified image as PNG and in the format of its input, and check the bytes."""
    for name in dict.fromkeys((".png", suffix)):
        target = folder / f"out{name}"
        try:
            images.save(image, target)
        except ImageReadError as e:
            raise Violation(f"a restored image cannot be saved: {e}") from e
        except InputError:
            demand(name != ".png", f"a restored image of mode {image.mode} cannot be written as PNG")
            continue
        data = target.read_bytes()
        demand(THUMBNAIL not in data, f"the output {name} contains the thumbnail of the input")
        if name == ".png":
            demand(b"\xff\xd8\xff" not in image.info.get("exif", b""), "the output's EXIF holds a JPEG")
            got = images.read_one(target, max_pixels=MAX_PIXELS).rgb
            demand(got.shape == expected.shape, f"the output has shape {got.shape}, expected {expected.shape}")
            demand((got == expected).all(), f"the output of mode {image.mode} differs from what was saved")


def check_file(recipe: Recipe, folder: Path) -> str:
    """Read, restore and save {"suffix", "data", "via"}; `via` is one of `tests.fuzz.sources.WAYS`."""
    path, way = folder / f"input{recipe['suffix']}", recipe["via"]
    path.write_bytes(unpack(recipe["data"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with opened(path, way) as item:
                if item is None:
                    return "not opened by Pillow"
                loaded = images.read_one(item, max_pixels=MAX_PIXELS)
        except ImageReadError as e:
            demand(" got " in str(e) and "expected" in str(e), f"a refusal without reason: {e}")
            demand("input" in str(e) or way != "path", f"a refusal that does not name the file: {e}")
            if way in ALIKE:
                demand(_pixels(path) is None, f"refused as {way} and read by its path: {e}")
            return type(e).__name__
        except InputError as e:
            demand(way == "text", f"a file is refused by {type(e).__name__}, expected ImageReadError: {e}")
            return type(e).__name__
        check_rgb(loaded.rgb, MAX_PIXELS)
        demand(way not in ("broken", "text"), f"{way} is read")
        expected = _pixels(path) if way in ALIKE else pillow_pixels(path) if way == "path" else None
        if expected is not None:
            demand(expected.shape == loaded.rgb.shape, f"{way}: shape {loaded.rgb.shape}, expected {expected.shape}")
            demand((expected == loaded.rgb).all(), f"{way}: other pixels than the path gives, or Pillow")
        elif way in ALIKE:
            raise Violation(f"read as {way} and refused by its path")
        purified = 255 - loaded.rgb
        image = loaded.restore(purified)
        demand(isinstance(image, Image.Image), f"restore gave {type(image).__name__}, expected a PIL image")
        height, width = loaded.rgb.shape[:2]
        demand(image.size == (width, height), f"restore gave {image.size}, expected {(width, height)}")
        _written(image, purified, folder, recipe["suffix"])
    if leaks := [w for w in _leaks(caught) if way == "path" or not w.startswith("UserWarning")]:
        raise Violation(f"a warning that is not documented: {leaks[0]}")
    return "accepted"


def _pixels(path: Path) -> np.ndarray | None:
    try:
        return images.read_one(path, max_pixels=MAX_PIXELS).rgb
    except InputError:
        return None


def check_array(recipe: Recipe, folder: Path) -> str:
    """Read and restore a batch of arrays, described as in `tests.fuzz.arrays`."""
    del folder
    items = [array_of(r) for r in recipe["arrays"]]
    batch: Any = items[0] if recipe["wrap"] == "none" else list(items) if recipe["wrap"] == "list" else tuple(items)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            loaded, restore = images.read(batch, data_format=recipe["data_format"], max_pixels=MAX_PIXELS)
        except InputError as e:
            return type(e).__name__
        for p in loaded:
            check_rgb(p.rgb, MAX_PIXELS)
        out = restore([255 - p.rgb for p in loaded])
    got = [out] if recipe["wrap"] == "none" else list(out)
    demand(isinstance(out, list) == (recipe["wrap"] != "none"), f"got {type(out).__name__} back")
    for new, old in zip(got, items, strict=True):
        demand(type(new) is np.ndarray, f"got {type(new).__name__} back, expected ndarray")
        demand(
            new.shape == old.shape and new.dtype == old.dtype,
            f"got {new.dtype} {new.shape} for {old.dtype} {old.shape}",
        )
        demand(
            new.flags.writeable and not np.shares_memory(new, np.asarray(old)),
            "the result shares memory or is read-only",
        )
        demand(new.dtype.kind != "f" or (new >= 0).all() & (new <= 1).all(), "a float result outside [0, 1]")
    return "accepted"


def check_pil(recipe: Recipe, folder: Path) -> str:
    """Read, restore and save a PIL image, described as in `tests.fuzz.arrays`."""
    item = pil_of(recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = images.read_one(item, max_pixels=MAX_PIXELS)
        except ImageReadError as e:
            result = type(e).__name__
        else:
            check_rgb(loaded.rgb, MAX_PIXELS)
            _written(loaded.restore(255 - loaded.rgb), 255 - loaded.rgb, folder, recipe["suffix"])
            result = "accepted"
        # the image as it is, which a caller may save, too
        target = folder / f"saved{recipe['suffix']}"
        try:
            images.save(item, target)
        except InputError:
            demand(not target.exists(), "a refused image left a file")
        demand(not list(folder.glob(".zipsdk-*")), "a temporary file is left")
    if leaks := _leaks(caught):
        raise Violation(f"a warning that is not documented: {leaks[0]}")
    return result

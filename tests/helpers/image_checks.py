"""Make sample images and compare images, for the tests of `zipsdk.images`."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from tests.helpers.image_files import png_chunk
from zipsdk import images
from zipsdk.images.arrays import LoadedImage

RNG = np.random.default_rng(7)
H, W = 5, 7
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = ExifTags.Base.Orientation
#: The mark of tests that need AVIF.
AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")


_open: list[Image.Image] = []


def opened(source: Any) -> Any:
    """Open an image, which the fixture `closed_images` closes."""
    _open.append(Image.open(source))
    return _open[-1]


def close_opened() -> None:
    """Close the images that `opened` has returned."""
    while _open:
        _open.pop().close()


def listing(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(p.name for p in folder.iterdir())


def noise(*shape: int) -> Any:
    """Draw an array of uint8 noise."""
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def identity(batch: Any, **options: Any) -> Any:
    """Read a batch and restore it without purification."""
    loaded, restore = images.read(batch, **options)
    for p in loaded:
        valid(p)
    return restore([p.rgb.copy() for p in loaded])


def valid(p: LoadedImage) -> None:
    """Check dtype, shape and memory layout of the pixels of a loaded image."""
    assert p.rgb.dtype == np.uint8 and p.rgb.ndim == 3 and p.rgb.shape[2] == 3 and p.rgb.size > 0
    assert p.rgb.flags.c_contiguous


def same(a: Any, b: Any) -> None:
    """Check that two arrays have equal dtypes, shapes and values."""
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def same_image(a: Image.Image, b: Image.Image) -> None:
    """Check that two PIL images have equal modes, sizes and pixels."""
    assert (a.mode, a.size) == (b.mode, b.size)
    assert a.tobytes() == b.tobytes()


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Return a PNG of these filtered rows."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def sample(mode: str) -> Image.Image:
    """Return a PIL image of noise in this mode."""
    if mode in ("I;16", "I;16B", "I;16L"):
        deep = noise(H, W).astype(np.uint16) * 257
        return Image.frombytes(mode, (W, H), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "1":
        return Image.fromarray(noise(H, W)).convert("1")
    if mode == "P":
        return Image.fromarray(noise(H, W, 3)).quantize(16)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (W, H), noise(H, W, bands).tobytes())


WRITTEN = [(".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF"), (".avif", "AVIF")]
SUPPORTED = {".avif": features.check("avif"), ".webp": features.check("webp")}

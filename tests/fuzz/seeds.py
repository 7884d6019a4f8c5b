"""Small valid files of every format that is read, with EXIF and a thumbnail where the format has a place for them."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

from tests.fuzz.tiff import exif

WIDTH, HEIGHT = 12, 9
#: Stands for the pixels of the thumbnail; no output may contain it, because a thumbnail shows the unpurified image.
THUMBNAIL = b"THUMBNAIL-OF-THE-INPUT"


@cache
def profile() -> bytes:
    """Return an sRGB ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def base_files(kind: str) -> tuple[bytes, ...]:
    """Return the valid files of a kind: "png", "jpeg", "webp", "gif", "bmp", "avif", "ppm" or "tiff"."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    levels = np.stack([x * 20, y * 25, (x + y) * 10], axis=2) + np.random.default_rng(1).integers(
        0, 8, (HEIGHT, WIDTH, 3)
    )
    rgb = Image.fromarray(levels.astype(np.uint8))
    gray = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(gray)
    deep = Image.fromarray((levels[:, :, 0] * 250).astype(np.uint16))
    palette = rgb.quantize(16)
    turned, plain = exif(THUMBNAIL, orientation=6), exif(THUMBNAIL)
    out: list[bytes] = []

    def add(im: Image.Image, form: str, **options: Any) -> None:
        f = io.BytesIO()
        im.save(f, form, **options)
        out.append(f.getvalue())

    two = {"save_all": True, "append_images": [rgb.rotate(180)]}
    if kind == "png":
        add(rgb, "PNG", exif=plain, icc_profile=profile())
        add(rgba, "PNG", exif=turned)
        add(deep, "PNG")
        add(palette, "PNG", transparency=3)
        add(rgb.convert("1"), "PNG")
        add(gray, "PNG", transparency=5)
        add(rgb, "PNG", **two)
    elif kind == "jpeg":
        add(rgb, "JPEG", exif=plain, icc_profile=profile())
        add(rgb, "JPEG", exif=turned, progressive=True)
        add(gray, "JPEG", exif=plain, comment=b"words")
        add(rgb.convert("CMYK"), "JPEG")
        add(rgb, "MPO", **two)
    elif kind == "webp" and features.check("webp"):
        add(rgb, "WEBP", exif=plain, icc_profile=profile())
        add(rgba, "WEBP", lossless=True, exif=turned)
        add(rgba, "WEBP")
        add(rgb, "WEBP", **two)
    elif kind == "avif" and features.check("avif"):
        add(rgb, "AVIF", exif=plain, icc_profile=profile(), speed=10)
        add(rgba, "AVIF", exif=turned, speed=10)
        add(gray, "AVIF", speed=10)
        add(rgb, "AVIF", speed=10, **two)
    elif kind == "gif":
        add(palette, "GIF", comment=b"words")
        add(palette, "GIF", transparency=2, interlace=1)
        add(gray, "GIF", **two)
    elif kind == "bmp":
        add(rgb, "BMP")
        add(palette, "BMP")
        add(rgb.convert("1"), "BMP")
        add(rgba, "BMP")
    elif kind == "ppm":
        add(rgb, "PPM")
        add(deep, "PPM")
        add(rgb.convert("1"), "PPM")
        out += [b"P2\n# words\n3 2\n15\n1 2 3 4 5 15\n", b"P1 2 2 1 0 0 1", b"P3 1 2 9 1 2 3 4 5 6"]
    elif kind == "tiff":
        add(rgb, "TIFF", exif=plain)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
            add(rgba, "TIFF", compression=compression)
        add(rgb, "TIFF", compression="jpeg")
        add(rgb.convert("1"), "TIFF", compression="group4")
        add(deep, "TIFF")
        add(gray.convert("F"), "TIFF")
        add(rgb.convert("CMYK"), "TIFF")
        add(rgb, "TIFF", **two)
    return tuple(out)

"""Convert decoded pixels of any Pillow mode to uint8 RGB: orientation, depth, transparency and colors."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from zipsdk.errors import ImageReadError
from zipsdk.images.arrays import LoadedImage, check_clean, from_8bit, to_8bit, to_gray
from zipsdk.images.metadata import Unpacked
from zipsdk.types import U8

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class PilImage(LoadedImage[Image.Image]):
    """An image that was read from a file or a PIL image.

    Attributes:
        mode: PIL mode of the restored image: L, LA, RGB, RGBA or I;16.
        alpha: its alpha channel, mode L; None without alpha.
        info: its `info`: "icc_profile" and "exif".
    """

    mode: str
    alpha: Image.Image | None
    info: dict[str, bytes]

    def restore(self, clean: U8) -> Image.Image:
        """Convert a purified image to a PIL image; gray is the mean of the colors."""
        check_clean(clean, self.rgb)
        if self.mode in ("RGB", "RGBA"):
            out = Image.fromarray(clean)
        elif self.mode == "I;16":
            out = Image.fromarray(from_8bit(to_gray(clean), np.dtype(np.uint16)))
        else:
            out = Image.fromarray(to_gray(clean))
        if self.alpha is not None:
            out.putalpha(self.alpha)
        out.info.update(self.info)
        return out


def upright(im: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror an image by its EXIF orientation; return the image itself for 1 or an invalid value."""
    turn = _TURNS.get(orientation)
    return im if turn is None else im.transpose(turn)


def decode(im: Image.Image, parts: Unpacked, orientation: int, info: dict[str, bytes], warnings: list[str]) -> PilImage:
    """Convert a loaded PIL image to uint8 RGB.

    Args:
        im: of any mode.
        parts: the format and sample range of the file.
        orientation: of the EXIF, 1 to 8; other values count as 1.
        info: metadata to keep.
        warnings: list to append messages to.

    Raises:
        ImageReadError: the range of the samples is unknown.
    """
    transparency = im.info.get("transparency")
    im = upright(im, orientation)
    mode = im.mode
    if mode.startswith("I;16") or (mode == "I" and parts.kind in ("PNG", "PPM")):  # their mode I has 16 bit
        deep = np.asarray(im)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageReadError(f"got mode {mode} with values beyond 0..65535, expected 16 bit; scale it")
        if transparency is not None:
            warnings.append("its transparent color is left out: 16-bit images are read without alpha")
        levels = _levels(deep.astype(np.uint16), parts)
        return PilImage(np.repeat(levels[:, :, None], 3, axis=2), "I;16", None, info)
    if mode in ("I", "F"):
        raise ImageReadError(
            f"got mode {mode} (32 bit) of unknown range, expected 8 or 16 bit; "
            "scale it to 0..255 and convert it to L, or pass a float array in [0, 1]"
        )
    if mode in ("CMYK", "LAB"):
        im = _to_srgb(im, info.pop("icc_profile", None), warnings)  # the profile does not describe the new colors
    elif mode in ("1", "L") and isinstance(transparency, int):
        im = _keyed(im, transparency)
    elif im.has_transparency_data:
        im = im.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
    elif mode in ("1", "L"):
        im = im.convert("L")
    else:
        im = im.convert("RGB")
    alpha = im.getchannel("A") if im.mode in ("LA", "RGBA") else None
    # convert("RGB") repeats gray exactly and drops alpha without blending
    return PilImage(np.array(im.convert("RGB"), np.uint8, order="C"), im.mode, alpha, info)


def _keyed(im: Image.Image, transparent: int) -> Image.Image:
    """Convert mode 1 or L with one transparent level to LA, alike in all versions of Pillow."""
    if im.mode == "1":
        transparent = 255 if transparent else 0  # older Pillow has 1 for white
    levels = np.asarray(im.convert("L"))
    out = Image.fromarray(levels)
    out.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return out


def _levels(deep: np.ndarray[Any, np.dtype[np.uint16]], parts: Unpacked) -> U8:
    """Convert uint16 samples with values up to `parts.deepest` to 8 bit."""
    if parts.deepest != 65535:
        deep = np.minimum(deep, parts.deepest)
    if parts.inverted:
        deep = np.uint16(parts.deepest) - deep
    if parts.deepest == 65535:
        return to_8bit(deep)
    return np.array(np.rint(deep * (255 / parts.deepest)), np.uint8)


def _to_srgb(im: Image.Image, profile: bytes | None, warnings: list[str]) -> Image.Image:
    """Convert CMYK or LAB to RGB."""
    srgb = ImageCms.createProfile("sRGB")
    if im.mode == "LAB":
        return _converted(im, ImageCms.createProfile("LAB"), srgb)
    reason = "it has no ICC profile"
    if profile:
        try:
            return _converted(im, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb)
        except (ImageCms.PyCMSError, OSError) as exc:
            reason = f"its ICC profile cannot be used ({exc})"
    warnings.append(f"CMYK is converted to RGB by a plain formula, because {reason}: colors may be wrong")
    return im.convert("RGB")


def _converted(im: Image.Image, source: Any, srgb: Any) -> Image.Image:
    out = ImageCms.profileToProfile(im, source, srgb, outputMode="RGB")
    if out is None:
        raise OSError("no conversion")
    return out

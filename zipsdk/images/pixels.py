"""Decoded pixels of any of Pillow's modes -> `Picture`: orientation, depth, transparency and colors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from zipsdk.errors import PictureError
from zipsdk.images.arrays import U8, Picture, check_clean, from_8bit, grey, to_8bit
from zipsdk.images.metadata import Unpacked

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(im: Image.Image, orientation: int) -> Image.Image:
    """The image turned as its orientation says; the image itself where that is 1, or no orientation."""
    turn = _TURNS.get(orientation)
    return im if turn is None else im.transpose(turn)


def decode(
    im: Image.Image, parts: Unpacked, orientation: int, info: dict[str, bytes], name: str, cautions: list[str]
) -> Picture:
    """A loaded image -> Picture."""
    transparency = im.info.get("transparency")
    im = upright(im, orientation)
    mode = im.mode
    if mode.startswith("I;16") or (mode == "I" and parts.kind in ("PNG", "PPM")):  # their mode I has 16 bit
        deep = np.asarray(im)
        if deep.min() < 0 or deep.max() > 65535:
            raise PictureError(f"{name}: got mode {mode} with values beyond 0..65535, wanted 16 bit: scale it")
        if transparency is not None:
            cautions.append("its transparent color is left out: 16-bit samples have no alpha here")
        levels = _levels(deep.astype(np.uint16), parts)
        return _picture(np.repeat(levels[:, :, None], 3, axis=2), "I;16", None, info)
    if mode in ("I", "F"):
        raise PictureError(
            f"{name}: got mode {mode} (32 bit), whose range nothing tells, wanted 8 or 16 bit: "
            f"scale it to 0..255 and convert it to L, or pass a float array in [0, 1]"
        )
    if mode in ("CMYK", "LAB"):
        im = _to_srgb(im, info.pop("icc_profile", None), cautions)  # the profile describes the colors that are gone
    elif mode in ("1", "L") and isinstance(transparency, int):
        im = _keyed(im, transparency)
    elif im.has_transparency_data:
        im = im.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
    elif mode in ("1", "L"):
        im = im.convert("L")
    else:
        im = im.convert("RGB")
    alpha = im.getchannel("A") if im.mode in ("LA", "RGBA") else None
    # Pillow repeats gray exactly and drops alpha as it is
    return _picture(np.array(im.convert("RGB"), np.uint8, order="C"), im.mode, alpha, info)


def _keyed(im: Image.Image, transparent: int) -> Image.Image:
    """1 or L -> LA with one level transparent, in any version of Pillow."""
    if im.mode == "1":
        transparent = 255 if transparent else 0  # 1 in older Pillow
    levels = np.asarray(im.convert("L"))
    out = Image.fromarray(levels)
    out.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return out


def _levels(deep: np.ndarray[Any, np.dtype[np.uint16]], parts: Unpacked) -> U8:
    """Samples of 16 bit, or of fewer in 16, as 8 bit."""
    if parts.deepest != 65535:
        deep = np.minimum(deep, parts.deepest)
    if parts.inverted:
        deep = np.uint16(parts.deepest) - deep
    if parts.deepest == 65535:
        return to_8bit(deep)
    return np.array(np.rint(deep * (255 / parts.deepest)), np.uint8)


def _picture(rgb: U8, mode: str, alpha: Image.Image | None, info: dict[str, bytes]) -> Picture:
    def restore(clean: U8) -> Image.Image:
        check_clean(clean, rgb)
        if mode in ("RGB", "RGBA"):
            out = Image.fromarray(clean)
        elif mode == "I;16":
            out = Image.fromarray(from_8bit(grey(clean), np.dtype(np.uint16)))
        else:
            out = Image.fromarray(grey(clean))
        if alpha is not None:
            out.putalpha(alpha)
        out.info.update(info)
        return out

    return Picture(rgb, restore)


def _to_srgb(im: Image.Image, profile: bytes | None, cautions: list[str]) -> Image.Image:
    """CMYK or LAB -> RGB."""
    srgb = ImageCms.createProfile("sRGB")
    if im.mode == "LAB":
        return _converted(im, ImageCms.createProfile("LAB"), srgb)
    why = "it has no ICC profile"
    if profile:
        try:
            return _converted(im, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb)
        except (ImageCms.PyCMSError, OSError) as exc:
            why = f"its ICC profile cannot be used ({exc})"
    cautions.append(f"CMYK is converted to RGB by a plain formula, because {why}: colours may be off")
    return im.convert("RGB")


def _converted(im: Image.Image, source: Any, srgb: Any) -> Image.Image:
    out = ImageCms.profileToProfile(im, source, srgb, outputMode="RGB")
    if out is None:
        raise OSError("no conversion")
    return out

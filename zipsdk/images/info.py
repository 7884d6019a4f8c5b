"""Choose what is kept of an image's metadata: its ICC profile, its cleaned EXIF and its orientation."""

from __future__ import annotations

import io
from contextlib import suppress

from PIL import Image

from zipsdk.images.metadata import ORIENTATION, Unpacked, clean_exif, xmp_orientation


def kept_metadata(parts: Unpacked, warnings: list[str]) -> tuple[dict[str, bytes], int]:
    """Return the metadata to keep and the orientation of the pixels; append messages to `warnings`."""
    info = {"icc_profile": parts.icc} if parts.icc else {}
    orientation = parts.orientation
    try:
        exif = clean_exif(parts.exif)
    except ValueError as e:
        warnings.append(f"its EXIF is malformed ({e}): it is left out, and an orientation in it is not applied")
        return info, orientation or 1
    if exif.damaged:
        warnings.append(f"its EXIF is malformed in {exif.damaged} entries: these are left out")
    if exif.data:
        info["exif"] = exif.data
    if parts.kind not in ("AVIF", "TIFF") and exif.orientation is not None:
        orientation = exif.orientation
    return info, orientation or 1


def samples_of(im: Image.Image) -> tuple[int, bool]:
    """Return the largest value of a 16-bit sample, and whether 0 is white; for a TIFF Pillow exposes neither."""
    tags = getattr(im, "tag_v2", None)
    if im.format != "TIFF" or tags is None or not im.mode.startswith("I;16"):
        return 65535, False
    return (4095 if tags.get(258) == (12,) else 65535), tags.get(262, 0) == 0


def metadata_of(im: Image.Image, warnings: list[str]) -> tuple[dict[str, bytes], int]:
    """Return the ICC profile and the cleaned EXIF of a loaded PIL image, and its orientation.

    Args:
        im: an image whose pixels are loaded.
        warnings: list to append messages about malformed metadata to.
    """
    exif = im.info.get("exif") or b""
    parts = Unpacked(im.format or "", io.BytesIO(), exif=exif if isinstance(exif, bytes) else b"")
    icc = im.info.get("icc_profile")
    parts.icc = icc if isinstance(icc, bytes) else b""  # info may hold any object
    before = len(warnings)
    info, orientation = kept_metadata(parts, warnings)
    if len(warnings) == before:
        # getexif() does not warn about sound EXIF; it also reads XMP, the tags of a TIFF, and what the caller has set
        with suppress(UnicodeDecodeError):  # older Pillow decodes all XMP as text
            found = im.getexif().get(ORIENTATION, 1)
            return info, found if isinstance(found, int) else 1
    xmp = im.info.get("xmp") or b""
    if orientation == 1 and isinstance(xmp, bytes):
        orientation = xmp_orientation(xmp) or 1
    return info, orientation

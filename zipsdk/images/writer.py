"""Write an image file completely or not at all, without a copy of the unpurified image."""

from __future__ import annotations

import io
import os
import secrets
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zipsdk._util.atomic import replace_file
from zipsdk._util.validation import is_path
from zipsdk.errors import ImageReadError, InputError
from zipsdk.images.info import metadata_of, samples_of
from zipsdk.images.pixels import upright

#: Format -> its suffixes, the PIL modes that it stores without loss of a channel or of depth, options of Pillow.
WRITERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB", {"quality": 95, "subsampling": "4:4:4"}),
    "PNG": (".png", "1 L LA P RGB RGBA I;16", {}),
    "WEBP": (".webp", "L LA RGB RGBA", {"lossless": True, "exact": True}),  # exact: keep colors where alpha is 0
    "TIFF": (".tif .tiff", "1 L LA RGB RGBA I;16", {}),
    "BMP": (".bmp", "1 L RGB", {}),
    "PPM": (".ppm .pgm .pbm .pnm", "1 L RGB I;16", {}),
    "AVIF": (".avif", "L RGB RGBA", {"quality": 95, "subsampling": "4:4:4"}),
}

#: Maximum side in pixels that libwebp and libjpeg write.
_MOST = {"WEBP": 16_383, "JPEG": 65_500}

#: Maximum bytes of EXIF, one segment of a JPEG, and of an ICC profile, 255 segments. Other formats have no limit.
_MOST_METADATA = {"JPEG": {"exif": 65_533, "icc_profile": 255 * 65_519}}
_NAMES = {"exif": "EXIF", "icc_profile": "ICC profile"}


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image completely or not at all: to a temporary file in the same folder, which is then renamed.

    The suffix decides the format: JPEG and AVIF with quality 95 and no chroma subsampling; PNG, WebP, TIFF, BMP and PPM
    without loss. `info["icc_profile"]` and `info["exif"]` are written where the format supports them; an image whose
    EXIF has an orientation is turned upright and written without it. Parts of EXIF that may hold a copy of the image
    are not written: thumbnails, maker notes, XMP, Photoshop and IPTC blocks. Malformed EXIF, and EXIF of more than
    65,533 bytes for JPEG, is left out with a UserWarning. No other metadata is written.

    Raises:
        InputError: the suffix is not supported, or the format cannot store the mode or size of the image.
        ImageReadError: the file cannot be written; a file that was there before is unchanged.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"image to save: got {type(image).__name__}, expected a PIL image; use Image.fromarray(array)")
    kind = format_of(path, image.mode, image.size)
    target = Path(path)
    options = WRITERS[kind][2]
    messages: list[str] = []
    try:
        image.load()  # before the EXIF, so that damaged pixels are reported as such
        metadata, orientation = metadata_of(image, messages)
        for key, most in _MOST_METADATA.get(kind, {}).items():
            if (size := len(metadata.get(key, b""))) > most:
                del metadata[key]
                messages.append(
                    f"its {_NAMES[key]} has {size} bytes, and {kind} stores at most {most}: it is left out; "
                    "write a .png to keep it"
                )
        bare = upright(image, orientation).copy()
        if samples_of(image)[1]:
            bare = Image.fromarray(np.uint16(65535) - np.asarray(bare))
        # Pillow's writers also write comments, XMP and a TIFF's lossy compression from info
        bare.info = {k: v for k, v in bare.info.items() if k == "transparency"}
        # encode in memory: Pillow writes raw formats to a file without noticing a full disk
        encoded = io.BytesIO()
        try:
            bare.save(encoded, kind, **options, **metadata)
        except (TypeError, ValueError, AttributeError, struct.error) as exc:
            # Pillow rewrites the EXIF of TIFF and AVIF, and fails where a tag has an unexpected type
            if "exif" not in metadata:
                raise
            messages.append(f"its EXIF cannot be written to {kind} ({exc}): it is left out")
            del metadata["exif"]
            encoded = io.BytesIO()
            bare.save(encoded, kind, **options, **metadata)
        replace_file(target, encoded.getbuffer(), target.with_name(f".zipsdk-{secrets.token_hex(8)}.tmp"))
    except Exception as exc:
        raise ImageReadError(
            f"{target}: cannot be written ({type(exc).__name__}: {exc}); "
            f"check that the folder exists, that you may write to it, and that the disk has space"
        ) from exc
    if messages:
        warnings.warn(f"{target}: {'; '.join(messages)}", UserWarning, stacklevel=2)


def format_of(path: str | os.PathLike[str], mode: str, size: tuple[int, int]) -> str:
    """Return the format in which `save` writes an image of this PIL mode and size to this path; write nothing.

    Raises:
        InputError: the suffix is not supported, or the format cannot store the mode or the size.
    """
    if not is_path(path):
        raise InputError(f"path: got {type(path).__name__}, expected a path as str or os.PathLike")
    suffix = Path(path).suffix
    kind = next((k for k, (suffixes, _, _) in WRITERS.items() if suffix.lower() in suffixes.split()), None)
    if kind is None:
        known = " ".join(suffixes for suffixes, _, _ in WRITERS.values())
        raise InputError(f"{path}: got the suffix {suffix!r}, expected one of {known}; write a .png, for example")
    modes = WRITERS[kind][1]
    if mode not in modes.split():
        raise InputError(
            f"{path}: got an image of mode {mode}, expected one of {modes}, which {kind} can store; "
            f"write a .png, or convert the image"
        )
    most = _MOST.get(kind, max(size))
    if max(size) > most:
        raise InputError(
            f"{path}: got an image of {size[0]} x {size[1]} pixels, expected at most {most} a side, the limit of "
            f"{kind}; write a .png, or make it smaller"
        )
    return kind

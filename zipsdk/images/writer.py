"""Write an image whole or not at all, with no copy of it from before its purification."""

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
from zipsdk.errors import InputError, PictureError
from zipsdk.images.pixels import upright
from zipsdk.images.reader import metadata_of, samples_of

# format -> the suffixes it is written for, the modes it holds without loss of a channel or of depth, options
WRITERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": (".jpg .jpeg .jpe .jfif", "L RGB", {"quality": 95, "subsampling": "4:4:4"}),
    "PNG": (".png", "1 L LA P RGB RGBA I;16", {}),
    "WEBP": (".webp", "L LA RGB RGBA", {"lossless": True, "exact": True}),  # exact: the colors below alpha 0 too
    "TIFF": (".tif .tiff", "1 L LA RGB RGBA I;16", {}),
    "BMP": (".bmp", "1 L RGB", {}),
    "PPM": (".ppm .pgm .pbm .pnm", "1 L RGB I;16", {}),
    "AVIF": (".avif", "L RGB RGBA", {"quality": 95, "subsampling": "4:4:4"}),
}

#: Pixels a side at most: what libwebp and libjpeg write.
_MOST = {"WEBP": 16_383, "JPEG": 65_500}

#: Bytes at most of EXIF, one segment of a JPEG, and of an ICC profile, 255 of them. The other formats hold any.
_MOST_METADATA = {"JPEG": {"exif": 65_533, "icc_profile": 255 * 65_519}}
_NAMES = {"exif": "EXIF", "icc_profile": "ICC profile"}


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture whole or not at all: to a temporary file in the same folder, which then takes the name.

    The suffix decides the format: JPEG with quality 95 and no chroma subsampling (AVIF alike), PNG, WebP, TIFF, BMP and
    PPM without loss. `info["icc_profile"]` and `info["exif"]` are written where the format has a place for them; a
    picture whose EXIF has an orientation is turned upright and written without it. Of EXIF, what may hold a copy of the
    image is not written: thumbnails, maker notes, XMP, Photoshop and IPTC blocks. Malformed EXIF, and for JPEG what is
    longer than 65,533 bytes, is left out, with a UserWarning. No other metadata is written.

    Raises:
        InputError: the suffix is not one that is written, or the format cannot hold the mode or size of the picture.
        PictureError: the file cannot be written; what was there before is untouched.
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"image to save: got {type(image).__name__}, wanted a PIL image: use Image.fromarray(array)")
    kind = format_of(path, image.mode, image.size)
    target = Path(path)
    options = WRITERS[kind][2]
    cautions: list[str] = []
    try:
        image.load()  # so that damaged pixels are not taken for malformed EXIF
        metadata, orientation = metadata_of(image, cautions)
        for key, most in _MOST_METADATA.get(kind, {}).items():
            if (size := len(metadata.get(key, b""))) > most:
                del metadata[key]
                cautions.append(
                    f"its {_NAMES[key]} has {size} bytes, and {kind} holds at most {most}: it is left out; "
                    "write a .png to keep it"
                )
        bare = upright(image, orientation).copy()
        if samples_of(image)[1]:
            bare = Image.fromarray(np.uint16(65535) - np.asarray(bare))
        # Pillow's writers take more from info than they are told: comments, XMP, a TIFF's lossy compression
        bare.info = {k: v for k, v in bare.info.items() if k == "transparency"}
        # encoded in memory: given a file, Pillow writes raw formats past Python and takes no notice of a full disk
        encoded = io.BytesIO()
        try:
            bare.save(encoded, kind, **options, **metadata)
        except (TypeError, ValueError, AttributeError, struct.error) as exc:
            # Pillow writes a TIFF's and an AVIF's EXIF anew, and fails where a tag has another type than it expects
            if "exif" not in metadata:
                raise
            cautions.append(f"its EXIF cannot be written to {kind} ({exc}): it is left out")
            del metadata["exif"]
            encoded = io.BytesIO()
            bare.save(encoded, kind, **options, **metadata)
        replace_file(target, encoded.getbuffer(), target.with_name(f".zipsdk-{secrets.token_hex(8)}.tmp"))
    except Exception as exc:
        raise PictureError(
            f"{target}: cannot be written ({type(exc).__name__}: {exc}): "
            f"check that the folder is there, that you may write to it, and that the disk has room"
        ) from exc
    if cautions:
        warnings.warn(f"{target}: {'; '.join(cautions)}", UserWarning, stacklevel=2)


def format_of(path: str | os.PathLike[str], mode: str, size: tuple[int, int]) -> str:
    """The format that `save` writes a picture of this PIL mode and size in, by the suffix; nothing is written.

    Raises:
        InputError: the suffix is not one that is written, or the format cannot hold the mode or the size.
    """
    if not is_path(path):
        raise InputError(f"path: got {type(path).__name__}, expected a path as str or os.PathLike")
    suffix = Path(path).suffix
    kind = next((k for k, (suffixes, _, _) in WRITERS.items() if suffix.lower() in suffixes.split()), None)
    if kind is None:
        known = " ".join(suffixes for suffixes, _, _ in WRITERS.values())
        raise InputError(f"{path}: got the suffix {suffix!r}, wanted one of {known}: write a .png, for example")
    modes = WRITERS[kind][1]
    if mode not in modes.split():
        raise InputError(
            f"{path}: got a picture of mode {mode}, wanted one of {modes}, which is what {kind} holds: "
            f"write a .png, or convert the picture"
        )
    most = _MOST.get(kind, max(size))
    if max(size) > most:
        raise InputError(
            f"{path}: got a picture of {size[0]} x {size[1]} pixels, wanted at most {most} a side, which is what "
            f"{kind} holds: write a .png, or make it smaller"
        )
    return kind

"""Files, PIL images and arrays -> uint8 RGB and back: the only place that knows value ranges, EXIF, alpha and 16 bit.

Everything else in zipsdk sees uint8 (H, W, 3) RGB, C-contiguous. Nothing about the input is guessed: a dtype fixes its
range, the data format of an array is declared, and what cannot be read without a guess is refused with what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from zipsdk.errors import InputError
from zipsdk.images.arrays import SHAPES, U8, Picture, check_array, read_array
from zipsdk.images.kinds import UNREAD_SUFFIXES
from zipsdk.images.reader import out_of_memory, read_pil
from zipsdk.images.writer import WRITERS, format_of, save

__all__ = ["DEFAULT_MAX_PIXELS", "SUFFIXES", "UNREAD_SUFFIXES", "Picture", "format_of", "read", "read_one", "save"]

DEFAULT_MAX_PIXELS = 100_000_000

#: Suffixes of the files that are read, for whoever lists a folder. The content decides how a file is decoded.
SUFFIXES = frozenset([".gif", ".apng", *(s for suffixes, _, _ in WRITERS.values() for s in suffixes.split())])


def read(
    batch: Any, *, data_format: str = "NHWC", max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[list[Picture], Callable[[list[U8]], Any]]:
    """Read a batch of pictures.

    Args:
        batch: one of
            - an array (N, H, W, C), (H, W, C) or (H, W), with C = 1 (grey), 3 (RGB) or 4 (RGBA). Its dtype says its
              range: uint8 0..255; uint16 0..65535, inside x / 257; float16, float32, float64 0..1, inside x * 255.
              Both are rounded to 8 bit, half to even. N = 0 is fine;
            - a PIL image, a path (str, os.PathLike), the content of an image file (bytes, bytearray, memoryview) or an
              open binary file; see `read_one`;
            - a list or a tuple of all these, with single arrays, of mixed sizes.
        data_format: "NHWC" or "NCHW": where arrays have their channels. It is never guessed.
        max_pixels: the largest width * height of a picture, checked before it is decoded.

    Returns:
        The pictures, and a function: it takes the purified pictures (uint8 (H, W, 3), in the same order) and gives back
        one thing of the type, size, dtype and data format of `batch` (a list for a list or a tuple). Grey is the
        mean of the three colors; the alpha of an array is put back as it came, bit for bit.

    Raises:
        InputError: an array or an object that cannot be used as given.
        PictureError: a file or a PIL image that cannot be read.
        OutOfMemory: there is no memory to read it.
    """
    _check_options(data_format, max_pixels)
    if isinstance(batch, (list, tuple)):
        pictures = [_read_item(x, data_format, max_pixels, f"item {i} of the list: ") for i, x in enumerate(batch)]
        return pictures, lambda clean: [p.restore(c) for p, c in zip(pictures, _counted(clean, pictures), strict=True)]
    if isinstance(batch, np.ndarray) and batch.ndim == 4:
        array = np.asarray(batch)
        check_array(array, data_format, max_pixels, "")
        try:
            pictures = [read_array(x, data_format, (i,)) for i, x in enumerate(array)]
        except MemoryError as e:
            raise out_of_memory("array") from e
        shape, dtype = array.shape, array.dtype

        def back(clean: list[U8]) -> Any:
            # not np.stack, which would change the byte order of a big-endian batch and cannot stack nothing
            out = np.empty(shape, dtype)
            for i, (picture, c) in enumerate(zip(pictures, _counted(clean, pictures), strict=True)):
                out[i] = picture.restore(c)
            return out

        return pictures, back
    one = _read_item(batch, data_format, max_pixels, "")
    return [one], lambda clean: one.restore(_counted(clean, [one])[0])


def read_one(item: Any, *, data_format: str = "NHWC", max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Read one picture.

    All but an array give back a PIL image, with `info["icc_profile"]` and `info["exif"]` where there were any (the tags
    of a TIFF are not kept):

    - it is upright: the EXIF orientation, or that of XMP, a TIFF or an AVIF, is applied and its tag dropped (so width
      and height may have changed places). Malformed EXIF is left out, with a UserWarning, and the picture is as it is
      stored;
    - no copy of the image from before its purification comes with it: thumbnails, previews, maker notes, XMP, IPTC and
      Photoshop blocks are left out. The other EXIF tags are kept with their types;
    - text, XMP and comments are not kept and cost no memory. An ICC profile or EXIF of more than 16 MiB is left out,
      with a UserWarning;
    - 1 and L come back as L, with transparency as LA; RGB, YCbCr, HSV and LAB as RGB; RGBA as RGBA; a palette as RGB,
      or as RGBA where it has transparency. Alpha is kept bit for bit;
    - 16-bit gray is scaled by 257 and comes back as I;16 (a transparent color is lost, with a UserWarning). Pillow
      itself reads pictures of 16 bit a color in 8 bit (the upper byte), so they come back in 8 bit;
    - CMYK comes back as RGB (sRGB): through its ICC profile, or, with a UserWarning, without one.

    Animated files and files of many pages are refused. Of a JPEG that carries further pictures (MPO: previews, the
    other eye) the first one is read, as every viewer does. TIFF is read where its samples have 8 bits or fewer, 12 or
    16 in gray, 16 in RGB and CMYK, all unsigned; other samples are refused by name, as are camera raw files, whose
    first image is a preview. No filter of the process's warnings is changed, and threads read at the same time.

    Args:
        item: a PIL image, a path (str, os.PathLike), the content of an image file (bytes, bytearray, memoryview), an
            open binary file (read from its start, and left open) or one array (H, W), (H, W, C); see `read` for dtypes.
        data_format: "NHWC" or "NCHW", for arrays.
        max_pixels: the largest width * height, checked before anything is decoded.

    Raises:
        InputError: an array or an object that cannot be used as given.
        PictureError: a file or a PIL image that cannot be read.
        OutOfMemory: there is no memory to read it.
    """
    _check_options(data_format, max_pixels)
    return _read_item(item, data_format, max_pixels, "")


def _check_options(data_format: str, max_pixels: int) -> None:
    if not isinstance(data_format, str) or data_format not in SHAPES:
        raise InputError(f'data_format: got {data_format!r}, wanted "NHWC" (channels last) or "NCHW" (channels first)')
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels: got {max_pixels!r}, wanted a whole number of at least 1")


def _counted(clean: list[U8], pictures: list[Picture]) -> list[U8]:
    if len(clean) != len(pictures):
        raise InputError(f"purified pictures: got {len(clean)}, wanted {len(pictures)}, one for each that was read")
    return clean


def _read_item(item: Any, data_format: str, max_pixels: int, where: str) -> Picture:
    if isinstance(item, np.ndarray):
        array = np.asarray(item)
        if array.ndim == 4:
            raise InputError(
                f"{where}got an array of shape {array.shape}, wanted one picture: "
                f"pass the batch itself, or a list of its pictures, to run()"
            )
        check_array(array, data_format, max_pixels, where)
        try:
            return read_array(array, data_format, (), where)
        except MemoryError as e:
            raise out_of_memory(f"{where}array") from e
    if isinstance(item, (Image.Image, str, os.PathLike, bytes, bytearray, memoryview)) or _is_file(item):
        return read_pil(item, max_pixels, where)
    kind = f"{type(item).__module__}.{type(item).__qualname__}"
    raise InputError(
        f"{where}got a {kind}, wanted a NumPy array, a PIL image, a path, the content of an image file, an open binary "
        f"file or a list of these: {_way_out(item, kind)}"
    )


def _is_file(item: Any) -> bool:
    return callable(getattr(item, "read", None)) and not isinstance(item, type)


def _way_out(item: Any, kind: str) -> str:
    """What to pass instead of `item`."""
    if kind.startswith("torch."):
        return (
            "pass tensor.detach().cpu().numpy() (of bfloat16 tensor.float() first), with "
            'data_format="NCHW" where channels come first'
        )
    if kind.startswith("cupy"):
        return "pass array.get()"
    if isinstance(item, (list, tuple)):
        return "pass one list of single pictures, or a whole array: np.asarray(x, np.uint8) where x is 0..255"
    if hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
        return "convert it with np.asarray(x)"
    if isinstance(item, Mapping):
        return "pass list(x.values())"
    if isinstance(item, Iterable):
        return "pass list(x), or of more than memory holds its items to Purifier.stream()"
    return "pass one of these"

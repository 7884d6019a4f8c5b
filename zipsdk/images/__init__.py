"""Convert files, PIL images and arrays to uint8 RGB and back.

The rest of zipsdk gets uint8 (H, W, 3) RGB, C-contiguous. Nothing about the input is guessed: the dtype fixes the range
of an array, the caller declares its data format, and ambiguous input is refused with a hint.

arrays.py                   value ranges, channels and data formats of arrays
reader.py, pixels.py        files and PIL images: limits, orientation, modes, 16 bit, transparency, colors
metadata.py, info.py        EXIF, XMP and ICC profiles; what is kept of them
jpeg.py, png.py, webp.py, tiff.py, avif.py, pnm.py   pixels and metadata of one format; stream.py puts files together
kinds.py                    formats by their first bytes
writer.py                   `save`
sources.py                  images in folders and zip archives
contact_sheet.py            pages of images before and after purification
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from zipsdk.errors import InputError, OutOfMemoryError
from zipsdk.images.arrays import SHAPES, LoadedImage, check_array, read_array
from zipsdk.images.kinds import UNREAD_SUFFIXES
from zipsdk.images.reader import out_of_memory, read_pil
from zipsdk.images.writer import WRITERS, format_of, save
from zipsdk.types import U8, Array

__all__ = ["DEFAULT_MAX_PIXELS", "SUFFIXES", "UNREAD_SUFFIXES", "BatchRestorer", "Image", "format_of", "read"]
__all__ += ["read_one", "save"]

DEFAULT_MAX_PIXELS = 100_000_000

#: Suffixes of the files to read in a folder. The content of a file, not its suffix, decides how it is decoded.
SUFFIXES = frozenset([".gif", ".apng", *(s for suffixes, _, _ in WRITERS.values() for s in suffixes.split())])


@dataclass(frozen=True, eq=False)
class BatchRestorer:
    """Convert the purified images of one batch to the type that was read.

    Attributes:
        images: the loaded images.
        kind: "array" for an array (N, ...), "list" for a list or a tuple, "single" for one image.
        shape, dtype: of the array.
    """

    images: tuple[LoadedImage, ...]
    kind: Literal["array", "list", "single"]
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None

    def __call__(self, clean: list[U8]) -> Any:
        """Convert purified images, each uint8 (H, W, 3), in the order in which they were read.

        Raises:
            InputError: another number of images, or an image of another size or dtype than the one that was read.
        """
        if len(clean) != len(self.images):
            raise InputError(f"purified images: got {len(clean)}, expected {len(self.images)}; pass one for each")
        restored = (image.restore(c) for image, c in zip(self.images, clean, strict=True))
        if self.kind == "array":
            # np.stack would change the byte order of a big-endian batch, and fails for an empty one
            out: Array = np.empty(self.shape, self.dtype)
            for i, x in enumerate(restored):
                out[i] = x
            return out
        return list(restored) if self.kind == "list" else next(restored)


def read(
    batch: Any, *, data_format: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[list[LoadedImage], BatchRestorer]:
    """Read a batch of images.

    Args:
        batch: one of
            - an array (N, H, W, C), (H, W, C) or (H, W), with C = 1 (gray), 3 (RGB) or 4 (RGBA). Its dtype gives its
              range: uint8 0..255; uint16 0..65535, converted by x / 257; float16, float32, float64 0..1, converted by
              x * 255. Both are rounded to 8 bit, half to even. N may be 0;
            - a PIL image, a path (str, os.PathLike), the content of an image file (bytes, bytearray, memoryview) or an
              open binary file; see `read_one`;
            - a list or a tuple of these, with single arrays, of mixed sizes.
        data_format: "NHWC" or "NCHW": the position of the channels of arrays. It is never guessed.
        max_pixels: the largest width * height of an image, checked before it is decoded.

    Returns:
        The images, and a callable that takes the purified images (uint8 (H, W, 3), in the same order) and returns an
        object of the type, size, dtype and data format of `batch` (a list for a list or a tuple). Gray is the mean of
        the three colors; the alpha of an array is returned bit for bit.

    Raises:
        InputError: an array or an object cannot be used as given.
        ImageReadError: a file or a PIL image cannot be read.
        OutOfMemoryError: an image does not fit into memory.
    """
    data_format = "NHWC" if data_format is None else data_format
    _check_options(data_format, max_pixels)
    if isinstance(batch, (list, tuple)):
        items = [_read_item(x, data_format, max_pixels, f"item {i} of the list: ") for i, x in enumerate(batch)]
        return items, BatchRestorer(tuple(items), "list")
    if isinstance(batch, np.ndarray) and batch.ndim == 4:
        array = np.asarray(batch)
        check_array(array, data_format, max_pixels)
        try:
            items = [read_array(x, data_format, (i,)) for i, x in enumerate(array)]
        except MemoryError as e:
            raise out_of_memory("array") from e
        return items, BatchRestorer(tuple(items), "array", array.shape, array.dtype)
    items = [_read_item(batch, data_format, max_pixels)]
    return items, BatchRestorer(tuple(items), "single")


def read_one(item: Any, *, data_format: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS) -> LoadedImage:
    """Read one image.

    `restore` returns an array for an array, and for everything else a PIL image, with `info["icc_profile"]` and
    `info["exif"]` where the input has them (the tags of a TIFF are not kept):

    - The image is upright: the EXIF orientation, or that of XMP, a TIFF or an AVIF, is applied and its tag removed, so
      width and height may be swapped. Malformed EXIF is left out with a UserWarning, and the pixels stay as stored.
    - No copy of the unpurified image is kept: thumbnails, previews, maker notes, XMP, IPTC and Photoshop blocks are
      left out. The other EXIF tags are kept with their types.
    - Text, XMP and comments are not kept and take no memory. An ICC profile or EXIF of more than 16 MiB is left out
      with a UserWarning.
    - 1 and L are returned as L, with transparency as LA; RGB, YCbCr, HSV and LAB as RGB; RGBA as RGBA; a palette as
      RGB, or as RGBA where it has transparency. Alpha is kept bit for bit.
    - 16-bit gray is scaled by 257 and returned as I;16 (a transparent color is left out with a UserWarning). Pillow
      reads images of 16 bit a color as 8 bit (the upper byte), so they are returned as 8 bit.
    - CMYK is returned as RGB (sRGB): through its ICC profile, or, with a UserWarning, without one.

    Animated files and files of several pages are refused. A JPEG with further images (MPO: previews, the other eye)
    gives its first one, as in every viewer. TIFF samples may have up to 8 bits, 12 or 16 in gray, 16 in RGB and CMYK,
    all unsigned; other samples are refused by name, as are camera raw files, whose first image is a preview. The
    warning filters of the process are not changed, and threads can read at the same time.

    Args:
        item: a PIL image, a path (str, os.PathLike), the content of an image file (bytes, bytearray, memoryview), an
            open binary file (read from its start, and left open) or one array (H, W), (H, W, C); see `read` for dtypes.
        data_format: "NHWC" or "NCHW", for arrays.
        max_pixels: the largest width * height, checked before anything is decoded.

    Raises:
        InputError: an array or an object cannot be used as given.
        ImageReadError: a file or a PIL image cannot be read.
        OutOfMemoryError: the image does not fit into memory.
    """
    data_format = "NHWC" if data_format is None else data_format
    _check_options(data_format, max_pixels)
    return _read_item(item, data_format, max_pixels)


def _check_options(data_format: str, max_pixels: int) -> None:
    if not isinstance(data_format, str) or data_format not in SHAPES:
        raise InputError(
            f'data_format: got {data_format!r}, expected "NHWC" (channels last) or "NCHW" (channels first)'
        )
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels: got {max_pixels!r}, expected an int of at least 1")


def _read_item(item: Any, data_format: str, max_pixels: int, where: str = "") -> LoadedImage:
    """Read one image; prefix its warnings and errors with `where`."""
    try:
        if isinstance(item, np.ndarray):
            return _read_array(np.asarray(item), data_format, max_pixels)
        if isinstance(item, (Image.Image, str, os.PathLike, bytes, bytearray, memoryview)) or _is_file(item):
            image, warning = read_pil(item, max_pixels)
            if warning:
                warnings.warn(f"{where}{warning}", UserWarning, stacklevel=3)
            return image
        raise InputError(_unsupported(item))
    except (InputError, OutOfMemoryError) as e:
        if not where:
            raise
        raise type(e)(f"{where}{e}") from e


def _read_array(array: Array, data_format: str, max_pixels: int) -> LoadedImage:
    if array.ndim == 4:
        raise InputError(
            f"got an array of shape {array.shape}, expected one image; pass the batch itself, or a list of its images"
        )
    check_array(array, data_format, max_pixels)
    try:
        return read_array(array, data_format)
    except MemoryError as e:
        raise out_of_memory("array") from e


def _is_file(item: Any) -> bool:
    return callable(getattr(item, "read", None)) and not isinstance(item, type)


def _unsupported(item: Any) -> str:
    """Describe an object of a type that is not read, and how to convert it."""
    kind = f"{type(item).__module__}.{type(item).__qualname__}"
    if kind.startswith("torch."):
        hint = (
            "pass tensor.detach().cpu().numpy() (of bfloat16 tensor.float() first), with "
            'data_format="NCHW" where channels come first'
        )
    elif kind.startswith("cupy"):
        hint = "pass array.get()"
    elif isinstance(item, (list, tuple)):
        hint = "pass one list of single images, or a whole array: np.asarray(x, np.uint8) where x is 0..255"
    elif hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
        hint = "convert it with np.asarray(x)"
    elif isinstance(item, Mapping):
        hint = "pass list(x.values())"
    elif isinstance(item, Iterable):
        hint = "pass list(x), or use Purifier.stream() where its items do not fit into memory"
    else:
        hint = "pass one of these"
    return (
        f"got a {kind}, expected a NumPy array, a PIL image, a path, the content of an image file, an open binary "
        f"file or a list of these; {hint}"
    )

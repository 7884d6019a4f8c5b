"""Convert files, PIL images and arrays to uint8 RGB and back.

The rest of zipsdk gets uint8 (H, W, 3) RGB, C-contiguous. Nothing about the input is guessed: the dtype fixes the range
of an array, the caller declares its data format, and ambiguous input is refused with a hint.

arrays.py                   value ranges, channels and data formats of arrays
array_views.py              torch tensors, DLPack and `__array__` as NumPy arrays and back
restorers.py                purified images to the type of the batch; unsupported.py describes what is not read
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
from typing import Any, TypeVar, overload

from PIL import Image

from zipsdk.errors import InputError, OutOfMemoryError
from zipsdk.images.array_views import ArrayView, view_array
from zipsdk.images.arrays import SHAPES, LoadedImage, read_array
from zipsdk.images.kinds import UNREAD_SUFFIXES
from zipsdk.images.reader import out_of_memory, read_pil
from zipsdk.images.restorers import ArrayRestorer, BatchRestorer, ListRestorer, SingleRestorer
from zipsdk.images.unsupported import describe_unsupported
from zipsdk.images.writer import WRITERS, format_of, save
from zipsdk.types import ArrayT, DataFormat, ImageSource, ListOf, SourceT

__all__ = ["DEFAULT_MAX_PIXELS", "SUFFIXES", "UNREAD_SUFFIXES", "BatchRestorer", "Image", "LoadedImage"]
__all__ += ["format_of", "read", "read_one", "save"]

ImageT = TypeVar("ImageT")

DEFAULT_MAX_PIXELS = 100_000_000

#: Suffixes of the files to read in a folder. The content of a file, not its suffix, decides how it is decoded.
SUFFIXES = frozenset([".gif", ".apng", *(s for suffixes, _, _ in WRITERS.values() for s in suffixes.split())])


@overload
def read(
    batch: ArrayT, *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[ArrayT]], BatchRestorer[ArrayT]]: ...
@overload
def read(
    batch: ImageSource, *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[Image.Image]], BatchRestorer[Image.Image]]: ...
@overload
def read(
    batch: LoadedImage[ImageT], *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[ImageT]], BatchRestorer[ImageT]]: ...
@overload
def read(
    batch: ListOf[LoadedImage[ImageT]], *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[ImageT]], BatchRestorer[list[ImageT]]]: ...
@overload
def read(
    batch: ListOf[SourceT], *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[Image.Image]], BatchRestorer[list[Image.Image]]]: ...
@overload
def read(
    batch: ListOf[ImageT], *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> tuple[list[LoadedImage[ImageT]], BatchRestorer[list[ImageT]]]: ...


def read(
    batch: Any, *, data_format: DataFormat | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[list[LoadedImage[Any]], BatchRestorer[Any]]:
    """Read a batch of images. The batch is not changed, and nothing that is returned shares its memory.

    Args:
        batch: one of

            - an array (N, H, W, C), (H, W, C) or (H, W), with C = 1 (gray), 3 (RGB) or 4 (RGBA). Its dtype gives its
              range: uint8 0..255; uint16 0..65535, converted by x / 257; float16, bfloat16, float32, float64 0..1,
              converted by x * 255. Both are rounded to 8 bit, half to even. N may be 0. An array is that of NumPy, a
              torch tensor (dense, on the CPU, without gradient), or an object with `__dlpack__` or `__array__`;
            - a PIL image, a path (str, os.PathLike), the content of an image file (bytes, bytearray, memoryview) or an
              open binary file; see `read_one`;
            - a `LoadedImage`, which is returned as it is;
            - a list or a tuple of these, with single arrays, of mixed sizes.
        data_format: "NHWC" or "NCHW": the position of the channels of arrays. None is "NCHW" for torch tensors and
            "NHWC" for all other arrays. It is never guessed from a shape.
        max_pixels: the largest width * height of an image, checked before it is decoded.

    Returns:
        The images, and a callable that takes the purified images (uint8 (H, W, 3), in the same order) and returns an
        object of the type, size, dtype and data format of `batch` (a list for a list or a tuple). Gray is the mean of
        the three colors; the alpha of an array is returned bit for bit. Batches of tensors keep
        torch.channels_last. A DLPack producer is returned by the `from_dlpack` of its array namespace. NumPy arrays
        are returned for producers without one, objects with `__array__` only, and subclasses of NumPy arrays; plain
        tensors for subclasses of tensors.

    Raises:
        InputError: an array or an object cannot be used as given.
        ImageReadError: a file or a PIL image cannot be read.
        OutOfMemoryError: an image does not fit into memory.
    """
    _check_options(data_format, max_pixels)
    if isinstance(batch, (list, tuple)):
        items: list[LoadedImage[Any]] = []
        for i, x in enumerate(batch):  # no comprehension, which would be a frame between a warning and its caller
            items.append(_read_item(x, data_format, max_pixels, f"item {i} of the list: "))
        return items, ListRestorer(tuple(items))
    source = _open(batch, data_format, max_pixels)
    if isinstance(source, ArrayView) and source.array.ndim == 4:
        restorer = _read_batch(source)
        return [*restorer.images], restorer
    image = _single(source)
    return [image], SingleRestorer((image,))


@overload
def read_one(item: ArrayT, *, data_format: DataFormat | None = ..., max_pixels: int = ...) -> LoadedImage[ArrayT]: ...
@overload
def read_one(
    item: ImageSource, *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> LoadedImage[Image.Image]: ...
@overload
def read_one(
    item: LoadedImage[ImageT], *, data_format: DataFormat | None = ..., max_pixels: int = ...
) -> LoadedImage[ImageT]: ...


def read_one(
    item: Any, *, data_format: DataFormat | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> LoadedImage[Any]:
    """Read one image.

    `restore` returns an array for an array (see `read`), and for everything else a PIL image, with
    `info["icc_profile"]` and `info["exif"]` where the input has them (the tags of a TIFF are not kept):

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
            open binary file (read from its start, and left open), one array (H, W), (H, W, C) or (C, H, W), or a
            `LoadedImage`, which is returned as it is; see `read` for types and dtypes of arrays.
        data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all other arrays.
        max_pixels: the largest width * height, checked before anything is decoded.

    Raises:
        InputError: an array or an object cannot be used as given.
        ImageReadError: a file or a PIL image cannot be read.
        OutOfMemoryError: the image does not fit into memory.
    """
    _check_options(data_format, max_pixels)
    return _read_item(item, data_format, max_pixels)


def _check_options(data_format: str | None, max_pixels: int) -> None:
    if data_format is not None and (not isinstance(data_format, str) or data_format not in SHAPES):
        raise InputError(
            f'data_format: got {data_format!r}, expected "NHWC" (channels last), "NCHW" (channels first) or None'
        )
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels: got {max_pixels!r}, expected an int of at least 1")


def _read_item(item: Any, data_format: str | None, max_pixels: int, where: str = "") -> LoadedImage[Any]:
    """Read one image; prefix its warnings and errors with `where`."""
    try:
        return _single(_open(item, data_format, max_pixels, where, stacklevel=4))
    except (InputError, OutOfMemoryError) as e:
        if not where:
            raise
        raise type(e)(f"{where}{e}") from e


def _open(
    item: Any, data_format: str | None, max_pixels: int, where: str = "", stacklevel: int = 3
) -> LoadedImage[Any] | ArrayView:
    """Read a file or a PIL image, or view an array."""
    if isinstance(item, LoadedImage):
        return item
    if isinstance(item, (Image.Image, str, os.PathLike, bytes, bytearray, memoryview)) or _is_file(item):
        image, warning = read_pil(item, max_pixels)
        if warning:
            warnings.warn(f"{where}{warning}", UserWarning, stacklevel=stacklevel)
        return image
    try:
        view = view_array(item, data_format, max_pixels)
    except MemoryError as e:  # a copy, of bfloat16 for example
        raise out_of_memory("array") from e
    if view is None:
        raise InputError(describe_unsupported(item))
    return view


def _single(source: LoadedImage[Any] | ArrayView) -> LoadedImage[Any]:
    if isinstance(source, LoadedImage):
        return source
    if source.array.ndim == 4:
        raise InputError(
            f"got an array of shape {source.array.shape}, expected one image; pass the batch itself, or a list of its "
            "images; of a DataLoader's (images, labels) pass the images only"
        )
    try:
        return read_array(source.array, source.data_format, source.convert)
    except MemoryError as e:
        raise out_of_memory("array") from e


def _read_batch(source: ArrayView) -> ArrayRestorer:
    """Read an array of four axes."""
    array = source.array
    try:
        items = tuple(read_array(x, source.data_format, source.convert, (i,)) for i, x in enumerate(array))
    except MemoryError as e:
        raise out_of_memory("array") from e
    return ArrayRestorer(items, array.shape, array.dtype, source.convert)


def _is_file(item: Any) -> bool:
    return callable(getattr(item, "read", None)) and not isinstance(item, type)

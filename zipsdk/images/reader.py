"""Read files, file contents and PIL images as uint8 RGB; metadata.py handles EXIF.

The metadata of a file is removed before Pillow opens the rest (see png.py and the other format modules), for four
reasons: only damaged pixels make an image unreadable; metadata of any size takes bounded memory; no copy of the
unpurified image reaches the output; and Pillow has nothing to warn about, so the warning filters of the process stay
as they are.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from functools import cache
from inspect import iscoroutine
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from zipsdk.errors import ImageReadError, OutOfMemoryError, ZipSdkError
from zipsdk.images.arrays import LARGER
from zipsdk.images.avif import unpack_avif
from zipsdk.images.info import kept_metadata, metadata_of, samples_of
from zipsdk.images.jpeg import unpack_jpeg
from zipsdk.images.kinds import FORMATS, HEAD, conversion_hint, format_in, unread_format
from zipsdk.images.metadata import Unpacked, clean_exif
from zipsdk.images.pixels import PilImage, decode
from zipsdk.images.png import unpack_png
from zipsdk.images.pnm import rescaled
from zipsdk.images.stream import size_of
from zipsdk.images.tiff import unpack_tiff
from zipsdk.images.webp import unpack_webp

#: Maximum bytes of a file whose decoder loads all of it into memory.
_MOST_IN_MEMORY = 1 << 30


def read_pil(item: Any, max_pixels: int) -> tuple[PilImage, str]:
    """Read a PIL image, a path, the content of a file (bytes, bytearray, memoryview) or an open binary file.

    Returns:
        The image, and the text of a warning, "" for none.

    Raises:
        ImageReadError: it cannot be read; the message has its name, the reason and what to do.
        OutOfMemoryError: it does not fit into memory.
    """
    name = _name(item)
    warnings: list[str] = []
    try:
        if isinstance(item, Image.Image):
            image = _read_image(item, max_pixels, warnings)
        elif isinstance(item, (str, os.PathLike)):
            path = Path(item)
            _check_regular(path)
            with path.open("rb") as f:
                image = _read_file(f, max_pixels, warnings)
        else:
            image = _read_file(_content(item), max_pixels, warnings)
    except Exception as exc:
        raise _read_error(name, exc, item) from exc
    return image, f"{name}: {'; '.join(warnings)}" if warnings else ""


def _name(item: Any) -> str:
    if isinstance(item, Image.Image):
        return str(getattr(item, "filename", "") or "PIL image")
    if isinstance(item, (str, os.PathLike)):
        return str(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return f"{type(item).__name__} of {memoryview(item).nbytes}"
    name = getattr(item, "name", "")
    return name if isinstance(name, str) and name else type(item).__name__


def _check_regular(path: Path) -> None:
    if "\0" in str(path):
        raise ImageReadError("got a path with a zero byte, expected the name of a file; check where it comes from")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageReadError("got a folder, expected an image file; pass the files in it")
    if not stat.S_ISREG(mode):  # reading a pipe may block, and a device may be endless
        raise ImageReadError("got a special file, expected an image file; copy it to a file first")


def _content(item: Any) -> BinaryIO:
    """Copy the bytes of an open file, from its start where it is seekable; leave it open."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return io.BytesIO(item)
    # a SpooledTemporaryFile has no `seekable` before Python 3.11
    if getattr(item, "seekable", lambda: hasattr(item, "seek"))():
        item.seek(0)
    out = io.BytesIO()
    while block := item.read(1 << 20):  # an unbuffered file may return less
        if iscoroutine(block):
            block.close()  # otherwise Python warns that it was never awaited
            raise ImageReadError("got an asynchronous file, expected bytes; pass what `await file.read()` returns")
        if not isinstance(block, (bytes, bytearray, memoryview)):
            raise ImageReadError(
                f'got a file that gives {type(block).__name__}, expected bytes; open it with mode "rb"'
            )
        if out.tell() + len(block) > _MOST_IN_MEMORY:
            raise ImageReadError(
                f"got more than {_MOST_IN_MEMORY} bytes, expected a smaller file; pass its path instead"
            )
        out.write(block)
    out.seek(0)
    return out


def _read_error(name: str, exc: Exception, item: Any) -> ZipSdkError:
    """Make the error for an image that cannot be read. Decoders raise almost any exception on a damaged file."""
    if isinstance(exc, ImageReadError):
        return ImageReadError(f"{name}: {exc}")
    if isinstance(exc, MemoryError):
        return out_of_memory(name)
    got = f"a file that cannot be decoded ({exc or type(exc).__name__})"
    hint = "the file is damaged or incomplete: download or save it again"
    if isinstance(exc, FileNotFoundError):
        got, hint = "no such file", "check the path"
    elif isinstance(exc, (io.UnsupportedOperation, UnicodeDecodeError)) and hasattr(item, "read"):
        got, hint = "a file that is not open for reading bytes", 'open it with mode "rb"'
    elif isinstance(exc, PermissionError):
        got, hint = "a file that may not be read", "check its permissions"
    elif isinstance(item, Image.Image) and getattr(item, "fp", item) is None:  # how Pillow marks a closed image
        got, hint = "an image that is closed", "open it again; load() keeps an image after its file is closed"
    elif isinstance(exc, ValueError) and "closed" in str(exc):
        got, hint = "a file that is closed", "open it again"
    elif isinstance(exc, OSError) and exc.errno is not None:
        got, hint = f"a file that cannot be read ({exc.strerror})", "check the path, and the disk or the connection"
    elif isinstance(exc, UnidentifiedImageError):
        got, hint = "a file of another format, or a damaged one", "convert it to PNG or JPEG"
        if isinstance(item, (bytes, bytearray, memoryview)):
            hint += "; bytes are read as the content of a file: for a path pass os.fsdecode(path), for pixels an array"
    return ImageReadError(f"{name}: got {got}, expected an image ({', '.join(_formats())}); {hint}")


def out_of_memory(name: str) -> OutOfMemoryError:
    """Make the error for an image that does not fit into memory."""
    return OutOfMemoryError(
        f"{name}: got an image that does not fit into memory while it is read, expected a smaller one; "
        "make it smaller, cut it into parts, or free memory"
    )


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)  # AVIF is not in every build of Pillow


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageReadError(f"got {width} x {height} pixels, expected at least 1 x 1; leave it out")
    if width * height > max_pixels:
        raise ImageReadError(
            f"got {width} x {height} pixels, expected at most {max_pixels} pixels; "
            f"make it smaller, or cut it into parts, or {LARGER}"
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > 2 * most:
        raise ImageReadError(
            f"got {width} x {height} pixels, expected at most {2 * most}, which is twice PIL.Image.MAX_IMAGE_PIXELS; "
            "make it smaller, or cut it into parts"
        )


def _check_frames(frames: int) -> None:
    if frames > 1:
        raise ImageReadError(f"got {frames} frames, expected one; save one frame as a file of its own")


# ---- files


def _read_file(source: BinaryIO, max_pixels: int, warnings: list[str]) -> PilImage:
    head = source.read(HEAD)
    kind = format_in(head)
    if kind is None and (found := unread_format(head)):
        raise ImageReadError(
            f"got a file of the format {found}, expected an image ({', '.join(_formats())}); {conversion_hint(found)}"
        )
    if kind is None or kind not in _formats():
        raise UnidentifiedImageError
    parts, size, frames = _unpack(kind, source, head, max_pixels)
    if kind in ("WEBP", "AVIF") and size_of(parts.stream) > _MOST_IN_MEMORY:
        raise ImageReadError(f"got more than {_MOST_IN_MEMORY} bytes, expected a smaller file; save it as PNG")
    _check_size((size[0] or 1, size[1] or 1), max_pixels)  # the WebP decoder allocates its memory when it opens a file
    _check_frames(frames)
    warnings += parts.warnings
    with _open(parts) as im:
        _check_size(im.size, max_pixels)
        _check_frames(getattr(im, "n_frames", 1))
        _load(im, parts)
        info, orientation = kept_metadata(parts, warnings)
        return decode(im, parts, orientation, info, warnings)


def _unpack(kind: str, source: BinaryIO, head: bytes, max_pixels: int) -> tuple[Unpacked, tuple[int, int], int]:
    """Split a file into pixels and metadata; return also its size and frames, 1 where only the decoder knows them."""
    if kind == "PNG":
        parts, frames = unpack_png(source)
        return parts, (1, 1), frames
    if kind == "TIFF":
        parts, frames = unpack_tiff(source)
        return parts, (1, 1), frames
    if kind == "WEBP":
        parts, size = unpack_webp(source)
        return parts, size, 1
    if kind == "JPEG":
        return unpack_jpeg(source), (1, 1), 1
    parts = unpack_avif(source) if kind == "AVIF" else Unpacked(kind, source)
    if kind == "PPM":
        parts.stream = rescaled(source, head, max_pixels)
    parts.stream.seek(0)
    return parts, (1, 1), 1


def _open(parts: Unpacked) -> Any:
    """Open the stream with Pillow's class for the format."""
    if parts.kind == "JPEG":  # the registered opener looks for further images
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile(parts.stream)
    opener: Callable[..., Any] = Image.OPEN[parts.kind][0]
    return _open_tiff(opener, parts) if parts.kind == "TIFF" else opener(parts.stream)


def _load(im: Any, parts: Unpacked) -> None:
    """Decode the pixels; for an AVIF set the orientation and ICC profile of `parts`, too."""
    most = Image.MAX_IMAGE_PIXELS
    if parts.kind == "TIFF" and most is not None and im.size[0] * im.size[1] > most:
        im.im = Image.new(im.mode, im.size).im  # prevents Pillow's warning about a size that was checked before
    try:
        im.load()
    except ValueError as e:
        if parts.kind == "TIFF" and "raw mode" in str(e):
            raise _unread_tiff(parts) from e
        raise
    if parts.kind == "AVIF":
        # Pillow builds an EXIF from the AVIF properties; an orientation in the EXIF of the file does not count
        parts.orientation = clean_exif(im.info.get("exif", b"")).orientation or 1
        parts.icc = im.info.get("icc_profile", b"")


def _open_tiff(opener: Callable[..., Any], parts: Unpacked) -> Any:
    try:
        im = opener(parts.stream)
    except SyntaxError as e:
        raise _unread_tiff(parts) from e
    if "YCbCr, compression none" in parts.samples and im.mode == "RGB":  # Pillow before 12 decodes it as RGB
        raise _unread_tiff(parts)
    return im


def _unread_tiff(parts: Unpacked) -> ImageReadError:
    return ImageReadError(f"got a {parts.samples}, expected one that Pillow reads; convert it to PNG")


# ---- PIL images


def _read_image(im: Image.Image, max_pixels: int, warnings: list[str]) -> PilImage:
    _check_size(im.size, max_pixels)
    _check_frames(1 if im.format == "MPO" else getattr(im, "n_frames", 1))
    im.load()
    info, orientation = metadata_of(im, warnings)
    parts = Unpacked(im.format or "", io.BytesIO())
    parts.deepest, parts.inverted = samples_of(im)
    return decode(im, parts, orientation, info, warnings)

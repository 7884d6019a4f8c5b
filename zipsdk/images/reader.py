"""Files, file contents and PIL images -> `Picture`.

A file's metadata is taken off before Pillow opens the rest (see png.py and its siblings), for four reasons: an
image counts as damaged for its pixels only; metadata of any size takes bounded memory; no copy of the image from before
its purification gets into the output; and Pillow has nothing to warn about, so that no filter of the process's warnings
is touched.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from zipsdk.errors import OutOfMemory, PictureError, ZipError
from zipsdk.images.arrays import Picture
from zipsdk.images.avif import unpack_avif
from zipsdk.images.jpeg import unpack_jpeg
from zipsdk.images.kinds import FORMATS, HEAD, advice, format_in, name_of
from zipsdk.images.metadata import ORIENTATION, Unpacked, clean_exif, xmp_orientation
from zipsdk.images.pixels import decode
from zipsdk.images.png import unpack_png
from zipsdk.images.pnm import rescaled
from zipsdk.images.stream import size_of
from zipsdk.images.tiff import unpack_tiff
from zipsdk.images.webp import unpack_webp

#: Bytes at most of a file whose decoder takes it whole into memory.
_MOST_IN_MEMORY = 1 << 30


def read_pil(item: Any, max_pixels: int, where: str) -> Picture:
    """Read a PIL image, a path, a file's content (bytes, bytearray, memoryview) or an open binary file.

    Raises:
        PictureError: it cannot be read; the message says why and what to do.
    """
    name = where + _name(item)
    cautions: list[str] = []
    try:
        if isinstance(item, Image.Image):
            picture = _of_pil(item, name, max_pixels, cautions)
        elif isinstance(item, (str, os.PathLike)):
            with _file(Path(item), name).open("rb") as f:
                picture = _of_file(f, name, max_pixels, cautions)
        else:
            picture = _of_file(_content(item, name), name, max_pixels, cautions)
    except Exception as exc:
        raise _refusal(name, exc, item) from exc
    if cautions:
        warnings.warn(f"{name}: {'; '.join(cautions)}", UserWarning, stacklevel=4)
    return picture


def _name(item: Any) -> str:
    if isinstance(item, Image.Image):
        return str(getattr(item, "filename", "") or "PIL image")
    if isinstance(item, (str, os.PathLike)):
        return str(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return f"{type(item).__name__} of {memoryview(item).nbytes}"
    name = getattr(item, "name", "")
    return name if isinstance(name, str) and name else type(item).__name__


def _file(path: Path, name: str) -> Path:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise PictureError(f"{name}: got a folder, wanted a picture file: pass the files in it")
    if not stat.S_ISREG(mode):  # a pipe would block, and a device may never end
        raise PictureError(f"{name}: got a special file, wanted a picture file: copy it to a file first")
    return path


def _content(item: Any, name: str) -> BinaryIO:
    """The bytes of an open file from its start, where it can go there; the file stays open."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return io.BytesIO(item)
    if getattr(item, "seekable", lambda: False)():
        item.seek(0)
    out = io.BytesIO()
    while block := item.read(1 << 20):  # unbuffered files give what is there
        if not isinstance(block, (bytes, bytearray, memoryview)):
            raise PictureError(
                f'{name}: got a file that gives {type(block).__name__}, expected bytes; open it with mode "rb"'
            )
        if out.tell() + len(block) > _MOST_IN_MEMORY:
            raise PictureError(
                f"{name}: got more than {_MOST_IN_MEMORY} bytes, expected a smaller file; pass its path instead"
            )
        out.write(block)
    out.seek(0)
    return out


def _refusal(name: str, exc: Exception, item: Any) -> ZipError:
    """Whatever went wrong with a file, in words. Decoders raise nearly anything on a damaged file."""
    if isinstance(exc, PictureError):
        return exc
    if isinstance(exc, MemoryError):
        return out_of_memory(name)
    got, hint = f"{type(exc).__name__}: {exc}", "the file is damaged or incomplete; fetch or save it again"
    if isinstance(exc, FileNotFoundError):
        got, hint = "no such file", "check the path"
    elif isinstance(exc, PermissionError):
        got, hint = "a file that may not be read", "check its permissions"
    elif isinstance(item, Image.Image) and getattr(item, "fp", item) is None:  # Pillow's sign for it
        got, hint = "an image that is closed", "open it again; load() keeps an image beyond its file"
    elif isinstance(exc, ValueError) and "closed" in str(exc):
        got, hint = "a file that is closed", "open it again"
    elif isinstance(exc, UnidentifiedImageError):
        got, hint = "a file that is none of these, or a damaged one", "convert it to PNG or JPEG"
        if isinstance(item, (bytes, bytearray, memoryview)):
            hint += "; bytes are taken as a file's content: pass a path as os.fsdecode(path), pixels as np.asarray(x)"
    return PictureError(f"{name}: got {got}, wanted a picture ({', '.join(_formats())}): {hint}")


def out_of_memory(name: str) -> OutOfMemory:
    """Make the error for an image that cannot be read for want of memory."""
    return OutOfMemory(
        f"{name}: got an image that does not fit into memory while it is read, expected a smaller one; "
        "make it smaller, cut it into parts, or free memory"
    )


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)  # AVIF is not in every build of Pillow


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"{name}: got {width} x {height} pixels, wanted at least 1 x 1: leave it out")
    if width * height > max_pixels:
        raise PictureError(
            f"{name}: got {width} x {height} pixels, wanted at most {max_pixels} pixels: "
            f"make it smaller, or cut it into parts"
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > 2 * most:
        raise PictureError(
            f"{name}: got {width} x {height} pixels, expected at most {2 * most}, which is twice "
            f"PIL.Image.MAX_IMAGE_PIXELS; make it smaller, or cut it into parts"
        )


def _check_frames(frames: int, name: str) -> None:
    if frames > 1:
        raise PictureError(f"{name}: got {frames} frames, wanted one: choose a frame and save it by itself")


# ---- files


def _of_file(source: BinaryIO, name: str, max_pixels: int, cautions: list[str]) -> Picture:
    head = source.read(HEAD)
    kind = format_in(head)
    if kind is None and (what := name_of(head)):
        raise PictureError(
            f"{name}: got a file of the format {what}, expected a picture ({', '.join(_formats())}); {advice(what)}"
        )
    if kind is None or kind not in _formats():
        raise UnidentifiedImageError
    size, frames = (1, 1), 1
    if kind == "PNG":
        parts, frames = unpack_png(source)
    elif kind == "JPEG":
        parts = unpack_jpeg(source, name)
    elif kind == "WEBP":
        parts, size = unpack_webp(source)
    elif kind == "TIFF":
        parts, frames = unpack_tiff(source, name)
    else:
        parts = unpack_avif(source) if kind == "AVIF" else Unpacked(kind, source)
        if kind == "PPM":
            parts.stream = rescaled(source, head, max_pixels)
        parts.stream.seek(0)
    if kind in ("WEBP", "AVIF") and size_of(parts.stream) > _MOST_IN_MEMORY:
        raise PictureError(f"{name}: got more than {_MOST_IN_MEMORY} bytes, expected a smaller file; save it as PNG")
    _check_size((size[0] or 1, size[1] or 1), name, max_pixels)  # WebP's decoder takes its memory at once
    _check_frames(frames, name)
    cautions += parts.cautions
    opener: Callable[..., Any] = Image.OPEN[kind][0]
    if kind == "JPEG":  # the registered one looks for further images
        from PIL.JpegImagePlugin import JpegImageFile as opener
    with opener(parts.stream) if kind != "TIFF" else _tiff(opener, parts, name) as im:
        _check_size(im.size, name, max_pixels)
        _check_frames(getattr(im, "n_frames", 1), name)
        most = Image.MAX_IMAGE_PIXELS
        if kind == "TIFF" and most is not None and im.size[0] * im.size[1] > most:
            im.im = Image.new(im.mode, im.size).im  # else Pillow warns of a size that was checked above
        try:
            im.load()
        except ValueError as e:
            if kind == "TIFF" and "raw mode" in str(e):
                raise _unread(parts, name) from e
            raise
        if kind == "AVIF":
            # Pillow makes an EXIF of what turns the image; an orientation of the file's own does not count
            parts.orientation = clean_exif(im.info.get("exif", b"")).orientation or 1
            parts.icc = im.info.get("icc_profile", b"")
        info, orientation = _metadata(parts, cautions)
        return decode(im, parts, orientation, info, name, cautions)


def _tiff(opener: Callable[..., Any], parts: Unpacked, name: str) -> Any:
    try:
        im = opener(parts.stream)
    except SyntaxError as e:
        raise _unread(parts, name) from e
    if "YCbCr, compression none" in parts.samples and im.mode == "RGB":  # Pillow before 12 takes it for RGB
        raise _unread(parts, name)
    return im


def _unread(parts: Unpacked, name: str) -> PictureError:
    return PictureError(f"{name}: got a {parts.samples}, expected one that Pillow reads; convert it to PNG")


def _metadata(parts: Unpacked, cautions: list[str]) -> tuple[dict[str, bytes], int]:
    """What the answer carries of a file's metadata, and the orientation of its pixels."""
    info = {"icc_profile": parts.icc} if parts.icc else {}
    orientation = parts.orientation
    try:
        exif = clean_exif(parts.exif)
    except ValueError as e:
        cautions.append(f"its EXIF is malformed ({e}): it is left out, and an orientation in it is not applied")
        return info, orientation or 1
    if exif.damaged:
        cautions.append(f"its EXIF is malformed in {exif.damaged} entries: these are left out")
    if exif.data:
        info["exif"] = exif.data
    if parts.kind not in ("AVIF", "TIFF") and exif.orientation is not None:
        orientation = exif.orientation
    return info, orientation or 1


# ---- PIL images


def _of_pil(im: Image.Image, name: str, max_pixels: int, cautions: list[str]) -> Picture:
    _check_size(im.size, name, max_pixels)
    _check_frames(1 if im.format == "MPO" else getattr(im, "n_frames", 1), name)
    im.load()
    info, orientation = metadata_of(im, cautions)
    parts = Unpacked(im.format or "", io.BytesIO())
    parts.deepest, parts.inverted = samples_of(im)
    return decode(im, parts, orientation, info, name, cautions)


def samples_of(im: Image.Image) -> tuple[int, bool]:
    """The largest value of a 16-bit sample, and whether 0 is white: Pillow tells neither of a TIFF that it opened."""
    tags = getattr(im, "tag_v2", None)
    if im.format != "TIFF" or tags is None or not im.mode.startswith("I;16"):
        return 65535, False
    return (4095 if tags.get(258) == (12,) else 65535), tags.get(262, 0) == 0


def metadata_of(im: Image.Image, cautions: list[str]) -> tuple[dict[str, bytes], int]:
    """The ICC profile and the cleaned EXIF of a loaded PIL image, and its orientation; what is odd goes to
    `cautions`."""
    exif = im.info.get("exif") or b""
    parts = Unpacked(im.format or "", io.BytesIO(), exif=exif if isinstance(exif, bytes) else b"")
    icc = im.info.get("icc_profile")
    parts.icc = icc if isinstance(icc, bytes) else b""  # a program may leave anything there
    before = len(cautions)
    info, orientation = _metadata(parts, cautions)
    if len(cautions) == before:
        # sound, so that Pillow has nothing to warn of; it knows of XMP, of a TIFF's tags, and of what the caller set
        with suppress(UnicodeDecodeError):  # older Pillow takes all XMP for text
            found = im.getexif().get(ORIENTATION, 1)
            return info, found if isinstance(found, int) else 1
    xmp = im.info.get("xmp") or b""
    if orientation == 1 and isinstance(xmp, bytes):
        orientation = xmp_orientation(xmp) or 1
    return info, orientation

"""The ways in which the content of an image file reaches the SDK, and its pixels as Pillow alone decodes them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: A path most often; an opened PIL image; the content itself; open files, of which some fail or give little at a time.
WAYS = ("path", "path", "path", "path", "object", "bytes", "bytearray", "file", "stream", "slow", "broken", "text")
#: Ways that must give the pixels that the path gives.
ALIKE = ("bytes", "bytearray", "file", "stream", "slow")


class _Slow(io.RawIOBase):
    """A file that gives at most 7 bytes at once and cannot seek, as a socket."""

    def __init__(self, data: bytes):
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._inner.read(min(7, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


class _Broken:
    """A file whose reading fails after the first bytes."""

    def __init__(self, data: bytes):
        self._left = 2
        self._data = data

    def read(self, size: int = -1) -> bytes:
        """Return bytes twice, then fail."""
        self._left -= 1
        if self._left < 0:
            raise ConnectionResetError(104, "connection reset by peer")
        return self._data[:8]


@contextmanager
def opened(path: Path, way: str) -> Iterator[Any]:
    """Give what is passed to `zipsdk.images.read_one`; None where Pillow cannot open the file."""
    data = path.read_bytes()
    if way == "object":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(path)
            except Exception:
                yield None
                return
        with image:
            yield image
    elif way == "file":
        with path.open("rb") as f:
            f.seek(3)  # it is read from its start
            yield f
    else:
        made: dict[str, Any] = {
            "bytes": data, "bytearray": bytearray(data), "stream": io.BytesIO(data), "slow": _Slow(data),
            "broken": _Broken(data), "text": io.StringIO(data.decode("latin-1")),
        }  # fmt: skip
        yield made.get(way, path)


def pillow_pixels(path: Path) -> np.ndarray[Any, Any] | None:
    """Return RGB as Pillow decodes it, for 8-bit files without rotation or color conversion; else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as im:
                plain = im.mode in ("1", "L", "RGB") and im.format in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
                im.load()
                turned = im.getexif().get(0x0112, 1) != 1 or any(k in im.info for k in ("xmp", "XML:com.adobe.xmp"))
                if not plain or turned or "transparency" in im.info or (im.format == "PNG" and im.info.get("exif")):
                    return None
                return np.asarray(im.convert("RGB"))
        except Exception:
            return None

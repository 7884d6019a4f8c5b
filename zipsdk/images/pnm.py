"""Rescale PGM and PPM whose largest value is neither 255 nor 65535; Pillow scales them slowly, in Python.

Source: Netpbm, pgm(5) and ppm(5).
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

import numpy as np

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEAD = re.compile(rb"P([56])" + (_GAP + rb"(\d{1,9})") * 2 + _GAP + rb"(\d{1,5})\s")


def rescaled(source: BinaryIO, head: bytes, max_pixels: int) -> BinaryIO:
    """Rescale an image to 255, or gray of more than 8 bit to 65535, as its largest value, rounded to nearest.

    Returns:
        A new file; `source` itself if it needs no scaling, is plain text or is incomplete.
    """
    found = _HEAD.match(head)
    if not found:
        return source
    width, height, top = (int(found[i]) for i in (2, 3, 4))
    count = width * height * (3 if found[1] == b"6" else 1)
    if not 0 < top < 65536 or top in (255, 65535) or not 0 < width * height <= max_pixels:
        return source
    source.seek(found.end())
    stored = np.dtype(np.uint8 if top < 256 else ">u2")
    data = source.read(count * stored.itemsize)
    if len(data) < count * stored.itemsize:
        return source
    white = 65535 if top > 255 and found[1] == b"5" else 255
    scale = np.rint(np.arange(top + 1) * (white / top)).astype(np.uint8 if white == 255 else ">u2")
    levels = scale[np.minimum(np.frombuffer(data, stored), top)]
    return io.BytesIO(b"P%s %d %d %d\n" % (found[1], width, height, white) + levels.tobytes())

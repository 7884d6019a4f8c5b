"""Split a WebP into pixels and metadata.

Source: RFC 9649 (WebP Image Format), section 2.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from zipsdk.images.metadata import MAX_METADATA, Unpacked, xmp_orientation
from zipsdk.images.stream import Ranges, size_of

#: Flags of VP8X for ICC, EXIF and XMP.
_FLAGS = 0x20 | 0x08 | 0x04
_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}


def unpack_webp(source: BinaryIO) -> tuple[Unpacked, tuple[int, int]]:
    """Split a WebP into pixels and metadata.

    Returns:
        The parts, and width and height; (0, 0) if the file has none.
    """
    size = size_of(source)
    kept = Ranges()
    out = Unpacked("WEBP", source)
    shape = (0, 0)
    at = 12
    met: set[bytes] = set()
    while at + 8 <= size:
        source.seek(at)
        name, length = struct.unpack("<4sI", source.read(8))
        whole = 8 + length + length % 2
        if not shape[0] and name in (b"VP8X", b"VP8 ", b"VP8L"):
            shape = _shape(name, source.read(10))
        if name == b"VP8X" and length >= 10:
            source.seek(at)
            head = bytearray(source.read(18))
            head[8] &= ~_FLAGS
            kept.insert(bytes(head))
            kept.keep(at + 18, min(whole, size - at) - 18)
        elif name in _PIXELS:
            kept.keep(at, min(whole, size - at))
        elif name in (b"ICCP", b"EXIF", b"XMP ") and name not in met:
            met.add(name)
            if length > MAX_METADATA or at + whole > size + 1:
                out.warnings.append(f"its {name.decode().strip()} of {length} bytes is too large or cut off: left out")
            elif name == b"ICCP":
                out.icc = source.read(length)
            elif name == b"EXIF":
                out.exif = source.read(length)
            else:
                out.orientation = xmp_orientation(source.read(length))
        at += whole
    total = sum(len(p) if isinstance(p, bytes) else p[1] for p in kept.parts)
    kept.parts.insert(0, b"RIFF" + struct.pack("<I", min(4 + total, 0xFFFFFFFE)) + b"WEBP")
    out.stream = kept.open(source)
    return out, shape


def _shape(name: bytes, data: bytes) -> tuple[int, int]:
    """Read width and height from the first bytes of a chunk."""
    data = data.ljust(10, b"\0")
    if name == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if name == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF

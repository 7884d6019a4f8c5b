"""Build image files byte by byte, so that tests do not depend on a library's writer."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

TYPES = {1: "B", 2: "c", 3: "H", 4: "I", 5: "I", 7: "B", 16: "Q"}
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}
#: Stands for a JPEG thumbnail; tests search for its bytes.
THUMBNAIL = b"\xff\xd8\xff\xdb" + bytes(range(1, 200)) * 3 + b"THUMBNAIL-OF-THE-UNPURIFIED\xff\xd9"


def values(order: str, kind: int, data: Any) -> tuple[int, bytes]:
    """Return the count and the bytes of a value; numbers are packed."""
    if isinstance(data, bytes):
        return len(data) // SIZES[kind], data
    packed = struct.pack(f"{order}{len(data)}{TYPES[kind]}", *data)
    return len(packed) // SIZES[kind], packed


def directory(order: str, at: int, tags: dict[int, tuple[int, Any]], following: int = 0) -> bytes:
    """Return a TIFF directory that starts at `at`, followed by its values."""
    table, extra = b"", b""
    end = at + 2 + 12 * len(tags) + 4
    for tag, (kind, data) in sorted(tags.items()):
        n, value = values(order, kind, data)
        if len(value) > 4:
            extra += b"\0" * ((end + len(extra)) % 2)
            pointer = struct.pack(order + "I", end + len(extra))
            extra += value
            value = pointer
        table += struct.pack(order + "HHI", tag, kind, n) + value.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + table + struct.pack(order + "I", following) + extra


def header(order: str) -> bytes:
    """Return a TIFF header; its directory starts at byte 8."""
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)


def tiff(order: str, tags: dict[int, tuple[int, Any]], pixels: bytes) -> bytes:
    """Return a TIFF of one strip; `tags` has all but StripOffsets and StripByteCounts."""
    tags = {**tags, 273: (4, [0]), 279: (4, [len(pixels)])}
    start = 8 + len(directory(order, 8, tags))
    tags[273] = (4, [start])
    return header(order) + directory(order, 8, tags) + pixels


def packed(samples: Any, bits: int, order: str = "<") -> bytes:
    """Pack rows of samples as TIFF does: 16 bit in the byte order, fewer from the high bit on, rows padded."""
    if bits == 16:
        return np.asarray(samples).astype(order + "u2").tobytes()
    rows = ["".join(f"{v:0{bits}b}" for v in row) for row in np.asarray(samples).reshape(len(samples), -1)]
    rows = [row + "0" * (-len(row) % 8) for row in rows]
    return b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)


def exif_with_copies(order: str = "<", orientation: int | None = None) -> bytes:
    """Return EXIF with a copy of the image in each place that cameras and editors use, and with tags to keep."""
    sub: dict[int, tuple[int, Any]] = {
        0x829A: (5, [1, 125]),
        0x8827: (3, [400]),
        0x9003: (2, b"2024:05:06 07:08:09\0"),
        0x927C: (7, b"MAKER\0" + THUMBNAIL),
        0x9286: (7, b"ASCII\0\0\0" + b"a comment "),
        0xEA1D: (7, bytes(100) + THUMBNAIL),  # not a known place
    }
    gps: dict[int, tuple[int, Any]] = {1: (2, b"N\0"), 2: (5, [48, 1, 8, 1, 30, 1])}
    one: dict[int, tuple[int, Any]] = {0x0103: (3, [6]), 0x0201: (4, [0]), 0x0202: (4, [len(THUMBNAIL)])}
    first: dict[int, tuple[int, Any]] = {
        0x010F: (2, b"zip\0"),
        0x011A: (5, [300, 1]),
        0x014A: (4, [0]),
        0x02BC: (1, b"<x:xmpmeta><xmp:Thumbnails>" + THUMBNAIL),
        0x501B: (7, THUMBNAIL),
        0x83BB: (7, THUMBNAIL + b"\0" * (len(THUMBNAIL) % 2)),
        0x8649: (7, b"8BIM\x04\x0c\0\0" + THUMBNAIL),
        0x8769: (4, [0]),
        0x8825: (4, [0]),
    }
    if orientation is not None:
        first[0x0112] = (3, [orientation])
    at = 8 + len(directory(order, 8, first))
    at += at % 2
    first[0x8769] = (4, [at])
    blocks = directory(order, at, sub)
    blocks += b"\0" * (len(blocks) % 2)
    first[0x8825] = (4, [at + len(blocks)])
    blocks += directory(order, at + len(blocks), gps)
    blocks += b"\0" * (len(blocks) % 2)
    first[0x014A] = (4, [at + len(blocks)])
    ifd1 = at + len(blocks)
    thumbnail = ifd1 + len(directory(order, ifd1, one))
    one[0x0201] = (4, [thumbnail])
    blocks += directory(order, ifd1, one) + THUMBNAIL
    start = header(order) + directory(order, 8, first, following=ifd1)
    return b"Exif\0\0" + start + b"\0" * (len(start) % 2) + blocks


def encoded(rgb: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Encode RGB pixels by Pillow's writer of the format `kind`."""
    f = io.BytesIO()
    Image.fromarray(rgb).save(f, kind, **options)
    return f.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(png: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """Return a PNG with further chunks in front of its first one of that name."""
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


def segment(marker: int, data: bytes) -> bytes:
    """Return a JPEG segment with its length."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with further segments behind its start."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]

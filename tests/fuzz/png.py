"""PNG files whose chunks are edited one by one and whose checksums fit, so that the damage is seen by the decoder."""

from __future__ import annotations

import struct
import zlib

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index, number, patched, shuffled, some_bytes
from tests.fuzz.seeds import THUMBNAIL, base_files, profile
from tests.fuzz.tiff import draw_exif

MAGIC = b"\x89PNG\r\n\x1a\n"
TYPES = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tEXt", b"bKGD", b"IDAT", b"IEND", b"acTL",
         b"fcTL", b"fdAT", b"cICP", b"sBIT", b"hIST", b"tIME", b"CgBI", b"zzZz", b"JUNK")  # fmt: skip
Chunk = tuple[bytes, bytes]


def chunks(data: bytes) -> list[Chunk]:
    """Split a valid PNG into (type, content)."""
    out, at = [], len(MAGIC)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        out.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return out


def joined(parts: list[Chunk]) -> bytes:
    """Join chunks into a file with right lengths and checksums."""
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return MAGIC + b"".join(body)


def _content(draw: Draw) -> Chunk:
    """Draw a chunk with content that has a structure of its own."""
    kind = draw(st.sampled_from(("iCCP", "iCCP", "zTXt", "iTXt", "eXIf", "eXIf", "text", "bomb", "other", "other")))
    if kind == "iCCP":
        icc = profile()
        for _ in range(draw(st.integers(0, 2))):
            icc = patched(icc, 4 * index(draw, 80), number(draw, 4), 4, "big")
        packed = zlib.compress(icc)
        if draw(st.integers(0, 2)) == 0:
            packed = damage(draw, packed)
        return b"iCCP", some_bytes(draw, 8).replace(b"\0", b"n") + b"\0" + bytes(
            [draw(st.sampled_from((0, 0, 0, 1)))]
        ) + packed
    if kind == "zTXt":
        return b"zTXt", b"key\0" + bytes([draw(st.sampled_from((0, 0, 1)))]) + zlib.compress(some_bytes(draw))
    if kind == "iTXt":
        flags = bytes([draw(st.integers(0, 2)), draw(st.integers(0, 1))])
        key = draw(st.sampled_from((b"XML:com.adobe.xmp", b"key", b"")))
        return b"iTXt", key + b"\0" + flags + b"\0\0" + draw(
            st.sampled_from((zlib.compress(b"<x/>"), b"<x/>", b"\xff\xfe"))
        )
    if kind == "eXIf":
        return b"eXIf", draw_exif(draw, THUMBNAIL).removeprefix(b"Exif\0\0")
    if kind == "text":
        key = draw(st.sampled_from((b"Raw profile type exif", b"Raw profile type icc", b"Description", b"")))
        body = draw(st.sampled_from((b"\nexif\n      8\n4578696600000000", b"\nexif\n x\nzz", b"", b"\xff" * 9)))
        return draw(st.sampled_from(((b"tEXt", key + b"\0" + body), (b"zTXt", key + b"\0\0" + zlib.compress(body)))))
    if kind == "bomb":
        size = draw(st.sampled_from((1 << 20, 1 << 22, 1 << 25)))
        head = draw(st.sampled_from((b"key\0\0", b"icc\0\0")))
        return (b"iCCP" if head[:1] == b"i" else b"zTXt"), head + zlib.compress(bytes(size), 9)
    return draw(st.sampled_from(TYPES)), some_bytes(draw)


def _changed(draw: Draw, part: Chunk) -> Chunk:
    name, data = part
    if name == b"IHDR":
        field = draw(st.sampled_from(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1))))
        near = int.from_bytes(data[field[0] : sum(field)], "big")
        small = field[1] == 1 and draw(st.booleans())
        value = draw(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 16))) if small else number(draw, field[1], near)
        return name, patched(data, *(field[0], value, field[1]), "big")
    if name == b"IDAT" and draw(st.booleans()):  # damage below the compression
        try:
            return name, zlib.compress(damage(draw, zlib.decompress(data)))
        except zlib.error:
            pass
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(TYPES)), data
    return name, damage(draw, data) if draw(st.booleans()) else data + some_bytes(draw)


def draw_png(draw: Draw) -> bytes:
    """Draw a PNG that is wrong in one to four places."""
    base = chunks(draw(st.sampled_from(base_files("png"))))
    for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
        base.insert(draw(st.integers(1, len(base))), _content(draw))
    if draw(st.integers(0, 3)):
        base = shuffled(draw, base, lambda part: _changed(draw, part))
    data = joined(base)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        data = damage(draw, data)
    elif kind == 1:  # a length that lies
        data = patched(data, 8, number(draw, 4, near=13), 4, "big")
    return data + (THUMBNAIL if draw(st.integers(0, 5)) == 0 else b"")

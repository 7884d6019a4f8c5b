"""JPEG files whose segments are edited one by one."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index, number, patched, shuffled, some_bytes
from tests.fuzz.seeds import THUMBNAIL, base_files, profile
from tests.fuzz.tiff import draw_exif

MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC5, 0xC9, 0xCC, 0xD0, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xE0, 0xE1, 0xE2,
           0xED, 0xEE, 0xEF, 0xFE, 0x01, 0x02)  # fmt: skip
XMP = (
    b"<x:xmpmeta><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>",
    b'<x tiff:Orientation="8"/>',
    b"\xff",
    b"<",
)
#: marker, content, and the length that is written: None for the true one
Segment = tuple[int, bytes, int | None]


def segments(data: bytes) -> tuple[list[Segment], bytes]:
    """Split a valid JPEG into its segments up to the first scan, and the rest,
    which begins with the scan's header."""
    out: list[Segment] = []
    at = 2
    while data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        out.append((data[at + 1], data[at + 4 : at + 2 + size], None))
        at += 2 + size
    return out, data[at:]


def joined(parts: list[Segment], rest: bytes) -> bytes:
    """Join segments into a file."""
    out = b"\xff\xd8"
    for marker, data, length in parts:
        size = min(len(data) + 2, 0xFFFF) if length is None else length
        out += bytes((0xFF, marker)) + struct.pack(">H", size) + data
    return out + rest


def _content(draw: Draw) -> Segment:
    kind = draw(st.sampled_from(("exif", "exif", "exif", "icc", "jfif", "adobe", "photoshop", "mpf", "xmp", "other")))
    if kind == "exif":
        data = draw_exif(draw, THUMBNAIL)
        return 0xE1, data, None
    if kind == "icc":
        n, of = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        return (
            0xE2,
            b"ICC_PROFILE\0" + bytes((n, of)) + profile()[: draw(st.sampled_from((0, 20, 128, 200, 5000)))],
            None,
        )
    if kind == "jfif":
        side = draw(st.integers(0, 5))
        sides = struct.pack(">HH", number(draw, 2), number(draw, 2)) + bytes((side, side))
        return 0xE0, b"JFIF\0\1\2" + bytes((draw(st.integers(0, 3)),)) + sides + THUMBNAIL, None
    if kind == "adobe":
        return 0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((draw(st.integers(0, 3)),)), None
    if kind == "photoshop":
        block = b"8BIM" + struct.pack(">HBB", draw(st.sampled_from((1036, 1033, 1005, 1039))), 0, 0)
        return 0xED, b"Photoshop 3.0\0" + block + struct.pack(">I", number(draw, 4, near=22)) + THUMBNAIL, None
    if kind == "mpf":
        return 0xE2, b"MPF\0" + draw_exif(draw, THUMBNAIL).removeprefix(b"Exif\0\0"), None
    if kind == "xmp":
        return 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + draw(st.sampled_from(XMP)), None
    return draw(st.sampled_from(MARKERS)), some_bytes(draw), None


def _changed(draw: Draw, part: Segment) -> Segment:
    marker, data, length = part
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and draw(st.booleans()):
        at, width = draw(st.sampled_from(((0, 1), (1, 2), (3, 2), (5, 1), (6, 1), (7, 1), (8, 1), (10, 1))))
        return (
            marker,
            patched(data, at, number(draw, width, int.from_bytes(data[at : at + width], "big")), width, "big"),
            length,
        )
    what = draw(st.sampled_from(("marker", "length", "damage", "damage", "number")))
    if what == "marker":
        return draw(st.sampled_from(MARKERS)), data, length
    if what == "length":
        return marker, data, number(draw, 2, near=len(data) + 2)
    if what == "number":
        return marker, patched(data, index(draw, len(data) + 1), number(draw, 2), 2, "big"), length
    return marker, damage(draw, data), length


def draw_jpeg(draw: Draw) -> bytes:
    """Draw a JPEG that is wrong in one to four places."""
    parts, rest = segments(draw(st.sampled_from(base_files("jpeg"))))
    for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
        content = _content(draw)
        if draw(st.booleans()):  # in place of a segment of the same kind
            parts = [p for p in parts if p[0] != content[0]]
        parts.insert(draw(st.integers(0, len(parts))), content)
    if draw(st.integers(0, 3)):
        parts = shuffled(draw, parts, lambda part: _changed(draw, part))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        rest = damage(draw, rest)
    elif kind == 1:
        rest += draw(st.sampled_from((THUMBNAIL, base_files("jpeg")[0], b"\xff\xd8\xff\xd9")))
    return joined(parts, rest)

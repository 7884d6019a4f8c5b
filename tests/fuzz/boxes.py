"""WebP (RIFF) and AVIF (ISO base media) files whose boxes are edited one by one."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index, number, patched, shuffled, some_bytes
from tests.fuzz.seeds import THUMBNAIL, base_files, profile
from tests.fuzz.tiff import draw_exif

RIFF_NAMES = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ", b"JUNK")
BOX_NAMES = (b"ftyp", b"meta", b"hdlr", b"pitm", b"iinf", b"iloc", b"iref", b"iprp", b"ipco", b"ipma", b"ispe",
             b"av1C",
             b"colr", b"pixi", b"auxC", b"irot", b"imir", b"clap", b"pasp", b"grid", b"idat", b"mdat", b"free",
             b"moov",
             b"trak", b"mdia", b"minf", b"stbl", b"a1lx", b"lsel")  # fmt: skip
#: Boxes with boxes inside, and the bytes before the first of them.
PARENTS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}


@dataclass
class Box:
    """A box; `size` overrides the length that is written."""

    name: bytes
    head: bytes
    inner: list[Box]
    size: int | None = None


def riff(data: bytes) -> list[Box]:
    """Split a valid WebP into its chunks."""
    out, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        out.append(Box(data[at : at + 4], data[at + 8 : at + 8 + size], []))
        at += 8 + size + size % 2
    return out


def joined_riff(parts: list[Box], size: int | None) -> bytes:
    """Join chunks into a WebP; `size` is the file's length as its header states it, None for the true one."""
    body = b"WEBP"
    for p in parts:
        body += (
            p.name + struct.pack("<I", len(p.head) if p.size is None else p.size) + p.head + b"\0" * (len(p.head) % 2)
        )
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def draw_webp(draw: Draw) -> bytes:
    """Draw a WebP that is wrong in one to four places."""
    parts = riff(draw(st.sampled_from(base_files("webp"))))

    def changed(box: Box) -> Box:
        if box.name == b"VP8X" and draw(st.booleans()):
            at, width = draw(st.sampled_from(((0, 1), (4, 3), (7, 3))))
            return Box(box.name, patched(box.head, at, number(draw, width, 11), width, "little"), [])
        what = draw(st.sampled_from(("name", "size", "damage", "damage", "front")))
        if what == "name":
            return Box(draw(st.sampled_from(RIFF_NAMES)), box.head, [])
        if what == "size":
            return Box(box.name, box.head, [], number(draw, 4, len(box.head)))
        if what == "front":  # the headers of the bitstreams
            return Box(box.name, patched(box.head, index(draw, 16), number(draw, 2), 2, "little"), [])
        return Box(box.name, damage(draw, box.head), [])

    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        name = draw(st.sampled_from(RIFF_NAMES))
        content = {b"EXIF": lambda: draw_exif(draw, THUMBNAIL), b"ICCP": lambda: profile()[: draw(st.integers(0, 200))]}
        parts = [p for p in parts if p.name != name] if draw(st.booleans()) else parts
        parts.insert(index(draw, len(parts) + 1), Box(name, content.get(name, lambda: some_bytes(draw))(), []))
        for p in parts:
            if p.name == b"VP8X" and p.head:
                p.head = bytes((p.head[0] | 0x2C,)) + p.head[1:]  # the flags of ICC, EXIF and XMP
    if draw(st.integers(0, 3)):
        parts = shuffled(draw, parts, changed)
    size = number(draw, 4, 100) if draw(st.integers(0, 7)) == 0 else None
    data = joined_riff(parts, size)
    return damage(draw, data) if draw(st.integers(0, 9)) == 0 else data


def boxes(data: bytes) -> list[Box]:
    """Split ISO base media boxes, with the boxes inside."""
    out, at = [], 0
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + size if size >= 8 else len(data)
        body = data[at + 8 : end]
        skip = PARENTS.get(name)
        out.append(Box(name, body, []) if skip is None else Box(name, body[:skip], boxes(body[skip:])))
        at = end
    return out


def joined_boxes(parts: list[Box]) -> bytes:
    """Join boxes into a file."""
    out = b""
    for p in parts:
        body = p.head + joined_boxes(p.inner)
        out += struct.pack(">I", (len(body) + 8 if p.size is None else p.size) & 0xFFFFFFFF) + p.name + body
    return out


def _all(parts: list[Box]) -> list[Box]:
    return [b for p in parts for b in (p, *_all(p.inner))]


def draw_avif(draw: Draw) -> bytes:
    """Draw an AVIF that is wrong in one to four places."""
    parts = boxes(draw(st.sampled_from(base_files("avif"))))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        every = _all(parts)
        if not every:
            break
        box = every[index(draw, len(every))]
        what = draw(
            st.sampled_from(
                ("number", "number", "number", "size", "name", "damage", "insert", "drop", "repeat", "exif", "exif")
            )
        )
        if what == "number":
            width = draw(st.sampled_from((1, 2, 4)))
            box.head = patched(box.head, index(draw, len(box.head) + 1), number(draw, width), width, "big")
        elif what == "size":
            box.size = number(draw, 4, near=len(box.head) + 8)
        elif what == "name":
            box.name = draw(st.sampled_from(BOX_NAMES))
        elif what == "damage":
            box.head = damage(draw, box.head)
        elif what == "exif":
            last = next((p for p in parts if p.name == b"mdat"), box)
            at = last.head.find(b"Exif\0\0")
            new = draw_exif(draw, THUMBNAIL)
            last.head = (
                last.head[:at] + new[: len(last.head) - at] + last.head[at + len(new) :] if at >= 0 else last.head
            )
        else:
            inside = next((b.inner for b in every if any(i is box for i in b.inner)), parts)
            at = next((i for i, b in enumerate(inside) if b is box), 0)
            if what == "drop":
                del inside[at]
            elif what == "insert":
                inside.insert(at, Box(draw(st.sampled_from(BOX_NAMES)), some_bytes(draw), []))
            else:
                inside[at:at] = [Box(box.name, box.head, box.inner)] * draw(st.sampled_from((1, 1, 30)))
    data = joined_boxes(parts)
    return damage(draw, data) if draw(st.integers(0, 9)) == 0 else data

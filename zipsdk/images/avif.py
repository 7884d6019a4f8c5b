"""Hide the EXIF of an AVIF from Pillow and read it with a size limit.

Pillow rebuilds the EXIF of an AVIF while it opens the file and warns about damage. The orientation of an AVIF is that
of its properties irot and imir; an orientation in its EXIF does not count (MIAF, 7.3.4).

Source: ISO/IEC 14496-12 (boxes meta, iinf, infe, iloc, idat); ISO/IEC 23008-12, annex A.2.1, for EXIF items.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from zipsdk.images.metadata import MAX_METADATA, Unpacked
from zipsdk.images.stream import Ranges, size_of


def unpack_avif(source: BinaryIO) -> Unpacked:
    """Split the EXIF from an AVIF; the rest, including XMP and thumbnails, stays in the stream unread."""
    size = size_of(source)
    out = Unpacked("AVIF", source)
    at = 0
    while at + 8 <= size:
        source.seek(at)
        head = source.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        length = length or size - at
        if name == b"meta" and length <= MAX_METADATA:
            source.seek(at)
            box = bytearray(source.read(length))
            try:
                out.exif = _hide_exif(box, source, size)
            except (struct.error, IndexError):
                out.warnings.append("its EXIF is malformed (it lies outside the file): it is left out")
            kept = Ranges()
            kept.keep(0, at)
            kept.insert(bytes(box))
            kept.keep(at + len(box), size - at - len(box))
            out.stream = kept.open(source)
            return out
        if length < 8:
            break
        at += length
    source.seek(0)
    return out


def _boxes(data: bytearray, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, content start and end of each box."""
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        if length < 8 or at + length > end:
            return
        yield bytes(name), at + 8, at + length
        at += length


def _hide_exif(meta: bytearray, source: BinaryIO, size: int) -> bytes:
    """Rename the EXIF items in a meta box in place; return the content of the first."""
    items: list[int] = []
    iloc = idat = -1
    for name, at, end in _boxes(meta, 12, len(meta)):
        if name == b"iinf":
            items += _rename_exif_items(meta, at, end)
        elif name == b"iloc":
            iloc = at
        elif name == b"idat":
            idat = at
    if not items or iloc < 0:
        return b""
    data = bytearray()
    for method, start, length in _extents(meta, iloc, items[0]):
        if length > MAX_METADATA - len(data) or method > 1 or (method == 1 and idat < 0):
            raise IndexError
        if method == 1:
            data += meta[idat + start : idat + start + length]
        elif start + length > size:
            raise IndexError
        else:
            source.seek(start)
            data += source.read(length)
    skip = int.from_bytes(data[:4], "big")
    return bytes(data[4 + skip :])


def _rename_exif_items(meta: bytearray, at: int, end: int) -> Iterator[int]:
    """Change the type of each EXIF item in an iinf box to "skip", and yield its id."""
    for name, start, stop in _boxes(meta, at + (6 if meta[at] == 0 else 8), end):
        id_size = 2 if meta[start] == 2 else 4
        kind = start + 4 + id_size + 2
        if name == b"infe" and meta[start] in (2, 3) and stop >= kind + 4 and meta[kind : kind + 4] == b"Exif":
            meta[kind : kind + 4] = b"skip"
            yield int.from_bytes(meta[start + 4 : start + 4 + id_size], "big")


def _extents(meta: bytearray, at: int, item: int) -> list[tuple[int, int, int]]:
    """Return the construction method, offset and length of each extent of an item."""
    version = meta[at]
    sizes = struct.unpack_from(">H", meta, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    id_size = 4 if version == 2 else 2
    at += 6

    def number(n: int) -> int:
        nonlocal at
        if at + n > len(meta):
            raise IndexError
        at += n
        return int.from_bytes(meta[at - n : at], "big")

    room = 1 << 16  # a bound on extents of 0 bytes, which could take hours
    for _ in range(number(id_size)):
        item_id = number(id_size)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)  # index of the file that holds the item
        base = number(base_size)
        parts = []
        count = number(2)
        room -= count
        if room < 0:
            raise IndexError
        for _ in range(count):
            number(index_size)
            parts.append((method, base + number(offset_size), number(length_size)))
        if item_id == item:
            return parts
    return []

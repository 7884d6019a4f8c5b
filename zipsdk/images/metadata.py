"""Clean the EXIF, XMP and ICC data of an image: bounded in size, without copies of the unpurified image.

EXIF is rebuilt from its entries with their types. Parts that can hold a copy of the unpurified image are left out: the
thumbnail directory (IFD1), SubIFDs, maker notes, Photoshop and IPTC blocks, XMP, and any value that contains an encoded
image. XMP is searched for an orientation and never kept.

Source: TIFF 6.0; Exif 3.0 (CIPA DC-008), sections 4.5 and 4.6.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

#: Maximum bytes of EXIF, of XMP and of an ICC profile.
MAX_METADATA = 16 << 20

ORIENTATION = 0x0112
_EXIF, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005
_POINTERS = {"0": (_EXIF, _GPS), "exif": (_INTEROP,)}

#: Tags of the pixel storage of a TIFF: wrong in any other file, and they may lead to a thumbnail.
_LAYOUT = {
    *(0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C, 0x013D),
    *(0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x0152, 0x0153, 0x015B, 0x0200, 0x0201, 0x0202, 0x0203, 0x0205, 0x0206),
    *(0x0207, 0x0208, 0x0209, 0x0212),
}
#: Tags that may hold a preview: SubIFDs, XMP, thumbnails of Windows, IPTC, Photoshop, maker notes, private data and raw
#: file of DNG, and padding.
_PREVIEWS = {0x014A, 0x02BC, 0x501B, 0x83BB, 0x8649, 0x927C, 0xC634, 0xC68C, 0xEA1C}
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
#: Start of an encoded JPEG, PNG, GIF, WebP, and of a JPEG in base 64.
_ENCODED = re.compile(rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n|GIF8[79]a|WEBPVP8|/9j/4")
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([0-9])")


@dataclass
class Unpacked:
    r"""An image file split into pixels and metadata.

    Attributes:
        kind: Pillow's name of the format.
        stream: the file to decode, with the pixels of the original file and without its metadata.
        exif: stored bytes, with or without the header "Exif\0\0".
        icc: the ICC profile, b"" for none.
        orientation: 1 to 8, from XMP, a TIFF tag or an AVIF property; used if the EXIF has none.
        warnings: messages for the caller.
        deepest: the largest value of a 16-bit sample.
        inverted: whether 0 is white in 16-bit samples.
        samples: description of the samples of a TIFF.
    """

    kind: str
    stream: BinaryIO
    exif: bytes = b""
    icc: bytes = b""
    orientation: int | None = None
    warnings: list[str] = field(default_factory=list)
    deepest: int = 65535
    inverted: bool = False
    samples: str = ""


class Exif(NamedTuple):
    """Cleaned EXIF (b"" for none), its original orientation, and the number of damaged entries."""

    data: bytes
    orientation: int | None
    damaged: int


def clean_exif(exif: bytes) -> Exif:
    r"""Rebuild EXIF without its orientation and without entries that may hold a copy of the image.

    Args:
        exif: a TIFF structure, with or without the header "Exif\0\0".

    Raises:
        ValueError: it is not a TIFF structure, or its first directory is incomplete.
    """
    data = re.sub(rb"^(Exif\x00\x00){1,2}", b"", exif)
    if not data:
        return Exif(b"", None, 0)
    if len(data) > MAX_METADATA:
        raise ValueError(f"got {len(data)} bytes, expected at most {MAX_METADATA}")
    reader = _Reader(data)
    found: int | None = None
    ifd = reader.directory(reader.first, "0")
    entry = ifd.pop(ORIENTATION, None)
    if isinstance(entry, tuple) and entry[0] == 3 and len(entry[1]) >= 2:
        found = struct.unpack(reader.order + "H", entry[1][:2])[0]
    if isinstance(entry, tuple) and len(entry[1]) != _UNITS[entry[0]]:
        reader.damaged += 1  # several orientations, about which Pillow warns
    body = _directory(ifd, 8, reader.order) if ifd else b""
    head = (b"II*\0" if reader.order == "<" else b"MM\0*") + struct.pack(reader.order + "I", 8)
    return Exif(b"Exif\0\0" + head + body if body else b"", found, reader.damaged)


class _Reader:
    """Read the directories of a TIFF structure in memory; the size of all values together is bounded."""

    def __init__(self, data: bytes):
        if data[:4] not in (b"II*\0", b"MM\0*") or len(data) < 8:
            raise ValueError("no TIFF header")
        self.order = "<" if data[:2] == b"II" else ">"
        self.data = data
        self.damaged = 0
        self._left = len(data)
        self.first = self._number("I", 4)

    def _number(self, kind: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + kind, self.data, at)[0])
        except struct.error as e:
            raise ValueError("a directory beyond its end") from e

    def directory(self, at: int, name: str) -> dict[int, Any]:
        """Return tag -> (type, bytes), or tag -> directory for tags that point to one."""
        out: dict[int, Any] = {}
        count = self._number("H", at)
        if at + 2 + 12 * count > len(self.data):
            raise ValueError("a directory beyond its end")
        for i in range(count):
            tag, kind, n, offset = struct.unpack_from(self.order + "HHII", self.data, at + 2 + 12 * i)
            if tag in out or tag in _PREVIEWS or (name != "gps" and tag in _LAYOUT):
                continue
            if tag in _POINTERS.get(name, ()):
                try:
                    out[tag] = self.directory(offset, {_EXIF: "exif", _GPS: "gps"}.get(tag, "interop"))
                except ValueError:
                    self.damaged += 1
                continue
            size = _UNITS.get(kind, 0) * n
            start = at + 2 + 12 * i + 8 if size <= 4 else offset
            if not size or start + size > len(self.data) or size > self._left:
                self.damaged += not (kind in _UNITS and n == 0)  # an empty value is valid
                continue
            self._left -= size
            value = self.data[start : start + size]
            if not (size > 64 and _ENCODED.search(value)):
                out[tag] = (kind, value)
        return out


def _directory(entries: dict[int, Any], at: int, order: str) -> bytes:
    """Encode a directory at offset `at`, followed by its values; it links to no further directory."""
    table, values = bytearray(), bytearray()
    end = at + 2 + 12 * len(entries) + 4
    for tag, entry in sorted(entries.items()):
        if isinstance(entry, dict):
            kind, n, value = 4, 1, struct.pack(order + "I", end + len(values))
            values += _directory(entry, end + len(values), order)
        else:
            kind, value = entry
            n = len(value) // _UNITS[kind]
            if len(value) > 4:
                stored = value + b"\0" * (len(value) % 2)  # values start at even offsets
                value = struct.pack(order + "I", end + len(values))
                values += stored
        table += struct.pack(order + "HHI", tag, kind, n) + value.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + bytes(table) + bytes(4) + bytes(values)


def xmp_orientation(xmp: bytes) -> int | None:
    """Return the orientation in XMP, 1 to 8; None without one."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found and 1 <= int(found[1]) <= 8 else None


def inflate(data: bytes, most: int = MAX_METADATA) -> bytes | None:
    """Decompress zlib data; return None if the result is longer than `most` bytes.

    Raises:
        zlib.error: the data is damaged.
    """
    stream = zlib.decompressobj()
    out = stream.decompress(data, most + 1)
    return None if len(out) > most else out

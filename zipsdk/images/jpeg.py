"""Split a JPEG into its first image and metadata; limit its number of scans.

Source: ITU-T T.81, annex B; ICC.1:2022, annex B.4, for profiles in APP2.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from zipsdk.errors import ImageReadError
from zipsdk.images.metadata import MAX_METADATA, Unpacked, xmp_orientation
from zipsdk.images.stream import Ranges, size_of

_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SCAN, _APPLICATION, _COMMENT = 0xDA, range(0xE0, 0xF0), 0xFE
#: Application segments that are read, and those that the decoder needs, by their first bytes.
_READ = {0xE0, 0xE1, 0xE2, 0xEE}
_KEPT = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
#: Markers without a segment.
_ALONE = {0x01, *range(0xD0, 0xDA)}
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
#: Maximum pixels times scans, and the number of scans that every size may have; about ten are common.
_MAX_WORK, _SCANS = 2_000_000_000, 64
_BLOCK = 1 << 16


@dataclass
class _Metadata:
    """The metadata of the segments read so far.

    Attributes:
        exif: the EXIF segments, joined.
        profile: number, count and data of each part of the ICC profile.
        icc_room: bytes that the ICC profile may still take; negative if it is too large.
        orientation: from XMP.
    """

    exif: bytearray = field(default_factory=bytearray)
    profile: list[tuple[int, int, bytes]] = field(default_factory=list)
    icc_room: int = MAX_METADATA
    orientation: int | None = None

    def add(self, code: int, data: bytes, length: int) -> None:
        """Add an APP1 or APP2 segment; `data` is shorter than `length` if the file is cut off."""
        if code == 0xE1 and data[:6] == _EXIF and len(self.exif) + length <= MAX_METADATA:
            self.exif += data[6:] if self.exif else data
        elif code == 0xE1 and data.startswith(_XMP):
            self.orientation = xmp_orientation(data) or self.orientation
        elif code == 0xE2 and data.startswith(_ICC) and len(data) >= 14:
            self.icc_room -= len(data)
            if self.icc_room >= 0:
                self.profile.append((data[12], data[13], data[14:]))

    def write_to(self, out: Unpacked) -> None:
        """Store the metadata in `out`, with a warning if the ICC profile is malformed."""
        out.exif, out.orientation = bytes(self.exif), self.orientation
        if not self.profile:
            return
        self.profile.sort(key=lambda part: part[0])
        if self.icc_room >= 0 and [p[0] for p in self.profile] == [*range(1, self.profile[0][1] + 1)]:
            out.icc = b"".join(p[2] for p in self.profile)
        else:
            reason = "too large" if self.icc_room < 0 else "not all of its parts are in the file"
            out.warnings.append(f"its ICC profile is malformed ({reason}): it is left out")


def unpack_jpeg(source: BinaryIO) -> Unpacked:
    """Split a JPEG into its first image and metadata.

    Raises:
        ImageReadError: it has too many scans, which would take minutes to decode.
    """
    size = size_of(source)
    kept, metadata = Ranges(), _Metadata()
    kept.keep(0, 2)
    at, pixels, components, progressive = 2, 0, 0, False
    source.seek(at)
    while True:
        code, at = _next_marker(source, at, size)
        if code in _ALONE:
            kept.keep(at - 2, 2)
            continue
        if not code or at + 2 > size:
            break
        inner = max(struct.unpack(">H", source.read(2))[0] - 2, 0)
        if code == _SCAN:
            in_scan = (source.read(1) or b"\0")[0]
            kept.keep(at - 2, size - at + 2)
            if in_scan < components or progressive:
                _check_scans(source, at - 2, size, pixels)
            break
        if code in _APPLICATION or code == _COMMENT:
            data = source.read(inner) if code in _READ else b""
            if data[:5] == _KEPT.get(code):
                kept.keep(at - 2, 4 + inner)
            else:
                metadata.add(code, data, inner)
        else:
            if code in _FRAMES and inner >= 6:
                _, height, width, components = struct.unpack(">BHHB", source.read(6))
                pixels, progressive = width * height, code in _PROGRESSIVE
            kept.keep(at - 2, min(4 + inner, size - at + 2))
        at += 2 + inner
        source.seek(at)
    out = Unpacked("JPEG", kept.open(source))
    metadata.write_to(out)
    return out


def _next_marker(source: BinaryIO, at: int, size: int) -> tuple[int, int]:
    """Return the next marker and the offset after it; 0 at the end of the file. libjpeg skips other bytes, too."""
    while at < size:
        byte = source.read(1)
        at += 1
        if byte != b"\xff":
            continue
        while byte == b"\xff":
            byte = source.read(1)
            at += 1
        if byte and byte != b"\0":
            return byte[0], at
    return 0, at


def _check_scans(source: BinaryIO, at: int, size: int, pixels: int) -> None:
    """Count the scans, beginning at the first; each block is read once."""
    most = max(_SCANS, _MAX_WORK // max(pixels, 1))
    base, block, scans = at, b"", 0
    while at < size:
        if at + 4 > base + len(block):
            base = at
            source.seek(at)
            block = source.read(_BLOCK)
        found = _MARKER.search(block, at - base)
        if not found or found.end() + 2 > len(block):
            if base + len(block) >= size:
                return
            # the next block starts before a marker that the end of this block cuts
            at = base + (found.start() if found and found.start() else len(block) - 1)
            block = b""
            continue
        code, after = found[1][0], found.end()
        if code == 0xD9:
            return
        at = base + after
        if code in _ALONE:
            continue
        at += max(struct.unpack_from(">H", block, after)[0], 2)
        if code == _SCAN:
            scans += 1
            if scans > most:
                raise ImageReadError(
                    f"got more than {most} scans of {pixels} pixels, expected fewer, because each takes time; "
                    "save it again as a baseline JPEG"
                )

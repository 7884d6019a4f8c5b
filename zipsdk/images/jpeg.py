"""Split a JPEG into its first image and metadata; limit its number of scans.

Source: ITU-T T.81, annex B; ICC.1:2022, annex B.4, for profiles in APP2.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from zipsdk.errors import ImageReadError
from zipsdk.images.metadata import MAX_METADATA, Unpacked, xmp_orientation
from zipsdk.images.stream import Ranges, size_of

_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
#: Markers without a segment.
_ALONE = {0x01, *range(0xD0, 0xDA)}
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
#: Maximum pixels times scans, and the number of scans that every size may have; about ten are common.
_MAX_WORK, _SCANS = 2_000_000_000, 64
_BLOCK = 1 << 16


def unpack_jpeg(source: BinaryIO) -> Unpacked:
    """Split a JPEG into its first image and metadata.

    Raises:
        ImageReadError: it has too many scans, which would take minutes to decode.
    """
    size = size_of(source)
    kept = Ranges()
    out = Unpacked("JPEG", source)
    kept.keep(0, 2)
    at, pixels, parts, progressive = 2, 0, 0, False
    exif = bytearray()
    profile: list[tuple[int, int, bytes]] = []
    room = MAX_METADATA
    source.seek(at)
    while at < size:
        mark = source.read(1)
        at += 1
        if mark != b"\xff":
            continue  # libjpeg skips other bytes, too
        while mark == b"\xff":
            mark = source.read(1)
            at += 1
        if not mark or mark == b"\0":
            continue
        code = mark[0]
        if code in _ALONE:
            kept.keep(at - 2, 2)
            continue
        if at + 2 > size:
            break
        length = struct.unpack(">H", source.read(2))[0]
        if code == 0xDA:
            components = (source.read(1) or b"\0")[0]
            kept.keep(at - 2, size - at + 2)
            if components < parts or progressive:
                _check_scans(source, at - 2, size, pixels)
            break
        inner = max(length - 2, 0)
        if 0xE0 <= code <= 0xEF or code == 0xFE:
            data = source.read(inner) if code in (0xE0, 0xE1, 0xE2, 0xEE) else b""
            if (code == 0xE0 and data[:5] == b"JFIF\0") or (code == 0xEE and data[:5] == b"Adobe"):
                kept.keep(at - 2, 4 + inner)
            elif code == 0xE1 and data[:6] == _EXIF and len(exif) + inner <= MAX_METADATA:
                exif += data[6:] if exif else data
            elif code == 0xE1 and data.startswith(_XMP):
                out.orientation = xmp_orientation(data) or out.orientation
            elif code == 0xE2 and data.startswith(_ICC) and len(data) >= 14:
                room -= len(data)
                if room >= 0:
                    profile.append((data[12], data[13], data[14:]))
        else:
            if code in _FRAMES and inner >= 6:
                _, height, width, parts = struct.unpack(">BHHB", source.read(6))
                pixels, progressive = width * height, code in _PROGRESSIVE
            kept.keep(at - 2, min(4 + inner, size - at + 2))
        at += 2 + inner
        source.seek(at)
    out.exif = bytes(exif)
    if profile:
        profile.sort(key=lambda part: part[0])
        if room >= 0 and [p[0] for p in profile] == [*range(1, profile[0][1] + 1)]:
            out.icc = b"".join(p[2] for p in profile)
        else:
            reason = "too large" if room < 0 else "not all of its parts are in the file"
            out.warnings.append(f"its ICC profile is malformed ({reason}): it is left out")
    out.stream = kept.open(source)
    return out


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
        if code == 0xDA:
            scans += 1
            if scans > most:
                raise ImageReadError(
                    f"got more than {most} scans of {pixels} pixels, expected fewer, because each takes time; "
                    "save it again as a baseline JPEG"
                )

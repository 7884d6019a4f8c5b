"""Split a PNG into pixels and metadata: text is skipped unread, ICC and EXIF are read with a size limit.

Source: PNG (Third Edition), sections 5, 11 and 13.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from zipsdk.images.metadata import MAX_METADATA, Unpacked, inflate, xmp_orientation
from zipsdk.images.stream import Ranges, size_of

_MAGIC = b"\x89PNG\r\n\x1a\n"
#: Keys of ImageMagick's EXIF from before PNG had an EXIF chunk: hexadecimal text after three lines.
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP = b"XML:com.adobe.xmp"
_KEYS = (_XMP, *_RAW_EXIF)


def unpack_png(source: BinaryIO) -> tuple[Unpacked, int]:
    """Split a PNG into pixels and metadata.

    Returns:
        The parts, and the number of frames; 1 for a still image.
    """
    size = size_of(source)
    kept = Ranges()
    out = Unpacked("PNG", source)
    kept.keep(0, len(_MAGIC))
    depth = color = 0
    animation: list[int] = []
    at, first_frame, pixels = len(_MAGIC), False, False
    met: set[bytes] = set()
    raw_exif = b""
    while at + 8 <= size:
        source.seek(at)
        length, name = struct.unpack(">I4s", source.read(8))
        whole = 12 + length
        if name == b"IHDR" and length >= 13:
            depth, color = source.read(10)[8:10]
        if name[:1].isupper() or not name.isalpha():  # critical chunks and damaged data are for the decoder
            kept.keep(at, min(whole, size - at))
            pixels = pixels or name == b"IDAT"
            if name == b"IEND" or not name.isalpha():
                break
        elif at + whole > size or length > MAX_METADATA:
            if name in (b"iCCP", b"eXIf"):
                out.warnings.append(f"its {name.decode()} chunk of {length} bytes is too large or cut off: left out")
        elif name == b"tRNS":
            _transparent(source.read(length), depth, color, kept, out)
        elif name in (b"iCCP", b"eXIf") and name not in met:
            met.add(name)  # only the first of each, because a file may repeat a decompression bomb
            if name == b"iCCP":
                _icc(source.read(length), out)
            else:
                out.exif = source.read(length)
        elif name in (b"iTXt", b"zTXt", b"tEXt"):
            start = source.read(min(length, 80))
            key = start.partition(b"\0")[0]
            if key in _KEYS and key not in met:
                met.add(key)
                raw_exif = _text(name, start + source.read(length - len(start)), out) or raw_exif
        elif name == b"acTL" and length >= 8 and not pixels:
            animation.append(int(struct.unpack(">I", source.read(4))[0]))
        elif name == b"fcTL" and not pixels:
            first_frame = True
        at += whole
    out.exif = out.exif or raw_exif
    out.stream = kept.open(source)
    frames = 1
    if len(animation) == 1 and 0 < animation[0] <= 0x80000000:  # otherwise the file counts as a still image
        frames = animation[0] + (not first_frame)
    return out, frames


def _transparent(data: bytes, depth: int, color: int, kept: Ranges, out: Unpacked) -> None:
    """Scale the transparent color to 8 bit: Pillow compares the stored value with 8-bit samples."""
    if color in (0, 2):
        need = 2 if color == 0 else 6
        if len(data) < need:
            return
        if depth == 16:
            out.warnings.append("its transparent color is left out: 16-bit samples have no alpha here")
            return
        top = (1 << depth) - 1
        scale = 255 // top if depth in (2, 4) else 1  # Pillow scales samples of 2 and 4 bit to 8 bit, but not the color
        data = b"".join(struct.pack(">H", (v & top) * scale) for v in struct.unpack(f">{need // 2}H", data[:need]))
    elif color != 3:
        return
    kept.insert(struct.pack(">I", len(data)) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data)))


def _icc(data: bytes, out: Unpacked) -> None:
    name, _, rest = data.partition(b"\0")
    try:
        if len(name) > 79 or rest[:1] != b"\0":
            raise zlib.error("unknown compression")
        profile = inflate(rest[1:])
    except zlib.error as e:
        out.warnings.append(f"its ICC profile is malformed ({e}): it is left out")
        return
    if profile is None:
        out.warnings.append(f"its ICC profile has more than {MAX_METADATA} bytes: it is left out")
    else:
        out.icc = profile


def _text(kind: bytes, data: bytes, out: Unpacked) -> bytes:
    """Read the orientation in XMP; return EXIF in ImageMagick's form, b"" for none."""
    key, _, rest = data.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        rest = b"\0".join(rest.split(b"\0", 2)[2:])  # skip language and translated keyword
    elif packed:
        rest = rest[1:]
    try:
        value = inflate(rest) if packed else rest
    except zlib.error:
        return b""
    what = "XMP" if key == _XMP else "EXIF"
    if value is None:
        out.warnings.append(f"its {what} has more than {MAX_METADATA} bytes: an orientation in it is not applied")
        return b""
    if key == _XMP:
        out.orientation = xmp_orientation(value) or out.orientation
        return b""
    try:
        return bytes.fromhex(b"".join(value.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        out.warnings.append("its EXIF is malformed (no hexadecimal text): it is left out")
        return b""

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
    out, kept = Unpacked("PNG", source), Ranges()
    kept.keep(0, len(_MAGIC))
    chunks = _AncillaryChunks(source, kept, out)
    at = len(_MAGIC)
    while at + 8 <= size:
        source.seek(at)
        length, name = struct.unpack(">I4s", source.read(8))
        whole = 12 + length
        if name == b"IHDR" and length >= 13:
            chunks.depth, chunks.color = source.read(10)[8:10]
        if name[:1].isupper() or not name.isalpha():  # critical chunks and damaged data are for the decoder
            kept.keep(at, min(whole, size - at))
            chunks.after_pixels |= name == b"IDAT"
            if name == b"IEND" or not name.isalpha():
                break
        elif at + whole > size or length > MAX_METADATA:
            if name in (b"iCCP", b"eXIf"):
                out.warnings.append(f"its {name.decode()} chunk of {length} bytes is too large or cut off: left out")
        else:
            chunks.read(name, length)
        at += whole
    out.exif = out.exif or chunks.raw_exif
    out.stream = kept.open(source)
    return out, chunks.frames


class _AncillaryChunks:
    """Read the ancillary chunks of a PNG, in order; metadata goes to `out`, the transparent color to `kept`.

    Attributes:
        depth, color: bits a sample and color type of IHDR.
        after_pixels: whether the first IDAT was before.
        raw_exif: EXIF in ImageMagick's form; b"" for none.
    """

    def __init__(self, source: BinaryIO, kept: Ranges, out: Unpacked):
        self._source, self._kept, self._out = source, kept, out
        self.depth = self.color = 0
        self.after_pixels = False
        self.raw_exif = b""
        self._met: set[bytes] = set()  # only the first of each is read, because a file may repeat a decompression bomb
        self._animations: list[int] = []
        self._first_frame = False

    def read(self, name: bytes, length: int) -> None:
        """Read a chunk whose content of `length` bytes begins at the position of the source."""
        if name == b"tRNS":
            _transparent(self._source.read(length), self.depth, self.color, self._kept, self._out)
        elif name in (b"iCCP", b"eXIf") and name not in self._met:
            self._met.add(name)
            if name == b"iCCP":
                _icc(self._source.read(length), self._out)
            else:
                self._out.exif = self._source.read(length)
        elif name in (b"iTXt", b"zTXt", b"tEXt"):
            self._read_text(name, length)
        elif name == b"acTL" and length >= 8 and not self.after_pixels:
            self._animations.append(int(struct.unpack(">I", self._source.read(4))[0]))
        elif name == b"fcTL" and not self.after_pixels:
            self._first_frame = True

    def _read_text(self, name: bytes, length: int) -> None:
        start = self._source.read(min(length, 80))
        key = start.partition(b"\0")[0]
        if key in _KEYS and key not in self._met:
            self._met.add(key)
            text = start + self._source.read(length - len(start))
            self.raw_exif = _text(name, text, self._out) or self.raw_exif

    @property
    def frames(self) -> int:
        """Number of frames; 1 for a still image, as which a file with an invalid acTL counts."""
        if len(self._animations) == 1 and 0 < self._animations[0] <= 0x80000000:
            return self._animations[0] + (not self._first_frame)
        return 1


def _transparent(data: bytes, depth: int, color: int, kept: Ranges, out: Unpacked) -> None:
    """Scale the transparent color to 8 bit: Pillow compares the stored value with 8-bit samples."""
    if color in (0, 2):
        need = 2 if color == 0 else 6
        if len(data) < need:
            return
        if depth == 16:
            out.warnings.append("its transparent color is left out: 16-bit images are read without alpha")
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

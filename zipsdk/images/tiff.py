"""Reduce a TIFF to the tags of its pixel storage; refuse by name what Pillow would decode wrong.

A new first directory is appended to the bytes of the file, so that pixels keep their offsets and Pillow sees no other
tag. 16-bit WhiteIsZero is declared as BlackIsZero and inverted after decoding, because Pillow reads 0 as black.

Source: TIFF 6.0; TIFF Technical Note 2 (JPEG); libtiff's BigTIFF layout; DNG 1.7 for DNGVersion.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from zipsdk.errors import ImageReadError
from zipsdk.images.metadata import MAX_METADATA, ORIENTATION, Unpacked
from zipsdk.images.stream import Ranges, size_of

_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_ICC, _SUBFILE, _SUBIFDS, _DNG = 34675, 254, 330, 50706
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_COUNT, _PLANES, _COLOR_MAP = 258, 259, 262, 277, 284, 320
_INKS, _EXTRA, _SAMPLE_FORMAT, _YCBCR_COEFFICIENTS, _YCBCR_SUBSAMPLING, _REFERENCE_LEVELS = 332, 338, 339, 529, 530, 532
#: Tags of the pixel storage; 347 and 512 to 521 belong to JPEG, 292 and 293 to fax.
_PIXELS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
    *(347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 532),
}
#: Tags of one value; a damaged file may have more.
_SINGLE = {*(256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514, 515, 531)}
_MAX_ENTRIES, _MAX_PAGES = 4096, 10_000
_COMPRESSIONS = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "Deflate", 32771: "CCITT RLE-W", 32773: "PackBits", 32809: "ThunderScan", 32946: "Deflate", 34925: "LZMA",
    50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_PHOTOMETRICS = {
    0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "separated (CMYK)",
    6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "color filter array", 32844: "LogL", 32845: "LogLuv",
    34892: "linear raw",
}  # fmt: skip
_SAMPLES = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex floating-point"}
#: YCbCr as Pillow decodes it: coefficients of BT.601, full range.
_BT601 = (0.299, 0.587, 0.114)
_FULL = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


class _Directory(NamedTuple):
    #: tag -> type, count, bytes
    entries: dict[int, tuple[int, int, bytes]]
    next: int
    order: str
    big: bool

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the ints of a tag; `default` if it is missing or of another type."""
        kind, count, data = self.entries.get(tag, (0, 0, b""))
        return struct.unpack(f"{self.order}{count}{_NUMBERS[kind]}", data) if kind in _NUMBERS and count else default

    def ratios(self, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
        """Return the unsigned fractions of a tag; `default` if it is missing or of another type."""
        kind, count, data = self.entries.get(tag, (0, 0, b""))
        if kind != 5 or not count:
            return default
        parts = struct.unpack(f"{self.order}{2 * count}I", data)
        return tuple(a / b if b else 0.0 for a, b in zip(parts[::2], parts[1::2], strict=True))

    def number(self, tag: int, default: int) -> int:
        return self.numbers(tag, (default,))[0]


def unpack_tiff(source: BinaryIO) -> tuple[Unpacked, int]:
    """Split a TIFF into pixels and metadata.

    Returns:
        The parts, and the number of pages.

    Raises:
        ImageReadError: its samples are not supported, or its directory is damaged.
    """
    size = size_of(source)
    head = source.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in (head[2], head[3])
    first = int(struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0])
    directory = _read(source, first, size, order, big)
    pages, at, met = 1, directory.next, {first}
    while at and at not in met and pages < _MAX_PAGES:
        met.add(at)
        pages += 1
        at = _next(source, at, size, order, big)
    out = Unpacked("TIFF", source)
    if pages > 1:
        return out, pages
    _check(directory)
    kind, _, icc = directory.entries.get(_ICC, (0, 0, b""))
    if kind in (1, 7) and len(icc) <= MAX_METADATA:
        out.icc = icc
    elif icc:
        out.warnings.append(f"its ICC profile of {len(icc)} bytes is too large or malformed: it is left out")
    out.orientation = directory.number(ORIENTATION, 1)
    out.samples = _described(directory)
    _rewrite(directory, source, size, out)
    return out, pages


def _read(source: BinaryIO, at: int, size: int, order: str, big: bool) -> _Directory:
    count_at, entry_at, inline = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    width, head = struct.calcsize(order + entry_at), struct.calcsize(order + count_at)
    wrong = ImageReadError(
        "got a TIFF whose directory is damaged, expected one that is inside the file; download or save it again"
    )
    if at + head > size:
        raise wrong
    source.seek(at)
    count = struct.unpack(order + count_at, source.read(head))[0]
    if count > _MAX_ENTRIES or at + head + count * width > size:
        raise wrong
    table = source.read(count * width)
    tail = source.read(inline)
    entries: dict[int, tuple[int, int, bytes]] = {}
    left = size
    for tag, kind, n, value in struct.iter_unpack(order + entry_at, table):
        stored = _UNITS.get(kind, 0) * n
        n = min(n, 1) if tag in _SINGLE else n
        length = _UNITS.get(kind, 0) * n
        if tag in entries or not length or tag not in _PIXELS | {_ICC, _SUBFILE, _SUBIFDS, _DNG, ORIENTATION}:
            continue
        if stored <= inline:
            data = value[:length]
        else:
            start = struct.unpack(order + ("Q" if big else "I"), value)[0]
            left -= length
            if start + length > size or left < 0:
                if tag in _PIXELS:
                    raise wrong
                continue
            source.seek(start)
            data = source.read(length)
        entries[tag] = (kind, n, data)
    following = struct.unpack(order + ("Q" if big else "I"), tail)[0] if len(tail) == inline else 0
    return _Directory(entries, following, order, big)


def _next(source: BinaryIO, at: int, size: int, order: str, big: bool) -> int:
    """Return the offset of the directory after the one at `at`; 0 for none."""
    head, width, inline = (8, 20, 8) if big else (2, 12, 4)
    if at + head > size:
        return 0
    source.seek(at)
    count = struct.unpack(order + ("Q" if big else "H"), source.read(head))[0]
    if at + head + count * width + inline > size:
        return 0
    source.seek(at + head + count * width)
    return int(struct.unpack(order + ("Q" if big else "I"), source.read(inline))[0])


def _refusal(got: str, do: str) -> ImageReadError:
    return ImageReadError(f"got a TIFF {got}, expected one of 8 or 16 bit gray, RGB, palette, CMYK; {do}")


def _check(directory: _Directory) -> None:
    """Refuse by name what Pillow decodes wrong or not at all."""
    compression, photometric = directory.number(_COMPRESSION, 1), directory.number(_PHOTOMETRIC, -1)
    if (
        _DNG in directory.entries
        or (_SUBIFDS in directory.entries and directory.number(_SUBFILE, 0) & 1)
        or photometric in (32803, 34892)
    ):
        raise _refusal("of camera raw data or its preview", "develop it to PNG or JPEG, or save its main image alone")
    if compression not in _COMPRESSIONS:
        raise _refusal(f"with compression {compression}", "save it again without compression")
    if photometric == -1 and compression != 6:
        raise _refusal("of unknown samples (no PhotometricInterpretation)", "convert it to PNG")
    if photometric not in (-1, 0, 1, 2, 3, 5, 6, 8):
        what = _PHOTOMETRICS.get(photometric, "unknown")
        raise _refusal(f"with photometric interpretation {photometric} ({what})", "convert it to PNG")
    _check_range(directory)
    _check_samples(directory, compression, photometric)


def _check_range(directory: _Directory) -> None:
    """Refuse samples of unknown range."""
    bits = directory.numbers(_BITS, (1,))
    advice = "scale it to 0..255 and convert it to 8 bit, or pass a float array in [0, 1]"
    if strange := [f for f in directory.numbers(_SAMPLE_FORMAT, (1,)) if f != 1]:
        what = _SAMPLES.get(strange[0], "unknown")
        raise _refusal(f"of {what} samples ({'x'.join(map(str, bits[:4]))} bit) of unknown range", advice)
    if len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 12, 16):
        raise _refusal(f"of {'x'.join(map(str, bits[:8]))} bit a sample, of unknown range", advice)


def _check_samples(directory: _Directory, compression: int, photometric: int) -> None:
    """Refuse numbers of samples, planes, inks and YCbCr that Pillow decodes wrong."""
    bits = directory.numbers(_BITS, (1,))
    samples = directory.number(_SAMPLE_COUNT, 3 if compression == 6 else 1)
    separate = directory.number(_PLANES, 1) == 2 and samples > 1
    if not 1 <= samples <= 6:
        raise _refusal(f"of {samples} samples a pixel", "save its colors only")
    if separate and bits[0] != 8:
        raise _refusal(f"of {bits[0]} bit with a plane for each color", "save it with interleaved colors")
    if photometric == 5 and directory.number(_INKS, 1) != 1:
        raise _refusal("with inks other than CMYK", "convert it to RGB")
    if photometric == 6 and compression == 1 and samples != 1:
        subsampled = directory.numbers(_YCBCR_SUBSAMPLING, (2, 2)) != (1, 1)
        not_bt601 = (
            directory.ratios(_YCBCR_COEFFICIENTS, _BT601) != _BT601
            or directory.ratios(_REFERENCE_LEVELS, _FULL) != _FULL
        )
        if subsampled or separate or not_bt601:
            raise _refusal("of YCbCr that is subsampled, in planes or with other coefficients", "convert it to RGB")


def _described(directory: _Directory) -> str:
    bits = "x".join(map(str, directory.numbers(_BITS, (1,))))
    compression = _COMPRESSIONS[directory.number(_COMPRESSION, 1)]
    extra = f", {len(directory.numbers(_EXTRA))} extra" if _EXTRA in directory.entries else ""
    planes = ", in planes" if directory.number(_PLANES, 1) == 2 else ""
    photometric = _PHOTOMETRICS.get(directory.number(_PHOTOMETRIC, 6), "unknown")
    return f"TIFF of {bits} bit {photometric}{extra}{planes}, compression {compression}"


def _rewrite(directory: _Directory, source: BinaryIO, size: int, out: Unpacked) -> None:
    """Append a directory of only the pixel tags to the bytes of the file."""
    entries = {tag: entry for tag, entry in directory.entries.items() if tag in _PIXELS}
    bits, photometric = directory.number(_BITS, 1), directory.number(_PHOTOMETRIC, 0)
    if photometric in (0, 1) and bits in (12, 16) and directory.number(_SAMPLE_COUNT, 1) == 1:
        out.inverted, out.deepest = photometric == 0, (1 << bits) - 1
        entries[_PHOTOMETRIC] = (3, 1, struct.pack(directory.order + "H", 1))
    colors = directory.numbers(_COLOR_MAP)
    if colors and max(colors) < 256:  # some writers store 8 bits instead of 16
        levels = struct.pack(f"{directory.order}{len(colors)}H", *(c * 257 for c in colors))
        entries[_COLOR_MAP] = (3, len(colors), levels)
    start = size + size % 2
    if start + sum(len(data) + 14 for _, _, data in entries.values()) >= 1 << 32:
        raise ImageReadError(f"got a TIFF of {size} bytes, expected less than 4 GiB; cut it into parts")
    kept = Ranges()
    kept.insert((b"II" if directory.order == "<" else b"MM") + struct.pack(directory.order + "HI", 42, start))
    kept.keep(8, size - 8)
    kept.insert(b"\0" * (start - size) + _written(entries, start, directory.order))
    out.stream = kept.open(source)


def _written(entries: dict[int, tuple[int, int, bytes]], start: int, order: str) -> bytes:
    """Encode a directory at `start`, followed by its values: classic TIFF, as Pillow reads only some BigTIFF files."""
    end = start + 2 + 12 * len(entries) + 4
    table, values = bytearray(), bytearray()
    for tag, (kind, n, data) in sorted(entries.items()):
        if kind == 16:
            kind, data = 4, struct.pack(f"{order}{n}I", *struct.unpack(f"{order}{n}Q", data))
        value = data
        if len(data) > 4:
            value = struct.pack(order + "I", end + len(values))
            values += data + b"\0" * (len(data) % 2)
        table += struct.pack(order + "HHI", tag, kind, n) + value.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + bytes(table) + bytes(4) + bytes(values)

"""TIFF files and EXIF blocks from a list of entries, each of which may be wrong."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index, number, some_bytes

#: Bytes of one value of a type; 0 stands for types that do not exist.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 283, 284, 296, 317, 320, 322, 323, 324,
        325, 330, 338, 339, 347, 513, 514, 530, 531, 532, 700, 33432, 33723, 34377, 34665, 34675, 34853, 37500,
        40965, 50341)  # fmt: skip
POINTERS = (330, 34665, 34853, 40965)


@dataclass(frozen=True)
class Entry:
    """One entry of a directory; `count` and `raw` override what follows from the values."""

    tag: int
    kind: int
    values: tuple[int, ...]
    count: int | None = None
    raw: bytes | None = None

    def data(self, order: str) -> bytes:
        """Encode the values."""
        if self.raw is not None:
            return self.raw
        width = {5: 4, 10: 4}.get(self.kind, SIZES.get(self.kind, 1))
        return b"".join(
            (v & (256**width - 1)).to_bytes(width, "little" if order == "<" else "big") for v in self.values
        )


@dataclass
class Directory:
    """Entries, and the offset of the next directory: None for the one that follows, if there is one."""

    entries: list[Entry] = field(default_factory=list)
    next: int | None = None


def build(
    order: str, directories: list[Directory], blob: bytes, *, big: bool = False, magic: int | None = None
) -> bytes:
    """Lay out a file: header, directories, long values, and `blob` (strips or a thumbnail) at the end.

    A value of -1 stands for the offset of the blob, -2 - n for that of directory n.
    """
    word, slot, counted = ("Q", 8, "Q") if big else ("I", 4, "H")
    header = 16 if big else 8
    sizes = [struct.calcsize(order + counted) + len(d.entries) * (4 + 2 * slot) + slot for d in directories]
    starts = [header + sum(sizes[:i]) for i in range(len(sizes))]
    long_values = header + sum(sizes)

    def resolved(entry: Entry, blob_at: int) -> bytes:
        places = {-1: blob_at, **{-2 - n: at for n, at in enumerate(starts)}}
        return replace(entry, values=tuple(places.get(v, v) for v in entry.values)).data(order)

    extra_size = sum(n for d in directories for e in d.entries if (n := len(resolved(e, 0))) > slot)
    blob_at = long_values + extra_size
    out, extra = b"", b""
    for i, directory in enumerate(directories):
        out += struct.pack(order + counted, len(directory.entries))
        for e in directory.entries:
            data = resolved(e, blob_at)
            count = e.count if e.count is not None else len(data) // max(1, SIZES.get(e.kind, 1))
            out += struct.pack(order + "HH" + word, e.tag, e.kind, count & (256**slot - 1))
            if len(data) > slot:
                out += struct.pack(order + word, long_values + len(extra))
                extra += data
            else:
                out += data.ljust(slot, b"\0")
        following = starts[i + 1] if i + 1 < len(starts) and directory.next is None else directory.next or 0
        if following < 0:
            following = starts[min(-2 - following, len(starts) - 1)]
        out += struct.pack(order + word, following & (256**slot - 1))
    mark = magic if magic is not None else 43 if big else 42
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", mark)
    head += struct.pack(order + "HHQ", 8, 0, header) if big else struct.pack(order + "I", header)
    return head + out + extra + blob


def _exif_directories(thumbnail: bytes, orientation: int | None) -> list[Directory]:
    first = [Entry(0x010F, ASCII, (), raw=b"zip\0"), Entry(0x0132, ASCII, (), raw=b"2023:12:10 00:00:00\0")]
    if orientation is not None:
        first.append(Entry(274, SHORT, (orientation,)))
    first.append(Entry(34665, LONG, (-4,)))
    small = [Entry(259, SHORT, (6,)), Entry(513, LONG, (-1,)), Entry(514, LONG, (len(thumbnail) + 4,))]
    inner = [Entry(0x9003, ASCII, (), raw=b"2023:12:10 00:00:00\0"), Entry(0x829A, RATIONAL, (1, 50))]
    return [Directory(first), Directory(small, next=0), Directory(inner, next=0)]


def exif(thumbnail: bytes, orientation: int | None = None, order: str = "<") -> bytes:
    """Build a valid EXIF block with a thumbnail, in the form that Pillow writes ("Exif" and two zeros first)."""
    blob = b"\xff\xd8" + thumbnail + b"\xff\xd9"
    return b"Exif\0\0" + build(order, _exif_directories(thumbnail, orientation), blob)


def _changed(draw: Draw, e: Entry) -> Entry:
    what = draw(st.sampled_from(("tag", "kind", "count", "value", "value", "value", "raw", "loop")))
    if what == "tag":
        return replace(e, tag=draw(st.sampled_from(TAGS)))
    if what == "kind":
        return replace(e, kind=draw(st.integers(0, 19)))
    if what == "count":
        return replace(e, count=number(draw, 4, near=len(e.values)))
    if what == "raw":
        return replace(e, raw=some_bytes(draw, 16))
    if what == "loop":
        return Entry(draw(st.sampled_from(POINTERS)), LONG, (draw(st.integers(-4, 40)),))
    near = e.values[0] if e.values else 0
    size = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
    return replace(
        e, values=tuple(number(draw, min(4, SIZES.get(e.kind, 2)), near=max(0, near)) for _ in range(size)), raw=None
    )


def _edited(draw: Draw, directories: list[Directory]) -> list[Directory]:
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        d = directories[index(draw, len(directories))]
        what = draw(st.sampled_from(("change", "change", "change", "change", "add", "drop", "next", "sort")))
        if what == "next":
            d.next = draw(
                st.one_of(st.integers(-4, -2), st.integers(0, 300), st.sampled_from((0xFFFFFFFF, 0x7FFFFFFF)))
            )
        elif what == "add" or not d.entries:
            d.entries.insert(
                index(draw, len(d.entries) + 1),
                Entry(
                    draw(st.sampled_from(TAGS)),
                    draw(st.integers(1, 13)),
                    (number(draw, 4), number(draw, 4))[: draw(st.integers(0, 2))],
                ),
            )
        elif what == "drop":
            del d.entries[index(draw, len(d.entries))]
        elif what == "sort":
            d.entries.sort(key=lambda e: -e.tag)
        else:
            i = index(draw, len(d.entries))
            d.entries[i] = _changed(draw, d.entries[i])
    return directories


def draw_exif(draw: Draw, thumbnail: bytes) -> bytes:
    """Draw an EXIF block that is wrong in one to four places."""
    order = draw(st.sampled_from("<>"))
    directories = _edited(draw, _exif_directories(thumbnail, draw(st.sampled_from((None, 1, 3, 6, 8, 0, 9)))))
    data = build(order, directories, b"\xff\xd8" + thumbnail + b"\xff\xd9")
    if draw(st.integers(0, 4)) == 0:
        data = damage(draw, data)
    return draw(st.sampled_from((b"Exif\0\0", b"Exif\0\0", b"Exif\0\0", b"", b"Exif", b"exif\0\0"))) + data


#: Photometric interpretation, samples and bits of layouts that Pillow knows.
LAYOUTS = (
    (2, 3, 8), (2, 4, 8), (1, 1, 8), (0, 1, 8), (1, 1, 1), (0, 1, 1), (3, 1, 8), (1, 1, 16), (0, 1, 16), (5, 4,
    8), (6, 3, 8),
    (8, 3, 8), (1, 2, 8), (1, 1, 32), (2, 3, 16), (3, 1, 4), (0, 1, 4), (1, 1, 12), (3, 1, 2), (0, 1, 2), (2, 5,
    8), (2, 4, 16),
)  # fmt: skip


def draw_tiff(draw: Draw, thumbnail: bytes) -> bytes:
    """Draw a TIFF of 8 x 6 pixels with strips or tiles, most often wrong in one to four places."""
    if draw(st.integers(0, 3)):
        photometric, samples, bits = draw(st.sampled_from(LAYOUTS))
    else:
        photometric = draw(st.sampled_from((0, 1, 2, 3, 4, 5, 6, 8, 32844, 32845, 34892)))
        samples, bits = draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 4, 8, 12, 16, 24, 32, 64)))
    width, height = 8, 6
    pixels = bytes(i * 37 & 255 for i in range(-(-width * samples * bits // 8) * height))
    compression = draw(
        st.sampled_from((1, 1, 1, 1, 8, 8, 5, 32773, 2, 3, 4, 6, 7, 32946, 34712, 50000, 34925, 50001, 0))
    )
    if compression == 8:
        pixels = zlib.compress(pixels)
    values = {
        256: width, 257: height, 258: (bits,) * samples, 259: compression, 262: photometric, 273: -1, 277: samples,
        278: height, 279: len(pixels), 284: draw(st.sampled_from((1, 1, 1, 2))),
    }  # fmt: skip
    if draw(st.booleans()):
        values[274] = draw(st.sampled_from((1, 3, 6, 8, 0, 12)))
    if draw(st.integers(0, 3)) == 0:
        values |= {339: (draw(st.integers(0, 6)),) * samples, 338: draw(st.integers(0, 4))}
    elif photometric == 2 and samples > 3:
        values[338] = (2,) * (samples - 3)
    if photometric == 3 or draw(st.integers(0, 9)) == 0:
        values[320] = tuple(range(3 * 2 ** min(bits, 8)))
    if draw(st.integers(0, 7)) == 0:
        values |= {322: 16, 323: 16, 324: -1, 325: len(pixels)}
    long = (273, 279, 324, 325)
    entries = [
        Entry(tag, LONG if tag in long else SHORT, v if isinstance(v, tuple) else (v,))
        for tag, v in sorted(values.items())
    ]
    directories = [Directory(entries, next=0)]
    if draw(st.integers(0, 3)) == 0:
        small = [Entry(259, SHORT, (6,)), Entry(513, LONG, (-1,)), Entry(514, LONG, (9,))]
        entries.append(Entry(draw(st.sampled_from(POINTERS)), LONG, (-3,)))
        directories.append(Directory(small, next=0))
    if draw(st.integers(0, 2)):
        directories = _edited(draw, directories)
    big = draw(st.integers(0, 7)) == 0
    data = build(draw(st.sampled_from("<>")), directories, pixels + thumbnail, big=big)
    return damage(draw, data) if draw(st.integers(0, 7)) == 0 else data

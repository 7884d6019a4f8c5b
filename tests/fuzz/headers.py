"""GIF, BMP and PPM: formats that are a header and a body."""

from __future__ import annotations

import random
import struct

from hypothesis import strategies as st

from tests.fuzz.edits import Draw, damage, index, number, patched, some_bytes
from tests.fuzz.seeds import THUMBNAIL, base_files

#: Runs, ends of lines and files, jumps and literals of run-length encoded BMP data.
RUNS = (b"\4\1", b"\0\0", b"\0\1", b"\0\2\3\1", b"\0\4\1\2\3\4", b"\xff\xff", b"\0\2\xff\xff", b"\0\xff")
EXTENSIONS = (
    b"\4\1\0\0\2\0",
    b"\0",
    b"\xff" + bytes(255) + b"\0",
    b"\x0bNETSCAPE2.0\3\1\0\0\0",
    b"\x0bXMP DataXMP\3abc\0",
    b"\5",
)
OTHERS = (
    b"",
    b"<html><body>404</body></html>",
    b'{"error": "not found"}',
    b"<svg/>",
    b"%PDF-1.7\n",
    b"PK\3\4",
    bytes(4096),
)
#: Offset and width of the fields of a BMP with a header of 40 to 124 bytes.
BMP_FIELDS = ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (38, 4), (46, 4),
              (50, 4),
              (54, 4), (58, 4), (62, 4), (66, 4))  # fmt: skip
BMP_CHOICES = {
    (14, 4): (12, 16, 40, 52, 56, 64, 108, 124, 0, 39),
    (28, 2): (0, 1, 2, 4, 8, 16, 24, 32, 64),
    (30, 4): (0, 1, 2, 3, 4, 5, 6, 11),
}


def draw_bmp(draw: Draw) -> bytes:
    """Draw a BMP with one to four wrong fields, or with run-length data."""
    data = draw(st.sampled_from(base_files("bmp")))
    if draw(st.integers(0, 4)) == 0:  # run-length: 8 bits or 4
        runs = draw(st.lists(st.sampled_from(RUNS), max_size=12))
        bits, kind = draw(st.sampled_from(((8, 1), (4, 2), (8, 2), (1, 1))))
        header = struct.pack("<IiiHHIIiiII", 40, 12, 9, 1, bits, kind, 0, 0, 0, 2**bits, 0)
        body = header + bytes(4 * 2**bits)
        data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(body)) + body + b"".join(runs)
    for _ in range(draw(st.integers(1, 4))):
        field = draw(st.sampled_from(BMP_FIELDS))
        choices = BMP_CHOICES.get(field)
        near = int.from_bytes(data[field[0] : sum(field)], "little")
        value = draw(st.sampled_from(choices)) if choices and draw(st.booleans()) else number(draw, field[1], near)
        data = patched(data, field[0], value, field[1], "little")
    if draw(st.integers(0, 5)) == 0:  # height below zero: rows from the top
        data = patched(data, 22, -9, 4, "little")
    return damage(draw, data) if draw(st.integers(0, 5)) == 0 else data


def draw_gif(draw: Draw) -> bytes:
    """Draw a GIF with wrong screen, frames, blocks or code sizes."""
    data = draw(st.sampled_from(base_files("gif")))
    for _ in range(draw(st.integers(1, 4))):
        frame = data.find(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 else 0)
        what = draw(st.sampled_from(("screen", "frame", "frame", "codes", "extension", "blocks", "damage", "bits")))
        if what == "screen":
            at, width = draw(st.sampled_from(((6, 2), (8, 2), (10, 1), (11, 1))))
            data = patched(data, at, number(draw, width, 12), width, "little")
        elif what == "frame" and frame > 0:
            at, width = draw(st.sampled_from(((1, 2), (3, 2), (5, 2), (7, 2), (9, 1))))
            data = patched(data, frame + at, number(draw, width, 9), width, "little")
        elif what == "codes" and frame > 0:
            data = patched(data, frame + 10, draw(st.integers(0, 13)), 1, "little")
        elif what == "bits" and frame > 0:
            data = patched(data, frame + 11 + draw(st.integers(0, 40)), draw(st.integers(0, 255)), 1, "little")
        elif what == "extension" and frame > 0:
            name = draw(st.sampled_from((0xF9, 0xFE, 0xFF, 0x01, 0x00)))
            body = draw(st.sampled_from(EXTENSIONS))
            data = data[:frame] + bytes((0x21, name)) + body * draw(st.sampled_from((1, 1, 60))) + data[frame:]
        elif what == "blocks":
            data = data.rstrip(b";") + draw(st.sampled_from((b"\0;", b"!", b",", b";;", b"\0\0\0,")))
        else:
            data = damage(draw, data)
    return data + (THUMBNAIL if draw(st.integers(0, 5)) == 0 else b"")


def draw_ppm(draw: Draw) -> bytes:
    """Draw a Netpbm file with a wrong header."""
    if draw(st.integers(0, 4)) == 0:
        return damage(draw, draw(st.sampled_from(base_files("ppm"))))
    magic = draw(
        st.sampled_from((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF", b"P0", b"Py", b"P0CMYK"))
    )
    gap = draw(st.sampled_from((b" ", b"\n", b"\n# words\n", b"\t\r\n", b"#", b"", b"\n#" + b"x" * 3000 + b"\n")))
    side = st.one_of(
        st.integers(0, 12).map(lambda n: b"%d" % n),
        st.sampled_from(
            (b"-1", b"0x3", b"1e3", b"99999999999", b"3000000000", b"65536", b"1" * 5000, b"+3", "٣".encode())
        ),
    )
    most = draw(
        st.sampled_from(
            (b"255", b"255", b"65535", b"1", b"15", b"0", b"65536", b"-1.0", b"1.0", b"nan", b"256", b"-0", b"inf")
        )
    )
    head = gap.join((magic, draw(side), draw(side), most)) + draw(st.sampled_from((b"\n", b" ", b"", b"\n\n")))
    body = draw(
        st.sampled_from(
            (
                bytes(range(256)) * 3,
                b"1 2 3 4 " * 80,
                b"",
                b"7 " * 9,
                b"99999999999 " * 9,
                b"-1 " * 20,
                b"0" * 300,
                b"1" * 5000,
            )
        )
    )
    data = head + body
    return damage(draw, data) if draw(st.integers(0, 5)) == 0 else data


def splice(draw: Draw, names: tuple[str, ...]) -> bytes:
    """Draw the beginning of one valid file and the end of another, with one or two more edits."""
    first = draw(st.sampled_from(base_files(draw(st.sampled_from(names)))))
    second = draw(st.sampled_from(base_files(draw(st.sampled_from(names)))))
    data = first[: index(draw, len(first) + 1)] + second[index(draw, len(second) + 1) :]
    for _ in range(draw(st.integers(0, 2))):
        data = damage(draw, data, second)
    return data


def any_bytes(draw: Draw, names: tuple[str, ...]) -> bytes:
    """Draw what a service may receive: text, HTML, or up to a megabyte of noise, with or without a valid beginning."""
    start = draw(st.sampled_from((b"", *(f[: draw(st.integers(2, 40))] for n in names for f in base_files(n)[:1]))))
    body = draw(st.sampled_from(OTHERS))
    size, seed = draw(st.sampled_from((0, 1, 10, 100, 5000, 65_536, 1 << 20))), draw(st.integers(0, 2**32 - 1))
    return bytes(start + body + random.Random(seed).randbytes(size) + some_bytes(draw))

"""Test inputs other than paths, PIL images and arrays, and the hints in errors."""

from __future__ import annotations

import io
import mmap
import os
import re
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_files import encoded, tiff
from zipsdk import images
from zipsdk.errors import ImageReadError, InputError

RGB = np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8)


# ---- file contents and open files


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO, lambda b: io.BufferedReader(io.BytesIO(b))])
def test_a_files_content_is_read(wrap: Any, kind: str) -> None:
    item = wrap(encoded(RGB, kind))
    for _ in range(2):  # an open file is read from its start each time
        p = images.read_one(item)
        np.testing.assert_array_equal(p.rgb, RGB)
    assert isinstance(p.restore(p.rgb), Image.Image)
    loaded, restore = images.read([item, RGB, wrap(encoded(RGB, kind))])
    out = restore([x.rgb for x in loaded])
    assert [type(x) for x in out] == [Image.Image, np.ndarray, Image.Image]
    one, restore = images.read(item)
    assert restore([one[0].rgb]).tobytes() == RGB.tobytes()


def test_open_files_stay_open_and_may_be_unseekable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    with (tmp_path / "a.png").open("rb") as f:
        f.seek(7)
        np.testing.assert_array_equal(images.read_one(f).rgb, RGB)
        assert not f.closed
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
            np.testing.assert_array_equal(images.read_one(m).rgb, RGB)
    with tempfile.SpooledTemporaryFile() as f:
        f.write(encoded(RGB))
        np.testing.assert_array_equal(images.read_one(f).rgb, RGB)
    for buffering in (0, -1):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", buffering) as f:
            os.write(writer, encoded(RGB))
            os.close(writer)
            np.testing.assert_array_equal(images.read_one(f).rgb, RGB)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
        with archive.open("a.png") as f:
            np.testing.assert_array_equal(images.read_one(f).rgb, RGB)


class Trickle(io.RawIOBase):
    """Return three bytes at a time, as a slow socket may."""

    def __init__(self, data: bytes):
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block, self.rest = self.rest[:3], self.rest[3:]
        buffer[: len(block)] = block
        return len(block)


def test_short_reads_and_endless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(images.read_one(Trickle(encoded(RGB))).rgb, RGB)
    monkeypatch.setattr("zipsdk.images.reader._MOST_IN_MEMORY", 1 << 22)
    with (
        pytest.raises(ImageReadError, match=r"got more than 4194304 bytes.*pass its path"),
        Path("/dev/zero").open("rb") as f,
    ):
        images.read_one(f)


def test_a_warning_has_the_line_of_the_caller() -> None:
    im = Image.new("CMYK", (3, 3))
    for call in (lambda: images.read_one(im), lambda: images.read(im)):
        with pytest.warns(UserWarning, match="CMYK") as caught:
            call()
        assert caught[0].filename == __file__


def test_a_bytearray_may_be_modified_after_reading() -> None:
    data = bytearray(encoded(RGB))
    p = images.read_one(data)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(p.rgb, RGB)


def test_contents_that_are_no_image(tmp_path: Path) -> None:
    path: Any = tmp_path / "a.png"
    path.write_bytes(encoded(RGB))
    for options in ({"errors": "replace"}, {"encoding": "utf-8"}, {"mode": "ab"}):
        with pytest.raises(ImageReadError, match=r'a\.png: got .*open it with mode "rb"'), path.open(**options) as f:
            images.read_one(f)

    async def read(size: int) -> bytes:
        return encoded(RGB)

    upload: Any = SimpleNamespace(read=read, name="upload")
    with pytest.raises(ImageReadError, match=r"upload: got an asynchronous file.* `await file\.read\(\)`"):
        images.read_one(upload)
    for empty in (b"", io.BytesIO()):
        with pytest.raises(ImageReadError, match="of another format"):
            images.read_one(empty)
    closed = io.BytesIO(encoded(RGB))
    closed.close()
    with pytest.raises(ImageReadError, match=r"got a file that is closed.*open it again"):
        images.read_one(closed)
    with pytest.raises(ImageReadError, match=r"item 1 of the list: .*bytes of 3: got"):
        images.read([RGB, b"abc"])
    with pytest.raises(ImageReadError, match="BytesIO: got a file of another format"):
        images.read_one(io.BytesIO(b"abc"))


def test_a_path_as_bytes_gives_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    name = os.fsencode(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match=r"for a path pass os\.fsdecode\(path\)"):
        images.read_one(name)
    np.testing.assert_array_equal(images.read_one(os.fsdecode(name)).rgb, RGB)


# ---- hints, followed


def test_the_hints_for_other_containers_work() -> None:
    mapping = {"a": RGB}
    steps: list[tuple[Any, str, Any]] = [
        ((RGB for _ in range(2)), r"pass it to stream, .*; list\(x\) makes one batch", list),
        (map(np.asarray, [RGB]), r"pass it to stream, .*list\(x\)", list),
        (iter([RGB]), r"pass it to stream, .*list\(x\)", list),
        (mapping, r"list\(x\.values\(\)\)", lambda x: [*x.values()]),
        (mapping.values(), r"list\(x\)", list),
        ([RGB.tolist()], r"np\.asarray\(x, np\.uint8\)", lambda x: np.asarray(x, np.uint8)),
        ([[RGB]], "one list of single images", lambda x: x[0]),
    ]
    for item, hint, follow in steps:
        with pytest.raises(InputError, match=hint):
            images.read(item)
        loaded, _ = images.read(follow(item))
        np.testing.assert_array_equal(loaded[0].rgb, RGB)
    others: list[Any] = [None, 3, object()]
    for item in others:
        with pytest.raises(InputError, match="pass one of these"):
            images.read(item)


ARRAYS: list[tuple[Any, str, str, Any]] = [
    (np.zeros((3, 5, 7), np.uint8), "NHWC", 'pass data_format="NCHW"', None),
    (np.zeros((8, 5, 7), np.uint8), "NHWC", "x[..., None]", lambda x: x[..., None]),
    (np.zeros((8, 5, 7), np.uint8), "NCHW", "x[:, None]", lambda x: x[:, None]),
    (np.full((5, 7, 3), 128, np.int64), "NHWC", "x.astype(np.uint8)", lambda x: x.astype(np.uint8)),
    (np.full((5, 7, 3), 60000, np.int32), "NHWC", "x.astype(np.uint16)", lambda x: x.astype(np.uint16)),
    (np.ones((5, 7), bool), "NHWC", "x * np.uint8(255)", lambda x: x * np.uint8(255)),
    (np.full((5, 7, 3), 200.0), "NHWC", "convert it to uint8 where it is 0..255", lambda x: x.astype(np.uint8)),
    (np.full((5, 7, 3), -0.5), "NHWC", "for -1..1 pass (x + 1) / 2", lambda x: (x + 1) / 2),
    (
        np.ones((5, 7, 3), np.longdouble),
        "NHWC",
        "x.astype(np.float32) where it is 0..1",
        lambda x: x.astype(np.float32),
    ),
    (np.array([np.zeros((5, 7, 3), np.uint8), None], object)[:1], "NHWC", "pass a list of arrays", lambda x: [*x]),
]


@pytest.mark.parametrize(("array", "data_format", "hint", "follow"), ARRAYS, ids=[hint for _, _, hint, _ in ARRAYS])
def test_the_hints_for_arrays_work(array: Any, data_format: Any, hint: str, follow: Any) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        images.read(array, data_format=data_format)
    if follow is None:
        images.read(array, data_format="NCHW")
    else:
        images.read(follow(array), data_format=data_format)


def test_a_closed_lazy_image_gives_a_hint(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as im:
        pass
    with pytest.raises(ImageReadError, match=r"a\.png: got an image that is closed.*open it again; load\(\) keeps an"):
        images.read_one(im)
    with Image.open(tmp_path / "a.png") as im:
        im.load()
    np.testing.assert_array_equal(images.read_one(im).rgb, RGB)


# ---- formats that are not read


def iso(*brands: bytes) -> bytes:
    return (16 + 4 * len(brands[1:])).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


W, H = 7, 5
RAW_TAGS: dict[int, tuple[int, Any]] = {256: (3, [W]), 257: (3, [H]), 258: (3, [8] * 3), 259: (3, [1]), 262: (3, [2]),
                                        277: (3, [3]), 278: (3, [H])}  # fmt: skip
UNREAD = {
    "a.heic": (iso(b"heic", b"mif1", b"heic"), "HEIC", "open it with pillow-heif and pass the PIL image, not the path"),
    "b.heic": (iso(b"mif1", b"heic", b"miaf"), "HEIC", "convert it to PNG or JPEG"),
    "c.heif": (iso(b"mif1", b"miaf"), "HEIF", "convert it to PNG or JPEG"),
    "a.avif": (iso(b"avif", b"mif1", b"miaf"), "", "damaged"),
    "a.cr3": (iso(b"crx ", b"isom"), "Canon CR3 raw", "develop it"),
    "a.mp4": (iso(b"isom", b"mp41"), "MPEG-4 movie", "convert it"),
    "a.jxl": (b"\xff\x0a" + bytes(20), "JPEG XL", "convert it"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL", "convert it"),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "JPEG 2000", "convert it"),
    "a.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "render it to PNG"),
    "b.svg": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->\n<svg width="1"/>', "SVG", "render it to PNG"),
    "a.pdf": (b"%PDF-1.7\n", "PDF", "render it to PNG"),
    "a.psd": (b"8BPS\0\1", "Photoshop", "convert it"),
    "a.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "Canon CR2 raw", "develop it"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "Fujifilm RAF raw", "develop it"),
    "a.rw2": (b"IIU\0\x18\0\0\0", "Panasonic RW2 raw", "develop it"),
    "a.orf": (b"IIRO\x08\0\0\0", "Olympus ORF raw", "develop it"),
    "a.exr": (b"\x76\x2f\x31\x01\2\0\0\0", "OpenEXR", "convert it"),
    "a.hdr": (b"#?RADIANCE\n", "Radiance HDR", "convert it"),
    "a.ico": (b"\0\0\1\0\1\0", "ICO", "convert it"),
    "a.dcm": (bytes(128) + b"DICM", "DICOM", "convert it"),
    "a.qoi": (b"qoif", "QOI", "convert it"),
    "a.pam": (b"P7\nWIDTH 1\n", "PAM", "convert it"),
    "a.dng": (tiff("<", {**RAW_TAGS, 50706: (1, [1, 4, 0, 0])}, bytes(W * H * 3)), "raw data", "develop it"),
    "a.nef": (tiff(">", {**RAW_TAGS, 254: (4, [1]), 330: (4, [8])}, bytes(W * H * 3)), "raw data", "develop it"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_unread_formats_are_named_with_a_hint(name: str, tmp_path: Path) -> None:
    data, what, hint = UNREAD[name]
    (tmp_path / name).write_bytes(data)
    for item in (tmp_path / name, data):
        with pytest.raises(ImageReadError, match=f"got .*{what}.*{hint}"):
            images.read_one(item)
    suffix = Path(name).suffix
    assert (suffix in images.UNREAD_SUFFIXES) == (suffix not in (".avif", ".mp4"))


def test_an_image_of_another_plugin_is_read() -> None:
    """The hint for HEIC: an image that a plugin opened is read like any other."""
    im = Image.fromarray(RGB)
    im.format = "HEIF"
    np.testing.assert_array_equal(images.read_one(im).rgb, RGB)


def test_suffixes_of_other_formats_give_a_hint() -> None:
    assert not images.UNREAD_SUFFIXES & images.SUFFIXES
    assert all(s == s.lower() and s.startswith(".") and len(s) > 2 for s in images.UNREAD_SUFFIXES)
    assert {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr",
            ".dds", ".ico", ".tga", ".pdf"} <= images.UNREAD_SUFFIXES  # fmt: skip

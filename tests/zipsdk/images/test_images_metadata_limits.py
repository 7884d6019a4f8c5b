"""Test that metadata of any size is read in bounded memory."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers.image_checks import AVIF, SRGB
from tests.helpers.image_files import (
    encoded,
    exif_with_copies,
    png_chunk,
    segment,
    with_chunks,
    with_segments,
)
from tests.helpers.paths import SHARED
from zipsdk import images
from zipsdk.errors import ImageReadError
from zipsdk.images.metadata import MAX_METADATA

CASES = SHARED / "cases"


RGB = np.random.default_rng(3).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.skipif(not CASES.exists(), reason="there is no folder shared/cases")
def test_the_reported_png_with_much_text_is_read() -> None:
    source = CASES / "png_big_text.png"
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"), Image.open(source) as im:
        im.load()
    assert images.read_one(source).rgb.shape[2] == 3


BOMB = zlib.compress(bytes(64 << 20), 9)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([png_chunk(b"zTXt", b"Comment\0\0" + BOMB)] * 20, ""),
        ([png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)] * 20, ""),
        ([png_chunk(b"tEXt", b"Comment\0" + b"x" * (2 << 20))] * 40, ""),
        ([png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)] * 20, "its XMP has more than"),
        ([png_chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)] * 20, "its EXIF has more than"),
        ([png_chunk(b"iCCP", b"a\0\0" + BOMB)] * 20, "its ICC profile has more than"),
        ([png_chunk(b"iCCP", b"a\0\0" + b"no zlib")], "its ICC profile is malformed"),
        ([png_chunk(b"eXIf", b"II*\0" + bytes(MAX_METADATA))], "its eXIf chunk of 16777220 bytes is too large"),
        ([png_chunk(b"zzZz", b"")] * 20_000, ""),
        ([png_chunk(b"acTL", bytes(8))] * 2, ""),  # not an animation: the still image counts
    ],
    ids=["zTXt", "iTXt", "tEXt", "XMP", "ImageMagick", "ICC", "ICC damaged", "EXIF", "empty", "acTL"],
)
@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
def test_a_png_with_any_metadata_is_read_in_bounded_memory(chunks: list[bytes], message: str, where: bytes) -> None:
    data = with_chunks(encoded(RGB, "PNG"), *chunks, before=where)
    tracemalloc.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(images.read_one(data).rgb, RGB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [message in str(w.message) for w in caught] == [True] * bool(message)
    # one value of maximum size, in the two or three buffers of a decompressor
    assert peak < 4 * MAX_METADATA


def test_an_icc_profile_of_megabytes_is_kept() -> None:
    """Pillow's own limit is 1 MiB."""
    profile = SRGB + np.random.default_rng(0).bytes(3 << 20)
    data = with_chunks(encoded(RGB, "PNG"), png_chunk(b"iCCP", b"a\0\0" + zlib.compress(profile)))
    p = images.read_one(data)
    assert p.restore(p.rgb).info["icc_profile"] == profile


def icc_segments(parts: list[bytes], count: int | None = None) -> list[bytes]:
    n = len(parts) if count is None else count
    return [segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, n)) + part) for i, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([segment(0xE5, bytes(60_000))] * 1000, ""),
        ([segment(0xFE, b"")] * 20_000, ""),
        ([segment(0xE1, b"Exif\0\0" + b"II*\0" + bytes(60_000))] * 1000, "its EXIF is malformed"),
        ([segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))] * 1000, "its ICC profile is malformed"),
        (icc_segments([b"abc", b"def"], 3), "its ICC profile is malformed"),
        (icc_segments([b"abc"], 0), "its ICC profile is malformed"),
    ],
    ids=["APP5", "comments", "EXIF", "ICC", "ICC incomplete", "ICC of none"],
)
def test_a_jpeg_with_any_metadata_is_read_in_bounded_memory(segments: list[bytes], message: str) -> None:
    plain = encoded(RGB, "JPEG")
    data = with_segments(plain, *segments)
    tracemalloc.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(images.read_one(data).rgb, images.read_one(plain).rgb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [message in str(w.message) for w in caught] == [True] * bool(message)
    assert peak < 4 * MAX_METADATA


def test_an_icc_profile_in_shuffled_segments() -> None:
    profile = np.random.default_rng(0).bytes(200_000)
    parts = icc_segments([profile[i : i + 50_000] for i in range(0, 200_000, 50_000)])
    p = images.read_one(with_segments(encoded(RGB, "JPEG"), *parts[::-1]))
    assert p.restore(p.rgb).info["icc_profile"] == profile


@pytest.mark.parametrize("kind", ["WEBP", pytest.param("AVIF", marks=AVIF)])
def test_large_metadata_of_webp_and_avif(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "d" * (MAX_METADATA + 1)
    data = encoded(RGB, kind, exif=exif, xmp=bytes(1 << 20), icc_profile=SRGB + bytes(1 << 20))
    with pytest.warns(UserWarning, match="its EXIF .*(left out|malformed)") as caught:
        p = images.read_one(data)
    assert len(caught) == 1
    assert p.restore(p.rgb).info == {"icc_profile": SRGB + bytes(1 << 20)}


def test_a_too_large_webp_is_refused_before_its_decoder_allocates() -> None:
    head = bytearray(encoded(RGB, "WEBP", lossless=True, exif=exif_with_copies()))
    assert head[12:16] == b"VP8X"
    head[24:30] = b"\xfe\x3f\0\xfe\x3f\0"  # 16383 x 16383
    with pytest.raises(ImageReadError, match="16383 x 16383 pixels"):
        images.read_one(bytes(head))


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = encoded(RGB, "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 1, 0) + b"\0"
    large = bytearray(data)
    at = large.index(b"\xff\xc2")
    large[at + 5 : at + 9] = struct.pack(">HH", 9000, 9000)
    with pytest.raises(ImageReadError, match="more than 64 scans of 81000000 pixels"):
        images.read_one(bytes(large[:first]) + scan * 70 + b"\xff\xd9")
    for n in (60, 70_000):  # a marker is cut by the end of a block; markers after the image are not counted
        assert images.read_one(data + scan * n).rgb.shape == (16, 24, 3)


@pytest.mark.parametrize("size", [255 * 65_519, 255 * 65_519 + 1])
def test_the_largest_icc_profile_of_a_jpeg(size: int, tmp_path: Path) -> None:
    im = Image.fromarray(RGB)
    im.info["icc_profile"] = bytes(size)
    if size > 255 * 65_519:
        with pytest.warns(UserWarning, match=rf"its ICC profile has {size} bytes, and JPEG stores at most 16707345"):
            images.save(im, tmp_path / "a.jpg")
    else:
        images.save(im, tmp_path / "a.jpg")
    p = images.read_one(tmp_path / "a.jpg")
    assert p.restore(p.rgb).info == ({} if size > 255 * 65_519 else im.info)

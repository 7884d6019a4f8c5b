"""Test metadata: no copy of the unpurified image is written, and the rest is kept."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers.image_checks import AVIF, SRGB
from tests.helpers.image_files import (
    THUMBNAIL,
    directory,
    encoded,
    exif_with_copies,
    header,
    png_chunk,
    segment,
    with_chunks,
    with_segments,
)
from tests.helpers.paths import SHARED
from zipsdk import images
from zipsdk.images.metadata import clean_exif

CASES = SHARED / "cases"
RGB = np.random.default_rng(3).integers(0, 256, (16, 24, 3), np.uint8)
SUFFIXES = [".jpg", ".png", ".webp", ".tif", pytest.param(".avif", marks=AVIF)]


SIGNS = (b"THUMBNAIL-OF-THE-UNPURIFIED", b"MAKER\0", THUMBNAIL[:40])


def exif_in(path: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    with Image.open(path) as im:
        exif = im.getexif()
        return dict(exif), exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)


@pytest.mark.parametrize("orientation", [None, 1, 6, 9])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_copy_of_the_image_is_written(suffix: str, order: str, orientation: int | None, tmp_path: Path) -> None:
    """Neither from a file nor from `info` set by the caller; other tags keep their types."""
    exif = exif_with_copies(order, orientation)
    assert exif.count(SIGNS[0]) == 7
    source, out = tmp_path / "a.png", tmp_path / f"b{suffix}"
    source.write_bytes(with_chunks(encoded(RGB, "PNG"), png_chunk(b"eXIf", exif[6:])))
    p = images.read_one(source)
    assert p.rgb.shape == ((24, 16, 3) if orientation == 6 else (16, 24, 3))
    images.save(p.restore(p.rgb), out)
    own = Image.fromarray(RGB)
    own.info["exif"] = exif
    images.save(own, tmp_path / f"c{suffix}")
    for path in (out, tmp_path / f"c{suffix}"):
        data = path.read_bytes()
        assert not [sign for sign in SIGNS if sign in data]
        first, sub, gps = exif_in(path)
        assert (first[0x010F], float(first[0x011A])) == ("zip", 300.0)
        assert {0x0112, 0x014A, 0x02BC, 0x501B, 0x83BB, 0x8649} & set(first) <= (
            {0x0112} if suffix == ".tif" else set()
        )
        assert (float(sub[0x829A]), sub[0x8827], sub[0x9003]) == (0.008, 400, "2024:05:06 07:08:09")
        assert sub[0x9286] == b"ASCII\0\0\0a comment " and not {0x927C, 0xEA1D} & set(sub)
        assert gps[1] == "N" and [float(x) for x in gps[2]] == [48.0, 8.0, 30.0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", pytest.param("AVIF", marks=AVIF)])
def test_copies_in_the_exif_of_each_format_read(kind: str, tmp_path: Path) -> None:
    exif = exif_with_copies()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(RGB, kind, exif=exif, icc_profile=SRGB, **options)
    assert SIGNS[0] in data
    p = images.read_one(data)
    out = p.restore(p.rgb)
    assert not [sign for sign in SIGNS if sign in out.info["exif"]] and out.info["icc_profile"] == SRGB
    assert set(out.info) == {"exif", "icc_profile"}
    with Image.open(io.BytesIO(data)) as im:
        assert images.read_one(im).restore(p.rgb).info == out.info


@pytest.mark.skipif(not CASES.exists(), reason="there is no folder shared/cases")
def test_the_reported_thumbnail_is_removed(tmp_path: Path) -> None:
    source = CASES / "exif_thumbnail_no_orientation.jpg"
    with Image.open(source) as im:
        thumbnail = im.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert thumbnail[0x0202] > 100
    data = source.read_bytes()
    inner = data[data.index(b"\xff\xd8", 2) :][: thumbnail[0x0202]]
    p = images.read_one(source)
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        images.save(p.restore(p.rgb), tmp_path / f"b{suffix}")
        assert inner[:64] not in (tmp_path / f"b{suffix}").read_bytes()


def test_copies_elsewhere_in_a_jpeg(tmp_path: Path) -> None:
    """JFXX, XMP, extended XMP, MPF with its preview behind the image, Photoshop, FlashPix, a comment."""
    mpf = b"MPF\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    data = with_segments(
        encoded(RGB, "JPEG"),
        segment(0xE0, b"JFXX\0\x10" + THUMBNAIL),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<xmp:Thumbnails>" + THUMBNAIL),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + THUMBNAIL),
        segment(0xE2, mpf),
        segment(0xE2, b"FPXR\0" + THUMBNAIL),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x0c\0\0" + struct.pack(">I", len(THUMBNAIL)) + THUMBNAIL),
        segment(0xFE, THUMBNAIL),
    )
    (tmp_path / "a.jpg").write_bytes(data + THUMBNAIL)
    with Image.open(io.BytesIO(encoded(RGB, "JPEG"))) as im:
        expected = np.asarray(im)
    p = images.read_one(tmp_path / "a.jpg")
    np.testing.assert_array_equal(p.rgb, expected)
    out = p.restore(p.rgb)
    assert out.info == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Pillow about the MPF
        opened = Image.open(tmp_path / "a.jpg")
    for name, image in (("b", out), ("c", opened)):
        with image:
            for suffix in (".jpg", ".png", ".webp", ".tif"):
                images.save(image, tmp_path / f"{name}{suffix}")
                assert SIGNS[0] not in (tmp_path / f"{name}{suffix}").read_bytes()


def test_a_tiff_is_written_without_the_loss_of_its_source(tmp_path: Path) -> None:
    """Pillow's writer would reuse the compression of the source file, here JPEG."""
    Image.fromarray(RGB).save(tmp_path / "a.tif", compression="jpeg", quality=30)
    with Image.open(tmp_path / "a.tif") as im:
        assert im.info["compression"] == "jpeg"
        images.save(im, tmp_path / "b.tif")
        with Image.open(tmp_path / "b.tif") as again:
            assert again.tobytes() == im.tobytes() and again.info["compression"] == "raw"


def test_exif_is_rebuilt_deterministically() -> None:
    once = clean_exif(exif_with_copies("<", 6))
    again = clean_exif(once.data)
    assert once.orientation == 6 and again.orientation is None and again.data == once.data and not once.damaged
    assert clean_exif(b"") == clean_exif(b"Exif\0\0") == (b"", None, 0)
    only = Image.Exif()
    only[ExifTags.Base.Orientation] = 3
    assert clean_exif(only.tobytes()) == (b"", 3, 0)


def test_damaged_entries_are_left_out_and_the_others_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "a maker", "a model"
    data = bytearray(exif.tobytes())
    at = data.index(struct.pack(">H", ExifTags.Base.Model))
    struct.pack_into(">I", data, at + 8, 1 << 30)
    path = tmp_path / "a.png"
    path.write_bytes(with_chunks(encoded(RGB, "PNG"), png_chunk(b"eXIf", bytes(data[6:]))))
    with pytest.warns(UserWarning, match=r"a\.png: its EXIF is malformed in 1 entries: these are left out"):
        p = images.read_one(path)
    out = p.restore(p.rgb).getexif()
    assert out[ExifTags.Base.Make] == "a maker" and ExifTags.Base.Model not in out


def test_entries_that_share_one_value_cannot_multiply_it() -> None:
    n, big = 4000, 1 << 20
    table = b"".join(struct.pack("<HHII", 0xD000 + i, 7, big, 8 + 2 + 12 * n + 4) for i in range(n))
    data = b"II*\0" + struct.pack("<IH", 8, n) + table + bytes(4 + big)
    cleaned = clean_exif(data)
    assert len(cleaned.data) <= len(data) + 100 and cleaned.damaged == n - 1
    loop = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + bytes(4)
    assert clean_exif(loop).damaged == 0  # a directory that points to itself is read as IFD0 and as EXIF only


@pytest.mark.parametrize(
    "place", ["XMP in JPEG", "XMP in PNG", "packed XMP in PNG", "XMP in WebP", "ImageMagick's in PNG"]
)
def test_orientations_outside_the_usual_exif(place: str) -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    only = Image.Exif()
    only[ExifTags.Base.Orientation], only[ExifTags.Base.Make] = 6, "zip"
    data = {
        "XMP in JPEG": lambda: with_segments(
            encoded(RGB, "JPEG"), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
        ),
        "XMP in PNG": lambda: with_chunks(
            encoded(RGB, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        ),
        "packed XMP in PNG": lambda: with_chunks(
            encoded(RGB, "PNG"), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp))
        ),
        "XMP in WebP": lambda: encoded(RGB, "WEBP", lossless=True, xmp=xmp),
        "ImageMagick's in PNG": lambda: with_chunks(
            encoded(RGB, "PNG"),
            png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(
                b"\nexif\n      99\n" + only.tobytes().hex().encode())),
        ),
    }[place]()  # fmt: skip
    p = images.read_one(data)
    assert p.rgb.shape == (24, 16, 3)
    if "JPEG" not in place:
        np.testing.assert_array_equal(p.rgb, np.rot90(RGB, -1))
    with Image.open(io.BytesIO(data)) as im:
        np.testing.assert_array_equal(images.read_one(im).rgb, p.rgb)
    assert ("exif" in p.restore(p.rgb).info) == ("Magick" in place)


@AVIF
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_avif_is_rotated_by_its_properties(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "zip"
    data = encoded(RGB, "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    p = images.read_one(data)
    assert p.rgb.shape[:2] == ((24, 16) if orientation == 6 else (16, 24))
    out = p.restore(p.rgb)
    assert out.getexif()[ExifTags.Base.Make] == "zip" and ExifTags.Base.Orientation not in out.getexif()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exif_that_pillow_cannot_write_is_left_out(suffix: str, tmp_path: Path) -> None:
    """Detected only after purification. GPSLongitudeRef is text; here it has numbers."""
    gps = {3: (5, [48, 1, 8, 1])}
    at = 8 + len(directory("<", 8, {0x010F: (2, b"zip\0"), 0x8825: (4, [0])}))
    data = header("<") + directory("<", 8, {0x010F: (2, b"zip\0"), 0x8825: (4, [at])}) + directory("<", at, gps)
    im = Image.fromarray(RGB)
    im.info["exif"] = b"Exif\0\0" + data
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        with pytest.warns(UserWarning, match=r"a\.tif: its EXIF cannot be written to TIFF .*: it is left out"):
            images.save(im, path)
    else:
        images.save(im, path)
    with Image.open(path) as again:
        assert again.getexif().get(ExifTags.Base.Make) == (None if suffix == ".tif" else "zip")
    assert images.read_one(path).rgb.shape == RGB.shape

"""Test that every kind of TIFF sample gives the values of its bytes or is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_files import packed, tiff
from tests.helpers.paths import SHARED
from zipsdk import images
from zipsdk.errors import ImageReadError

H, W = 5, 9
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
CASE = SHARED / "cases" / "tif_i16_miniswhite.tif"


def samples(bits: int, *more: int) -> Any:
    return np.random.default_rng(bits).integers(0, 1 << bits, (H, W, *more))


def tags(bits: int, photometric: int, count: int = 1, **more: Any) -> dict[int, tuple[int, Any]]:
    out: dict[int, tuple[int, Any]] = {
        256: (3, [W]), 257: (3, [H]), 258: (3, [bits] * count), 259: (3, [1]), 262: (3, [photometric]),
        277: (3, [count]), 278: (3, [H]),
    }  # fmt: skip
    return {**out, **{int(tag[1:]): value for tag, value in more.items()}}


def gray(levels: Any) -> Any:
    return np.repeat(np.asarray(levels)[..., None], 3, axis=2)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("compression", [1, 8])
def test_gray_of_any_depth_byte_order_and_white(order: str, bits: int, photometric: int, compression: int) -> None:
    v, top = samples(bits), (1 << bits) - 1
    pixels = packed(v, bits, order)
    file = tiff(order, tags(bits, photometric, _259=(3, [compression])),
                zlib.compress(pixels) if compression == 8 else pixels)  # fmt: skip
    p = images.read_one(file)
    shown = v if photometric else top - v
    np.testing.assert_array_equal(p.rgb, gray(np.rint(shown * 255 / top)))
    assert p.restore(p.rgb).mode == ("I;16" if bits == 16 else "L")
    # as Pillow opens it, too, and as it is saved from there
    with Image.open(io.BytesIO(file)) if (order, photometric, bits) != (">", 0, 16) else Image.new("L", (1, 1)) as im:
        if im.size != (1, 1):
            np.testing.assert_array_equal(images.read_one(im).rgb, p.rgb)


def test_white_is_zero_is_saved_as_it_looks(tmp_path: Path) -> None:
    v = samples(16)
    with Image.open(io.BytesIO(tiff("<", tags(16, 0), packed(v, 16)))) as im:
        images.save(im, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as im:
        np.testing.assert_array_equal(np.asarray(im), 65535 - v)


@pytest.mark.skipif(not CASE.exists(), reason="there is no folder shared/cases")
def test_the_reported_file_is_no_negative() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image")
    with tifffile.TiffFile(CASE) as f:
        page = f.pages[0]
        assert (page.photometric.name, page.dtype) == ("MINISWHITE", np.uint16)
        stored = page.asarray()  # as it is stored
    shown = 65535 - stored.astype(np.int64)
    np.testing.assert_array_equal(images.read_one(CASE).rgb, gray((shown + 128) // 257))


@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bit_has_its_own_white(photometric: int) -> None:
    v = samples(12)
    p = images.read_one(tiff("<", tags(12, photometric), packed(v, 12)))
    np.testing.assert_array_equal(p.rgb, gray(np.rint((v if photometric else 4095 - v) * 255 / 4095)))


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
def test_bits_from_the_low_end(bits: int) -> None:
    v = samples(bits)
    p = images.read_one(tiff("<", tags(bits, 1, _266=(3, [2])), packed(v, bits).translate(REVERSED)))
    np.testing.assert_array_equal(p.rgb, gray(np.rint(v * 255 / ((1 << bits) - 1))))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_rgb_and_what_comes_with_it(order: str, bits: int, extra: int | None) -> None:
    """16-bit colors by their upper byte, as Pillow reads them."""
    count = 3 if extra is None else 4
    v = samples(bits, count)
    if extra == 1:
        v[..., :3] = np.minimum(v[..., :3], v[..., 3:])  # multiplied by alpha
    more = {} if extra is None else {"_338": (3, [extra])}
    p = images.read_one(tiff(order, tags(bits, 2, count, **more), packed(v, bits, order)))
    v = v >> (bits - 8)
    expected = v[..., :3]
    if extra == 1:
        expected = np.where(v[..., 3:] > 0, expected * 255 // np.maximum(v[..., 3:], 1), 0)
    assert np.abs(p.rgb.astype(int) - np.minimum(expected, 255)).max() <= (1 if extra == 1 else 0)
    out = p.restore(p.rgb)
    assert out.mode == ("RGBA" if extra in (1, 2) else "RGB")
    if extra in (1, 2):
        np.testing.assert_array_equal(np.asarray(out)[..., 3], v[..., 3])


def test_separate_planes_are_read() -> None:
    v = samples(8, 3)
    planes = np.moveaxis(v, 2, 0).astype(np.uint8).tobytes()
    at = 8 + 2 + 12 * 11 + 4
    size = H * W
    more = {"_284": (3, [2])}
    file = bytearray(tiff("<", tags(8, 2, 3, **more), planes))
    # a strip a plane: offsets and counts of their own, behind the pixels
    first = file.index(planes)
    where = len(file)
    for i in range(at // 12):
        entry = 8 + 2 + 12 * i
        if struct.unpack_from("<H", file, entry)[0] in (273, 279):
            strips = [first, first + size, first + 2 * size] if file[entry] == 273 & 255 else [size] * 3
            struct.pack_into("<HII", file, entry + 2, 4, 3, where)
            file += struct.pack("<3I", *strips)
            where += 12
    np.testing.assert_array_equal(images.read_one(bytes(file)).rgb, v)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("top", [65535, 255])
def test_palettes_of_16_and_of_8_bit(bits: int, top: int) -> None:
    colors = np.random.default_rng(0).integers(0, top + 1, (3, 1 << bits))
    colors[0, 0] = top
    v = samples(bits)
    p = images.read_one(tiff("<", tags(bits, 3, _320=(3, [*map(int, colors.ravel())])), packed(v, bits)))
    np.testing.assert_array_equal(p.rgb, (colors >> 8 if top > 255 else colors).T[v])


def test_ycbcr_without_compression() -> None:
    v = samples(8, 3)
    expected = np.asarray(Image.frombytes("YCbCr", (W, H), v.astype(np.uint8).tobytes()).convert("RGB"))
    file = tiff("<", tags(8, 6, 3, _530=(3, [1, 1])), packed(v, 8))
    with Image.open(io.BytesIO(file)) as im:
        known = im.mode == "YCbCr"  # Pillow before 12 takes it for RGB
    if known:
        np.testing.assert_array_equal(images.read_one(file).rgb, expected)
    else:
        with pytest.raises(ImageReadError, match="YCbCr, compression none, expected one that Pillow reads"):
            images.read_one(file)
    studio = [15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]
    for more in ({}, {"_530": (3, [2, 2])}, {"_530": (3, [1, 1]), "_532": (5, studio)}):
        with pytest.raises(ImageReadError, match="YCbCr that is subsampled"):
            images.read_one(tiff("<", tags(8, 6, 3, **more), packed(v, 8)))


def test_cmyk_and_lab() -> None:
    v = samples(8, 4)
    with pytest.warns(UserWarning, match="no ICC profile"):
        p = images.read_one(tiff("<", tags(8, 5, 4), packed(v, 8)))
    ink = v.astype(int)
    plain = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(p.rgb - plain).max() <= 2
    for order in "<>":  # 16 bit by the upper byte
        deep = v * 256 + 200
        with pytest.warns(UserWarning, match="no ICC profile"):
            q = images.read_one(tiff(order, tags(16, 5, 4), packed(deep, 16, order)))
        np.testing.assert_array_equal(q.rgb, p.rgb)
    lab = np.full((H, W, 3), (128, 30, 226))  # L* 50, a* 30, b* -30, in two's complement
    rgb = images.read_one(tiff("<", tags(8, 8, 3), packed(lab, 8))).rgb
    # CIELab to XYZ of D50, and from there to sRGB by the matrix of its ICC profile
    f = np.array([(50.2 + 16) / 116 + 30 / 500, (50.2 + 16) / 116, (50.2 + 16) / 116 + 30 / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    matrix = [
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.033454),
        (0.0719453, -0.2289914, 1.4052427),
    ]
    linear = np.array(matrix) @ xyz
    expected = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(rgb[0, 0] - expected).max() < 2


@pytest.mark.parametrize("order", "<>")
def test_bigtiff_is_read(order: str) -> None:
    v = samples(16)
    pixels = packed(v, 16, order)
    entries = {256: (3, W), 257: (3, H), 258: (3, 16), 259: (3, 1), 262: (3, 0), 273: (16, 16), 277: (3, 1),
               278: (3, H), 279: (16, len(pixels))}  # fmt: skip
    file = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16 + len(pixels)) + pixels
    file += struct.pack(order + "Q", len(entries))
    for tag, (kind, value) in entries.items():
        file += struct.pack(order + "HHQ", tag, kind, 1) + struct.pack(order + ("Q" if kind == 16 else "H6x"), value)
    file += bytes(8)
    np.testing.assert_array_equal(images.read_one(file).rgb, gray((65535 - v + 128) // 257))


REFUSED: list[tuple[str, dict[int, tuple[int, Any]], str]] = [
    ("signed 8", tags(8, 1, _339=(3, [2])), r"signed samples \(8 bit\)"),
    ("signed 16", tags(16, 1, _339=(3, [2])), r"signed samples \(16 bit\)"),
    ("signed RGB", tags(8, 2, 3, _339=(3, [2, 2, 2])), "signed samples"),
    ("half", tags(16, 1, _339=(3, [3])), r"floating-point samples \(16 bit\)"),
    ("float", tags(32, 1, _339=(3, [3])), r"floating-point samples \(32 bit\)"),
    ("unsigned 32", tags(32, 1), "32 bit"),
    ("undefined", tags(8, 1, _339=(3, [4])), "undefined samples"),
    ("24 bit", tags(24, 1), "24 bit"),
    ("5-6-5", tags(8, 2, 3, _258=(3, [5, 6, 5])), "5x6x5 bit"),
    ("planes of 16", tags(16, 2, 3, _284=(3, [2])), "16 bit with a plane for each color"),
    ("gray and alpha of 16", tags(16, 1, 2, _338=(3, [2])), "16x16 bit BlackIsZero, 1 extra"),
    ("seven samples", tags(8, 1, 7, _338=(3, [0] * 6)), "7 samples a pixel"),
    ("no samples", tags(8, 1, _277=(3, [0])), "0 samples a pixel"),
    ("gray of five", tags(8, 1, 5, _338=(3, [0] * 4)), "8x8x8x8x8 bit BlackIsZero, 4 extra"),
    ("ICCLab", tags(8, 9, 3), "ICCLab"),
    ("sensor", tags(16, 32803), "camera raw data"),
    ("DNG", tags(8, 2, 3, _50706=(1, [1, 4, 0, 0])), "camera raw data"),
    ("preview", tags(8, 2, 3, _254=(4, [1]), _330=(4, [8])), "camera raw data or its preview"),
    ("inks", tags(8, 5, 4, _332=(3, [2])), "inks other than CMYK"),
    ("JPEG 2000", tags(8, 1, _259=(3, [34712])), "compression 34712"),
]


@pytest.mark.parametrize(("file", "why"), [(t, w) for _, t, w in REFUSED], ids=[name for name, _, _ in REFUSED])
def test_other_samples_are_refused_by_name(file: dict[int, tuple[int, Any]], why: str) -> None:
    with pytest.raises(ImageReadError, match=f"got a TIFF.*{why}.*expected.*; "):
        images.read_one(tiff("<", file, bytes(W * H * 16)))


def test_a_tiff_without_photometric_is_not_guessed() -> None:
    some = tags(8, 1)
    del some[262]
    with pytest.raises(ImageReadError, match="no PhotometricInterpretation"):
        images.read_one(tiff("<", some, bytes(W * H)))


def test_orientation_of_a_tiff() -> None:
    v = samples(8, 3)
    p = images.read_one(tiff("<", tags(8, 2, 3, _274=(3, [6])), packed(v, 8)))
    np.testing.assert_array_equal(p.rgb, np.rot90(v, -1))


def test_what_a_directory_claims_is_not_believed(tmp_path: Path) -> None:
    """Counts and offsets beyond the file, and values that lie upon each other."""
    v = samples(8)
    good = tiff("<", tags(8, 1), packed(v, 8))
    for tag, n, at in ((258, 2**31, 8), (273, 2**32 - 1, 8), (320, 2**30, 8), (273, 1 << 20, 2**32 - 8)):
        file = bytearray(tiff("<", tags(8, 1, _320=(3, [1, 2, 3])), packed(v, 8)))
        for i in range(10):
            entry = 8 + 2 + 12 * i
            if struct.unpack_from("<H", file, entry)[0] == tag:
                struct.pack_into("<II", file, entry + 4, n, at)
        with pytest.raises(ImageReadError, match="directory is damaged"):
            images.read_one(bytes(file))
    with pytest.raises(ImageReadError, match="directory is damaged"):
        images.read_one(good[:4] + struct.pack("<I", 2**31) + good[8:])
    looped = bytearray(good)
    struct.pack_into("<I", looped, 8 + 2 + 12 * 9, 8)  # the next directory is this one
    np.testing.assert_array_equal(images.read_one(bytes(looped)).rgb, gray(v))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"compression": "deflate", "predictor": True}])
@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack", "rgb"])
def test_files_of_another_writer(order: str, dtype: str, options: dict[str, Any], photometric: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile comes with scikit-image")
    top = 256 ** int(dtype[1]) - 1
    v = np.random.default_rng(1).integers(0, top + 1, (40, 50, 3)[: 3 if photometric == "rgb" else 2]).astype(dtype)
    f = io.BytesIO()
    tifffile.imwrite(f, v, photometric=photometric, byteorder=order, **options)
    expected = v >> (8 * (v.itemsize - 1)) if photometric == "rgb" else gray(
        np.rint((top - v if photometric == "miniswhite" else v) * (255 / top))
    )  # fmt: skip
    np.testing.assert_array_equal(images.read_one(f).rgb, expected)

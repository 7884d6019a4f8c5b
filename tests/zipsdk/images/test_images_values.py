"""Test that PNG, PNM, BMP and WebP give the values of their bytes, at depths and sizes where decoders fail."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tests.helpers.image_files import packed, png_chunk
from zipsdk import images
from zipsdk.errors import ImageReadError

H, W = 5, 9


def samples(top: int, *more: int) -> Any:
    return np.random.default_rng(top).integers(0, top + 1, (H, W, *more))


def gray(levels: Any) -> Any:
    return np.repeat(np.asarray(levels)[..., None], 3, axis=2)


def png(v: Any, depth: int, color: int, *chunks: bytes) -> bytes:
    """Rows without a filter."""
    rows = packed(v, depth, ">")
    step = len(rows) // len(v)
    body = b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))
    head = struct.pack(">IIBBBBB", v.shape[1], v.shape[0], depth, color, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + b"".join(chunks)
            + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_gray_of_any_depth_and_its_transparent_level(depth: int) -> None:
    top = (1 << depth) - 1
    v = samples(top)
    key = int(v[2, 3])
    p = images.read_one(png(v, depth, 0))
    np.testing.assert_array_equal(p.rgb, gray(v * 255 // top))
    assert p.restore(p.rgb).mode == "L"
    # only the low bits of the stored level count
    p = images.read_one(png(v, depth, 0, png_chunk(b"tRNS", struct.pack(">H", key | 0x4000))))
    np.testing.assert_array_equal(p.rgb, gray(v * 255 // top))
    out = p.restore(p.rgb)
    assert out.mode == "LA"
    np.testing.assert_array_equal(np.asarray(out)[..., 1], np.where(v == key, 0, 255))


def test_png_of_16_bit_and_its_transparent_color() -> None:
    v = samples(65535)
    p = images.read_one(png(v, 16, 0))
    np.testing.assert_array_equal(p.rgb, gray((v + 128) // 257))
    with pytest.warns(UserWarning, match="its transparent color is left out: 16-bit images are read without alpha"):
        p = images.read_one(png(v, 16, 0, png_chunk(b"tRNS", struct.pack(">H", int(v[0, 0])))))
    np.testing.assert_array_equal(p.rgb, gray((v + 128) // 257))
    assert p.restore(p.rgb).mode == "I;16"
    for count, color in ((3, 2), (4, 6), (2, 4)):
        v = samples(65535, count)
        p = images.read_one(png(v, 16, color))  # the upper byte, as Pillow has it
        np.testing.assert_array_equal(p.rgb, gray(v[..., 0] >> 8) if count == 2 else v[..., :3] >> 8)
        if count != 3:
            np.testing.assert_array_equal(np.asarray(p.restore(p.rgb))[..., -1], v[..., -1] >> 8)
    v = samples(65535, 3)
    v[0, 0], v[0, 1] = (256, 512, 768), (257, 512, 768)  # one key, and what 8 bit takes for it
    with pytest.warns(UserWarning, match="its transparent color is left out"):
        p = images.read_one(png(v, 16, 2, png_chunk(b"tRNS", struct.pack(">3H", 256, 512, 768))))
    assert p.restore(p.rgb).mode == "RGB"


def test_png_rgb_with_a_transparent_color() -> None:
    v = samples(255, 3)
    p = images.read_one(png(v, 8, 2, png_chunk(b"tRNS", struct.pack(">3H", *map(int, v[1, 2])))))
    np.testing.assert_array_equal(p.rgb, v)
    alpha = np.asarray(p.restore(p.rgb))[..., 3]
    np.testing.assert_array_equal(alpha, np.where((v == v[1, 2]).all(axis=2), 0, 255))


@pytest.mark.parametrize("top", [1, 2, 15, 100, 255, 256, 1000, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_pnm_of_any_maximum(kind: int, top: int) -> None:
    count = 3 if kind in (3, 6) else 1
    v = samples(top, count)
    head = f"P{kind}\n# a comment\n{W} {H}\n{top}\n".encode()
    plain = " ".join(map(str, v.ravel())).encode()
    data = plain if kind < 4 else v.astype(">u2" if top > 255 else "u1").tobytes()
    p = images.read_one(head + data)
    expected = v * 255 / top
    if top > 255 and count == 1:  # by way of 16 bit, each time to the nearest
        expected = np.rint(np.rint(v * 65535 / top) / 257)
    assert np.abs(p.rgb - expected).max() <= 0.5 + 1e-9
    if top in (1, 15, 255, 65535):  # no half way
        np.testing.assert_array_equal(p.rgb, np.broadcast_to(np.rint(expected), p.rgb.shape))
    assert p.restore(p.rgb).mode == ("RGB" if count == 3 else "I;16" if top > 255 else "L")


def test_an_incomplete_pnm_is_refused_and_values_beyond_the_maximum_are_white() -> None:
    with pytest.raises(ImageReadError, match="damaged or incomplete"):
        images.read_one(b"P5 9 5 99\n" + bytes(44))
    assert (images.read_one(b"P5 # 3 3\n1 1#\n99\n\xff").rgb == 255).all()
    with pytest.raises(ImageReadError, match="99999 x 99999 pixels"):
        images.read_one(b"P5 99999 99999 99\n" + bytes(45))


@pytest.mark.parametrize("plain", [True, False])
def test_bitmaps_of_pnm_have_1_for_black(plain: bool) -> None:
    v = samples(1)
    data = b" ".join(b"%d" % x for x in v.ravel()) if plain else packed(v, 1)
    p = images.read_one(f"P{1 if plain else 4}\n{W} {H}\n".encode() + data)
    np.testing.assert_array_equal(p.rgb, gray(255 * (1 - v)))


def bmp(bits: int, rows: list[bytes], compression: int = 0, extra: bytes = b"", *, height: int = H) -> bytes:
    """BITMAPINFOHEADER, the masks or palette, rows padded to 4 bytes."""
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    colors = len(extra) // 4 if bits <= 8 else 0
    head = struct.pack("<IiiHHIIiiII", 40, W, height, 1, bits, compression, len(data), 2835, 2835, colors, 0)
    start = 14 + len(head) + len(extra)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + head + extra + data


@pytest.mark.parametrize("height", [H, -H])
@pytest.mark.parametrize("bits", [24, 32])
def test_bmp_of_either_direction(bits: int, height: int) -> None:
    v = samples(255, 3)
    stored = np.concatenate([v[..., ::-1], samples(255, 1)], axis=2)[..., : bits // 8]
    lines = stored if height < 0 else stored[::-1]
    p = images.read_one(bmp(bits, [line.astype(np.uint8).tobytes() for line in lines], height=height))
    np.testing.assert_array_equal(p.rgb, v)
    assert p.restore(p.rgb).mode == "RGB"  # the fourth byte is not alpha in such files


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_with_a_palette(bits: int) -> None:
    v = samples((1 << bits) - 1)
    colors = np.random.default_rng(bits).integers(0, 256, (1 << bits, 4))
    palette = np.concatenate([colors[:, 2::-1], np.zeros((1 << bits, 1), int)], axis=1).astype(np.uint8).tobytes()
    rows = packed(v, bits)
    step = len(rows) // H
    p = images.read_one(bmp(bits, [rows[i : i + step] for i in range(0, len(rows), step)][::-1], 0, palette))
    np.testing.assert_array_equal(p.rgb, colors[v][..., :3])


@pytest.mark.parametrize("masks", [None, (0xF800, 0x7E0, 0x1F)])
def test_bmp_of_16_bit(masks: tuple[int, ...] | None) -> None:
    depths = (5, 6, 5) if masks else (5, 5, 5)
    v = np.stack([samples((1 << d) - 1) for d in depths], axis=2)
    word = v[..., 0] << (depths[1] + depths[2]) | v[..., 1] << depths[2] | v[..., 2]
    extra = struct.pack("<3I", *masks) if masks else b""
    p = images.read_one(bmp(16, [r.astype("<u2").tobytes() for r in word[::-1]], 3 if masks else 0, extra))
    assert np.abs(p.rgb - v * 255 / ((1 << np.array(depths)) - 1)).max() <= 1


def test_bmp_with_runs() -> None:
    colors = bytes(range(256)) * 4
    runs = b"".join(bytes((W, i)) + b"\0\0" for i in range(H)) + b"\0\1"
    p = images.read_one(bmp(8, [runs], 1, colors))
    assert (p.rgb == p.rgb[:, :1]).all() and len({tuple(row[0]) for row in p.rgb}) == H
    with pytest.raises(ImageReadError):
        images.read_one(bmp(24, [b"\xff\xd8\xff\xe0"], 4))  # a JPEG inside


@pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP")
@pytest.mark.parametrize("size", [(1, 1), (1, 257), (4096, 1), (1, 16383), (33, 65)])
@pytest.mark.parametrize("channels", [3, 4])
def test_webp_without_loss_is_exact(size: tuple[int, int], channels: int, tmp_path: Any) -> None:
    v = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    v[::2, ..., -1] = 0  # colors below alpha 0, too
    images.save(Image.fromarray(v), tmp_path / "a.webp")
    p = images.read_one(tmp_path / "a.webp")
    np.testing.assert_array_equal(np.asarray(p.restore(p.rgb)), v)
    np.testing.assert_array_equal(p.rgb, v[..., :3])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (65, 1), (3, 257)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
def test_small_and_odd_sizes_are_kept_without_loss(size: tuple[int, int], suffix: str, tmp_path: Any) -> None:
    v = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    images.save(Image.fromarray(v), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(images.read_one(io.BytesIO((tmp_path / f"a{suffix}").read_bytes())).rgb, v)

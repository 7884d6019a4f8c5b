"""zipsdk.images: what comes in is what goes out, and what cannot be read without a guess is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import types
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from zipsdk import images
from zipsdk.errors import InputError, PictureError

RNG = np.random.default_rng(7)
H, W = 5, 7
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = ExifTags.Base.Orientation


_open: list[Image.Image] = []


def opened(source: Any) -> Any:
    _open.append(Image.open(source))
    return _open[-1]


@pytest.fixture(autouse=True)
def close_what_was_opened() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def noise(*shape: int) -> Any:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def identity(batch: Any, **options: Any) -> Any:
    pictures, restore = images.read(batch, **options)
    for p in pictures:
        valid(p)
    return restore([p.rgb.copy() for p in pictures])


def valid(p: images.Picture) -> None:
    assert p.rgb.dtype == np.uint8 and p.rgb.ndim == 3 and p.rgb.shape[2] == 3 and p.rgb.size > 0
    assert p.rgb.flags.c_contiguous


def same(a: Any, b: Any) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


def same_image(a: Image.Image, b: Image.Image) -> None:
    assert (a.mode, a.size) == (b.mode, b.size)
    assert a.tobytes() == b.tobytes()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# ---- arrays

SHAPES = [(H, W), (H, W, 1), (H, W, 3), (H, W, 4), (2, H, W, 1), (2, H, W, 3), (2, H, W, 4)]
DTYPES = ["u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8"]


def in_data_format(x: Any, data_format: str) -> Any:
    return np.moveaxis(x, -1, -3) if data_format == "NCHW" and x.ndim > 2 else x


def eight_bit_as(x: Any, dtype: Any) -> Any:
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (x.astype(np.float32 if dtype.itemsize < 8 else np.float64) / 255).astype(dtype)
    return (x.astype(np.uint16) * 257).astype(dtype) if dtype.itemsize == 2 else x


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_array_round_trip_is_exact(shape: tuple[int, ...], dtype: str, data_format: str, contiguous: bool) -> None:
    eight = noise(*shape)
    x = in_data_format(eight_bit_as(eight, dtype), data_format)
    x = np.ascontiguousarray(x) if contiguous else np.repeat(x, 2, axis=-1)[..., ::2][::-1][::-1]
    x.flags.writeable = False
    before = x.tobytes()
    pictures, restore = images.read(x, data_format=data_format)
    out = restore([p.rgb for p in pictures])
    same(out, x)
    assert out.flags.writeable and out.flags.c_contiguous and not np.shares_memory(out, x)
    assert x.tobytes() == before
    # the colours inside are those 8 bits, grey three times
    for p, e in zip(pictures, eight if eight.ndim == 4 else [eight], strict=True):
        valid(p)
        e = e[:, :, None] if e.ndim == 2 else e
        np.testing.assert_array_equal(p.rgb, np.broadcast_to(e[:, :, :3], (H, W, 3)))
        assert not np.shares_memory(p.rgb, x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_8bit_value_survives_a_float(dtype: Any) -> None:
    k = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = k.astype(dtype) / dtype(255)
    np.testing.assert_array_equal(images.read_one(x).rgb[:, :, 0], k)
    same(identity(x), x)


def test_float_is_rounded_half_to_even() -> None:
    # exact in float64, and 255 x is exact too: 63.75, 127.5, 191.25; 0.5 * 255 is half way, and 128 is even
    x = np.array([[0.0, 0.25, 0.5, 0.75, 1.0]])
    assert images.read_one(x).rgb[0, :, 0].tolist() == [0, 64, 128, 191, 255]
    # 0.1 * 255 = 25.5 in float64: half way, and 26 is even
    assert images.read_one(np.array([[0.1, 0.3]])).rgb[0, :, 0].tolist() == [26, 76]


def test_uint16_is_the_nearest_multiple_of_257() -> None:
    x = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    p = images.read_one(x)
    np.testing.assert_array_equal(p.rgb[:, :, 0], np.rint(x / 257.0))
    out = p.restore(p.rgb)
    assert out.dtype == np.uint16 and np.abs(out.astype(int) - x.astype(int)).max() == 128


def test_grey_comes_back_as_the_rounded_mean() -> None:
    p = images.read_one(noise(1, 4))
    clean = np.array([[[0, 0, 1], [0, 1, 1], [255, 255, 254], [255, 255, 255]]], np.uint8)
    assert p.restore(clean).tolist() == [[0, 1, 255, 255]]
    q = images.read_one(Image.fromarray(noise(1, 4)))
    assert np.asarray(q.restore(clean)).tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_of_an_array_is_kept_bit_for_bit(dtype: str) -> None:
    # values that 8 bit cannot hold
    x = RNG.random((2, H, W, 4)) if dtype[1] == "f" else RNG.integers(0, 256 ** int(dtype[1:][-1]), (2, H, W, 4))
    x = x.astype(dtype)
    alpha = x[..., 3].copy()
    pictures, restore = images.read(x)
    x[:] = 0  # the caller may reuse the array
    out = restore([np.zeros_like(p.rgb) for p in pictures])
    same(np.ascontiguousarray(out[..., 3]), alpha)
    assert not out[..., :3].any()


def test_refilling_the_array_does_not_change_the_pictures() -> None:
    x = noise(2, H, W, 3)
    before = x.copy()
    pictures, _ = images.read(x)
    one = images.read_one(x[0])
    x[:] = 0
    np.testing.assert_array_equal(np.stack([p.rgb for p in pictures]), before)
    np.testing.assert_array_equal(one.rgb, before[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_float_out_of_range_names_the_first_index_and_value(bad: float, data_format: str) -> None:
    x = np.full((2, H, W, 3), 0.5, np.float32)
    x = np.ascontiguousarray(in_data_format(x, data_format))
    x[1, 2, 2, 2] = x[1, 1, 3, 1] = bad
    with pytest.raises(InputError) as e:
        images.read(x, data_format=data_format)
    assert "(1, 1, 3, 1)" in str(e.value) and str(float(np.float32(bad))) in str(e.value) and "[0, 1]" in str(e.value)
    with pytest.raises(InputError, match=r"index \(1, 3, 1\)"):
        images.read_one(x[1], data_format=data_format)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.int64, np.uint32, complex, object, "U3", "S1", "M8[s]"])
def test_other_dtypes_are_refused_by_name(dtype: Any) -> None:
    x = np.zeros((H, W, 3), dtype)
    with pytest.raises(InputError, match="expected uint8") as e:
        images.read(x)
    assert str(x.dtype) in str(e.value)


@pytest.mark.parametrize(
    ("shape", "data_format", "hint"),
    [
        ((3, H, W), "NHWC", 'pass data_format="NCHW"'),
        ((2, 3, H, W), "NHWC", 'pass data_format="NCHW"'),
        ((H, W, 3), "NCHW", 'pass data_format="NHWC"'),
        ((2, H, W, 3), "NCHW", 'pass data_format="NHWC"'),
        ((8, H, W), "NHWC", r"expand_dims\(x, -1\)"),
        ((8, H, W), "NCHW", r"expand_dims\(x, 1\)"),
        ((H, W, 2), "NHWC", "expand_dims"),
        ((2, H, W, 2), "NHWC", "1, 3 or 4 channels"),
        ((), "NHWC", "one image or a batch"),
        ((W,), "NHWC", "one image or a batch"),
        ((1, 2, H, W, 3), "NHWC", "one image or a batch"),
        ((0, W, 3), "NHWC", "1 x 1"),
        ((H, 0, 3), "NHWC", "1 x 1"),
        ((0, 0), "NHWC", "1 x 1"),
        ((2, 3, H, 0), "NCHW", "1 x 1"),
        ((0, 0, W, 3), "NHWC", "1 x 1"),
    ],
)
def test_wrong_shapes_say_what_to_do(shape: tuple[int, ...], data_format: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint) as e:
        images.read(np.zeros(shape, np.uint8), data_format=data_format)
    assert str(shape) in str(e.value)


@pytest.mark.parametrize(
    "options", [{"data_format": "HWC"}, {"data_format": ["NHWC"]}, {"max_pixels": 0}, {"max_pixels": 1.5}]
)
def test_wrong_options(options: Any) -> None:
    for f in (images.read, images.read_one):
        with pytest.raises(InputError, match=next(iter(options))):
            f(noise(H, W, 3), **options)


def test_max_pixels_counts_for_arrays() -> None:
    identity(noise(H, W, 3), max_pixels=H * W)
    with pytest.raises(InputError, match="7 x 5 pixels, expected at most 34"):
        images.read(noise(2, H, W, 3), max_pixels=H * W - 1)


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_empty_batches(channels: int, dtype: str, data_format: str) -> None:
    x = np.ascontiguousarray(in_data_format(np.empty((0, H, W, channels), dtype), data_format))
    pictures, restore = images.read(x, data_format=data_format)
    assert pictures == []
    same(restore([]), x)
    assert identity([]) == [] and identity(()) == []


def test_torch_is_told_about_numpy() -> None:
    tensor = type("Tensor", (), {"__module__": "torch"})()
    for batch in (tensor, [tensor]):
        with pytest.raises(InputError, match=r"torch\.Tensor.*tensor\.detach\(\)\.cpu\(\)\.numpy\(\)"):
            images.read(batch)


@pytest.mark.parametrize("item", [None, 3, b"x.png", {}, types.SimpleNamespace(), [[1, 2]], [np.zeros((1, H, W, 3))]])
def test_other_things_are_refused(item: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        images.read(item)


def test_the_way_back_checks_what_it_gets() -> None:
    pictures, restore = images.read(noise(2, H, W, 3))
    good = [p.rgb for p in pictures]
    wrong: list[Any] = [good[:1], [*good, good[0]], [good[0], good[1][:-1]], [good[0], good[1] / 255], [good[0], None]]
    for clean in wrong:
        with pytest.raises(InputError, match="purified"):
            restore(clean)
    for x in (noise(H, W, 3), [noise(H, W, 3)]):
        with pytest.raises(InputError, match="got 0, expected 1"):
            images.read(x)[1]([])


def test_mixed_list(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6)).save(tmp_path / "a.png")
    batch = (noise(H, W, 3), RNG.random((3, 2)), Image.fromarray(noise(9, 2, 4)), tmp_path / "a.png", noise(1, 1, 1))
    pictures, restore = images.read(batch)
    assert [p.rgb.shape[:2] for p in pictures] == [(5, 7), (3, 2), (9, 2), (4, 6), (1, 1)]
    out = restore([p.rgb for p in pictures])
    assert isinstance(out, list)
    same(out[0], batch[0])
    assert out[1].dtype == np.float64 and np.abs(out[1] - batch[1]).max() <= 0.5 / 255 + 1e-12
    same_image(out[2], batch[2])
    same_image(out[3], opened(tmp_path / "a.png"))
    same(out[4], batch[4])
    with pytest.raises(InputError, match="item 1 of the list"):
        images.read([noise(H, W, 3), np.zeros((2, 2))[:, :0]])
    with pytest.raises(PictureError, match=r"item 0 of the list: .*missing\.png"):
        images.read([tmp_path / "missing.png"])


@pytest.mark.parametrize("wrap", [list, np.stack, lambda x: x[0]])
def test_what_was_read_pickles(wrap: Any) -> None:
    rgba = noise(H, W, 4)
    for batch in (wrap([rgba, rgba]), [Image.fromarray(rgba)]):
        pictures, restore = images.read(batch)
        copies, restore_copy = pickle.loads(pickle.dumps((pictures, restore)))
        for one, copy in zip(pictures, copies, strict=True):
            np.testing.assert_array_equal(np.asarray(one.restore(one.rgb)), np.asarray(copy.restore(copy.rgb)))
        clean = [p.rgb for p in pictures]
        np.testing.assert_array_equal(np.asarray(restore(clean)), np.asarray(restore_copy(clean)))


# ---- PIL images and files


def sample(mode: str) -> Image.Image:
    if mode in ("I;16", "I;16B", "I;16L"):
        deep = noise(H, W).astype(np.uint16) * 257
        return Image.frombytes(mode, (W, H), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "1":
        return Image.fromarray(noise(H, W)).convert("1")
    if mode == "P":
        return Image.fromarray(noise(H, W, 3)).quantize(16)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (W, H), noise(H, W, bands).tobytes())


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        *((m, m) for m in ("L", "LA", "RGB", "RGBA", "I;16")),
        *((m, "RGB") for m in ("P", "RGBX", "YCbCr", "HSV")),
        *(("1", "L"), ("I;16B", "I;16"), ("I;16L", "I;16"), ("PA", "RGBA"), ("RGBa", "RGBA"), ("La", "LA")),
    ],
)
def test_pil_round_trip(mode: str, answer: str) -> None:
    im = sample(mode)
    before = im.tobytes()
    out = identity(im)
    want = im if mode.startswith("I;16") else im.convert(answer)
    if mode == "I;16B":
        assert (np.asarray(out) == np.asarray(im)).all()
    else:
        assert out.tobytes() == want.tobytes()
    assert (out.mode, out.size) == (answer, im.size)
    assert im.tobytes() == before and im.mode == mode


def test_restored_image_is_its_own() -> None:
    for mode in ("L", "RGB", "RGBA", "I;16"):
        p = images.read_one(sample(mode))
        clean = np.full_like(p.rgb, 255)
        out = p.restore(clean)
        before = out.tobytes()
        clean[:] = 0
        assert out.tobytes() == before
        out.putpixel((0, 0), 0 if mode in ("L", "I;16") else (0,) * len(mode))
        assert out.tobytes() != before


def test_hidden_colours_and_alpha() -> None:
    im = Image.new("RGBA", (3, 2), (255, 10, 20, 0))
    p = images.read_one(im)
    assert (p.rgb == (255, 10, 20)).all()
    out = p.restore(np.zeros_like(p.rgb))
    assert (np.asarray(out) == 0).all()
    la = sample("LA")
    out = images.read_one(la).restore(np.full((H, W, 3), 9, np.uint8))
    assert out.getchannel("A").tobytes() == la.getchannel("A").tobytes() and set(out.getchannel("L").tobytes()) == {9}


@pytest.mark.parametrize(("mode", "key"), [("P", 3), ("P", bytes(range(0, 240, 15))), ("L", 17), ("RGB", (1, 2, 3))])
def test_colour_key_transparency(mode: str, key: Any, tmp_path: Path) -> None:
    im = sample(mode)
    if mode != "P":
        im.putpixel((1, 1), key)
    im.save(tmp_path / "a.png", transparency=key)
    want = opened(tmp_path / "a.png").convert("LA" if mode == "L" else "RGBA")
    assert want.getchannel("A").getextrema()[0] < 255
    same_image(identity(tmp_path / "a.png"), want)


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("stored", [True, False])
def test_32_bit_is_refused_by_name(mode: str, stored: bool, tmp_path: Path) -> None:
    im: Any = Image.new(mode, (W, H), 7)
    if stored:
        im.save(tmp_path / "deep.tif")
        im = tmp_path / "deep.tif"
    what = ("signed samples" if mode == "I" else "floating-point samples") if stored else f"mode {mode}"
    with pytest.raises(PictureError, match=what + r" \(32 bit\)") as e:
        images.read(im)
    assert ("deep.tif" in str(e.value)) == stored


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_files(suffix: str, tmp_path: Path) -> None:
    im = sample("I;16")
    images.save(im, tmp_path / f"a{suffix}")
    out = identity(tmp_path / f"a{suffix}")
    same_image(out, im)
    images.save(out, tmp_path / f"b{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_16_bit_values_between(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", *v) for v in ((0, 128, 129), (65535, 65406, 32768)))
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 0, rows))
    p = images.read_one(tmp_path / "a.png")
    assert p.rgb[:, :, 0].tolist() == [[0, 0, 1], [255, 254, 128]]
    assert np.asarray(p.restore(p.rgb)).tolist() == [[0, 0, 257], [65535, 65278, 32896]]


def test_mode_i_from_a_16_bit_png() -> None:
    # what Pillow before 11 made of a 16-bit PNG
    im: Any = Image.new("I", (W, H), 257 * 9)
    im.format = "PNG"
    out = identity(im)
    assert out.mode == "I;16" and out.getpixel((0, 0)) == 257 * 9
    im.putpixel((2, 2), 65536)
    with pytest.raises(PictureError, match=r"beyond 0\.\.65535"):
        images.read(im)


def test_16_bit_colour_is_read_in_8_bit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 257, 65535, 0)))
    assert images.read_one(tmp_path / "a.png").rgb.tolist() == [[[1, 255, 0]]]


WRITTEN = [(".jpg", "JPEG"), (".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF"), (".avif", "AVIF")]
needs = {".avif": features.check("avif"), ".webp": features.check("webp")}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation(suffix: str, orientation: int, tmp_path: Path) -> None:
    # corners of an upright 16 x 24 picture, stored as a camera would have, turned by numpy and not by Pillow
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[16:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION], exif[ExifTags.Base.Make] = orientation, "zip"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    path = tmp_path / f"a{suffix}"
    extra: dict[str, Any] = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    extra = {"lossless": True} if suffix == ".webp" else extra
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **extra)
    for item in (path, opened(path)):
        p = images.read_one(item)
        valid(p)
        assert p.rgb.shape == upright.shape
        assert np.abs(p.rgb.astype(int) - upright).max() <= (4 if suffix == ".jpg" else 0)
        out = p.restore(p.rgb)
        assert ORIENTATION not in out.getexif() and out.size == (16, 24)
        images.save(out, tmp_path / f"b{suffix}")
        again = opened(tmp_path / f"b{suffix}")
        assert again.getexif().get(ORIENTATION, 1) == 1
        assert np.abs(np.asarray(again).astype(int) - upright).max() <= (6 if suffix == ".jpg" else 0)
        if suffix != ".tif":
            assert again.getexif()[ExifTags.Base.Make] == "zip"
            assert again.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    # a picture that was never read here is turned by save as well
    images.save(opened(path), tmp_path / "c.png")
    same_image(opened(tmp_path / "c.png"), Image.fromarray(images.read_one(path).rgb))


def malformed_exif() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return {"no header": b"Exif\0\0what is this!", "cut short": exif.tobytes()[:12]}


@pytest.mark.parametrize("exif", malformed_exif().values(), ids=malformed_exif())
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_sound_picture_with_malformed_exif_is_read_without_it(suffix: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(16, 24, 3)).save(path, exif=exif, icc_profile=SRGB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        wanted = np.asarray(opened(path))
    for item in (path, opened(path)):
        for _ in range(2):  # a second time, too, when Pillow thinks that it has read the EXIF
            with pytest.warns(UserWarning, match=f"a{suffix}: its EXIF is malformed .*: it is left out"):
                p = images.read_one(item)
            np.testing.assert_array_equal(p.rgb, wanted)
    out = p.restore(p.rgb)
    assert "exif" not in out.info and out.info["icc_profile"] == SRGB
    images.save(out, tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"c\.png: its EXIF is malformed"):
        images.save(opened(path), tmp_path / "c.png")
    for name in ("b.png", "c.png"):
        again = images.read_one(tmp_path / name)  # without a warning
        np.testing.assert_array_equal(again.rgb, wanted)


def exif_of(size: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "zip"
    exif[ExifTags.Base.ImageDescription] = "d" * 100
    exif[ExifTags.Base.ImageDescription] = "d" * (100 + size - len(exif.tobytes()))
    return exif.tobytes()


@pytest.mark.parametrize("size", [65_532, 65_534, 1 << 20])
@pytest.mark.parametrize(("suffix", "kind"), WRITTEN)
def test_exif_that_a_format_has_no_room_for_is_left_out(suffix: str, kind: str, size: int, tmp_path: Path) -> None:
    """And not the picture with it: no one could have said before it was purified."""
    if not needs.get(suffix, True):
        pytest.skip("not in this Pillow")
    Image.fromarray(noise(16, 24, 3)).save(tmp_path / "a.png", exif=exif_of(size), icc_profile=SRGB)
    out = identity(tmp_path / "a.png")
    path = tmp_path / f"b{suffix}"
    if fits := kind != "JPEG" or size == 65_532:
        images.save(out, path)  # no warning: they are errors
    else:
        said = rf"b\.jpg: its EXIF has {size} bytes, and JPEG stores at most 65533: it is left out; write a \.png"
        with pytest.warns(UserWarning, match=said):
            images.save(out, path)
    again = opened(path)
    assert again.size == (24, 16) and again.info["icc_profile"] == SRGB
    assert (ExifTags.Base.Make in again.getexif()) == fits
    assert len(out.info["exif"]) == size  # the caller's own is as it was


def test_broken_pixels_are_not_taken_for_malformed_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match="damaged or incomplete"):
        images.read_one(tmp_path / "a.png")


def test_a_users_image_keeps_its_orientation_tag(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    im = opened(tmp_path / "a.jpg")
    before = im.info["exif"]
    identity(im)
    assert im.info["exif"] == before and im.getexif()[ORIENTATION] == 1


@pytest.mark.parametrize(("suffix", "kind"), WRITTEN)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_icc_profile_is_kept(suffix: str, kind: str, mode: str, tmp_path: Path) -> None:
    if not needs.get(suffix, True) or (suffix == ".jpg" and mode == "RGBA"):
        pytest.skip("not held by this format, or not in this Pillow")
    sample(mode).save(tmp_path / f"a{suffix}", icc_profile=SRGB)
    out = identity(tmp_path / f"a{suffix}")
    assert out.info["icc_profile"] == SRGB
    images.save(out, tmp_path / f"b{suffix}")
    again = opened(tmp_path / f"b{suffix}")
    assert again.info["icc_profile"] == SRGB and again.format == kind


@pytest.mark.parametrize("stored", [True, False])
def test_cmyk_without_profile_warns_with_the_name(stored: bool, tmp_path: Path) -> None:
    im: Any = Image.new("CMYK", (W, H), (10, 20, 30, 40))
    if stored:
        im.save(tmp_path / "ink.tif")
        im = tmp_path / "ink.tif"
    with pytest.warns(UserWarning, match=("ink.tif" if stored else "PIL image") + ".*no ICC profile") as caught:
        out = identity(im)
    assert len(caught) == 1
    same_image(out, Image.new("CMYK", (W, H), (10, 20, 30, 40)).convert("RGB"))


def cmyk_profile() -> bytes:
    """A CMYK -> Lab profile: a lut8 of 2 points an axis, every corner of which but paper is one Lab colour."""
    grid = bytearray()
    for i in range(16):
        grid += bytes((255, 128, 128) if i == 0 else (153, 158, 128))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += bytes(range(256)) * 4 + bytes(grid) + bytes(range(256)) * 3
    tag = bytes(-len(lut) % 4)
    head = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", head, 0, 128 + 16 + len(lut + tag), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    return bytes(head) + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut + tag


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (W, H), (255, 0, 0, 0)).save(tmp_path / "a.jpg", icc_profile=cmyk_profile())
    out = identity(tmp_path / "a.jpg")  # no warning: they are errors
    r, g, b = out.getpixel((0, 0))
    # the profile says a pale magenta; the plain formula would say cyan
    assert r > b > g, (r, g, b)
    assert "icc_profile" not in out.info


@pytest.mark.parametrize("profile", [b"rubbish", SRGB])
def test_cmyk_with_a_useless_profile_warns(profile: bytes) -> None:
    im = Image.new("CMYK", (W, H), (10, 20, 30, 40))
    im.info["icc_profile"] = profile
    with pytest.warns(UserWarning, match="cannot be used"):
        out = identity(im)
    same_image(out, im.convert("RGB"))


def test_lab() -> None:
    rgb = Image.new("RGB", (W, H), (200, 100, 50))
    lab = ImageCms.createProfile("LAB")
    im = ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert im is not None
    out = identity(im)
    assert out.mode == "RGB"
    assert np.abs(np.asarray(out).astype(int) - np.asarray(rgb)).max() <= 3  # 8-bit Lab


# ---- refusals


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_many_frames_are_refused_with_their_number(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    path = tmp_path / f"many{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for item in (path, opened(path)):
        with pytest.raises(PictureError, match=f"many\\{suffix}: got 3 frames"):
            images.read(item)
    one = opened(path)
    one.seek(1)
    assert identity(one.copy()).size == (8, 8)


def test_still_gif_and_palette(tmp_path: Path) -> None:
    im = sample("P")
    im.save(tmp_path / "a.gif")
    same_image(identity(tmp_path / "a.gif"), im.convert("RGB"))


def test_jpeg_with_further_pictures_gives_the_first(tmp_path: Path) -> None:
    first = Image.new("RGB", (16, 16), (255, 0, 0))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), (0, 0, 255))])
    assert opened(tmp_path / "a.jpg").format == "MPO"
    assert images.read_one(tmp_path / "a.jpg").rgb[8, 8, 0] > 250


@pytest.mark.parametrize(("suffix", "kind"), [*WRITTEN, (".gif", "GIF"), (".ppm", "PPM"), (".bmp", "BMP")])
def test_truncated_files_are_refused_by_name(suffix: str, kind: str, tmp_path: Path) -> None:
    if not needs.get(suffix, True):
        pytest.skip("not in this Pillow")
    f = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(f, kind)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(f.getvalue()[: len(f.getvalue()) // 2])
    with pytest.raises(PictureError, match=f"cut\\{suffix}: got") as e:
        images.read(path)
    assert e.value.__cause__ is not None


@pytest.mark.parametrize(
    ("width", "height"), [(60000, 60000), (12000, 12000), (2**31 - 1, 2**31 - 1), (100_000_001, 1)]
)
def test_bombs_are_refused_before_they_are_decoded(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, 8, 2, b""))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PictureError, match=r"bomb\.png: got .*pixels.*; make it smaller, or cut it into parts"):
        images.read(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_max_pixels_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    identity(tmp_path / "a.png", max_pixels=1200)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for item in (tmp_path / "a.png", opened(tmp_path / "a.png")):
        with pytest.raises(PictureError, match="30 x 40 pixels, expected at most 1199"):
            images.read(item, max_pixels=1199)


def test_pillows_size_warning_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        identity(tmp_path / "a.png")
    assert caught == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(PictureError, match="MAX_IMAGE_PIXELS"):
        images.read(tmp_path / "a.png")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "code.png").write_bytes(eps)  # a format that Pillow reads and that is not on the list
    for name, why in (
        ("empty.png", "of another format"),
        ("text.jpg", "of another format"),
        ("code.png", "the format PostScript"),
        ("missing.png", "check the path"),
        ("pipe.png", "special file"),
        (".", "folder"),
        ("text.jpg/x.png", "NotADirectory"),
        ("n" * 300, "File name too long"),
        ("a\0b.png", "null byte"),
    ):
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(PictureError, match=why):
                images.read(path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "a.png")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")  # root may read everything, so chmod would not do

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PictureError, match=r"a\.png: got a file that may not be read.*permissions"):
        images.read(tmp_path / "a.png")


def test_zero_sized_and_broken_images(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="0 x 5"):
        images.read(Image.new("RGB", (0, 5)))
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    im = opened(tmp_path / "a.png")
    im.close()
    with pytest.raises(PictureError, match=r"a[.]png"):
        images.read(im)


def test_suffix_does_not_matter_and_suffixes_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3), (1, 2, 3)).save(tmp_path / "a.jpg", "PNG")
    assert (images.read_one(str(tmp_path / "a.jpg")).rgb == (1, 2, 3)).all()
    for suffix in images.SUFFIXES - {".gif", ".apng"} - {s for s, ok in needs.items() if not ok}:
        images.save(Image.new("L", (3, 3), 200), tmp_path / f"x{suffix}")
        assert identity(tmp_path / f"x{suffix}").size == (3, 3)


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [identity(tmp_path / "a.png") for _ in range(30)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert warnings.filters == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_is_forked_while_a_thread_reads_can_read() -> None:
    """In a process of its own and with an alarm: a child that waits for its parent's thread waits for ever."""
    code = (
        "import os, signal, threading; from PIL import Image; from zipsdk import images\n"
        "reads, forked = threading.Event(), threading.Event()\n"
        "slow, quick = Image.new('RGB', (4, 3)), Image.new('RGB', (4, 3))\n"
        "slow.load = lambda: (reads.set(), forked.wait())\n"
        "thread = threading.Thread(target=images.read_one, args=(slow,))\n"
        "thread.start(), reads.wait()\n"
        "if not (child := os.fork()):\n"
        "    signal.alarm(10)\n"
        "    os._exit(images.read_one(quick).rgb.shape != (3, 4, 3))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "forked.set(), thread.join()\n"
        "images.read_one(quick)"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    said = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert said.stdout == "0\n"


# ---- save


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((".tif", m) for m in ("L", "LA", "RGB", "RGBA", "I;16")),
        *((s, "RGB") for s in (".webp", ".bmp", ".ppm", ".PNG", ".tiff")),
        *((".webp", "RGBA"), (".bmp", "L"), (".pgm", "L")),
    ],
)
def test_save_without_loss(suffix: str, mode: str, tmp_path: Path) -> None:
    im = sample(mode)
    images.save(im, str(tmp_path / f"a{suffix}"))
    same_image(opened(tmp_path / f"a{suffix}"), im)
    assert listing(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_save_keeps_the_colours_below_alpha_0(suffix: str, tmp_path: Path) -> None:
    im = Image.fromarray(noise(H, W, 4))
    im.putalpha(0)
    images.save(im, tmp_path / f"a{suffix}")
    same_image(opened(tmp_path / f"a{suffix}"), im)


def test_jpeg_is_written_with_quality_95_and_full_chroma(tmp_path: Path) -> None:
    images.save(sample("RGB"), tmp_path / "a.jpg")
    im: Any = opened(tmp_path / "a.jpg")
    assert [layer[1:3] for layer in im.layer] == [(1, 1)] * 3
    f = io.BytesIO()
    im.save(f, "JPEG", quality=95)
    assert opened(f).quantization == im.quantization


@pytest.mark.parametrize(
    ("mode", "name", "why"),
    [
        ("RGBA", "a.jpg", "mode RGBA"),
        ("LA", "a.bmp", "mode LA"),
        ("I;16", "a.webp", "mode I;16"),
        ("RGB", "a.gif", r"suffix '\.gif'"),
        ("RGB", "a", "suffix ''"),
        ("RGB", "a.exe", r"suffix '\.exe'"),
    ],
)
def test_save_refuses_what_would_lose_something(mode: str, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        images.save(sample(mode), tmp_path / name)
    with pytest.raises(InputError, match=why):
        images.format_of(tmp_path / name, mode, (W, H))
    with pytest.raises(InputError, match="expected a PIL image"):
        images.save(noise(H, W, 3), tmp_path / name)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(("name", "most"), [("a.webp", 16383), ("a.jpg", 65500), ("a.png", 65536)])
def test_save_refuses_what_the_format_has_no_room_for(name: str, most: int, tmp_path: Path) -> None:
    images.save(Image.new("RGB", (most, 1)), tmp_path / name)  # the libraries agree
    assert opened(tmp_path / name).size == (most, 1)
    if name != "a.png":
        for size in ((most + 1, 1), (1, most + 1)):
            with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels, expected at most {most} a side"):
                images.save(Image.new("RGB", size), tmp_path / f"b{name}")
        assert listing(tmp_path) == [name]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("odd"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
def test_save_is_atomic(where: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    images.save(Image.new("RGB", (3, 3), (1, 2, 3)), path)
    old = path.read_bytes()

    def fail(*args: Any, **_: Any) -> None:
        if where == "save":
            args[1].write(b"half a fi")
        # the temporary file is in the same folder, and nothing is there before the image is encoded
        assert len(listing(tmp_path)) == (1 if where == "save" else 2)
        raise failure

    owner: Any = {"save": Image.Image, "fsync": os, "replace": Path}[where]
    monkeypatch.setattr(owner, where, fail)
    expected = PictureError if isinstance(failure, Exception) else KeyboardInterrupt
    with pytest.raises(expected) as e:
        images.save(Image.new("RGB", (300, 300)), path)
    if expected is PictureError:
        assert "a.png" in str(e.value) and e.value.__cause__ is failure
    assert path.read_bytes() == old and listing(tmp_path) == ["a.png"]


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name in ("no/such/a.png", "file/a.png", "folder.png", "a\0.png"):
        with pytest.raises(PictureError, match="cannot be written"):
            images.save(sample("RGB"), tmp_path / name)
    assert listing(tmp_path) == ["file", "folder.png"]


def test_saved_files_have_usual_permissions(tmp_path: Path) -> None:
    images.save(sample("RGB"), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b.png").stat().st_mode

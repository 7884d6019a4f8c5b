"""Test PIL images and files: modes, EXIF, ICC profiles and CMYK."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from tests.helpers.image_checks import (
    ORIENTATION,
    SRGB,
    SUPPORTED,
    WRITTEN,
    H,
    W,
    identity,
    noise,
    opened,
    png,
    same_image,
    sample,
    valid,
)
from zipsdk import images
from zipsdk.errors import ImageReadError


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
    expected = im if mode.startswith("I;16") else im.convert(answer)
    if mode == "I;16B":
        assert (np.asarray(out) == np.asarray(im)).all()
    else:
        assert out.tobytes() == expected.tobytes()
    assert (out.mode, out.size) == (answer, im.size)
    assert im.tobytes() == before and im.mode == mode


def test_restored_image_shares_no_memory() -> None:
    for mode in ("L", "RGB", "RGBA", "I;16"):
        p = images.read_one(sample(mode))
        clean = np.full_like(p.rgb, 255)
        out = p.restore(clean)
        before = out.tobytes()
        clean[:] = 0
        assert out.tobytes() == before
        out.putpixel((0, 0), 0 if mode in ("L", "I;16") else (0,) * len(mode))
        assert out.tobytes() != before


def test_colors_below_alpha_0_are_kept() -> None:
    im = Image.new("RGBA", (3, 2), (255, 10, 20, 0))
    p = images.read_one(im)
    assert (p.rgb == (255, 10, 20)).all()
    out = p.restore(np.zeros_like(p.rgb))
    assert (np.asarray(out) == 0).all()
    la = sample("LA")
    out = images.read_one(la).restore(np.full((H, W, 3), 9, np.uint8))
    assert out.getchannel("A").tobytes() == la.getchannel("A").tobytes() and set(out.getchannel("L").tobytes()) == {9}


@pytest.mark.parametrize(("mode", "key"), [("P", 3), ("P", bytes(range(0, 240, 15))), ("L", 17), ("RGB", (1, 2, 3))])
def test_transparent_color_becomes_alpha(mode: str, key: Any, tmp_path: Path) -> None:
    im = sample(mode)
    if mode != "P":
        im.putpixel((1, 1), key)
    im.save(tmp_path / "a.png", transparency=key)
    expected = opened(tmp_path / "a.png").convert("LA" if mode == "L" else "RGBA")
    assert expected.getchannel("A").getextrema()[0] < 255
    same_image(identity(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("stored", [True, False])
def test_32_bit_is_refused_by_name(mode: str, stored: bool, tmp_path: Path) -> None:
    im: Any = Image.new(mode, (W, H), 7)
    if stored:
        im.save(tmp_path / "deep.tif")
        im = tmp_path / "deep.tif"
    what = ("signed samples" if mode == "I" else "floating-point samples") if stored else f"mode {mode}"
    with pytest.raises(ImageReadError, match=what + r" \(32 bit\)") as e:
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


def test_16_bit_values_are_rounded(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", *v) for v in ((0, 128, 129), (65535, 65406, 32768)))
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 0, rows))
    p = images.read_one(tmp_path / "a.png")
    assert p.rgb[:, :, 0].tolist() == [[0, 0, 1], [255, 254, 128]]
    assert np.asarray(p.restore(p.rgb)).tolist() == [[0, 0, 257], [65535, 65278, 32896]]


def test_mode_i_from_a_16_bit_png() -> None:
    # the mode in which Pillow before 11 opens a 16-bit PNG
    im: Any = Image.new("I", (W, H), 257 * 9)
    im.format = "PNG"
    out = identity(im)
    assert out.mode == "I;16" and out.getpixel((0, 0)) == 257 * 9
    im.putpixel((2, 2), 65536)
    with pytest.raises(ImageReadError, match=r"beyond 0\.\.65535"):
        images.read(im)


def test_16_bit_color_is_read_in_8_bit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 257, 65535, 0)))
    assert images.read_one(tmp_path / "a.png").rgb.tolist() == [[[1, 255, 0]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_the_exif_orientation_is_applied(suffix: str, orientation: int, tmp_path: Path) -> None:
    # corners of an upright 16 x 24 image, stored like a camera does, rotated by NumPy and not by Pillow
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
    # save also turns an image that zipsdk did not read
    images.save(opened(path), tmp_path / "c.png")
    same_image(opened(tmp_path / "c.png"), Image.fromarray(images.read_one(path).rgb))


def malformed_exif() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return {"no header": b"Exif\0\0what is this!", "cut short": exif.tobytes()[:12]}


@pytest.mark.parametrize("exif", malformed_exif().values(), ids=malformed_exif())
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_malformed_exif_is_left_out(suffix: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(16, 24, 3)).save(path, exif=exif, icc_profile=SRGB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of Pillow
        expected = np.asarray(opened(path))
    for item in (path, opened(path)):
        for _ in range(2):  # twice, because Pillow caches EXIF that it has read
            with pytest.warns(UserWarning, match=f"a{suffix}: its EXIF is malformed .*: it is left out"):
                p = images.read_one(item)
            np.testing.assert_array_equal(p.rgb, expected)
    out = p.restore(p.rgb)
    assert "exif" not in out.info and out.info["icc_profile"] == SRGB
    images.save(out, tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"c\.png: its EXIF is malformed"):
        images.save(opened(path), tmp_path / "c.png")
    for name in ("b.png", "c.png"):
        again = images.read_one(tmp_path / name)  # without a warning
        np.testing.assert_array_equal(again.rgb, expected)


def exif_of(size: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "zip"
    exif[ExifTags.Base.ImageDescription] = "d" * 100
    exif[ExifTags.Base.ImageDescription] = "d" * (100 + size - len(exif.tobytes()))
    return exif.tobytes()


@pytest.mark.parametrize("size", [65_532, 65_534, 1 << 20])
@pytest.mark.parametrize(("suffix", "kind"), WRITTEN)
def test_exif_too_large_for_the_format_is_left_out(suffix: str, kind: str, size: int, tmp_path: Path) -> None:
    """The image is written anyway: no check before purification can detect the size."""
    if not SUPPORTED.get(suffix, True):
        pytest.skip("not in this Pillow")
    Image.fromarray(noise(16, 24, 3)).save(tmp_path / "a.png", exif=exif_of(size), icc_profile=SRGB)
    out = identity(tmp_path / "a.png")
    path = tmp_path / f"b{suffix}"
    if fits := kind != "JPEG" or size == 65_532:
        images.save(out, path)  # warnings are errors in tests
    else:
        message = rf"b\.jpg: its EXIF has {size} bytes, and JPEG stores at most 65533: it is left out; write a \.png"
        with pytest.warns(UserWarning, match=message):
            images.save(out, path)
    again = opened(path)
    assert again.size == (24, 16) and again.info["icc_profile"] == SRGB
    assert (ExifTags.Base.Make in again.getexif()) == fits
    assert len(out.info["exif"]) == size  # the image of the caller is unchanged


def test_damaged_pixels_are_not_reported_as_malformed_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageReadError, match="damaged or incomplete"):
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
    if not SUPPORTED.get(suffix, True) or (suffix == ".jpg" and mode == "RGBA"):
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
    """A CMYK -> Lab profile: a lut8 of 2 points an axis, every corner of which except paper is the same Lab color."""
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


def test_cmyk_is_converted_by_its_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (W, H), (255, 0, 0, 0)).save(tmp_path / "a.jpg", icc_profile=cmyk_profile())
    out = identity(tmp_path / "a.jpg")  # warnings are errors in tests
    r, g, b = out.getpixel((0, 0))
    # the profile gives a pale magenta; the plain formula would give cyan
    assert r > b > g, (r, g, b)
    assert "icc_profile" not in out.info


@pytest.mark.parametrize("profile", [b"rubbish", SRGB])
def test_cmyk_with_an_unusable_profile_warns(profile: bytes) -> None:
    im = Image.new("CMYK", (W, H), (10, 20, 30, 40))
    im.info["icc_profile"] = profile
    with pytest.warns(UserWarning, match="cannot be used"):
        out = identity(im)
    same_image(out, im.convert("RGB"))


def test_lab_is_converted() -> None:
    rgb = Image.new("RGB", (W, H), (200, 100, 50))
    lab = ImageCms.createProfile("LAB")
    im = ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert im is not None
    out = identity(im)
    assert out.mode == "RGB"
    assert np.abs(np.asarray(out).astype(int) - np.asarray(rgb)).max() <= 3  # 8-bit Lab

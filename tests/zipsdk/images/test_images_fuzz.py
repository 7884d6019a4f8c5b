"""Read 2,000 damaged images and random arrays: each gives a valid image or an InputError, nothing else.

Case n is drawn from `default_rng((SEED, n))`, so a case that fails can be run again alone by its number.
"""

from __future__ import annotations

import io
import re
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from PIL import Image, features

from zipsdk import images
from zipsdk.errors import ImageReadError, InputError

SEED = 20231
FILES, ARRAYS = 1500, 500
MAX_PIXELS = 4_000_000
SLOWEST = 10.0  # seconds a case; the machine may be busy


def base_files() -> dict[str, bytes]:
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:40, :56]
    smooth = np.stack([x * 4, y * 6, (x + y) * 2], axis=2) + rng.integers(0, 8, (40, 56, 3))
    rgb = Image.fromarray(smooth.astype(np.uint8))
    rgba = rgb.convert("RGBA")
    rgba.putalpha(rgb.convert("L"))
    deep = Image.fromarray((smooth[:, :, 0] * 250).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "zip", "2023:12:10 00:00:00"
    out = {}

    def add(name: str, im: Image.Image, kind: str, **options: Any) -> None:
        f = io.BytesIO()
        im.save(f, kind, **options)
        out[name] = f.getvalue()

    add("rgb.jpg", rgb, "JPEG", exif=exif, icc_profile=b"\0" * 200)
    add("progressive.jpg", rgb, "JPEG", progressive=True)
    add("gray.jpg", rgb.convert("L"), "JPEG")
    add("cmyk.jpg", rgb.convert("CMYK"), "JPEG")
    add("pair.jpg", rgb, "MPO", save_all=True, append_images=[rgb])
    add("rgb.png", rgb, "PNG", exif=exif)
    add("rgba.png", rgba, "PNG")
    add("deep.png", deep, "PNG")
    add("palette.png", rgb.quantize(32), "PNG", transparency=3)
    add("bits.png", rgb.convert("1"), "PNG")
    add("moving.png", rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)])
    add("still.gif", rgb, "GIF")
    add("moving.gif", rgb, "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    add("rgb.tif", rgb, "TIFF", exif=exif)
    add("lzw.tif", rgba, "TIFF", compression="tiff_lzw")
    add("deflate.tif", deep, "TIFF", compression="tiff_adobe_deflate")
    add("fax.tif", rgb.convert("1"), "TIFF", compression="group4")
    add("jpeg.tif", rgb, "TIFF", compression="jpeg")
    add("float.tif", rgb.convert("F"), "TIFF")
    add("pages.tif", rgb, "TIFF", save_all=True, append_images=[rgb])
    add("rgb.bmp", rgb, "BMP")
    add("palette.bmp", rgb.quantize(16), "BMP")
    add("rgb.ppm", rgb, "PPM")
    add("deep.pgm", deep, "PPM")
    out["plain.pgm"] = b"P2\n# words\n3 2\n15\n1 2 3 4 5 15\n"
    if features.check("webp"):
        add("lossy.webp", rgb, "WEBP", exif=exif)
        add("rgba.webp", rgba, "WEBP", lossless=True)
        add("moving.webp", rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])
    if features.check("avif"):
        add("rgb.avif", rgb, "AVIF", exif=exif, speed=10)
        add("rgba.avif", rgba, "AVIF", speed=10)
    return out


BASES = base_files()
ABSURD = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def with_good_checksums(data: bytearray) -> bytearray:
    """Correct the checksums of a PNG, so that its damage reaches the decoder."""
    at = 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


def mutate(data: bytearray, rng: np.random.Generator) -> bytearray:
    kind = rng.choice(["flip", "header flip", "insert", "cut", "drop", "absurd", "repeat", "splice", "zero", "none"])
    at = int(rng.integers(len(data) + 1))
    head = int(rng.integers(min(len(data), 64) + 1))
    if kind in ("flip", "header flip") and data:
        for _ in range(int(rng.integers(1, 9))):
            i = int(rng.integers(len(data) if kind == "flip" else min(len(data), 128)))
            data[i] ^= 1 << int(rng.integers(8))
    elif kind == "insert":
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + int(rng.integers(1, 40))]
    elif kind == "absurd":  # a width, a height, a count, an offset
        width, order = int(rng.choice([2, 4])), ("big", "little")[int(rng.integers(2))]
        value = int(rng.choice(ABSURD)) & (256**width - 1)
        data[head : head + width] = value.to_bytes(width, order)
    elif kind == "repeat":
        data[at:at] = data[at : at + 200] * int(rng.integers(1, 20))
    elif kind == "splice":
        other = BASES[str(rng.choice(list(BASES)))]
        data[at:] = other[int(rng.integers(len(other))) :]
    elif kind == "zero":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    return with_good_checksums(data) if rng.random() < 0.7 else data


def damaged_file(rng: np.random.Generator) -> tuple[str, bytes]:
    name = str(rng.choice(list(BASES)))
    if rng.random() < 0.03:
        data = bytearray(rng.bytes(int(rng.integers(0, 300))))
        if rng.random() < 0.7:  # random bytes after a valid header
            data[:0] = BASES[name][: int(rng.integers(2, 30))]
    else:
        data = bytearray(BASES[name])
        for _ in range(int(rng.integers(1, 4))):
            data = mutate(data, rng)
    if rng.random() < 0.2:
        name = f"x{rng.choice(sorted(images.SUFFIXES))}"
    return name, bytes(data)


def random_array(rng: np.random.Generator) -> Any:
    dtype = np.dtype(
        str(rng.choice(["u1", "u1", "<u2", ">u2", "<f2", "<f4", "<f4", ">f8", "?", "i1", "i4", "u8", "c8", "O", "U2"]))
        if rng.random() < 0.9
        else [("r", "u1"), ("g", "f4")]
    )
    rank = int(rng.choice([0, 1, 2, 3, 3, 3, 4, 4, 4, 5]))
    shape = [int(rng.choice([0, 1, 2, 3, 4, 5, 9], p=[0.04, 0.16, 0.16, 0.16, 0.16, 0.16, 0.16])) for _ in range(rank)]
    if rank >= 3 and rng.random() < 0.6:
        shape[-1 if rng.random() < 0.7 else -3] = int(rng.choice([1, 3, 4]))
    if rng.random() < 0.1 and rank in (2, 3, 4):  # far larger than memory, backed by one byte
        shape[0 if rank < 4 else 1] = int(rng.choice([10**5, 2**31, 2**40]))
        return as_strided(np.zeros(1, "u1" if dtype.hasobject else dtype), shape, [0] * rank, writeable=False)
    count = int(np.prod(shape))
    if dtype.hasobject:
        return np.full(shape, None, dtype)
    if dtype.kind == "f" and rng.random() < 0.7:
        x = rng.random(shape).astype(dtype)
        if count and rng.random() < 0.4:
            x.reshape(-1)[int(rng.integers(count))] = rng.choice([np.nan, np.inf, -np.inf, -1e-3, 1.5, 255, -0.0])
    elif dtype.kind == "U":
        x = np.full(shape, "a", dtype)
    else:  # any bytes: signaling NaNs too
        x = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape)
    if rank and rng.random() < 0.4:
        x = x[::-1] if rng.random() < 0.5 else x.swapaxes(0, -1)
    return [x, x[:1] if rank else x, "none.png"] if rng.random() < 0.1 else x


def read_or_refuse(item: Any, case: str, **options: Any) -> bool:
    """Read an item; return whether it was accepted. Warnings other than zipsdk's about CMYK and EXIF are leaks."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded, restore = images.read(item, max_pixels=MAX_PIXELS, **options)
            for p in loaded:
                assert p.rgb.dtype == np.uint8 and p.rgb.ndim == 3 and p.rgb.shape[2] == 3, case
                assert p.rgb.flags.c_contiguous and 0 < p.rgb.size <= 3 * MAX_PIXELS, case
            out = restore([p.rgb for p in loaded])
            if isinstance(item, np.ndarray):
                assert out.shape == item.shape and out.dtype == item.dtype, case
            good = True
        except InputError as e:
            assert "got" in str(e) and "expected" in str(e), f"{case}: {e}"
            assert isinstance(e, ImageReadError) or not isinstance(item, Path), case
            good = False
        except Exception as e:
            pytest.fail(f"{case}: {type(e).__name__}: {e}")
    ours = re.compile("CMYK is converted|its EXIF is malformed|its ICC profile is malformed|left out")
    leaked = [str(w.message) for w in caught if not ours.search(str(w.message))]
    assert not leaked, f"{case}: warnings {leaked}"
    assert time.perf_counter() - start < SLOWEST, f"{case}: too slow"
    return good


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    names = set()
    read = 0
    for n in range(FILES):
        name, data = damaged_file(np.random.default_rng((SEED, n)))
        path = tmp_path / name
        path.write_bytes(data)
        ok = read_or_refuse(path, f"file {n} ({name}, {len(data)} bytes)")
        read += ok
        names.add(name)
    # some cases must pass the format check, and some the decoders
    assert 0.1 * FILES < read < 0.9 * FILES
    assert set(BASES) <= names


def test_random_arrays_are_read_or_refused() -> None:
    read = 0
    for n in range(ARRAYS):
        rng = np.random.default_rng((SEED, FILES + n))
        item = random_array(rng)
        data_format = str(rng.choice(["NHWC", "NHWC", "NCHW"]))
        what = [(x.dtype, x.shape) for x in (item if isinstance(item, list) else [item]) if isinstance(x, np.ndarray)]
        read += read_or_refuse(item, f"array {n} {what} {data_format}", data_format=data_format)
    assert 0.05 * ARRAYS < read < 0.9 * ARRAYS


def test_undamaged_files_are_read_or_refused_for_their_reason(tmp_path: Path) -> None:
    for name, data in BASES.items():
        (tmp_path / name).write_bytes(data)
        good = read_or_refuse(tmp_path / name, name)
        assert good != name.startswith(("moving", "pages", "float")), name

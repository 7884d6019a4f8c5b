"""Test that arrays of every dtype, shape and data format are restored, and ambiguous ones refused."""

from __future__ import annotations

import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.image_checks import (
    RNG,
    H,
    W,
    identity,
    noise,
    opened,
    same,
    same_image,
    valid,
)
from zipsdk import images
from zipsdk.errors import ImageReadError, InputError

SHAPES = [(H, W), (H, W, 1), (H, W, 3), (H, W, 4), (2, H, W, 1), (2, H, W, 3), (2, H, W, 4)]
DTYPES = ["u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8"]


def in_data_format(x: Any, data_format: Any) -> Any:
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
def test_array_round_trip_is_exact(shape: tuple[int, ...], dtype: str, data_format: Any, contiguous: bool) -> None:
    eight = noise(*shape)
    x = in_data_format(eight_bit_as(eight, dtype), data_format)
    x = np.ascontiguousarray(x) if contiguous else np.repeat(x, 2, axis=-1)[..., ::2][::-1][::-1]
    x.flags.writeable = False
    before = x.tobytes()
    loaded, restore = images.read(x, data_format=data_format)
    out = restore([p.rgb for p in loaded])
    same(out, x)
    assert out.flags.writeable and out.flags.c_contiguous and not np.shares_memory(out, x)
    assert x.tobytes() == before
    # the loaded colors are those 8 bits, with gray three times
    for p, e in zip(loaded, eight if eight.ndim == 4 else [eight], strict=True):
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


def test_gray_is_restored_as_the_rounded_mean() -> None:
    p = images.read_one(noise(1, 4))
    clean = np.array([[[0, 0, 1], [0, 1, 1], [255, 255, 254], [255, 255, 255]]], np.uint8)
    assert p.restore(clean).tolist() == [[0, 1, 255, 255]]
    q = images.read_one(Image.fromarray(noise(1, 4)))
    assert np.asarray(q.restore(clean)).tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_of_an_array_is_kept_bit_for_bit(dtype: str) -> None:
    # values without an exact 8-bit form
    x = RNG.random((2, H, W, 4)) if dtype[1] == "f" else RNG.integers(0, 256 ** int(dtype[1:][-1]), (2, H, W, 4))
    x = x.astype(dtype)
    alpha = x[..., 3].copy()
    loaded, restore = images.read(x)
    x[:] = 0  # the caller may reuse the array
    out = restore([np.zeros_like(p.rgb) for p in loaded])
    same(np.ascontiguousarray(out[..., 3]), alpha)
    assert not out[..., :3].any()


def test_loaded_images_do_not_share_memory_with_the_array() -> None:
    x = noise(2, H, W, 3)
    before = x.copy()
    loaded, _ = images.read(x)
    one = images.read_one(x[0])
    x[:] = 0
    np.testing.assert_array_equal(np.stack([p.rgb for p in loaded]), before)
    np.testing.assert_array_equal(one.rgb, before[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_float_out_of_range_names_the_first_index_and_value(bad: float, data_format: Any) -> None:
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
        ((8, H, W), "NHWC", r"channel axis: x\[\.\.\., None\]"),
        ((8, H, W), "NCHW", r"channel axis: x\[:, None\]"),
        ((H, W, 2), "NHWC", "channel axis"),
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
def test_wrong_shapes_give_a_hint(shape: tuple[int, ...], data_format: Any, hint: str) -> None:
    with pytest.raises(InputError, match=hint) as e:
        images.read(np.zeros(shape, np.uint8), data_format=data_format)
    assert str(shape) in str(e.value)


@pytest.mark.parametrize(
    "options", [{"data_format": "HWC"}, {"data_format": ["NHWC"]}, {"max_pixels": 0}, {"max_pixels": 1.5}]
)
def test_invalid_options_are_refused(options: Any) -> None:
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
def test_empty_batches_are_restored(channels: int, dtype: str, data_format: Any) -> None:
    x = np.ascontiguousarray(in_data_format(np.empty((0, H, W, channels), dtype), data_format))
    loaded, restore = images.read(x, data_format=data_format)
    assert loaded == []
    same(restore([]), x)
    assert identity([]) == [] and identity(()) == []


@pytest.mark.parametrize("item", [None, 3, b"x.png", {}, types.SimpleNamespace(), [[1, 2]], [np.zeros((1, H, W, 3))]])
def test_other_things_are_refused(item: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        images.read(item)


def test_restore_checks_its_argument() -> None:
    loaded, restore = images.read(noise(2, H, W, 3))
    good = [p.rgb for p in loaded]
    wrong: list[Any] = [good[:1], [*good, good[0]], [good[0], good[1][:-1]], [good[0], good[1] / 255], [good[0], None]]
    for clean in wrong:
        with pytest.raises(InputError, match="purified"):
            restore(clean)
    for x in (noise(H, W, 3), [noise(H, W, 3)]):
        with pytest.raises(InputError, match="got 0, expected 1"):
            images.read(x)[1]([])


def test_a_mixed_list_is_restored(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6)).save(tmp_path / "a.png")
    batch: Any = (
        noise(H, W, 3),
        RNG.random((3, 2)),
        Image.fromarray(noise(9, 2, 4)),
        tmp_path / "a.png",
        noise(1, 1, 1),
    )
    loaded, restore = images.read(batch)
    assert [p.rgb.shape[:2] for p in loaded] == [(5, 7), (3, 2), (9, 2), (4, 6), (1, 1)]
    out = restore([p.rgb for p in loaded])
    assert isinstance(out, list)
    same(out[0], batch[0])
    assert out[1].dtype == np.float64 and np.abs(out[1] - batch[1]).max() <= 0.5 / 255 + 1e-12
    same_image(out[2], batch[2])
    same_image(out[3], opened(tmp_path / "a.png"))
    same(out[4], batch[4])
    with pytest.raises(InputError, match="item 1 of the list"):
        images.read([noise(H, W, 3), np.zeros((2, 2))[:, :0]])
    with pytest.raises(ImageReadError, match=r"item 0 of the list: .*missing\.png"):
        images.read([tmp_path / "missing.png"])


@pytest.mark.parametrize("wrap", [list, np.stack, lambda x: x[0]])
def test_loaded_images_and_restorers_pickle(wrap: Any) -> None:
    rgba = noise(H, W, 4)
    for batch in (wrap([rgba, rgba]), [Image.fromarray(rgba)]):
        loaded, restore = images.read(batch)
        copies, restore_copy = pickle.loads(pickle.dumps((loaded, restore)))
        for one, copy in zip(loaded, copies, strict=True):
            np.testing.assert_array_equal(np.asarray(one.restore(one.rgb)), np.asarray(copy.restore(copy.rgb)))
        clean = [p.rgb for p in loaded]
        np.testing.assert_array_equal(np.asarray(restore(clean)), np.asarray(restore_copy(clean)))

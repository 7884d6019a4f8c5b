"""Arrays -> uint8 RGB and back; the half of `zipsdk.images` that has no files in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

_ARRAYS = "uint8 (0..255), uint16 (0..65535) or float16, float32, float64 (0..1)"
SHAPES = {
    "NHWC": "(H, W), (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels",
    "NCHW": "(H, W), (C, H, W) or (N, C, H, W) with 1, 3 or 4 channels",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, and the way back.

    Attributes:
        rgb: uint8 (H, W, 3), C-contiguous, memory of its own.
        restore: takes a purified uint8 (H, W, 3) and gives back the same kind of thing as came in: new and writable.
    """

    rgb: U8
    restore: Callable[[U8], Any]


def check_array(a: npt.NDArray[Any], data_format: str, max_pixels: int, where: str) -> None:
    """Refuse an array by its dtype and shape; the values are for `read_array`."""
    if (a.dtype.kind, a.dtype.itemsize) not in {("u", 1), ("u", 2), ("f", 2), ("f", 4), ("f", 8)}:
        raise InputError(f"{where}got an array of dtype {a.dtype}, wanted {_ARRAYS}: {_conversion(a.dtype)}")
    first, last = (-3, -1) if data_format == "NCHW" else (-1, -3)
    if a.ndim not in (2, 3, 4) or (a.ndim > 2 and a.shape[first] not in (1, 3, 4)):
        hint = "pass one picture or a batch of pictures"
        if a.ndim in (3, 4) and a.shape[last] in (1, 3, 4):
            hint = f'channels seem to stand elsewhere: pass data_format="{"NHWC" if data_format == "NCHW" else "NCHW"}"'
        elif a.ndim == 3:
            axis = "1" if data_format == "NCHW" else "-1"
            hint = f"for a batch of grey pictures give it a channel axis: np.expand_dims(x, {axis})"
        raise InputError(
            f'{where}got an array of shape {a.shape}, wanted {SHAPES[data_format]} (data_format="{data_format}"): {hint}'
        )
    height, width = a.shape[-2:] if a.ndim == 2 or data_format == "NCHW" else a.shape[-3:-1]
    if height == 0 or width == 0:
        raise InputError(f"{where}got an array of shape {a.shape}, wanted at least 1 x 1 pixels: leave it out")
    if height * width > max_pixels:
        raise InputError(
            f"{where}got pictures of {width} x {height} pixels, wanted at most {max_pixels} pixels: "
            f"make them smaller, or cut them into parts"
        )


def _conversion(dtype: np.dtype[Any]) -> str:
    """What to do with an array of a dtype whose range nothing tells."""
    if dtype.kind == "b":
        return "pass x * np.uint8(255)"
    if dtype.kind in "iu":
        return "pass x.astype(np.uint8) where it is 0..255, x.astype(np.uint16) where it is 0..65535"
    if dtype.kind == "f" or dtype.name.startswith(("bfloat", "float8")):
        return "pass x.astype(np.float32) where it is 0..1"
    if dtype.kind == "O":
        return "pass a list of arrays, or np.stack(x) where they have one size"
    return "convert it to the one whose range it has"


def read_array(a: npt.NDArray[Any], data_format: str, at: tuple[int, ...], where: str = "") -> Picture:
    """A checked array of two or three axes -> Picture. `at`: where it stands in its batch, for messages."""
    if a.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # some builds of NumPy warn when a NaN is compared
            good = (a >= 0) & (a <= 1)  # false for NaN
        if not good.all():
            i = tuple(int(k) for k in np.unravel_index(int(np.argmin(good)), good.shape))
            raise InputError(
                f"{where}got {float(a[i])} at index {at + i} of a {a.dtype} array, wanted values in [0, 1]: "
                + (
                    "divide by the array's range (of -1..1 pass (x + 1) / 2), or pass uint8: x.astype(np.uint8) where "
                    "it is 0..255"
                    if np.isfinite(a[i])
                    else "no image has it; mend what made the array"
                )
            )
    dtype, grey_2d = a.dtype, a.ndim == 2
    if grey_2d:
        a = a[:, :, None]
    elif data_format == "NCHW":
        a = np.moveaxis(a, 0, -1)
    channels = a.shape[2]
    # a copy, because the caller may refill the array while the answer is being computed
    alpha = a[:, :, 3:].copy()
    rgb = to_8bit(a[:, :, :3])
    if channels == 1:
        rgb = np.repeat(rgb, 3, axis=2)

    def restore(clean: U8) -> Any:
        check_clean(clean, rgb)
        out = from_8bit(grey(clean)[:, :, None] if channels == 1 else clean, dtype)
        if channels == 4:
            out = np.concatenate((out, alpha), axis=2, dtype=dtype)
        if grey_2d:
            out = out[:, :, 0]
        elif data_format == "NCHW":
            out = np.moveaxis(out, -1, 0)
        return np.array(out, dtype, order="C")

    return Picture(rgb, restore)


def check_clean(clean: U8, rgb: U8) -> None:
    """Refuse a purified picture that is not like the one that was read."""
    if not isinstance(clean, np.ndarray) or clean.dtype != np.uint8 or clean.shape != rgb.shape:
        got = f"{clean.dtype} {clean.shape}" if isinstance(clean, np.ndarray) else type(clean).__name__
        raise InputError(f"purified picture: got {got}, wanted uint8 {rgb.shape}, as it was read")


def to_8bit(a: npt.NDArray[Any]) -> U8:
    """Any checked array -> a new uint8 array of the same shape, rounded half to even."""
    out = np.empty(a.shape, np.uint8)
    for rows in _row_blocks(a):
        block = a[rows]
        if a.dtype.kind == "f":
            block = np.rint(np.multiply(block, 255, dtype=np.float64))
        elif a.dtype.itemsize == 2:
            block = (block.astype(np.uint32) + 128) // 257  # x / 257 rounded: 257 is odd, so there is no half way
        out[rows] = block
    return out


def from_8bit(a: U8, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The way back: 0..1 for floats, x * 257 for uint16."""
    if dtype.kind != "f" and dtype.itemsize == 1:
        return a
    out = np.empty(a.shape, dtype)
    for rows in _row_blocks(a):
        out[rows] = np.divide(a[rows], 255, dtype=np.float64) if dtype.kind == "f" else a[rows].astype(np.uint32) * 257
    return out


def _row_blocks(a: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of rows with about 64 K values each, so that wider temporaries stay small."""
    rows = max(1, (1 << 16) // max(1, a[:1].size))
    return (slice(top, top + rows) for top in range(0, len(a), rows))


def grey(rgb: U8) -> U8:
    """(H, W, 3) -> (H, W): the mean, rounded; a sum of three thirds is never half way."""
    return np.array((rgb.sum(axis=2, dtype=np.uint16) + 1) // 3, np.uint8)

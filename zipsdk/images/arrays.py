"""Convert NumPy arrays to uint8 RGB and back, without reading files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from zipsdk.errors import InputError
from zipsdk.types import U8, Array

_ARRAYS = "uint8 (0..255), uint16 (0..65535) or float16, float32, float64 (0..1)"
#: What to do with images of more than `max_pixels`.
LARGER = "pass zipsdk.images.read_one(image, max_pixels=...)"
SHAPES = {
    "NHWC": "(H, W), (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels",
    "NCHW": "(H, W), (C, H, W) or (N, C, H, W) with 1, 3 or 4 channels",
}

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class LoadedImage(ABC, Generic[T_co]):
    """One loaded image; it pickles. `T_co` is the type that `restore` returns.

    Attributes:
        rgb: uint8 (H, W, 3), C-contiguous, a copy of the input's pixels.
    """

    rgb: U8

    @abstractmethod
    def restore(self, clean: U8) -> T_co:
        """Convert a purified image, uint8 (H, W, 3), to a new, writable object of the type that was read.

        Raises:
            InputError: `clean` has another dtype or shape than `rgb`.
        """


@dataclass(frozen=True, eq=False)
class ArrayImage(LoadedImage[Any]):
    """An image that was read from an array.

    Attributes:
        dtype, ndim, channels, data_format: of the array; an array of two axes has one channel.
        alpha: a copy of the array's alpha, (H, W, 1); None without alpha.
        convert: converts a new NumPy array to the type of the array.
    """

    dtype: np.dtype[Any]
    ndim: int
    channels: int
    data_format: str
    alpha: Array | None
    convert: Callable[[Array], Any]

    def restore(self, clean: U8) -> Any:
        """Convert a purified image to the array's type, dtype, shape and data format; see `to_numpy`."""
        return self.convert(self.to_numpy(clean))

    def to_numpy(self, clean: U8) -> Array:
        """Convert a purified image to NumPy, in the array's dtype, shape and data format; gray is the mean color."""
        check_clean(clean, self.rgb)
        out = from_8bit(to_gray(clean)[:, :, None] if self.channels == 1 else clean, self.dtype)
        if self.alpha is not None:
            out = np.concatenate((out, self.alpha), axis=2, dtype=self.dtype)
        if self.ndim == 2:
            out = out[:, :, 0]
        elif self.data_format == "NCHW":
            out = np.moveaxis(out, -1, 0)
        return np.array(out, self.dtype, order="C")


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Check the dtype of an array; `read_array` checks the values.

    Raises:
        InputError: the dtype is not supported.
    """
    if (dtype.kind, dtype.itemsize) not in {("u", 1), ("u", 2), ("f", 2), ("f", 4), ("f", 8)}:
        raise InputError(f"got an array of dtype {dtype}, expected {_ARRAYS}; {_conversion(dtype)}")


def check_shape(shape: Sequence[int], data_format: str, max_pixels: int) -> None:
    """Check the shape of an array of two to four axes.

    Raises:
        InputError: the shape is not supported.
    """
    shape = tuple(shape)
    ndim = len(shape)
    first, last = (-3, -1) if data_format == "NCHW" else (-1, -3)
    if ndim not in (2, 3, 4) or (ndim > 2 and shape[first] not in (1, 3, 4)):
        hint = "pass one image or a batch of images"
        if ndim in (3, 4) and shape[last] in (1, 3, 4):
            other = "NHWC" if data_format == "NCHW" else "NCHW"
            hint = f'channels seem to be on another axis: pass data_format="{other}"'
        elif ndim == 3:
            axis = "x[:, None]" if data_format == "NCHW" else "x[..., None]"
            hint = f"for a batch of gray images add a channel axis: {axis}"
        raise InputError(
            f'got an array of shape {shape}, expected {SHAPES[data_format]} (data_format="{data_format}"); {hint}'
        )
    height, width = shape[-2:] if ndim == 2 or data_format == "NCHW" else shape[-3:-1]
    if height == 0 or width == 0:
        raise InputError(f"got an array of shape {shape}, expected at least 1 x 1 pixels; leave it out")
    if height * width > max_pixels:
        larger = LARGER if ndim < 4 else "pass zipsdk.images.read(batch, max_pixels=...)[0]"
        raise InputError(
            f"got images of {width} x {height} pixels, expected at most {max_pixels} pixels; "
            f"make them smaller, or cut them into parts, or {larger}"
        )


def _conversion(dtype: np.dtype[Any]) -> str:
    """Describe how to convert an array of a dtype without a known range."""
    if dtype.kind == "b":
        return "pass x * np.uint8(255)"
    if dtype.kind in "iu":
        return "pass x.astype(np.uint8) where it is 0..255, x.astype(np.uint16) where it is 0..65535"
    if dtype.kind == "f" or dtype.name.startswith(("bfloat", "float8")):
        return "pass x.astype(np.float32) where it is 0..1"
    if dtype.kind == "O":
        return "pass a list of arrays, or np.stack(x) where they have one size"
    return "convert it to the dtype that has its range"


def read_array(a: Array, data_format: str, convert: Callable[[Array], Any], index: tuple[int, ...] = ()) -> ArrayImage:
    """Convert a checked array of two or three axes to uint8 RGB.

    Args:
        a: (H, W), (H, W, C) or (C, H, W), of a dtype and shape that `check_dtype` and `check_shape` accept.
        data_format: "NHWC" or "NCHW".
        convert: converts a restored NumPy array to the type of the array.
        index: position of the array in its batch, for messages.

    Raises:
        InputError: a float value is not in [0, 1].
    """
    if a.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # some builds of NumPy warn when they compare NaN
            good = (a >= 0) & (a <= 1)  # false for NaN
        if not good.all():
            i = tuple(int(k) for k in np.unravel_index(int(np.argmin(good)), good.shape))
            hint = "correct the code that made the array: no image has this value"
            if np.isfinite(a[i]):
                hint = "divide by its range (for -1..1 pass (x + 1) / 2), or convert it to uint8 where it is 0..255"
            raise InputError(
                f"got {float(a[i])} at index {index + i} of a {a.dtype} array, expected values in [0, 1]; {hint}"
            )
    dtype, ndim = a.dtype, a.ndim
    if ndim == 2:
        a = a[:, :, None]
    elif data_format == "NCHW":
        a = np.moveaxis(a, 0, -1)
    channels = a.shape[2]
    # a copy, because the caller may refill the array while the image is being purified
    alpha = a[:, :, 3:].copy() if channels == 4 else None
    rgb = to_8bit(a[:, :, :3])
    if channels == 1:
        rgb = np.repeat(rgb, 3, axis=2)
    return ArrayImage(rgb, dtype, ndim, channels, data_format, alpha, convert)


def check_clean(clean: U8, rgb: U8) -> None:
    """Check that a purified image has the dtype and shape of the image that was read.

    Raises:
        InputError: it has another.
    """
    if not isinstance(clean, np.ndarray) or clean.dtype != np.uint8 or clean.shape != rgb.shape:
        got = f"{clean.dtype} {clean.shape}" if isinstance(clean, np.ndarray) else type(clean).__name__
        raise InputError(f"purified image: got {got}, expected uint8 {rgb.shape}, as it was read")


def to_8bit(a: Array) -> U8:
    """Convert a checked array to a new uint8 array of the same shape, rounded half to even."""
    out = np.empty(a.shape, np.uint8)
    for rows in _row_blocks(a):
        block = a[rows]
        if a.dtype.kind == "f":
            block = np.rint(np.multiply(block, 255, dtype=np.float64))
        elif a.dtype.itemsize == 2:
            block = (block.astype(np.uint32) + 128) // 257  # x / 257 rounded; 257 is odd, so no value is half way
        out[rows] = block
    return out


def from_8bit(a: U8, dtype: np.dtype[Any]) -> Array:
    """Convert uint8 to 0..1 for a float dtype, and to x * 257 for uint16."""
    if dtype.kind != "f" and dtype.itemsize == 1:
        return a
    out = np.empty(a.shape, dtype)
    for rows in _row_blocks(a):
        out[rows] = np.divide(a[rows], 255, dtype=np.float64) if dtype.kind == "f" else a[rows].astype(np.uint32) * 257
    return out


def _row_blocks(a: Array) -> Iterator[slice]:
    """Yield slices of rows with about 64 K values each, which keeps wider temporaries small."""
    rows = max(1, (1 << 16) // max(1, a[:1].size))
    return (slice(top, top + rows) for top in range(0, len(a), rows))


def to_gray(rgb: U8) -> U8:
    """Average the colors of (H, W, 3) to (H, W), rounded; a sum of three thirds is never half way."""
    return np.array((rgb.sum(axis=2, dtype=np.uint16) + 1) // 3, np.uint8)

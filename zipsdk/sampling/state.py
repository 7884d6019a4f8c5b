"""Convert uint8 images to the loop's float32 state and back, in strips of rows if an image is large."""

from __future__ import annotations

import numpy as np

from zipsdk.types import F32, U8, Array

#: Pixels that are converted, or go through the elementwise part of a step, at once, so that they stay in the cache.
STRIP_PIXELS = 1 << 15


def pad(images: Array, height: int, width: int) -> Array:
    """Mirror images (N, H, W, 3) at the bottom and the right up to height x width; sides of 1 pixel repeat."""
    _, h, w, _ = images.shape
    if (h, w) == (height, width):
        return images
    return np.pad(images, ((0, 0), (0, height - h), (0, width - w), (0, 0)), mode="reflect")


def to_model_range(images: Array, height: int, width: int) -> F32:
    """Convert images, uint8 (N, H, W, 3), to a padded state, float32 (N, 3, height, width) in [-1, 1]; see `pad`."""
    return _to_float(pad(images, height, width))


def _to_float(images: Array) -> F32:
    x = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    x *= 1.0 / 127.5
    x -= 1.0
    return x


class StateRows:
    """Convert large images as `to_model_range` does, a strip at a time. `zipsdk.sampling.sampler` takes it as x_P.

    Args:
        images: uint8 (N, H, W, 3), not copied.
        height, width: size of the state, as for `to_model_range`.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, images: Array, height: int, width: int):
        n, h, w, _ = images.shape
        self.shape = (n, 3, height, width)
        self._images = images
        self._rows, self._columns = (
            np.pad(np.arange(old), (0, new - old), mode="reflect") for old, new in ((h, height), (w, width))
        )

    def rows(self, top: int, bottom: int) -> F32:
        """Return rows top..bottom of the state: float32 (N, 3, bottom - top, width), a new array."""
        part = self._images[:, self._rows[top:bottom]]
        return _to_float(part if part.shape[2] == len(self._columns) else part[:, :, self._columns])


def to_uint8(x: F32, height: int, width: int, out: U8 | None = None) -> U8:
    """Convert a state (N, 3, H, W) to images, uint8 (N, height, width, 3): crop, round and clip.

    Args:
        x: float32, 0 for mid-gray; values outside [-1, 1] are clipped.
        height: rows to keep.
        width: columns to keep.
        out: receives the result; None for a new array.
    """
    n = len(x)
    if out is None:
        out = np.empty((n, height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // max(1, n * width))  # strips, because the float32 copy is four times the result
    for top in range(0, height, rows):
        y = x[:, :, top : min(top + rows, height), :width] + 1.0
        y *= 127.5
        np.rint(y, out=y)
        np.clip(y, 0.0, 255.0, out=y)
        out[:, top : top + rows] = y.astype(np.uint8).transpose(0, 2, 3, 1)
    return out

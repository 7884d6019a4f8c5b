"""Remove one feature of an image, or keep only one: the views that `zipsdk.AblationDetector` queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from zipsdk.sampling import memory
from zipsdk.sampling.state import STRIP_PIXELS
from zipsdk.types import F32, U8

Index = npt.NDArray[np.intp]

#: Removed, then kept alone, in the order of `copies`; geometry is only removed.
FEATURES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
            "coarse", "middle", "fine", "color", "geometry")  # fmt: skip
N_MASKABLE = len(FEATURES) - 1
#: The first of `FEATURES`, three by three.
REGIONS = 9
#: The image, without each maskable feature, with each alone, and without geometry.
N_VIEWS = 1 + 2 * N_MASKABLE + 1

#: Sides and standard deviations are given for an image of 32 pixels and grow with its shorter side.
UNIT = 32
REGION, FILL = 3 / 8, 4.0  # a region's share of each side; the blur that fills it from its surroundings
COARSE, MIDDLE, FINE = 3.0, (0.7, 1.5), 0.7
#: Largest displacement along each axis, in pixels of 32, and the seed of the displacements.
JITTER, SEED = 0.5, 32
#: Background of a band that is shown alone.
GRAY = 128
#: Smallest usable weight of the surroundings in the blur that fills a region. The weight is at least 2.6e-4, where
#: float32 errs by 0.05 gray levels, unless a side is a single pixel.
LEAST_WEIGHT = 1e-4
#: Pixels of a line that one matrix blurs; matrices of lines up to this length are cached.
BLOCK = 512
#: Memory of `copies`, bytes per pixel: 81 of results, float32 of the image, of one blur and of half of the next.
COPIES_BYTES = 115


def copies(rgb: U8) -> U8:
    """Make the ablated copies of an image.

    | feature | removed | alone |
    | --- | --- | --- |
    | nine overlapping regions | filled from the surroundings by a Gaussian blur | on the blurred image |
    | coarse | a wide Gaussian is subtracted, mid-gray added | that Gaussian |
    | middle | a band between two Gaussians is subtracted | twice the band, on mid-gray |
    | fine | a slight Gaussian blur | twice what the blur removes, on mid-gray |
    | color | gray | the difference to gray, on mid-gray |
    | geometry | each cell of 1/32 of the shorter side displaced by up to half of that along each axis | |

    Args:
        rgb: uint8 (H, W, 3).

    Returns:
        uint8 (27, H, W, 3): without each maskable feature, each alone, then without geometry.

    Raises:
        OutOfMemoryError: the copies would not fit into memory; see `zipsdk.sampling.memory.check`.
    """
    height, width, _ = rgb.shape
    memory.check(height, width, COPIES_BYTES * height * width)
    unit = min(height, width) / UNIT
    x = rgb.astype(np.float32).transpose(2, 0, 1)
    # one blur at a time: together they would fill the memory
    out = np.empty((N_VIEWS - 1, height, width, 3), np.uint8)
    without, alone = out[:N_MASKABLE], out[N_MASKABLE : 2 * N_MASKABLE]
    _write_displaced(out[-1], x)

    def blur(deviation: float) -> F32:
        return _blur(x, deviation * unit, (height, width))

    _write_regions(without, alone, rgb, x, blur(FILL), FILL * unit)
    coarse, middle, fine, color = range(REGIONS, N_MASKABLE)
    # GRAY is an integer, so that float32 errors do not speckle flat areas
    _write_coarse(without[coarse], alone[coarse], x, blur(COARSE))
    _write_band(without[middle], alone[middle], x, _difference(blur(MIDDLE[0]), blur(MIDDLE[1])))
    _write_band(without[fine], alone[fine], x, _difference(x, blur(FINE)))
    gray = x.mean(axis=0)
    _write(without[color], lambda at: np.broadcast_to(gray[at[1:]], x[at].shape))
    _write(alone[color], lambda at: x[at] - gray[at[1:]] + GRAY)
    return out


def _write_regions(without: U8, alone: U8, rgb: U8, x: F32, around: F32, deviation: float) -> None:
    """Write the copies of regions: each filled from `around`, and each alone on it."""
    _write(alone[0], lambda at: around[at])
    alone[1:REGIONS] = alone[0]
    for i, (rows, columns) in enumerate(_regions(*rgb.shape[:2])):
        without[i] = rgb
        without[i, rows, columns] = _to_gray_levels(_filled(x, around, (rows, columns), deviation))
        alone[i, rows, columns] = rgb[rows, columns]


def _write_coarse(without: U8, alone: U8, x: F32, coarse: F32) -> None:
    _write(without, lambda at: x[at] - coarse[at] + GRAY)
    _write(alone, lambda at: coarse[at])


def _write_band(without: U8, alone: U8, x: F32, band: F32) -> None:
    _write(without, lambda at: x[at] - band[at])
    _write(alone, lambda at: 2 * band[at] + GRAY)


def _difference(a: F32, b: F32) -> F32:
    """Return a - b, in b's memory."""
    return np.subtract(a, b, out=b)


def _write(copy: U8, planes: Callable[[tuple[slice, slice]], F32]) -> None:
    """Fill a copy (H, W, 3) strip by strip: `planes` maps (all channels, some rows) to float32 (3, rows, W)."""
    height, width, _ = copy.shape
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        at = slice(top, min(top + rows, height))
        copy[at] = _to_gray_levels(planes((slice(None), at)))


def _to_gray_levels(planes: F32) -> F32:
    """Round and clip float32 (3, H, W) to whole gray levels (H, W, 3)."""
    whole: F32 = np.rint(planes)
    np.clip(whole, 0, 255, out=whole)
    return whole.transpose(1, 2, 0)


def _regions(height: int, width: int) -> list[tuple[slice, slice]]:
    """Return nine overlapping regions, three by three."""

    def along(side: int) -> list[slice]:
        size = max(1, round(REGION * side))
        return [slice(start, start + size) for start in (0, round((side - size) / 2), side - size)]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _filled(x: F32, around: F32, region: tuple[slice, slice], deviation: float) -> F32:
    """Return the region, filled with the blur of its surroundings, weighted by distance.

    `around` is the blur of all of x; the contribution of the region itself is subtracted from it. A pixel without
    surroundings in reach stays, which happens only where a side is one pixel.
    """
    r, c = region
    own = _blur(x[:, r, c], deviation, x.shape[1:], (r.start, c.start))
    rows, columns = (
        _along(np.ones((1, s.stop - s.start), np.float32), deviation, n, s.start, -1)[0]
        for s, n in zip(region, x.shape[1:], strict=True)
    )
    weight = 1 - np.outer(rows, columns)
    filled = (around[:, r, c] - own) / np.maximum(weight, LEAST_WEIGHT)
    return np.where(weight > LEAST_WEIGHT, filled, x[:, r, c])


def _write_displaced(copy: U8, x: F32) -> None:
    """Write the copy without geometry, interpolated bilinearly."""
    height, width = x.shape[1:]
    sources = _cached_source_pixels if max(height, width) <= BLOCK else _source_pixels
    (all_rows, all_down), (all_columns, all_right) = sources(height, width)

    def displaced(at: tuple[slice, slice]) -> F32:
        rows, columns, down, right = all_rows[at[1:]], all_columns[at[1:]], all_down[at[1:]], all_right[at[1:]]
        next_rows, next_columns = np.minimum(rows + 1, height - 1), np.minimum(columns + 1, width - 1)
        upper = (1 - right) * x[:, rows, columns] + right * x[:, rows, next_columns]
        lower = (1 - right) * x[:, next_rows, columns] + right * x[:, next_rows, next_columns]
        out: F32 = (1 - down) * upper + down * lower
        return out

    _write(copy, displaced)


def _source_pixels(height: int, width: int) -> tuple[tuple[Index, F32], tuple[Index, F32]]:
    """Return (rows, fraction down) and (columns, fraction to the right), each (H, W), of every displaced pixel.

    The displacements depend on the size alone, so that an image always has the same score.
    """
    unit = min(height, width) / UNIT
    rows, columns = (np.arange(n) // max(unit, 1.0) for n in (height, width))
    cells = int(rows[-1]) + 1, int(columns[-1]) + 1
    offsets = np.random.default_rng(SEED).uniform(-JITTER * unit, JITTER * unit, (2, *cells))
    offsets = offsets[:, rows.astype(np.intp)[:, None], columns.astype(np.intp)]
    out = []
    for offset, at, side in zip(offsets, np.ogrid[:height, :width], (height, width), strict=True):
        position = np.clip(at + offset, 0, side - 1)
        whole = np.floor(position).astype(np.intp)
        out.append((whole, (position - whole).astype(np.float32)))
    return out[0], out[1]


def _blur(x: F32, deviation: float, of: tuple[int, ...], start: tuple[int, int] = (0, 0)) -> F32:
    """Blur (..., h, w), the part at `start` of an image of size `of` that is 0 elsewhere, by a Gaussian.

    The image is mirrored at its borders, with the last pixel repeated.
    """
    return _along(_along(x, deviation, of[0], start[0], -2), deviation, of[1], start[1], -1)


def _along(x: F32, deviation: float, side: int, start: int, axis: int) -> F32:
    """Blur along one axis, in blocks: a matrix for a whole long line would fill the memory."""
    length, reach = x.shape[axis], _reach(deviation)
    matrix_of = _cached_blur_matrix if side <= BLOCK else _blur_matrix
    out = np.empty(x.shape, np.float32)
    for a in range(0, length, BLOCK):
        low, high = max(0, a - reach), min(length, a + BLOCK + reach)
        matrix = matrix_of(side, deviation, start + a, start + min(length, a + BLOCK), start + low, start + high)
        if axis == -2:
            out[..., a : a + BLOCK, :] = matrix @ x[..., low:high, :]
        else:
            out[..., a : a + BLOCK] = x[..., low:high] @ matrix.T
    return out


def _reach(deviation: float) -> int:
    return max(1, round(4 * deviation))


def _blur_matrix(side: int, deviation: float, first: int, last: int, low: int, high: int) -> F32:
    """Return rows `first` to `last` and columns `low` to `high` of the matrix that blurs a line of `side` pixels."""
    reach = _reach(deviation)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    at = (np.arange(first, last)[:, None] + offsets) % (2 * side)
    at = np.where(at < side, at, 2 * side - 1 - at)
    rows, taps = np.nonzero((at >= low) & (at < high))
    matrix = np.zeros((last - first, high - low))
    np.add.at(matrix, (rows, at[rows, taps] - low), kernel[taps])
    return matrix.astype(np.float32)


# for sides up to BLOCK; the results for larger ones would fill the memory
_cached_source_pixels = lru_cache(4)(_source_pixels)
_cached_blur_matrix = lru_cache(64)(_blur_matrix)

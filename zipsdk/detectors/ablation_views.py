"""A picture without one of its parts, and one part alone: what `zipsdk.DecisivePart` asks a classifier about."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.images.arrays import U8
from zipsdk.sampling import memory
from zipsdk.sampling.state import STRIP_PIXELS

F32 = npt.NDArray[np.float32]

#: What is taken away, then shown alone, in the order of `copies`; geometry is only taken away.
PARTS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "colour", "geometry")  # fmt: skip
SHOWN = len(PARTS) - 1
#: The first of `PARTS`, three by three.
REGIONS = 9
#: Of a picture: it, without each of the shown parts, each alone, and without geometry.
VERSIONS = 1 + 2 * SHOWN + 1

#: Sides and deviations for a picture of 32 pixels; they grow with its shorter side.
UNIT = 32
REGION, FILL = 3 / 8, 4.0  # a region's share of each side; the blur that fills it from around
COARSE, MIDDLE, FINE = 3.0, (0.7, 1.5), 0.7
#: How far a place of the size of a pixel of 32 is moved along each axis, at most; and the seed of where to.
MOVED, SEED = 0.5, 32
#: What bands stand on where the rest of the picture is not there.
GREY = 128
#: What is around a region weighs more than this in the blur of each of its pixels, if no side is a single pixel; at
#: the least, 2.6e-4, float32 errs by 0.05 grey levels.
LEAST_WEIGHT = 1e-4
#: Pixels of a line that are blurred by one matrix; those of lines up to this long are kept.
BLOCK = 512
#: Bytes a pixel that `copies` takes: 81 of results, float32 of the image, of one blur and of half of the next.
COPIES_BYTES = 115


def copies(rgb: U8) -> U8:
    """uint8 (H, W, 3) -> uint8 (27, H, W, 3): the picture without each of `PARTS` but the last, then each of these
    alone, then without the last, its geometry.

    A region is filled from around it by a Gaussian blur; alone it stands on the blurred picture. Without "coarse"
    is what a wide Gaussian takes away, on mid-grey, and alone is the Gaussian; "middle" is a band between two
    Gaussians; "fine" is taken away by a little blur; "colour" is the difference to grey. Alone, bands and colours
    are on mid-grey, the weak ones twice as strong. Without geometry each place of 1/32 of the shorter side is moved by
    up to half of that along each axis.

    Raises:
        OutOfMemory: the copies would not fit into memory; see `zipsdk.sampling.memory.check`.
    """
    height, width, _ = rgb.shape
    memory.check(height, width, COPIES_BYTES * height * width)
    unit = min(height, width) / UNIT
    x = rgb.astype(np.float32).transpose(2, 0, 1)
    # of a large image each blur is made, used for all its copies and dropped before the next, in no more float32 than
    # it takes: 27 copies in it, or all blurs, would fill the memory
    out = np.empty((VERSIONS - 1, height, width, 3), np.uint8)
    without, alone = out[:SHOWN], out[SHOWN : 2 * SHOWN]
    _write_moved(out[-1], x)

    def blur(deviation: float) -> F32:
        return _blur(x, deviation * unit, (height, width))

    _write_regions(without, alone, rgb, x, blur(FILL), FILL * unit)
    coarse, middle, fine, colour = range(REGIONS, SHOWN)
    # on a whole number, so that float32's errors do not speckle flat places
    _write_coarse(without[coarse], alone[coarse], x, blur(COARSE))
    _write_band(without[middle], alone[middle], x, _difference(blur(MIDDLE[0]), blur(MIDDLE[1])))
    _write_band(without[fine], alone[fine], x, _difference(x, blur(FINE)))
    grey = x.mean(axis=0)
    _write(without[colour], lambda at: np.broadcast_to(grey[at[1:]], x[at].shape))
    _write(alone[colour], lambda at: x[at] - grey[at[1:]] + GREY)
    return out


def _write_regions(without: U8, alone: U8, rgb: U8, x: F32, around: F32, deviation: float) -> None:
    """Fill the copies of regions: each filled from `around`, and each standing on it."""
    _write(alone[0], lambda at: around[at])
    alone[1:REGIONS] = alone[0]
    for i, (rows, columns) in enumerate(_regions(*rgb.shape[:2])):
        without[i] = rgb
        without[i, rows, columns] = _whole(_filled(x, around, (rows, columns), deviation))
        alone[i, rows, columns] = rgb[rows, columns]


def _write_coarse(without: U8, alone: U8, x: F32, coarse: F32) -> None:
    _write(without, lambda at: x[at] - coarse[at] + GREY)
    _write(alone, lambda at: coarse[at])


def _write_band(without: U8, alone: U8, x: F32, band: F32) -> None:
    _write(without, lambda at: x[at] - band[at])
    _write(alone, lambda at: 2 * band[at] + GREY)


def _difference(a: F32, b: F32) -> F32:
    """a - b, in b's memory."""
    return np.subtract(a, b, out=b)


def _write(copy: U8, planes: Callable[[tuple[slice, slice]], F32]) -> None:
    """Fill a copy (H, W, 3) from float32 planes: `planes` takes (all colors, some rows) and gives (3, rows, W)."""
    height, width, _ = copy.shape
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        at = slice(top, min(top + rows, height))
        copy[at] = _whole(planes((slice(None), at)))


def _whole(planes: F32) -> F32:
    """float32 (3, H, W) -> whole grey levels (H, W, 3)."""
    whole: F32 = np.rint(planes)
    np.clip(whole, 0, 255, out=whole)
    return whole.transpose(1, 2, 0)


def _regions(height: int, width: int) -> list[tuple[slice, slice]]:
    """Nine overlapping regions, three by three."""

    def along(side: int) -> list[slice]:
        size = max(1, round(REGION * side))
        return [slice(start, start + size) for start in (0, round((side - size) / 2), side - size)]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _filled(x: F32, around: F32, region: tuple[slice, slice], deviation: float) -> F32:
    """The region, filled by the blur of what is around it, weighted by how near that is.

    `around` is the blur of all of x; what the region itself gives to that is taken out again. Where nothing is near
    enough, which only sides of one pixel bring about, the picture stays.
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


def _write_moved(copy: U8, x: F32) -> None:
    """Fill a copy with places of 1/32 of the shorter side moved, each by itself, between pixels bilinearly."""
    height, width = x.shape[1:]
    (rows, down_all), (columns, right_all) = _kept_if_small(_places, max(height, width))(height, width)

    def moved(at: tuple[slice, slice]) -> F32:
        y, z, down, right = rows[at[1:]], columns[at[1:]], down_all[at[1:]], right_all[at[1:]]
        below, beside = np.minimum(y + 1, height - 1), np.minimum(z + 1, width - 1)
        upper = (1 - right) * x[:, y, z] + right * x[:, y, beside]
        lower = (1 - right) * x[:, below, z] + right * x[:, below, beside]
        between: F32 = (1 - down) * upper + down * lower
        return between

    _write(copy, moved)


@lru_cache(4)
def _places(height: int, width: int) -> tuple[tuple[npt.NDArray[np.intp], F32], tuple[npt.NDArray[np.intp], F32]]:
    """Where each pixel of the moved picture is taken from: rows and columns, (H, W) whole and what is beyond.

    Always the same for a size, so that a picture's score is always the same.
    """
    unit = min(height, width) / UNIT
    rows, columns = (np.arange(n) // max(unit, 1.0) for n in (height, width))
    cells = int(rows[-1]) + 1, int(columns[-1]) + 1
    by = np.random.default_rng(SEED).uniform(-MOVED * unit, MOVED * unit, (2, *cells))
    by = by[:, rows.astype(np.intp)[:, None], columns.astype(np.intp)]
    out = []
    for offset, at, side in zip(by, np.ogrid[:height, :width], (height, width), strict=True):
        place = np.clip(at + offset, 0, side - 1)
        whole = np.floor(place).astype(np.intp)
        out.append((whole, (place - whole).astype(np.float32)))
    return out[0], out[1]


def _blur(x: F32, deviation: float, of: tuple[int, ...], start: tuple[int, int] = (0, 0)) -> F32:
    """Gaussian blur of (..., h, w), a cut at `start` from a picture of the size `of` that is 0 elsewhere; of the same
    cut. At its ends the picture is mirrored, the last pixel twice."""
    return _along(_along(x, deviation, of[0], start[0], -2), deviation, of[1], start[1], -1)


def _along(x: F32, deviation: float, side: int, start: int, axis: int) -> F32:
    """`_blur` along one axis, in blocks: a matrix for all of a long line would fill the memory."""
    length, reach = x.shape[axis], _reach(deviation)
    out = np.empty(x.shape, np.float32)
    for a in range(0, length, BLOCK):
        low, high = max(0, a - reach), min(length, a + BLOCK + reach)
        at = (start + a, start + min(length, a + BLOCK), start + low, start + high)
        matrix = _kept_if_small(_matrix, side)(side, deviation, *at)
        if axis == -2:
            out[..., a : a + BLOCK, :] = matrix @ x[..., low:high, :]
        else:
            out[..., a : a + BLOCK] = x[..., low:high] @ matrix.T
    return out


def _kept_if_small(function: Any, side: int) -> Any:
    """A function with a cache; without it for sides whose results would fill the memory."""
    return function if side <= BLOCK else function.__wrapped__


def _reach(deviation: float) -> int:
    return max(1, round(4 * deviation))


@lru_cache(64)
def _matrix(side: int, deviation: float, first: int, last: int, low: int, high: int) -> F32:
    """The rows `first` to `last` and columns `low` to `high` of the blur of a line of `side` pixels as a matrix."""
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

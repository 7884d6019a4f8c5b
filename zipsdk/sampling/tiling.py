"""How pictures of any size meet an engine that has its own: tiles, windows, padding.

The loop's state lives in picture space: noise, transforms and ids belong to pictures. Only the UNet sees canvases, so a
layout is no more than a wrapper around the engine, from (x_t, t) in picture space to eps in picture space:

- direct: the engine takes the (padded) picture as it is;
- tiled: pictures smaller than the canvas share one, in arrival order, row by row (paper 3.4.2);
- windows: larger pictures are cut into overlapping windows whose eps are blended with weights that fall towards the
  window's border. All windows read and write one state, so they agree in their overlaps at every step: no seams. Where
  an engine takes several sizes, windows are no longer than the picture along its short side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_whole
from zipsdk.errors import InputError
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.noise import MAX_SIDE

F32 = npt.NDArray[np.float32]

#: Canvas pixels that one engine call gets at most: 64 canvases of 64x64. It bounds memory, not results.
MAX_PIXELS_A_CALL = 1 << 18


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Where pictures of one size go.

    Attributes:
        height, width: the state's size in picture space: the picture, padded to what transforms and engine divide and
            to one window at least.
        canvas_height, canvas_width: what the engine sees.
        rows, columns: tiles on a canvas; 1 and 1 otherwise.
        ys, xs: the windows' top and left corners; a single 0 each where one canvas holds the picture.
        overlap: between neighbouring windows, in pixels; less by up to what transforms and engine divide, because most
            corners lie at multiples of that.
    """

    height: int
    width: int
    canvas_height: int
    canvas_width: int
    rows: int = 1
    columns: int = 1
    ys: tuple[int, ...] = (0,)
    xs: tuple[int, ...] = (0,)
    overlap: int = 0

    @property
    def pictures_per_canvas(self) -> int:
        return self.rows * self.columns

    @property
    def windows(self) -> int:
        return len(self.ys) * len(self.xs)

    def canvas_pixels(self, pictures: int) -> int:
        """Pixels that the engine evaluates for `pictures` of them."""
        canvases = -(-pictures // self.pictures_per_canvas) * self.windows
        return canvases * self.canvas_height * self.canvas_width

    @property
    def pictures_per_call(self) -> int:
        """How many pictures to put through the loop together."""
        canvases = max(1, MAX_PIXELS_A_CALL // (self.canvas_height * self.canvas_width * self.windows))
        return canvases * self.pictures_per_canvas


def plan(spec: ModelSpec, height: int, width: int, divisor: int, canvas: int | None = None) -> Layout:
    """The layout for pictures of height x width.

    Args:
        divisor: the transforms' divisor.
        canvas: a canvas side to use in place of the engine's own choice (engines that take several sizes only).

    Raises:
        InputError: the engine does not take that canvas, the transforms' cells do not fit into it, or the picture has
            more rows or columns than `zipsdk.sampling.noise` tells apart.
    """
    if canvas is not None and (
        not is_whole(canvas) or canvas % spec.multiple or not spec.min_side <= canvas <= spec.max_side
    ):
        sides = f"{spec.min_side}..{spec.max_side}" if spec.flexible else str(spec.canvas)
        raise InputError(f"canvas: got {canvas!r}, wanted a multiple of {spec.multiple} in {sides} for {spec.name}")
    unit = lcm(spec.multiple, divisor)
    h, w = (max(round_up(n, unit), round_up(spec.min_side, unit)) for n in (height, width))
    free = canvas is None and spec.flexible
    if free and max(h, w) <= spec.max_side:
        return Layout(h, w, h, w)
    side = canvas or (spec.max_side // unit * unit if free else spec.canvas)
    if side < spec.min_side or side % divisor:
        sides = f"any side of {spec.min_side}..{spec.max_side} that {spec.name} takes"
        raise InputError(
            f"transforms: their cells of {divisor} pixels do not divide {sides if free else f'the canvas of {side}'}; "
            "choose a blur that does"
        )
    if max(height, width) > (most := MAX_SIDE // divisor * divisor):
        raise InputError(f"picture: got {width} x {height} pixels, wanted sides of at most {most}: cut it into parts")
    # a quarter: wide enough for the UNet's sharpest features to settle, at 1.3 to 1.8 times the evaluations
    overlap = side // 4
    # no larger than it takes to cover a side with as many, a short side with one: no window need be square
    tall, wide = (_window(n, side, overlap, unit, spec.min_side) for n in (h, w)) if free else (side, side)
    h, w = round_up(height, divisor), round_up(width, divisor)
    if max(h, w) <= side:
        return Layout(h, w, side, side, rows=side // h, columns=side // w)
    # padded here and not by the predictor: noise that is mirrored over and over is nothing that the UNet knows
    h, w = max(h, tall), max(w, wide)
    if side % unit or unit > overlap:  # corners that far apart would leave gaps
        unit = 1
    return Layout(h, w, tall, wide, ys=_corners(h, tall, overlap, unit), xs=_corners(w, wide, overlap, unit),
                  overlap=overlap)  # fmt: skip


def _window(length: int, most: int, overlap: int, unit: int, least: int) -> int:
    """The smallest side for as many windows as windows of `most` are needed to cover `length`; a multiple of `unit`."""
    if length <= most:
        return length
    n = -(-(length - overlap) // (most - overlap))
    return min(most, round_up(max(least, -(-(length + (n - 1) * overlap) // n)), unit))


def _corners(length: int, side: int, overlap: int, unit: int) -> tuple[int, ...]:
    """Evenly spread corners of windows that cover `length`, at multiples of `unit` but for the last."""
    if length <= side:
        return (0,)
    n = -(-(length - overlap) // (side - overlap))
    last = length - side
    return (*(min(last, round(i * last / (n - 1) / unit) * unit) for i in range(n - 1)), last)


def ramp(length: int, corners: tuple[int, ...], side: int, overlap: int) -> list[F32]:
    """For each window its weights along one axis, float32 (side,), summing to 1 over the windows at every pixel."""
    raw = []
    for corner in corners:
        i = np.arange(side)
        up = (i + 1) / (overlap + 1) if corner else np.ones(side)
        down = (side - i) / (overlap + 1) if corner + side < length else np.ones(side)
        raw.append(np.minimum(1.0, np.minimum(up, down)))
    total = np.zeros(length)
    for corner, weight in zip(corners, raw, strict=True):
        total[corner : corner + side] += weight
    return [
        (weight / total[corner : corner + side]).astype(np.float32) for corner, weight in zip(corners, raw, strict=True)
    ]

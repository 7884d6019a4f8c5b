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

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_whole
from zipsdk.errors import EngineError, InputError
from zipsdk.models.spec import ModelSpec
from zipsdk.noise import MAX_SIDE
from zipsdk.state import pad, to_pictures, to_state

__all__ = ["MAX_PIXELS_A_CALL", "Engine", "Layout", "Predictor", "pad", "plan", "round_up", "to_pictures", "to_state"]

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

#: Canvas pixels that one engine call gets at most: 64 canvases of 64x64. It bounds memory, not results.
MAX_PIXELS_A_CALL = 1 << 18


@runtime_checkable
class Engine(Protocol):
    """A noise predictor. Any object with these two members can be passed to `zipsdk.Purifier`."""

    @property
    def spec(self) -> ModelSpec:
        """What the model says of itself."""

    def __call__(self, x: F32, t: F32) -> F32:
        """eps for x_t: x float32 (N, 3, H, W), t float32 (N,) of whole numbers -> float32 like x."""


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
            more rows or columns than `zipsdk.noise` tells apart.
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


def _ramp(length: int, corners: tuple[int, ...], side: int, overlap: int) -> list[F32]:
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


class Predictor:
    """eps in picture space: ``Predictor(engine, layout)(x_t (N, 3, height, width), t)``."""

    def __init__(self, engine: Engine, layout: Layout):
        self._engine, self._layout = engine, layout
        if layout.windows > 1:
            size = (layout.canvas_height, layout.canvas_width)
            ramps = (
                _ramp(n, corners, side, layout.overlap)
                for n, corners, side in zip((layout.height, layout.width), (layout.ys, layout.xs), size, strict=True)
            )
            self._wy, self._wx = ramps

    def __call__(self, x: F32, t: int) -> F32:
        layout = self._layout
        if layout.windows > 1:
            out = np.empty_like(x)
            for top, bottom, eps in self.strips(x, t, 1):
                out[:, :, top:bottom] = eps
            return out
        if (layout.height, layout.width) == (layout.canvas_height, layout.canvas_width):
            return self._engine_call(x, t)
        return self._tiled(x, t)

    def strips(self, x: F32, t: int, unit: int) -> Iterator[tuple[int, int, F32]]:
        """Predict eps from top to bottom, in strips as high as the windows allow.

        Args:
            unit: strips begin and end at multiples of this many rows.

        Yields:
            First row, row after the last, and their eps: float32 (N, 3, rows, width), valid until the next strip. The
            caller may change these rows of x in the meantime: later windows read only the rows below.
        """
        if self._layout.windows > 1:
            yield from self._windows(x, t, unit)
        else:
            yield 0, x.shape[2], self(x, t)

    def _engine_call(self, x: F32, t: int) -> F32:
        x = np.ascontiguousarray(x)
        calls = max(1, MAX_PIXELS_A_CALL // (x.shape[2] * x.shape[3]))
        parts = []
        for i in range(0, len(x), calls):
            part = x[i : i + calls]
            eps = self._engine(part, np.full(len(part), t, np.float32))
            if not isinstance(eps, np.ndarray) or eps.shape != part.shape or eps.dtype != np.float32:
                got = f"{eps.dtype} {eps.shape}" if isinstance(eps, np.ndarray) else type(eps).__name__
                raise EngineError(f"engine: got {got} at t = {t}, wanted eps as a float32 array {part.shape}")
            parts.append(eps)
        eps = parts[0] if len(parts) == 1 else np.concatenate(parts)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            finite = np.isfinite(eps.sum(dtype=np.float64))
        if not finite:
            raise EngineError(f"engine: eps is not finite at t = {t}; the model overflows: use its fp32 or bf16 export")
        # the loop changes x in place, so an engine that hands its input back must not be changed with it
        return eps.copy() if np.may_share_memory(eps, x) else eps

    def _tiled(self, x: F32, t: int) -> F32:
        """Pictures row by row on canvases. Places left over on the last canvas repeat its pictures, and pixels that no
        tile covers mirror the tiles, so that the UNet sees nothing foreign; both are dropped by index."""
        a = self._layout
        k, per = len(x), a.pictures_per_canvas
        canvases = -(-k // per)
        first = (canvases - 1) * per
        index = np.arange(canvases * per)
        index[k:] = first + (index[k:] - first) % (k - first)
        tiles = x[index].reshape(canvases, a.rows, a.columns, 3, a.height, a.width)
        grid = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(canvases, 3, a.rows * a.height, a.columns * a.width)
        gap = (a.canvas_height - grid.shape[2], a.canvas_width - grid.shape[3])
        canvas = np.pad(grid, ((0, 0), (0, 0), (0, gap[0]), (0, gap[1])), mode="reflect") if any(gap) else grid
        eps = self._engine_call(canvas, t)[:, :, : grid.shape[2], : grid.shape[3]]
        eps = eps.reshape(canvases, 3, a.rows, a.height, a.columns, a.width).transpose(0, 2, 4, 1, 3, 5)
        return eps.reshape(canvases * per, 3, a.height, a.width)[:k]

    def _windows(self, x: F32, t: int, unit: int) -> Iterator[tuple[int, int, F32]]:
        a = self._layout
        n, _, height, width = x.shape
        places = [(y, x_, wy, wx) for y, wy in zip(a.ys, self._wy, strict=True)
                  for x_, wx in zip(a.xs, self._wx, strict=True)]  # fmt: skip
        calls = max(1, MAX_PIXELS_A_CALL // (n * a.canvas_height * a.canvas_width))
        groups = [places[i : i + calls] for i in range(0, len(places), calls)]
        # eps is complete above the first row of the next group's windows
        ends = [*(group[0][0] // unit * unit for group in groups[1:]), height]
        bottoms = [group[-1][0] + a.canvas_height for group in groups]
        # rows top..top+len of the sum over windows: those that are not complete yet
        top, held = 0, max(b - e for b, e in zip(bottoms, [0, *ends[:-1]], strict=True))
        total = np.zeros((n, 3, held, width), x.dtype)
        for group, end in zip(groups, ends, strict=True):
            cut = np.concatenate([x[:, :, y : y + a.canvas_height, x_ : x_ + a.canvas_width]
                                  for y, x_, _, _ in group])  # fmt: skip
            eps = self._engine_call(cut, t)
            for j, (y, x_, wy, wx) in enumerate(group):
                window = total[:, :, y - top : y - top + a.canvas_height, x_ : x_ + a.canvas_width]
                window += eps[j * n : (j + 1) * n] * (wy[:, None] * wx[None, :])
            if end > top:
                yield top, end, total[:, :, : end - top]
                left = held - (end - top)
                total[:, :, :left] = total[:, :, end - top :].copy()
                total[:, :, left:] = 0
                top = end

"""Run an engine on images of any size: the layouts of `zipsdk.sampling.tiling`, applied to the state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from zipsdk.errors import EngineError
from zipsdk.sampling import tiling
from zipsdk.sampling.tiling import Layout, ramp
from zipsdk.types import Engine

F32 = npt.NDArray[np.float32]


class Predictor:
    """eps in picture space: ``Predictor(engine, layout)(x_t (N, 3, height, width), t)``."""

    def __init__(self, engine: Engine, layout: Layout):
        self._engine, self._layout = engine, layout
        if layout.windows > 1:
            size = (layout.canvas_height, layout.canvas_width)
            ramps = (
                ramp(n, corners, side, layout.overlap)
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
        calls = max(1, tiling.MAX_PIXELS_A_CALL // (x.shape[2] * x.shape[3]))
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
        calls = max(1, tiling.MAX_PIXELS_A_CALL // (n * a.canvas_height * a.canvas_width))
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

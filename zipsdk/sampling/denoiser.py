"""Run an engine on images of any size: apply a `zipsdk.sampling.tiling.TileLayout` to the state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zipsdk.errors import EngineError
from zipsdk.profiling import stage
from zipsdk.sampling import tiling
from zipsdk.sampling.tiling import TileLayout, ramp
from zipsdk.types import F32, Engine


class TiledDenoiser:
    """Predict eps for whole images: ``TiledDenoiser(engine, layout)(x_t (N, 3, height, width), t)``."""

    def __init__(self, engine: Engine, layout: TileLayout):
        self._engine, self._layout = engine, layout
        if layout.windows > 1:
            self._row_weights = ramp(layout.height, layout.ys, layout.frame_height, layout.overlap)
            self._column_weights = ramp(layout.width, layout.xs, layout.frame_width, layout.overlap)

    @stage("tile")
    def __call__(self, x: F32, t: int) -> F32:
        """Predict eps for x_t: float32 (N, 3, height, width) in and out.

        Raises:
            EngineError: the engine returns anything but finite float32 values of its input's shape.
        """
        layout = self._layout
        if layout.windows > 1:
            out = np.empty_like(x)
            for top, bottom, eps in self.strips(x, t, 1):
                out[:, :, top:bottom] = eps
            return out
        if (layout.height, layout.width) == (layout.frame_height, layout.frame_width):
            return self._call_engine(x, t)
        return self._tiled(x, t)

    def strips(self, x: F32, t: int, unit: int) -> Iterator[tuple[int, int, F32]]:
        """Predict eps from top to bottom, in strips as high as the windows allow.

        Args:
            x: x_t, float32 (N, 3, height, width).
            t: time step.
            unit: strips begin and end at multiples of this many rows.

        Yields:
            First row, row after the last, and their eps: float32 (N, 3, rows, width), valid until the next strip. The
            caller may change these rows of x before the next strip: later windows read only the rows below.
        """
        if self._layout.windows > 1:
            yield from self._windowed(x, t, unit)
        else:
            yield 0, x.shape[2], self(x, t)

    @stage("UNet")
    def _predict(self, frames: F32, t: F32) -> F32:
        return self._engine(frames, t)

    def _call_engine(self, frames: F32, t: int) -> F32:
        """Predict eps for frames, in batches of at most `tiling.MAX_PIXELS_A_CALL`, and check the result."""
        frames = np.ascontiguousarray(frames)
        size = max(1, tiling.MAX_PIXELS_A_CALL // (frames.shape[2] * frames.shape[3]))
        results = []
        for i in range(0, len(frames), size):
            batch = frames[i : i + size]
            eps = self._predict(batch, np.full(len(batch), t, np.float32))
            if not isinstance(eps, np.ndarray) or eps.shape != batch.shape or eps.dtype != np.float32:
                got = f"{eps.dtype} {eps.shape}" if isinstance(eps, np.ndarray) else type(eps).__name__
                raise EngineError(f"engine: got {got} at t = {t}, expected eps as a float32 array {batch.shape}")
            results.append(eps)
        eps = results[0] if len(results) == 1 else np.concatenate(results)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            finite = np.isfinite(eps.sum(dtype=np.float64))
        if not finite:
            raise EngineError(f"engine: eps is not finite at t = {t}; the model overflows: use its fp32 or bf16 export")
        # the loop overwrites x, so an engine that returns its input needs a copy
        return eps.copy() if np.may_share_memory(eps, frames) else eps

    def _tiled(self, x: F32, t: int) -> F32:
        """Predict eps of images that share frames, row by row.

        Free places of the last frame repeat its images, and pixels that no tile covers mirror the tiles, so that the
        UNet sees nothing but images. Both are dropped from the result.
        """
        layout = self._layout
        n, frames, per_frame = len(x), layout.frames(len(x)), layout.images_per_frame
        rows, columns, height, width = layout.rows, layout.columns, layout.height, layout.width
        first = (frames - 1) * per_frame
        index = np.arange(frames * per_frame)
        index[n:] = first + (index[n:] - first) % (n - first)
        tiles = x[index].reshape(frames, rows, columns, 3, height, width)
        grid = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(frames, 3, rows * height, columns * width)
        gap = (layout.frame_height - grid.shape[2], layout.frame_width - grid.shape[3])
        filled = np.pad(grid, ((0, 0), (0, 0), (0, gap[0]), (0, gap[1])), mode="reflect") if any(gap) else grid
        eps = self._call_engine(filled, t)[:, :, : grid.shape[2], : grid.shape[3]]
        eps = eps.reshape(frames, 3, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
        return eps.reshape(frames * per_frame, 3, height, width)[:n]

    def _windowed(self, x: F32, t: int, unit: int) -> Iterator[tuple[int, int, F32]]:
        layout = self._layout
        n, _, height, width = x.shape
        windows = [
            (y, left, wy, wx)
            for y, wy in zip(layout.ys, self._row_weights, strict=True)
            for left, wx in zip(layout.xs, self._column_weights, strict=True)
        ]
        size = max(1, tiling.MAX_PIXELS_A_CALL // (n * layout.frame_pixels))
        groups = [windows[i : i + size] for i in range(0, len(windows), size)]
        # eps is complete above the first row of the next group's windows
        ends = [*(group[0][0] // unit * unit for group in groups[1:]), height]
        bottoms = [group[-1][0] + layout.frame_height for group in groups]
        # `total` holds the rows from `top` on of the sum over windows that are not complete yet
        top, held = 0, max(b - e for b, e in zip(bottoms, [0, *ends[:-1]], strict=True))
        total = np.zeros((n, 3, held, width), x.dtype)
        for group, end in zip(groups, ends, strict=True):
            frames = [x[:, :, y : y + layout.frame_height, left : left + layout.frame_width] for y, left, *_ in group]
            eps = self._call_engine(np.concatenate(frames), t)
            for j, (y, left, wy, wx) in enumerate(group):
                window = total[:, :, y - top : y - top + layout.frame_height, left : left + layout.frame_width]
                window += eps[j * n : (j + 1) * n] * (wy[:, None] * wx[None, :])
            if end > top:
                yield top, end, total[:, :, : end - top]
                rest = held - (end - top)
                total[:, :, :rest] = total[:, :, end - top :].copy()
                total[:, :, rest:] = 0
                top = end

"""Purify any number of images of one size on a GPU, in as many batches as its memory needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zipsdk.errors import OutOfMemoryError
from zipsdk.gpu.buffers import PendingBatch
from zipsdk.sampling.tiling import TileLayout
from zipsdk.types import U8, U64

if TYPE_CHECKING:
    from zipsdk.gpu.loop import DeviceLoop


#: Batches of one run that are on the GPU together: while one computes, the next one uploads.
MAX_IN_FLIGHT = 2


class DeviceRun:
    """Run a `DeviceLoop` over images of one size. The constructor submits the first batch.

    Args:
        loop: provides the engine and the buffers.
        rgb: uint8 (N, H, W, 3).
        layout: for this size; one window.
        noise_keys: (N,), the noise keys of the images.
        guide_index: (N,) or one number, the guide of each image.
        seed: of the noise.
        progress: called with the number of images done since the last call.
    """

    def __init__(
        self,
        loop: DeviceLoop,
        rgb: U8,
        layout: TileLayout,
        noise_keys: U64,
        guide_index: npt.ArrayLike,
        seed: int,
        progress: Callable[[int], None],
    ):
        self._loop, self._rgb, self._layout, self._noise_keys, self._seed = loop, rgb, layout, noise_keys, seed
        self._guide_index = np.broadcast_to(np.asarray(guide_index, np.uint32), len(rgb))
        self._progress = progress
        self._next = 0  # the first image that is not submitted yet
        self._in_flight: deque[tuple[slice, PendingBatch]] = deque()
        self._out = np.empty_like(rgb)
        if len(rgb):
            with loop.device.lock, suppress(OutOfMemoryError):  # `result` tries again
                self._submit(self._next_part())

    def result(self) -> U8:
        """Wait for all batches and return the images, uint8 (N, H, W, 3). After an error no batch stays in flight.

        Raises:
            OutOfMemoryError: not even one frame fits.
            EngineError: the engine fails, or its result is not finite.
        """
        try:
            while self._next < len(self._rgb) or self._in_flight:
                if self._next < len(self._rgb) and len(self._in_flight) < MAX_IN_FLIGHT:
                    self._submit_or_halve()
                else:
                    part, batch = self._in_flight.popleft()
                    self._out[part] = self._loop.collect(batch)
                    self._progress(part.stop - part.start)
        finally:
            self.cancel()
        return self._out

    def cancel(self) -> None:
        """Wait for the batches in flight and drop them; do not call `result` afterwards."""
        while self._in_flight:
            _, batch = self._in_flight.popleft()
            with suppress(Exception):
                self._loop.collect(batch)

    def _submit_or_halve(self) -> None:
        """Submit the next batch. If it does not fit, halve the limit: the next call submits fewer images."""
        with self._loop.device.lock:  # no other thread may lower the limit between cut and submission
            part = self._next_part()
            try:
                self._submit(part)
            except OutOfMemoryError as e:
                frames = -(-(part.stop - part.start) // self._layout.images_per_frame)
                self._loop.halve_limit(self._layout, frames, e)

    def _next_part(self) -> slice:
        most = self._loop.frames(self._layout) * self._layout.images_per_frame
        return slice(self._next, min(self._next + most, len(self._rgb)))

    def _submit(self, part: slice) -> None:
        batch = self._loop.submit(
            self._rgb[part], self._layout, self._noise_keys[part], self._guide_index[part], self._seed
        )
        self._in_flight.append((part, batch))
        self._next = part.stop

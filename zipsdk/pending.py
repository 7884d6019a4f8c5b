"""Start batches, and collect their results later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zipsdk.sampling.cpu_loop import CpuLoop
from zipsdk.sampling.tiling import TileLayout
from zipsdk.types import U8, U64


class PendingResult(Protocol):
    """A batch that has started."""

    def result(self) -> Any:
        """Wait for the result, or compute it. Raises what the computation raises."""

    def cancel(self) -> None:
        """Drop the result; nothing stays in flight. Does not raise."""


@dataclass(frozen=True)
class SizeGroup:
    """Hold the images of one size of a call, and what their loop needs.

    Attributes:
        places: indices of the images in the call.
        images: each uint8 (H, W, 3), at least one.
        layout: for this size.
        noise_keys: (N,), one for each image.
        guide_index: (N,), the guide of each image.
        seed: of the noise.
        progress: called with the number of images done since the last call.
    """

    places: Sequence[int]
    images: Sequence[U8] = field(repr=False)
    layout: TileLayout
    noise_keys: U64
    guide_index: npt.NDArray[np.intp]
    seed: int
    progress: Callable[[int], None]


class CpuBatch:
    """A group on the CPU, computed when its result is requested."""

    def __init__(self, loop: CpuLoop, group: SizeGroup):
        self._loop, self._group = loop, group

    def result(self) -> list[U8]:
        """Purify the images."""
        group = self._group
        return self._loop.run(
            group.images, group.layout, group.noise_keys, group.guide_index, group.seed, group.progress
        )

    def cancel(self) -> None:
        """Do nothing: no work has started."""


class PendingRun:
    """The groups of one call, in order. Two are in flight: on a GPU, one uploads while the other computes.

    Args:
        groups: together they have every image of the call.
        start: start a group.
        restore: convert the purified images, in the order of the call, to what the caller gets.
    """

    def __init__(
        self,
        groups: Iterable[SizeGroup],
        start: Callable[[SizeGroup], PendingResult],
        restore: Callable[[list[U8]], Any],
    ):
        self._groups, self._start, self._restore = deque(groups), start, restore
        self._in_flight: deque[tuple[SizeGroup, PendingResult]] = deque()
        self._fill()

    def _fill(self) -> None:
        try:
            while self._groups and len(self._in_flight) < 2:
                group = self._groups.popleft()
                self._in_flight.append((group, self._start(group)))
        except BaseException:
            self.cancel()
            raise

    def result(self) -> Any:
        """Return all images of the call. An error cancels the other groups."""
        images: dict[int, U8] = {}
        try:
            while self._in_flight:
                group, batch = self._in_flight.popleft()
                images.update(zip(group.places, batch.result(), strict=True))
                self._fill()
        except BaseException:
            self.cancel()
            raise
        return self._restore([images[i] for i in range(len(images))])

    def cancel(self) -> None:
        """Drop the groups that are left."""
        self._groups.clear()
        while self._in_flight:
            _, batch = self._in_flight.popleft()
            batch.cancel()

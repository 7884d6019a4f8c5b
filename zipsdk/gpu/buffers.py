"""Allocate the memory of the loop once for each image size, and keep it while there is room."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util import forks
from zipsdk.gpu import structs
from zipsdk.gpu.device import Device, Graph
from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.tiling import TileLayout, round_up
from zipsdk.types import U8, Array

#: Maximum of frame pixels in one batch: 8 frames of 256x256, 512 of 32x32. Larger batches are hardly faster for each
#: image, and the activations of a big UNet grow with them.
MAX_PIXELS_A_BATCH = 1 << 19
#: Image sizes, times batch sizes by powers of two, whose buffers are kept.
MAX_SIZES = 4
#: Bytes for the flag of `zip_egress`; a multiple of 16 keeps the pixels after it aligned.
FLAG_SIZE = 16

_ALIGN = 256  # alignment of cudaMalloc; TensorRT needs it of every address


@dataclass
class StagingBuffer:
    """Memory for the upload and the download of one batch: its header, the flag of `zip_egress`, its pixels.

    Attributes:
        host: pinned memory.
        device: address of as many bytes of device memory.
        uploaded, computed, downloaded: events of the batch that uses the buffer.
    """

    host: U8
    device: int
    uploaded: Any
    computed: Any
    downloaded: Any


@dataclass(eq=False)
class PendingBatch:
    """A submitted batch. `result` is None while it is on the GPU, then its images or the error to raise."""

    buffers: Buffers
    staging: StagingBuffer
    images: int
    result: U8 | Exception | None = None


class WarmUp(Enum):
    """Progress of the steps for one number of frames toward a CUDA graph."""

    COLD = auto()  # not run yet, or the last run failed
    WARM = auto()  # run uncaptured with the context
    CAPTURED = auto()  # replayed as a graph


@dataclass
class StepGraph:
    """The steps for one number of frames.

    Attributes:
        state: cold, warm or captured.
        context: returned by `DeviceEngine.prepare`; it must outlive the graph.
        graph: of all steps, once captured.
    """

    state: WarmUp = WarmUp.COLD
    context: object = None
    graph: Graph | None = None

    def reset(self) -> None:
        """Return to the cold state. The graph must not be running."""
        if self.graph is not None:
            self.graph.close()
        self.state, self.context, self.graph = WarmUp.COLD, None, None


@dataclass
class Buffers:
    """Device memory for images of one size; see `BufferPool.acquire`.

    Attributes:
        layout, height, width: of the images.
        frames: maximum in one batch.
        x, x_p, eps: addresses of the arrays on frames; see kernels/zip.h.
        t: address of the time steps; those of step k begin `t_stride` * k bytes further.
        step_table, warm_start_table: addresses of ZipStep rows, one for each frame (and step).
        batch_header: address of `header_size` bytes: ZipBatch, then a ZipImage for each image.
        staging: buffers that no batch uses.
        memory: every address to free.
        pending: batches on the GPU, oldest first.
        step_graphs: by number of frames, most recently used last.
    """

    layout: TileLayout
    height: int
    width: int
    frames: int
    x: int
    x_p: int
    eps: int
    t: int
    t_stride: int
    step_table: int
    warm_start_table: int
    batch_header: int
    header_size: int
    memory: list[int]
    staging: list[StagingBuffer] = field(default_factory=list)
    pending: list[PendingBatch] = field(default_factory=list)
    step_graphs: dict[int, StepGraph] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """Maximum of images in one batch."""
        return self.frames * self.layout.images_per_frame

    @property
    def staging_size(self) -> int:
        """Bytes of a staging buffer."""
        return self.header_size + FLAG_SIZE + self.capacity * self.height * self.width * 3


class BufferPool:
    """The buffers of one loop, at most `MAX_SIZES`, and its guide tables.

    All methods except `frames` need the device's lock and its active context.

    Args:
        engine: with a `device`.
        table, clip_x0: as for the loop.
        guides: the tables of guides and of their joint projectors, GUIDE.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        device: Device,
        table: StepTable,
        guides: tuple[npt.NDArray[np.void], ...],
        *,
        clip_x0: bool,
    ):
        self._engine, self._device, self._table, self._guides, self._clip = engine, device, table, guides, clip_x0
        self.guide_tables: list[int] = []  # addresses, from the first batch on
        self.sizes: dict[tuple[int, int, int], Buffers] = {}
        self.limit: int | None = None  # frame pixels in one batch, after memory ran out
        self.forked = False  # in a child, which cannot use or free the buffers
        forks.track(self)
        weakref.finalize(self, device.free_later, partial(_free_all, device, self.sizes, self.guide_tables))

    def after_fork(self) -> None:
        """Keep pinned memory and events, whose destructors would call into CUDA."""
        forks.keep_forever(self.sizes)
        self.forked = True

    def frames(self, layout: TileLayout) -> int:
        """Return the maximum of frames in one batch; it is lower after memory ran out."""
        pixels = MAX_PIXELS_A_BATCH if self.limit is None else min(MAX_PIXELS_A_BATCH, self.limit)
        most = max(1, pixels // (layout.frame_height * layout.frame_width))
        return most if self._engine.max_batch is None else min(most, self._engine.max_batch)

    def acquire(self, layout: TileLayout, height: int, width: int, frames: int) -> Buffers:
        """Return buffers for images of this size on `frames` frames, or the maximum of one batch if that is less.

        Raises:
            OutOfMemoryError: there is no room.
        """
        for rows in self._guides[len(self.guide_tables) :]:
            self.guide_tables.append(self._constant(rows))
        # powers of two: a single image does not pay for the largest batch, and few sizes exist
        room = min(self.frames(layout), 1 << (frames - 1).bit_length())
        key = (height, width, room)
        if key in self.sizes:
            self.sizes[key] = self.sizes.pop(key)  # the most recently used is last
            return self.sizes[key]
        idle = [k for k, b in self.sizes.items() if not b.pending]
        for old in idle[: max(0, len(self.sizes) - MAX_SIZES + 1)]:
            _free(self._device, self.sizes.pop(old))
        memory: list[int] = []
        try:
            self.sizes[key] = self._make(layout, height, width, room, memory)
        except BaseException:
            for address in memory:
                self._device.free(address)
            raise
        return self.sizes[key]

    def staging_buffer(self, size: int, memory: list[int]) -> StagingBuffer:
        """Allocate a staging buffer of `size` bytes and append its device address to `memory`."""
        device = self._device
        # device memory last: after a failure the garbage collector frees everything else
        staging = StagingBuffer(
            host=device.pinned(size),
            uploaded=device.event(),
            computed=device.event(),
            downloaded=device.event(),
            device=device.alloc(size),
        )
        memory.append(staging.device)
        return staging

    def halve(self, layout: TileLayout, frames: int) -> bool:
        """Halve the limit after a batch of `frames` did not fit. Return whether this is the first time."""
        first = self.limit is None
        # in pixels, because a few large frames do not tell how many small ones fit
        half = frames // 2 * layout.frame_height * layout.frame_width
        self.limit = min(half, self.limit or half)  # another thread may have lowered it further
        self.close()
        return first

    def close(self) -> None:
        """Free everything that no pending batch uses."""
        for key, buffers in list(self.sizes.items()):
            if not buffers.pending:
                _free(self._device, self.sizes.pop(key))
        while self.guide_tables and not self.sizes:
            self._device.free(self.guide_tables.pop())

    def _constant(self, rows: Array) -> int:
        address = self._device.alloc(rows.nbytes)
        self._device.upload(address, rows.view(np.uint8), self._device.compute)
        self._device.compute.synchronize()  # `rows` is not pinned
        return address

    def _make(self, layout: TileLayout, height: int, width: int, frames: int, memory: list[int]) -> Buffers:
        self._engine.prepare(frames, layout.frame_height, layout.frame_width)
        elements = frames * 3 * layout.frame_height * layout.frame_width

        def alloc(size: int) -> int:
            memory.append(self._device.alloc(size))
            return memory[-1]

        def constant(rows: Array) -> int:
            memory.append(self._constant(rows))
            return memory[-1]

        def for_each_frame(rows: list[np.void]) -> int:
            return constant(np.repeat(np.array(rows, structs.STEP), frames))

        steps = self._table.steps
        t_stride = round_up(4 * frames, _ALIGN)
        images = frames * layout.images_per_frame
        header_size = round_up(structs.BATCH.itemsize + images * structs.IMAGE.itemsize, _ALIGN)
        buffers = Buffers(
            layout,
            height,
            width,
            frames,
            x=alloc(4 * elements),
            x_p=alloc(elements),
            eps=alloc(4 * elements),
            t=constant(np.repeat(np.array([s.t for s in steps], np.float32), t_stride // 4)),
            t_stride=t_stride,
            step_table=for_each_frame([structs.step_row(s, clip_x0=self._clip) for s in steps]),
            warm_start_table=for_each_frame([structs.warm_row(self._table)]),
            batch_header=alloc(header_size),
            header_size=header_size,
            memory=memory,
        )
        buffers.staging = [self.staging_buffer(buffers.staging_size, memory) for _ in range(2)]
        return buffers


def _free(device: Device, buffers: Buffers) -> None:
    device.compute.synchronize()
    device.copies.synchronize()
    for entry in buffers.step_graphs.values():
        entry.reset()
    for address in buffers.memory:
        device.free(address)
    for staging in buffers.staging:
        # drop pinned memory now, in the active context: a traceback or a batch may still hold the staging buffer
        vars(staging).clear()


def _free_all(device: Device, sizes: dict[tuple[int, int, int], Buffers], guide_tables: list[int]) -> None:
    """Free the memory of a loop that was garbage-collected."""
    for buffers in sizes.values():
        _free(device, buffers)
    for address in guide_tables:
        device.free(address)

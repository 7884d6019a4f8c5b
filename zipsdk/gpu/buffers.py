"""What the loop holds on a GPU: buffers for each size of pictures, allocated once and kept while there is room."""

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
from zipsdk.sampling.tiling import Layout, round_up

U8 = npt.NDArray[np.uint8]

#: Canvas pixels in one batch, at most, and where memory allows: 8 canvases of 256x256, 512 of 32x32. Larger ones are
#: hardly faster a picture, and a big UNet's activations grow with them.
MAX_PIXELS_A_BATCH = 1 << 19
#: Sizes of pictures, and of batches by powers of two, whose buffers are kept.
MAX_SIZES = 4

_ALIGN = 256  # what cudaMalloc aligns to, and what TensorRT wants of each address


@dataclass
class Slot:
    """A batch's pictures on their way: pinned host memory and as much device memory."""

    host: U8
    device: int
    up: Any
    done: Any
    down: Any


@dataclass(eq=False)
class Ticket:
    """A batch that was submitted: on its way while `result` is None, then its pictures, or what went wrong."""

    buffers: Buffers
    slot: Slot
    pictures: int
    result: U8 | Exception | None = None


class WarmUp(Enum):
    """How far the steps for one number of canvases are on their way to a CUDA graph."""

    COLD = auto()  # not run yet, or the last run failed
    WARM = auto()  # run uncaptured with the context
    CAPTURED = auto()  # replayed as a graph


@dataclass
class StepGraph:
    """The steps for one number of canvases.

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
    """What pictures of one size need on the device; see `Pool.get`."""

    layout: Layout
    height: int
    width: int
    canvases: int
    x: int
    x_p: int
    eps: int
    t: int
    t_stride: int
    steps: int
    warm: int
    head: int
    head_size: int
    slots: list[Slot]
    memory: list[int]
    waiting: list[Ticket] = field(default_factory=list)  # on their way, oldest first
    step_graphs: dict[int, StepGraph] = field(default_factory=dict)  # by number of canvases, last used last

    @property
    def capacity(self) -> int:
        """Pictures in one batch, at most."""
        return self.canvases * self.layout.pictures_per_canvas

    @property
    def slot_size(self) -> int:
        # what goes up: the batch, its rows, the flag of egress (zeroed so), the pictures; what comes down: the last two
        return self.head_size + 16 + self.capacity * self.height * self.width * 3


class Pool:
    """The buffers of one loop, at most `MAX_SIZES`, and its tables of guides.

    Called with the device's lock held and its context active, but for `canvases`.

    Args:
        engine: with a `device`.
        table, clip_x0: as for the loop.
        guides: the rows of `guides` and of their joint ones, GUIDE.
    """

    def __init__(
        self, engine: DeviceEngine, device: Device, table: StepTable, guides: tuple[npt.NDArray[np.void], ...], *,
        clip_x0: bool,
    ):  # fmt: skip
        self._engine, self._device, self._table, self._guides, self._clip = engine, device, table, guides, clip_x0
        self.tables: list[int] = []  # the addresses of the guides, from the first batch on
        self.sizes: dict[tuple[int, int, int], Buffers] = {}
        self.limit: int | None = None  # canvas pixels, where memory has shown one
        self.forked = False  # a child has no use of a pool that it inherits
        forks.track(self)
        weakref.finalize(self, device.free_later, partial(_free_all, device, self.sizes, self.tables))

    def after_fork(self) -> None:
        """Keep pinned memory and events, whose destructors would call into CUDA."""
        forks.keep_forever(self.sizes)
        self.forked = True

    def canvases(self, layout: Layout) -> int:
        """How many canvases one batch has at most; less after memory has run out."""
        pixels = MAX_PIXELS_A_BATCH if self.limit is None else min(MAX_PIXELS_A_BATCH, self.limit)
        most = max(1, pixels // (layout.canvas_height * layout.canvas_width))
        return most if self._engine.max_batch is None else min(most, self._engine.max_batch)

    def get(self, layout: Layout, height: int, width: int, canvases: int) -> Buffers:
        """For pictures of this size on at least so many canvases, or as many as one batch has. Raises OutOfMemory."""
        for rows in self._guides[len(self.tables) :]:
            self.tables.append(self._constant(rows))
        # by powers of two, so that neither one picture pays for the largest batch nor each count has its own
        room = min(self.canvases(layout), 1 << (canvases - 1).bit_length())
        key = (height, width, room)
        if key in self.sizes:
            self.sizes[key] = self.sizes.pop(key)  # the last one used is the last one dropped
            return self.sizes[key]
        idle = [k for k, b in self.sizes.items() if not b.waiting]
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

    def slot(self, size: int, memory: list[int]) -> Slot:
        """A slot of so many bytes, whose device memory is then in `memory` too. Raises OutOfMemory."""
        device = self._device
        # what a failure leaves is freed with it, but for `device`, which is taken last
        slot = Slot(host=device.pinned(size), up=device.event(), done=device.event(), down=device.event(),
                    device=device.alloc(size))  # fmt: skip
        memory.append(slot.device)
        return slot

    def halve(self, layout: Layout, canvases: int) -> bool:
        """After a batch of so many canvases did not fit: at most half as many pixels from now on. Whether this is the
        first time."""
        first = self.limit is None
        # in pixels: a few large canvases say little of how many small ones fit
        half = canvases // 2 * layout.canvas_height * layout.canvas_width
        self.limit = min(half, self.limit or half)  # another thread may have been here
        self.close()
        return first

    def close(self) -> None:
        """Free all but what batches on their way use."""
        for key, buffers in list(self.sizes.items()):
            if not buffers.waiting:
                _free(self._device, self.sizes.pop(key))
        while self.tables and not self.sizes:
            self._device.free(self.tables.pop())

    def _constant(self, rows: npt.NDArray[Any]) -> int:
        address = self._device.alloc(rows.nbytes)
        self._device.upload(address, rows.view(np.uint8), self._device.compute)  # not pinned: it is waited for
        self._device.compute.synchronize()
        return address

    def _make(self, layout: Layout, height: int, width: int, canvases: int, memory: list[int]) -> Buffers:
        self._engine.prepare(canvases, layout.canvas_height, layout.canvas_width)
        elements = canvases * 3 * layout.canvas_height * layout.canvas_width

        def alloc(size: int) -> int:
            memory.append(self._device.alloc(size))
            return memory[-1]

        def constant(rows: npt.NDArray[Any]) -> int:
            memory.append(self._constant(rows))
            return memory[-1]

        steps = self._table.steps
        # step k begins at row k * canvases of `steps`: one for each canvas; its t at k * t_stride
        rows = np.repeat(np.array([structs.step_row(s, clip_x0=self._clip) for s in steps], structs.STEP), canvases)
        t_stride = round_up(4 * canvases, _ALIGN)
        t = np.repeat(np.array([s.t for s in steps], np.float32), t_stride // 4)
        warm = np.repeat(np.array([structs.warm_row(self._table)], structs.STEP), canvases)
        head = round_up(
            structs.BATCH.itemsize + canvases * layout.pictures_per_canvas * structs.PICTURE.itemsize, _ALIGN
        )
        buffers = Buffers(
            layout, height, width, canvases, x=alloc(4 * elements), x_p=alloc(elements), eps=alloc(4 * elements),
            t=constant(t), t_stride=t_stride, steps=constant(rows), warm=constant(warm), head=alloc(head),
            head_size=head, slots=[], memory=memory,
        )  # fmt: skip
        buffers.slots = [self.slot(buffers.slot_size, memory) for _ in range(2)]
        return buffers


def _free(device: Device, buffers: Buffers) -> None:
    device.compute.synchronize()
    device.copies.synchronize()
    for entry in buffers.step_graphs.values():
        entry.reset()
    for address in buffers.memory:
        device.free(address)
    for slot in buffers.slots:
        # pinned memory can be freed in here alone; outside, a traceback or a ticket may still hold the slot
        vars(slot).clear()


def _free_all(device: Device, sizes: dict[tuple[int, int, int], Buffers], tables: list[int]) -> None:
    """What a loop that is gone had."""
    for buffers in sizes.values():
        _free(device, buffers)
    for address in tables:
        device.free(address)

"""The loop on a GPU: pictures up once, ingest, 20 x (engine, step) as one captured graph, egress, pictures down once.

What `zipsdk.sampling.sampler.purify` does, on device memory that is allocated once for each size of pictures. Nothing
in the loop allocates or waits. Two streams: one computes, the other copies, so that the next batch goes up and the last
one comes down while this one computes.

    copies    up 0 | up 1 |                   | down 0 | up 2 | ...
    compute        | ingest graph egress of 0 | ingest graph egress of 1 | ...

A batch and its pictures' rows lie in device memory that the graph reads, so one graph serves every batch with as many
canvases.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from zipsdk.errors import EngineError, OutOfMemory
from zipsdk.gpu import structs
from zipsdk.gpu.buffers import Buffers, Pool, Slot, Ticket
from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.gpu.run import DeviceRun
from zipsdk.gpu.steps import StepLauncher
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.tiling import Layout
from zipsdk.transforms import Guide

U8 = npt.NDArray[np.uint8]


def rows_for(guides: Sequence[Guide], *, joint: bool = False) -> npt.NDArray[np.void] | None:
    """The table of guides for the kernels, or None where they cannot do one of them."""
    rows = [structs.guide_row(g, joint=joint) for g in guides]
    return None if any(r is None for r in rows) else np.array(rows, structs.GUIDE)


class DeviceLoop:
    """Purify batches of pictures of one size each, on the engine's GPU.

    Args:
        engine: with a `device`.
        table: `zipsdk.sampling.schedule.step_table`.
        guides: transforms; each picture says which one is its own.
        clip_x0: clamp the estimate of the picture at each step.
        graph: capture the loop into a CUDA graph where the engine can be captured.
    """

    def __init__(
        self, engine: DeviceEngine, table: StepTable, guides: Sequence[Guide], *, clip_x0: bool = False,
        graph: bool = True,
    ):  # fmt: skip
        if engine.device is None:
            raise EngineError("engine: it runs on no GPU; open it with device='cuda'")
        self.device = engine.device
        rows, joint = rows_for(guides), rows_for(guides, joint=True)
        if rows is None or joint is None:
            raise EngineError(f"transforms: {guides}: the kernels know blurs by 2, 4, 8 and 16 and grey alone")
        self.pool = Pool(engine, engine.device, table, (rows, joint), clip_x0=clip_x0)
        self._steps = StepLauncher(engine, engine.device, self.pool, table, cuda_graph=graph)

    @property
    def graph(self) -> bool:
        """Whether the steps run as one captured graph, from the second batch of a size on."""
        return self._steps.cuda_graph

    # ---- what the purifier calls

    def canvases(self, layout: Layout) -> int:
        """How many canvases one batch has at most; less after memory has run out."""
        return self.pool.canvases(layout)

    def run(self, rgb: U8, layout: Layout, ids: npt.NDArray[np.uint64], which: npt.ArrayLike, seed: int) -> U8:
        """Purify any number of pictures of one size.

        Args:
            rgb: uint8 (N, H, W, 3).
            layout: for this size; one window.
            ids: (N,), the pictures' ids.
            which: (N,) or one number, the pictures' guides.
            seed: of the noise.

        Raises:
            OutOfMemory: not even one canvas fits.
            EngineError: the engine fails, or its answer is not finite.
        """
        return self.start(rgb, layout, ids, which, seed).result()

    def start(
        self, rgb: U8, layout: Layout, ids: npt.NDArray[np.uint64], which: npt.ArrayLike, seed: int,
        progress: Callable[[int], None] = lambda n: None,
    ) -> DeviceRun:  # fmt: skip
        """Start `run` and return as soon as its first batch is submitted.

        While one batch computes, the next one uploads; if memory has no room for both, the second waits for the first.
        A batch that does not fit into memory is halved.
        """
        return DeviceRun(self, rgb, layout, ids, which, seed, progress)

    def submit(self, rgb: U8, layout: Layout, ids: npt.NDArray[np.uint64], which: npt.ArrayLike, seed: int) -> Ticket:
        """Start on at most `canvases` full of pictures; returns at once, but where it must wait for memory.

        Raises:
            OutOfMemory: there is no room, with nothing else on its way.
        """
        with self.device.lock, self.device.active():
            # our own buffers may hold what is missing: the idle ones, then those of batches that others come for later
            for make_room in (self.pool.close, self._land):
                try:
                    return self._submit(rgb, layout, ids, which, seed)
                except OutOfMemory:
                    make_room()
            return self._submit(rgb, layout, ids, which, seed)

    def _submit(self, rgb: U8, layout: Layout, ids: npt.NDArray[np.uint64], which: npt.ArrayLike, seed: int) -> Ticket:
        _, height, width, _ = rgb.shape
        buffers = self.pool.get(layout, height, width, -(-len(rgb) // layout.pictures_per_canvas))
        slot = buffers.slots.pop() if buffers.slots else self.pool.slot(buffers.slot_size, buffers.memory)
        try:
            self._start(buffers, slot, rgb, ids, which, seed)
        except BaseException:
            # whatever was put on the streams still uses the slot
            self.device.compute.synchronize()
            self.device.copies.synchronize()
            buffers.slots.append(slot)
            raise
        ticket = Ticket(buffers, slot, len(rgb))
        buffers.waiting.append(ticket)
        return ticket

    def collect(self, ticket: Ticket) -> U8:
        """Wait for a batch; uint8 (N, H, W, 3), a new array.

        Raises:
            EngineError: the result is not finite.
        """
        with self.device.lock, self.device.active():
            result = self._bring_down(ticket) if ticket.result is None else ticket.result
        if isinstance(result, Exception):
            raise result
        return result

    def _bring_down(self, ticket: Ticket) -> U8 | Exception:
        """Wait for a batch that is on its way, keep what came of it for whoever collects it, and give its slot back."""
        b, slot, device = ticket.buffers, ticket.slot, self.device
        size = 16 + ticket.pictures * b.height * b.width * 3
        result: U8 | Exception
        try:
            # asked for now and not when the batch was submitted: the copy stream would have held up the next one
            device.copies.wait_for_event(slot.done)
            part = slot.host[b.head_size : b.head_size + size]
            device.download(part, slot.device + b.head_size, device.copies)
            slot.down.record(device.copies)
            slot.down.synchronize()
            result = part[16:].reshape(ticket.pictures, b.height, b.width, 3).copy()
            if part[:4].any():
                result = EngineError(
                    "engine: the result is not finite; the model overflows: use its fp32 or bf16 export"
                )
        except BaseException as e:
            result = e if isinstance(e, Exception) else EngineError("engine: the wait for a batch was interrupted")
            raise
        finally:
            ticket.result = result
            b.waiting.remove(ticket)
            b.slots.append(slot)
        return result

    def _land(self) -> None:
        """Bring everything down that is on its way, and free all memory."""
        for buffers in self.pool.sizes.values():
            while buffers.waiting:
                with suppress(Exception):  # whoever collects it is told
                    self._bring_down(buffers.waiting[0])
        self.pool.close()

    def halve_limit(self, layout: Layout, canvases: int, error: OutOfMemory) -> None:
        """After `error` with a batch of `canvases`: from now on at most half as many pixels, said once."""
        if canvases <= 1:
            raise OutOfMemory(f"{error}; not even one canvas of {layout.canvas_height}x{layout.canvas_width} fits: "
                              "use a smaller model or a GPU with more memory") from error  # fmt: skip
        with self.device.lock, self.device.active():
            first = self.pool.halve(layout, canvases)
        if first:
            warnings.warn(
                f"{self.device.name}: {canvases} canvases do not fit into its memory; going on with "
                f"{canvases // 2} of {layout.canvas_height}x{layout.canvas_width} at a time, or fewer",
                stacklevel=2,
            )

    def close(self) -> None:
        """Free all memory but what submitted batches use; the next batch takes it again. Nothing in a forked child."""
        if self.pool.forked:
            return
        with self.device.lock, self.device.active():
            self.pool.close()

    # ---- one batch

    def _start(self, b: Buffers, slot: Slot, rgb: U8, ids: npt.NDArray[np.uint64], which: npt.ArrayLike,
               seed: int) -> None:  # fmt: skip
        device, layout, n = self.device, b.layout, len(rgb)
        if not 0 < n <= b.capacity:
            raise EngineError(f"batch: got {n} pictures, wanted 1 to {b.capacity}; give fewer at a time")
        batch, rows = structs.batch_row(n, layout, seed), structs.picture_rows(ids, which)
        slot.host[: b.head_size + 16] = 0
        slot.host[: batch.nbytes] = batch.view(np.uint8)
        slot.host[batch.nbytes : batch.nbytes + rows.nbytes] = rows.view(np.uint8)
        slot.host[b.head_size + 16 : b.head_size + 16 + rgb.size] = rgb.reshape(-1)

        device.upload(slot.device, slot.host[: b.head_size + 16 + rgb.size], device.copies)
        slot.up.record(device.copies)
        device.compute.wait_for_event(slot.up)
        device.copy(b.head, slot.device, b.head_size, device.compute)

        flag, pixels, who = slot.device + b.head_size, slot.device + b.head_size + 16, b.head + batch.nbytes
        row = structs.layout_row(layout, b.height, b.width)
        tile, stream = layout.height * layout.width, device.compute
        device.launch("zip_ingest", -(-n * tile // 4), pixels, b.x_p, b.x, who, row, b.head, stream=stream)
        self._steps.launch(b, -(-n // layout.pictures_per_canvas))
        device.launch("zip_egress", -(-n * tile // 4), b.x, pixels, flag, row, b.head, stream=stream)
        slot.done.record(stream)

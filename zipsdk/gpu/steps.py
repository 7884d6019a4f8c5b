"""Launch the denoising steps of one batch: one by one at first, then as a CUDA graph."""

from __future__ import annotations

import logging

from zipsdk.gpu import structs
from zipsdk.gpu.buffers import BufferPool, Buffers, StepGraph, WarmUp
from zipsdk.gpu.device import Device
from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.sampling.schedule import StepTable

#: Maximum of captured graphs in each `Buffers`, and of warm but uncaptured ones.
MAX_GRAPHS = 8
_log = logging.getLogger(__name__)


class StepLauncher:
    """Launch the steps of a batch on the compute stream. The caller holds the device's lock.

    Args:
        engine: runs on `device`.
        device: has the compute stream.
        pool: has the guide tables.
        table: the steps.
        cuda_graph: capture the steps where the engine can be captured.
    """

    def __init__(self, engine: DeviceEngine, device: Device, pool: BufferPool, table: StepTable, *, cuda_graph: bool):
        self._engine, self._device, self._pool, self._table = engine, device, pool, table
        self._cuda_graph = cuda_graph

    @property
    def cuda_graph(self) -> bool:
        """Whether the steps of a batch run as one captured graph after a warm-up."""
        return self._cuda_graph and self._engine.capturable

    def launch(self, buffers: Buffers, frames: int) -> None:
        """Launch all steps on the first `frames` frames of `buffers`."""
        entry = buffers.step_graphs.pop(frames, None) or StepGraph()
        buffers.step_graphs[frames] = entry  # the most recently used is last
        if self.cuda_graph and entry.graph is not None:
            entry.graph.launch(self._device.compute)
            return
        context = self._engine.prepare(frames, buffers.layout.frame_height, buffers.layout.frame_width)
        # TensorRT needs an uncaptured run of this context before a capture
        warm = entry.state is WarmUp.WARM and entry.context is context
        if warm and self.cuda_graph and self._capture(buffers, frames, entry):
            return
        self._reset(entry)  # if the run fails, the entry stays cold
        self._enqueue(buffers, frames)
        self._limit(buffers, WarmUp.WARM)
        entry.state, entry.context = WarmUp.WARM, context

    def _capture(self, buffers: Buffers, frames: int, entry: StepGraph) -> bool:
        """Capture the steps and launch them. Return False, and capture nothing from now on, if that fails."""
        self._limit(buffers, WarmUp.CAPTURED)
        device = self._device
        try:
            with device.capture(device.compute) as graph:
                self._enqueue(buffers, frames)
        except Exception as e:  # PyCUDA raises its own classes
            self._cuda_graph = False
            _log.warning("%s: capturing the loop failed (%s); it continues step by step", device.name, e)
            return False
        entry.state, entry.graph = WarmUp.CAPTURED, graph
        graph.launch(device.compute)
        return True

    def _limit(self, buffers: Buffers, state: WarmUp) -> None:
        """Make room for one more entry of this state: reset the least recently used one."""
        same = [n for n, entry in buffers.step_graphs.items() if entry.state is state]
        if len(same) >= MAX_GRAPHS:
            self._reset(buffers.step_graphs.pop(same[0]))

    def _reset(self, entry: StepGraph) -> None:
        if entry.graph is not None:
            self._device.compute.synchronize()  # it may be running
        entry.reset()

    def _enqueue(self, buffers: Buffers, frames: int) -> None:
        device, layout, stream = self._device, buffers.layout, self._device.compute
        layout_row = structs.layout_row(layout, buffers.height, buffers.width)
        image_table = buffers.batch_header + structs.BATCH.itemsize
        size = (layout.frame_height, layout.frame_width)
        area = layout.frame_pixels
        covered = layout.images_per_frame * layout.height * layout.width
        # a warp for each 16 x 16 pixels of a tile
        warps = -(-layout.height // 16) * -(-layout.width // 16) * layout.images_per_frame * frames

        def step(e: int, guide_table: int, step_table: int) -> None:
            arrays = (buffers.x, e, buffers.x_p, buffers.x)
            tables = (image_table, guide_table, step_table, layout_row, buffers.batch_header)
            device.launch("zip_step_f32", 32 * warps, *arrays, *tables, stream=stream)

        guides, joint = self._pool.guide_tables
        if self._table.warm:
            step(buffers.x, joint, buffers.warm_start_table)
        for k, _ in enumerate(self._table.steps):
            if layout.images_per_frame > 1 or covered < area:
                device.launch("zip_fill", frames * area, buffers.x, layout_row, buffers.batch_header, stream=stream)
            t = buffers.t + k * buffers.t_stride
            self._engine.enqueue(buffers.x, t, buffers.eps, frames, stream.handle, size=size)
            step(buffers.eps, guides, buffers.step_table + structs.STEP.itemsize * k * buffers.frames)

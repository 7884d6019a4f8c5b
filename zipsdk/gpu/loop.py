"""Run the sampling loop on a GPU: upload, ingest, 20 x (engine, step) as one captured graph, egress, download.

It computes what `zipsdk.sampling.sampler.sample` computes, in device memory that is allocated once for each image size.
The loop neither allocates nor waits. There are two streams, one for kernels and one for copies: while one batch
computes, the next one uploads and the last one downloads.

    copies    up 0 | up 1 |                   | down 0 | up 2 | ...
    compute        | ingest graph egress of 0 | ingest graph egress of 1 | ...

The graph reads the header of the batch from device memory, so one graph serves every batch with as many frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from zipsdk.errors import EngineError, OutOfMemoryError
from zipsdk.gpu import structs
from zipsdk.gpu.buffers import FLAG_SIZE, BufferPool, Buffers, PendingBatch, StagingBuffer
from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.gpu.run import DeviceRun
from zipsdk.gpu.steps import StepLauncher
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.tiling import TileLayout
from zipsdk.types import U8, U64

_log = logging.getLogger(__name__)


class DeviceLoop:
    """Purify batches of images of one size each, on the engine's GPU.

    Args:
        engine: with a `device`.
        table: `zipsdk.sampling.schedule.step_table`.
        guides: one for each choice of transforms.
        clip_x0: clamp the estimate of the image at each step.
        cuda_graph: capture the loop into a CUDA graph where the engine can be captured.

    Raises:
        EngineError: the engine has no GPU, or the kernels cannot do one of the guides.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        table: StepTable,
        guides: Sequence[Guidance],
        *,
        clip_x0: bool = False,
        cuda_graph: bool = True,
    ):
        if engine.device is None:
            raise EngineError("engine: got one without a GPU, expected one on a GPU; open it with device='cuda'")
        self.device = engine.device
        tables = structs.guide_table(guides), structs.guide_table(guides, joint=True)
        if tables[0] is None or tables[1] is None:
            raise EngineError(
                f"transforms: got {guides}, expected only blurs by 2, 4, 8 and 16 and gray, which have a GPU kernel; "
                "use these, or device='cpu'"
            )
        self.pool = BufferPool(engine, self.device, table, (tables[0], tables[1]), clip_x0=clip_x0)
        self._steps = StepLauncher(engine, self.device, self.pool, table, cuda_graph=cuda_graph)

    @property
    def cuda_graph(self) -> bool:
        """Whether the steps run as one captured graph, from the second batch of a size on."""
        return self._steps.cuda_graph

    def frames(self, layout: TileLayout) -> int:
        """Return the maximum of frames in one batch; it is lower after memory ran out."""
        return self.pool.frames(layout)

    def run(self, rgb: U8, layout: TileLayout, noise_keys: U64, guide_index: npt.ArrayLike, seed: int) -> U8:
        """Purify any number of images of one size.

        Args:
            rgb: uint8 (N, H, W, 3).
            layout: for this size; one window.
            noise_keys: (N,), the noise keys of the images.
            guide_index: (N,) or one number, the guide of each image.
            seed: of the noise.

        Raises:
            OutOfMemoryError: not even one frame fits.
            EngineError: the engine fails, or its result is not finite.
        """
        return self.start(rgb, layout, noise_keys, guide_index, seed).result()

    def start(
        self,
        rgb: U8,
        layout: TileLayout,
        noise_keys: U64,
        guide_index: npt.ArrayLike,
        seed: int,
        progress: Callable[[int], None] = lambda n: None,
    ) -> DeviceRun:
        """Start `run` and return as soon as its first batch is submitted.

        While one batch computes, the next one uploads; if memory has no room for both, the second waits for the first.
        A batch that does not fit into memory is halved. `progress` is called with the number of images done since the
        last call.
        """
        return DeviceRun(self, rgb, layout, noise_keys, guide_index, seed, progress)

    def submit(
        self, rgb: U8, layout: TileLayout, noise_keys: U64, guide_index: npt.ArrayLike, seed: int
    ) -> PendingBatch:
        """Submit one batch of at most `frames(layout)` frames. Wait only if its memory must be freed first.

        Raises:
            OutOfMemoryError: there is no room, with no other batch on the GPU.
        """
        with self.device.lock, self.device.active():
            # the loop's own buffers may hold the missing memory: idle ones first, then those of pending batches
            for make_room in (self.pool.close, self._drain):
                try:
                    return self._submit(rgb, layout, noise_keys, guide_index, seed)
                except OutOfMemoryError:
                    make_room()
            return self._submit(rgb, layout, noise_keys, guide_index, seed)

    def collect(self, batch: PendingBatch) -> U8:
        """Wait for a batch and return its images, uint8 (N, H, W, 3), a new array.

        Raises:
            EngineError: the result is not finite.
        """
        with self.device.lock, self.device.active():
            result = self._collect(batch) if batch.result is None else batch.result
        if isinstance(result, Exception):
            raise result
        return result

    def halve_limit(self, layout: TileLayout, frames: int, error: OutOfMemoryError) -> None:
        """Halve the pixels of a batch after `error` with `frames` frames, and log it the first time.

        Raises:
            OutOfMemoryError: `frames` is 1.
        """
        if frames <= 1:
            raise OutOfMemoryError(
                f"{error}; not even one frame of {layout.frame_height}x{layout.frame_width} fits: "
                "use a smaller model or a GPU with more memory"
            ) from error
        with self.device.lock, self.device.active():
            first = self.pool.halve(layout, frames)
        if first:
            size = f"{layout.frame_height}x{layout.frame_width}"
            _log.warning(
                "%s: %d frames do not fit into its memory; continuing with %d of %s at a time, or fewer",
                *(self.device.name, frames, frames // 2, size),
            )

    def close(self) -> None:
        """Free all memory that no pending batch uses; the next batch allocates again. Do nothing in a forked child."""
        if self.pool.forked:
            return
        with self.device.lock, self.device.active():
            self.pool.close()

    def _submit(
        self, rgb: U8, layout: TileLayout, noise_keys: U64, guide_index: npt.ArrayLike, seed: int
    ) -> PendingBatch:
        _, height, width, _ = rgb.shape
        buffers = self.pool.acquire(layout, height, width, -(-len(rgb) // layout.images_per_frame))
        if buffers.staging:
            staging = buffers.staging.pop()
        else:
            staging = self.pool.staging_buffer(buffers.staging_size, buffers.memory)
        try:
            self._enqueue(buffers, staging, rgb, noise_keys, guide_index, seed)
        except BaseException:
            # work that is already on the streams still uses the staging buffer
            self.device.compute.synchronize()
            self.device.copies.synchronize()
            buffers.staging.append(staging)
            raise
        batch = PendingBatch(buffers, staging, len(rgb))
        buffers.pending.append(batch)
        return batch

    def _enqueue(
        self, buffers: Buffers, staging: StagingBuffer, rgb: U8, noise_keys: U64, guide_index: npt.ArrayLike, seed: int
    ) -> None:
        device, layout, n = self.device, buffers.layout, len(rgb)
        if not 0 < n <= buffers.capacity:
            raise EngineError(f"batch: got {n} images, expected 1 to {buffers.capacity}; submit fewer at a time")
        batch, images = structs.batch_row(n, layout, seed), structs.image_rows(noise_keys, guide_index)
        start = buffers.header_size + FLAG_SIZE  # of the pixels
        staging.host[:start] = 0
        staging.host[: batch.nbytes] = batch.view(np.uint8)
        staging.host[batch.nbytes : batch.nbytes + images.nbytes] = images.view(np.uint8)
        staging.host[start : start + rgb.size] = rgb.reshape(-1)

        device.upload(staging.device, staging.host[: start + rgb.size], device.copies)
        staging.uploaded.record(device.copies)
        device.compute.wait_for_event(staging.uploaded)
        device.copy(buffers.batch_header, staging.device, buffers.header_size, device.compute)

        flag, pixels = staging.device + buffers.header_size, staging.device + start
        image_table = buffers.batch_header + batch.nbytes
        row = structs.layout_row(layout, buffers.height, buffers.width)
        quads, stream = -(-n * layout.height * layout.width // 4), device.compute
        device.launch(
            "zip_ingest", quads, pixels, buffers.x_p, buffers.x, image_table, row, buffers.batch_header, stream=stream
        )
        self._steps.launch(buffers, -(-n // layout.images_per_frame))
        device.launch("zip_egress", quads, buffers.x, pixels, flag, row, buffers.batch_header, stream=stream)
        staging.computed.record(stream)

    def _collect(self, batch: PendingBatch) -> U8 | Exception:
        """Wait for a batch on the GPU, store its result for `collect`, and release its staging buffer."""
        buffers, staging, device = batch.buffers, batch.staging, self.device
        size = FLAG_SIZE + batch.images * buffers.height * buffers.width * 3
        result: U8 | Exception
        try:
            # only now: a download in the copy stream at submission would delay the upload of the next batch
            device.copies.wait_for_event(staging.computed)
            part = staging.host[buffers.header_size : buffers.header_size + size]
            device.download(part, staging.device + buffers.header_size, device.copies)
            staging.downloaded.record(device.copies)
            staging.downloaded.synchronize()
            result = part[FLAG_SIZE:].reshape(batch.images, buffers.height, buffers.width, 3).copy()
            if part[:4].any():
                result = EngineError(
                    "engine: the result is not finite; the model overflows: use its fp32 or bf16 export"
                )
        except BaseException as e:
            result = e if isinstance(e, Exception) else EngineError("engine: the wait for a batch was interrupted")
            raise
        finally:
            batch.result = result
            buffers.pending.remove(batch)
            buffers.staging.append(staging)
        return result

    def _drain(self) -> None:
        """Collect all pending batches, and free all memory."""
        for buffers in self.pool.sizes.values():
            while buffers.pending:
                with suppress(Exception):  # `collect` raises it
                    self._collect(buffers.pending[0])
        self.pool.close()

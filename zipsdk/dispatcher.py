"""Start the images of a call, each size on the loop of the GPU or on that of the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from zipsdk.gpu.protocols import DeviceEngine
from zipsdk.pending import CpuBatch, PendingResult, PendingRun, SizeGroup
from zipsdk.sampling import memory
from zipsdk.sampling.cpu_loop import CpuLoop
from zipsdk.sampling.guidance import Guidance, strip_unit
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.tiling import TileLayout, plan_tiles
from zipsdk.settings import Settings
from zipsdk.types import U8, U64, Engine

if TYPE_CHECKING:
    from zipsdk.gpu.loop import DeviceLoop

_log = logging.getLogger(__name__)


class Dispatcher:
    """Group images by size, check that they fit into memory, and start the groups.

    Args:
        engine: predicts the noise.
        table: the steps.
        guides: one for each choice of transforms; the noise of an image chooses among them.
        settings: of the purifier.

    Attributes:
        divisor: sides of tiles are multiples of this.
        device_loop: the loop on the engine's GPU, or None.
        cpu_reason: why there is no device loop.

    Raises:
        InputError: the engine does not take the tile size.
    """

    def __init__(self, engine: Engine, table: StepTable, guides: Sequence[Guidance], settings: Settings):
        self._engine, self._table, self._guides, self._settings = engine, table, guides, settings
        self.divisor = lcm(*(g.divisor for g in guides))
        plan_tiles(engine.spec, engine.spec.image_size, engine.spec.image_size, self.divisor, settings.tile_size)
        self._cpu_loop = CpuLoop(engine, table, guides, clip_x0=settings.clip_x0)
        self.device_loop, self.cpu_reason = self._open_device_loop()

    def _open_device_loop(self) -> tuple[DeviceLoop | None, str]:
        """Return the loop on the engine's GPU, or None and why the loop runs on the CPU."""
        engine, settings = self._engine, self._settings
        if not isinstance(engine, DeviceEngine):
            return None, "the engine runs on the CPU"
        if engine.device is None:
            return None, str(getattr(engine, "cpu_loop_reason", "the engine runs on the CPU"))
        from zipsdk.gpu.loop import DeviceLoop  # only for a GPU
        from zipsdk.gpu.structs import guide_table

        if guide_table(self._guides) is None:
            reason = f"no GPU kernel for {names(self._guides)}: blurs by 2, 4, 8, 16 and gray have one"
            _log.warning("%s; the loop runs on the host, and the UNet alone on the GPU", reason)
            return None, reason
        loop = DeviceLoop(engine, self._table, self._guides, clip_x0=settings.clip_x0, cuda_graph=settings.cuda_graph)
        return loop, ""

    @property
    def location(self) -> str:
        """Where the loop runs, as text."""
        if self.device_loop is None:
            return f"host ({self.cpu_reason})"
        how = "one captured graph" if self.device_loop.cuda_graph else "launched step by step"
        return f"GPU ({how}; images larger than the frame: on the host)"

    def submit(
        self,
        images: Sequence[U8],
        noise_keys: U64,
        seed: int,
        restore: Callable[[list[U8]], Any] = list,
        progress: Callable[[int], None] = lambda n: None,
    ) -> PendingRun:
        """Start on the images of a call.

        Args:
            images: each uint8 (H, W, 3).
            noise_keys: (N,), one for each image.
            seed: of the noise.
            restore: converts the purified images to what the caller gets.
            progress: called with the number of images done since the last call.

        Raises:
            InputError, OutOfMemoryError: an image is too large; nothing has started.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            places.setdefault(image.shape, []).append(i)
        groups = [
            SizeGroup(
                places=members,
                images=[images[i] for i in members],
                layout=plan_tiles(self._engine.spec, shape[0], shape[1], self.divisor, self._settings.tile_size),
                noise_keys=noise_keys[members],
                guide_index=Noise(seed, noise_keys[members]).choice(len(self._guides)),
                seed=seed,
                progress=progress,
            )
            for shape, members in places.items()
        ]
        self._check_memory([g for g in groups if not self._on_device(g.layout)])
        return PendingRun(groups, self._start, restore)

    def _check_memory(self, groups: Sequence[SizeGroup]) -> None:
        """Refuse images that do not fit into the CPU's memory; the device loop checks the GPU's."""
        engine_on_cpu = getattr(self._engine, "device", None) is None
        memory.check_run(
            [(g.layout, len(g.images), *g.images[0].shape[:2]) for g in groups],
            strip_unit(self._guides),
            self._engine.spec.name if engine_on_cpu else "",
            self._cpu_loop.largest_frame,
        )

    def _on_device(self, layout: TileLayout) -> bool:
        return self.device_loop is not None and layout.windows == 1

    def _start(self, group: SizeGroup) -> PendingResult:
        if self.device_loop is None or not self._on_device(group.layout):
            return CpuBatch(self._cpu_loop, group)
        return self.device_loop.start(
            np.stack(group.images), group.layout, group.noise_keys, group.guide_index, group.seed, group.progress
        )


def names(guides: Sequence[Guidance]) -> str:
    """Return the transforms as text, such as "blur2+gray" or "blur2|blur4"."""
    return "|".join("+".join(map(str, g.transforms)) for g in guides)

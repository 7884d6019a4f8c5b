"""Run the sampler on the CPU, for batches of images of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from zipsdk.errors import EngineError
from zipsdk.sampling import sampler
from zipsdk.sampling.denoiser import TiledDenoiser
from zipsdk.sampling.guidance import Guidance, PerImageGuidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.state import STRIP_PIXELS, StateRows, to_model_range, to_uint8
from zipsdk.sampling.tiling import TileLayout
from zipsdk.types import F32, U8, U64, Engine


class CpuLoop:
    """Purify images of one size at a time. The engine may run anywhere.

    Args:
        engine: predicts the noise.
        table: the steps.
        guides: one for each choice of transforms.
        clip_x0: clamp the estimate of the image at each step.

    Attributes:
        largest_frame: pixels of the largest frame so far; the engine keeps that memory.
    """

    def __init__(self, engine: Engine, table: StepTable, guides: Sequence[Guidance], *, clip_x0: bool = False):
        self._engine, self._table, self._guides, self._clip_x0 = engine, table, guides, clip_x0
        self.largest_frame = 0

    def run(
        self,
        images: Sequence[U8],
        layout: TileLayout,
        noise_keys: U64,
        guide_index: npt.NDArray[np.intp],
        seed: int,
        progress: Callable[[int], None],
    ) -> list[U8]:
        """Purify images of one size; see `zipsdk.pending.SizeGroup` for the arguments.

        Returns:
            Each uint8 (H, W, 3).

        Raises:
            EngineError: the engine fails, or its result is not finite.
        """
        predict = TiledDenoiser(self._engine, layout)
        out: list[U8] = []
        for i in range(0, len(images), layout.images_per_call):
            part = slice(i, i + layout.images_per_call)
            # a view of a single image, because a copy of a large one takes memory
            rgb = np.stack(images[part]) if len(images[part]) > 1 else images[i][None]
            guide: sampler.GuidanceLike = self._guides[0]
            if len(self._guides) > 1:
                guide = PerImageGuidance(self._guides, guide_index[part])
            out += list(self._purify(rgb, layout, predict, guide, Noise(seed, noise_keys[part])))
            self.largest_frame = max(self.largest_frame, layout.frame_pixels)
            progress(len(rgb))
        return out

    def _purify(
        self, rgb: U8, layout: TileLayout, predict: TiledDenoiser, guide: sampler.GuidanceLike, noise: Noise
    ) -> U8:
        n, height, width, _ = rgb.shape
        x_p: F32 | StateRows = StateRows(rgb, layout.height, layout.width)
        if n * layout.height * layout.width <= STRIP_PIXELS:  # one strip, read at every step: convert it once
            x_p = to_model_range(rgb, layout.height, layout.width)
        # a finite eps can still overflow in the steps after it
        with np.errstate(over="ignore", invalid="ignore"):
            x = sampler.sample(predict, x_p, self._table, guide, noise, clip_x0=self._clip_x0)
            finite = np.isfinite(x.sum(dtype=np.float64))
        if not finite:
            raise EngineError(
                "engine: got eps so large that the image is not finite, expected a noise prediction; "
                "the model overflows: use its fp32 or bf16 export"
            )
        return to_uint8(x, height, width)

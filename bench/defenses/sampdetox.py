"""SampDetox (Yang et al., NeurIPS 2024): a little noise everywhere, then much where that changed the picture.

From the paper's formulas:

    1  x0bar = the picture noised up to t1 and sampled down again: removes what is faint and everywhere
    2  SSIM map of x and x0bar, grey, stretched to [0, 1] in each picture; level L = int((1 - grey) t2) at each pixel
    3  x0bar noised at each pixel up to its level L, then sampled down from t2, a pixel moving only at steps t < L
       (0-based): where the first stage could not keep the picture something opaque may sit, and gets more noise

What differs. The paper trains a UNet on the defended data set with a cosine schedule, we take ZIP's UNet and its linear
schedule, which at t1 = 20 and t2 = 120 adds about twice the noise (standard deviation 0.08 and 0.38, cosine 0.04 and
0.20). The released code has linear betas too, but T1 = T2 = 120; here t1, t2 are the paper's. It draws one noise for
all steps; here, as in DDPM, each step has its own.

The released code gives SSIM a data range of 255 for pictures in [0, 1]. By SSIM's definition that is 1, the default
here. It matters: at 255 the constants outweigh the picture's variance, what is left is nearly a squared difference, and
that can point at an opaque patch better than SSIM does, which finds flat, noisy background the least similar. So both
are to be compared: ``data_range=255`` is as released.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from bench.defenses.base import U8, Classify
from bench.defenses.diffusion import Predict, Start, ancestral, engine_of, through
from bench.defenses.simple import Progress, checked
from zipsdk.errors import InputError
from zipsdk.sampling import sampler
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.state import pad
from zipsdk.types import Engine

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

#: Grey as the method has it, of red, green and blue.
GREY = (0.11, 0.59, 0.30)
#: Side of the SSIM's window: 2 * int(3.5 sigma + 0.5) + 1 with sigma 1.5.
WINDOW = 11
# the second stage's noise is numbered from here, so that it is not the first stage's again
_SECOND = 1 << 20


def ssim_map(x: Array, y: Array, data_range: float = 1.0) -> Array:
    """SSIM of two pictures (3, H, W) in [0, 1] at each pixel and colour: (3, H, W); Gaussian window, sigma 1.5."""
    _, full = structural_similarity(x, y, full=True, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                    channel_axis=0, data_range=data_range)  # fmt: skip
    return np.asarray(full)


def levels(x: Array, restored: Array, t2: int, data_range: float = 1.0) -> I64:
    """Noise levels 0..t2 of each pixel, int64 (H, W), for a picture and what the first stage made of it (3, H, W),
    both in [-1, 1]. Where the map is flat no pixel is worse than another, and none gets noise."""
    similar = ssim_map(*(np.clip((p + 1.0) / 2.0, 0.0, 1.0) for p in (x, restored)), data_range)
    grey = np.tensordot(np.array(GREY, similar.dtype), similar, 1)
    low, high = grey.min(), grey.max()
    if not high > low:
        return np.zeros(grey.shape, np.int64)
    return ((1.0 - (grey - low) / (high - low)) * t2).astype(np.int64)


def second_stage(predict: Predict, restored: Array, level: I64, table: StepTable, noise: sampler.NoiseSource) -> Array:
    """Noise each pixel up to its level and sample down, moving a pixel only below its level.

    With a table that leaves steps out, a pixel is noised up to the highest visited step below its level: where it will
    begin to move.

    Args:
        restored: (N, 3, H, W) in [-1, 1]; it is left as it is.
        level: (N, H, W).
    """
    size = restored.shape[-2:]
    x = restored.copy()
    z = noise.normal(_SECOND - 1, *size).astype(x.dtype, copy=False)
    for step in reversed(table.steps):  # upwards: the last one that is below the level stays
        noised = step.ab**0.5 * restored + (1.0 - step.ab) ** 0.5 * z
        np.copyto(x, noised, where=(level > step.t)[:, None])
    for step in table.steps:
        e = predict(x, step.t)
        moved = step.c * (step.a * x - step.b * e) + step.d * e
        if step.s:
            moved += step.s * noise.normal(_SECOND + step.t, *size).astype(x.dtype, copy=False)
        np.copyto(x, moved, where=(level > step.t)[:, None])
    return x


@dataclass(frozen=True)
class SampDetox:
    """See the module.

    Args:
        t1, t2: the paper's 20 and 120, of 1,000 steps.
        budget: evaluations in all, shared between the stages in proportion to t1 and t2 and spread evenly over each.
            None is the published one at each step: t1 + t2.
        data_range: of SSIM: 1, or 255 as released; see the module.

    Raises:
        InputError: a setting out of range; when it runs, pictures smaller than the SSIM's window.
    """

    engine: Engine
    t1: int = 20
    t2: int = 120
    budget: int | None = None
    data_range: float = 1.0

    VERSION = 1
    queries, asks = 1, False

    def __post_init__(self) -> None:
        if self.budget is not None and not 2 <= self.budget <= self.t1 + self.t2:
            raise InputError(f"budget: got {self.budget}, wanted 2 to t1 + t2 = {self.t1 + self.t2}, or None for all")
        if not self.data_range > 0:
            raise InputError(f"data_range: got {self.data_range}, wanted more than 0: 1, or 255 as released")
        # wrong settings are told now, not at the first picture
        _ = self.tables

    @cached_property
    def tables(self) -> tuple[StepTable, StepTable]:
        """Of the two stages."""
        total = self.t1 + self.t2 if self.budget is None else self.budget
        first = min(max(1, round(total * self.t1 / (self.t1 + self.t2))), total - 1)
        return ancestral(self.engine.spec, self.t1, first), ancestral(self.engine.spec, self.t2, total - first)

    @property
    def name(self) -> str:
        more = "" if self.data_range == 1 else f", SSIM range {self.data_range:g}"
        return f"SampDetox (t1 {self.t1}, t2 {self.t2}, {self.evaluations} steps{more})"

    @property
    def evaluations(self) -> int:
        return sum(map(len, self.tables))

    def describe(self) -> dict[str, Any]:
        steps = [[step.t for step in table.steps] for table in self.tables]
        # named only where it is not 1, so that results from before it could be set keep their key
        more = {} if self.data_range == 1 else {"data_range": self.data_range}
        return {"defence": "SampDetox", "version": self.VERSION, "engine": engine_of(self.engine), "t1": self.t1,
                "t2": self.t2, "steps": steps, **more}  # fmt: skip

    def restore(
        self, predict: Predict, x_p: Array, noise: sampler.NoiseSource, size: tuple[int, int] | None = None
    ) -> Array:
        """Both stages on a state (N, 3, H, W) in [-1, 1], in its dtype.

        size: height and width of the picture in it, where the rest is mirrored: the map is made of the picture alone.
        """
        first, second = self.tables
        height, width = size or x_p.shape[-2:]
        restored = np.clip(sampler.sample(predict, x_p, first, Start(), noise), -1.0, 1.0)
        inside = zip(x_p[:, :, :height, :width], restored[:, :, :height, :width], strict=True)
        level = np.stack([levels(x, y, self.t2, self.data_range) for x, y in inside])
        level = pad(level[..., None], *x_p.shape[-2:])[..., 0]
        return second_stage(predict, restored, level, second, noise)

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(pictures).shape
        if min(height, width) < WINDOW:
            raise InputError(f"SampDetox: got pictures of {height} x {width}, wanted sides of at least {WINDOW}, the "
                             "window of its SSIM; enlarge them")  # fmt: skip

        def loop(predict: Predict, x: Array, noise: sampler.NoiseSource) -> Array:
            return self.restore(predict, x, noise, (height, width))

        return through(self.engine, pictures, 1, seed, loop, progress)

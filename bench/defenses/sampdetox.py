"""SampDetox (Yang et al., NeurIPS 2024): a little noise everywhere, then much where the image changed.

From the paper's formulas:

    1  x0bar = the image noised up to t1 and sampled down again: removes faint triggers that cover the image
    2  SSIM map of x and x0bar, gray, stretched to [0, 1] in each image; level L = int((1 - gray) t2) at each pixel
    3  x0bar noised at each pixel up to its level L, then sampled down from t2; a pixel changes only at steps t < L
       (0-based): pixels that the first stage changed may be an opaque trigger, and get more noise

Differences: the paper trains a UNet on the defended data set with a cosine schedule. Here it is ZIP's UNet and its
linear schedule, which at t1 = 20 and t2 = 120 adds about twice the noise (standard deviation 0.08 and 0.38; cosine 0.04
and 0.20). The released code has linear betas too, but T1 = T2 = 120; here t1 and t2 are the paper's. It draws one noise
for all steps; here each step has its own, as in DDPM.

The released code gives SSIM a data range of 255 for images in [0, 1]; by definition it is 1, the default here. At 255
the constants outweigh the image's variance and the map is nearly a squared difference. That can locate an opaque patch
better than SSIM, which rates flat, noisy background least similar. ``data_range=255`` is the released setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.common.ssim import ssim_map_channels
from bench.defenses.base import U8, Classify, description
from bench.defenses.diffusion import Predict, Start, ancestral, engine_of, run_loop
from bench.defenses.simple import Progress, checked
from zipsdk.errors import InputError
from zipsdk.sampling import sampler
from zipsdk.sampling.schedule import StepTable
from zipsdk.sampling.state import pad
from zipsdk.types import Engine

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

#: The method's weights of red, green and blue.
GRAY_WEIGHTS = (0.11, 0.59, 0.30)
#: Side of SSIM's window: 2 * int(3.5 sigma + 0.5) + 1 with sigma 1.5.
WINDOW = 11
#: First step key of the second stage's noise, which must differ from the first stage's.
_SECOND = 1 << 20


def levels(x: Array, restored: Array, t2: int, data_range: float = 1.0) -> I64:
    """Compute the noise level 0..t2 of each pixel, int64 (H, W); 0 everywhere where the SSIM map is constant.

    Args:
        x: image (3, H, W) in [-1, 1].
        restored: the first stage's output, like x.
    """
    before, after = (np.clip((p + 1.0) / 2.0, 0.0, 1.0) for p in (x, restored))
    similar = ssim_map_channels(before, after, data_range)
    gray = np.tensordot(np.array(GRAY_WEIGHTS, similar.dtype), similar, 1)
    low, high = gray.min(), gray.max()
    if not high > low:
        return np.zeros(gray.shape, np.int64)
    return ((1.0 - (gray - low) / (high - low)) * t2).astype(np.int64)


def second_stage(predict: Predict, restored: Array, level: I64, table: StepTable, noise: sampler.NoiseSource) -> Array:
    """Noise each pixel up to its level and sample down, changing a pixel only below its level.

    With a table that skips steps, a pixel is noised up to the highest visited step below its level: its first step.

    Args:
        restored: (N, 3, H, W) in [-1, 1]; not modified.
        level: (N, H, W).
    """
    size = restored.shape[-2:]
    x = restored.copy()
    z = noise.normal(_SECOND - 1, *size).astype(x.dtype, copy=False)
    for step in reversed(table.steps):  # upwards: the highest step below the level wins
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
    """The defense; see the module's docstring.

    Args:
        t1, t2: the paper's 20 and 120, of 1,000 steps.
        budget: total number of steps, divided between the stages in proportion to t1 and t2 and spread evenly over
            each. None: the published one at each t, t1 + t2.
        data_range: of SSIM: 1, or 255 as released.

    Raises:
        InputError: a setting out of range; in `run`, images smaller than SSIM's window.
    """

    engine: Engine
    t1: int = 20
    t2: int = 120
    budget: int | None = None
    data_range: float = 1.0

    VERSION = 1
    queries, queries_classifier = 1, False

    def __post_init__(self) -> None:
        if self.budget is not None and not 2 <= self.budget <= self.t1 + self.t2:
            raise InputError(f"budget: got {self.budget}, expected 2 to t1 + t2 = {self.t1 + self.t2}, or None for all")
        if not self.data_range > 0:
            raise InputError(f"data_range: got {self.data_range}, expected more than 0: 1, or 255 as released")
        # check the settings now, not at the first image
        _ = self.tables

    @cached_property
    def tables(self) -> tuple[StepTable, StepTable]:
        """The tables of the two stages."""
        total = self.t1 + self.t2 if self.budget is None else self.budget
        first = min(max(1, round(total * self.t1 / (self.t1 + self.t2))), total - 1)
        return ancestral(self.engine.spec, self.t1, first), ancestral(self.engine.spec, self.t2, total - first)

    @property
    def name(self) -> str:
        more = "" if self.data_range == 1 else f", SSIM range {self.data_range:g}"
        return f"SampDetox (t1 {self.t1}, t2 {self.t2}, {self.total_steps} steps{more})"

    @property
    def total_steps(self) -> int:
        return sum(map(len, self.tables))

    def describe(self) -> dict[str, Any]:
        steps = [[step.t for step in table.steps] for table in self.tables]
        # only if it is not 1: rows measured before it was an option keep their keys
        more = {} if self.data_range == 1 else {"data_range": self.data_range}
        return description(
            "SampDetox",
            version=self.VERSION,
            engine=engine_of(self.engine),
            t1=self.t1,
            t2=self.t2,
            steps=steps,
            **more,
        )

    def restore(
        self, predict: Predict, x_p: Array, noise: sampler.NoiseSource, size: tuple[int, int] | None = None
    ) -> Array:
        """Run both stages on a state (N, 3, H, W) in [-1, 1], in its dtype.

        size: height and width of the image in the state; the SSIM map excludes the mirrored padding.
        """
        first, second = self.tables
        height, width = size or x_p.shape[-2:]
        restored = np.clip(sampler.sample(predict, x_p, first, Start(), noise), -1.0, 1.0)
        inside = zip(x_p[:, :, :height, :width], restored[:, :, :height, :width], strict=True)
        level = np.stack([levels(x, y, self.t2, self.data_range) for x, y in inside])
        level = pad(level[..., None], *x_p.shape[-2:])[..., 0]
        return second_stage(predict, restored, level, second, noise)

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(images).shape
        if min(height, width) < WINDOW:
            raise InputError(
                f"SampDetox: got images of {height} x {width}, expected sides of at least {WINDOW}, the window of its "
                "SSIM; enlarge them"
            )

        def loop(predict: Predict, x: Array, noise: sampler.NoiseSource) -> Array:
            return self.restore(predict, x, noise, (height, width))

        return run_loop(self.engine, images, 1, seed, loop, progress)

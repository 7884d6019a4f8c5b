"""Pack the structs of kernels/zip.h as NumPy rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import STEP_INITIAL
from zipsdk.sampling.schedule import Step, StepTable
from zipsdk.sampling.tiling import TileLayout
from zipsdk.transforms import Blur, Grayscale
from zipsdk.types import U64

# the structs of kernels/zip.h, member by member
_LAYOUT_MEMBERS = ("height", "width", "rows", "columns", "tile_height", "tile_width", "image_height", "image_width")
LAYOUT = np.dtype([(name, np.uint32) for name in _LAYOUT_MEMBERS])
BATCH = np.dtype([(name, np.uint32) for name in ("images", "frames", "seed_low", "seed_high")])
STEP = np.dtype([(name, np.float32) for name in "abcdws"] + [("t", np.uint32), ("clip", np.uint32)])
IMAGE = np.dtype([(name, np.uint32) for name in ("id_low", "id_high", "guide", "unused")])
GUIDE = np.dtype([("blur", np.float32, 5), ("gray", np.float32, 5), ("levels", np.uint32), ("unused", np.uint32)])

_LEVELS = {2: 1, 4: 2, 8: 3, 16: 4}


def _row(values: tuple[object, ...], dtype: np.dtype[np.void]) -> np.void:
    return cast(np.void, np.array(values, dtype)[()])


def layout_row(layout: TileLayout, image_height: int, image_width: int) -> np.void:
    """Pack the layout of images of one size, LAYOUT. `layout` must have one window: the kernels know no others."""
    frame = (layout.frame_height, layout.frame_width, layout.rows, layout.columns)
    return _row((*frame, layout.height, layout.width, image_height, image_width), LAYOUT)


def batch_row(images: int, layout: TileLayout, seed: int) -> npt.NDArray[np.void]:
    """Pack the header of a batch, (1,) of BATCH."""
    frames = -(-images // layout.images_per_frame)
    return np.array([(images, frames, seed & 0xFFFFFFFF, seed >> 32)], BATCH)


def image_rows(noise_keys: U64, guide: npt.ArrayLike = 0) -> npt.NDArray[np.void]:
    """Pack the noise key of each image and its row of the guide table, (N,) of IMAGE."""
    rows = np.zeros(len(noise_keys), IMAGE)
    rows["id_low"], rows["id_high"] = noise_keys & np.uint64(0xFFFFFFFF), noise_keys >> np.uint64(32)
    rows["guide"] = guide
    return rows


def step_row(step: Step, *, clip_x0: bool = False) -> np.void:
    """Pack one frame at one step, STEP."""
    return _row((step.a, step.b, step.c, step.d, step.w, step.s, step.t, clip_x0), STEP)


def warm_row(table: StepTable) -> np.void:
    """Pack the row with which `zip_step` makes a warm start: sqrt(ab) P(x_P) + sqrt(1-ab) z, STEP.

    It needs the table of joint guides, and e = x.
    """
    ab = table.steps[0].ab
    return _row((0, 0, ab**0.5, 0, 1, (1 - ab) ** 0.5, STEP_INITIAL, False), STEP)


def guide_table(guides: Sequence[Guidance], *, joint: bool = False) -> npt.NDArray[np.void] | None:
    """Pack all guides, (N,) of GUIDE; None if `zip_step` cannot compute one of them."""
    rows = [guide_row(g, joint=joint) for g in guides]
    return None if any(r is None for r in rows) else np.array(rows, GUIDE)


def guide_row(guide: Guidance, *, joint: bool = False) -> np.void | None:
    """Pack `guide`, or `guide.joint` if `joint`, GUIDE; None if `zip_step` cannot compute it.

    A projector is a weighted sum of B_l (mean over cells of 2^l, with B_0 = I) and G B_l (mean over the colors, too).
    Here it is a dict from (l, 1 with G or 0) to the weight. Because B_l B_m = B_max(l, m), G G = G, and all commute,
    the key of a product is the maximum of both keys.
    """
    keys = []
    for t in guide.transforms:
        if isinstance(t, Blur) and t.n in _LEVELS:
            keys.append((_LEVELS[t.n], 0))
        elif isinstance(t, Grayscale):
            keys.append((0, 1))
        else:
            return None
    total: dict[tuple[int, int], float] = {}
    if joint or guide.combine == "joint":
        rest = {(0, 0): 1.0}  # (I - P_1) (I - P_2) ... of the transforms so far
        for level, gray in keys:
            for (other, g), weight in list(rest.items()):
                key = (max(other, level), max(g, gray))
                rest[key] = rest.get(key, 0.0) - weight
        total = {key: -weight for key, weight in rest.items() if key != (0, 0)}
    else:
        for key in keys:
            total[key] = total.get(key, 0.0) + 1.0 / len(keys)
    of_blur, of_gray = [0.0] * 5, [0.0] * 5
    for (level, g), weight in total.items():
        (of_gray if g else of_blur)[level] = weight
    levels = max(level for (level, _), weight in total.items() if weight)
    return _row((of_blur, of_gray, levels, 0), GUIDE)

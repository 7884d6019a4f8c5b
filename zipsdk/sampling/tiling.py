"""Map images of any size to the input sizes that an engine takes.

The state of the loop, its noise and its transforms belong to images. A *frame* is one input of the UNet. A `TileLayout`
says how images fill frames, in the first of three ways that applies:

- direct: the engine takes the padded image as it is;
- tiled: small images share a frame, in order of arrival, row by row (paper 3.4.2);
- windowed: a large image is cut into overlapping windows, a frame each. Their eps are blended with weights that fall
  towards the window's border. All windows read and write one state, so they agree in their overlaps at every step and
  leave no seams. If an engine takes several sizes, windows are no longer than the image along its short side.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from zipsdk._util.validation import is_int
from zipsdk.errors import InputError
from zipsdk.models.spec import ModelSpec
from zipsdk.sampling.noise import MAX_SIDE
from zipsdk.types import F32

#: Largest number of frame pixels in one engine call: 64 frames of 64x64. It bounds memory and does not change results.
MAX_PIXELS_A_CALL = 1 << 18


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class TileLayout:
    """Place images of one size on frames.

    Attributes:
        height, width: size of the state: the image, padded to what the transforms and the engine divide and to at least
            one window.
        frame_height, frame_width: size of the engine's input.
        rows, columns: tiles on a frame; 1 and 1 unless tiled.
        ys, xs: top and left corners of the windows; a single 0 each unless windowed.
        overlap: of adjacent windows, in pixels. Most corners lie at multiples of what the transforms and the engine
            divide, so the true overlap may be less by up to that.
    """

    height: int
    width: int
    frame_height: int
    frame_width: int
    rows: int = 1
    columns: int = 1
    ys: tuple[int, ...] = (0,)
    xs: tuple[int, ...] = (0,)
    overlap: int = 0

    @property
    def images_per_frame(self) -> int:
        """Number of tiles on a frame."""
        return self.rows * self.columns

    @property
    def windows(self) -> int:
        """Number of windows of an image, 1 unless windowed."""
        return len(self.ys) * len(self.xs)

    @property
    def frame_pixels(self) -> int:
        """Number of pixels of a frame."""
        return self.frame_height * self.frame_width

    def frames(self, images: int) -> int:
        """Return the number of frames that `images` take."""
        return -(-images // self.images_per_frame) * self.windows

    @property
    def images_per_call(self) -> int:
        """Number of images that go through the loop together."""
        return max(1, MAX_PIXELS_A_CALL // (self.frame_pixels * self.windows)) * self.images_per_frame


def plan_tiles(spec: ModelSpec, height: int, width: int, divisor: int, tile_size: int | None = None) -> TileLayout:
    """Choose the layout for images of height x width.

    Args:
        spec: of the model, with the sizes that it takes.
        height: in pixels.
        width: in pixels.
        divisor: of the transforms; see `zipsdk.sampling.guidance.Guidance`.
        tile_size: side of the frames; None lets the engine see each image at its own size, if it takes several sizes.

    Raises:
        InputError: the engine does not take frames of that size, the transforms' cells do not divide it, or the image
            has more rows or columns than `zipsdk.sampling.noise` can number.
    """
    _check_tile_size(spec, tile_size)
    any_size = tile_size is None and spec.flexible
    if any_size and (layout := direct(spec, height, width, divisor)):
        return layout
    side = tile_size or (_largest_frame(spec, divisor) if any_size else spec.image_size)
    if side < spec.min_side or side % divisor:
        sides = f"any side of {spec.min_side}..{spec.max_side} that {spec.name} takes"
        raise InputError(
            f"transforms: got cells of {divisor} pixels, expected a size that divides "
            f"{sides if any_size else f'the UNet input of {side}'}; choose another blur"
        )
    if max(height, width) > (most := MAX_SIDE // divisor * divisor):
        raise InputError(
            f"image: got {width} x {height} pixels, expected sides of at most {most}; cut the image into parts"
        )
    return tiled(side, height, width, divisor) or windowed(spec, side, height, width, divisor, square=not any_size)


def direct(spec: ModelSpec, height: int, width: int, divisor: int) -> TileLayout | None:
    """Return the layout of an image that is a frame itself; None if it is too large for the engine."""
    h, w = (_padded(spec, n, divisor) for n in (height, width))
    return TileLayout(h, w, h, w) if max(h, w) <= spec.max_side else None


def tiled(side: int, height: int, width: int, divisor: int) -> TileLayout | None:
    """Return the layout of images that share frames of side x side; None if one does not fit."""
    h, w = round_up(height, divisor), round_up(width, divisor)
    return TileLayout(h, w, side, side, rows=side // h, columns=side // w) if max(h, w) <= side else None


def windowed(spec: ModelSpec, side: int, height: int, width: int, divisor: int, *, square: bool) -> TileLayout:
    """Return the layout of an image that is cut into overlapping windows.

    Args:
        spec: of the model, with the sizes that it takes.
        side: largest side of a window.
        height: of the image.
        width: of the image.
        divisor: of the transforms.
        square: windows are side x side; else as small as the same number of them allows.
    """
    unit = lcm(spec.multiple, divisor)
    # a quarter is wide enough for the sharpest features of the UNet, and costs 1.3 to 1.8 times the frames
    overlap = side // 4
    frame_height, frame_width = (
        side if square else _window_side(_padded(spec, n, divisor), side, overlap, unit, spec.min_side)
        for n in (height, width)
    )
    # the image is padded before noise is drawn, because a UNet is not trained on mirrored noise
    h, w = max(round_up(height, divisor), frame_height), max(round_up(width, divisor), frame_width)
    if side % unit or unit > overlap:  # corners that far apart would leave gaps
        unit = 1
    ys, xs = _corners(h, frame_height, overlap, unit), _corners(w, frame_width, overlap, unit)
    return TileLayout(h, w, frame_height, frame_width, ys=ys, xs=xs, overlap=overlap)


def _check_tile_size(spec: ModelSpec, tile_size: int | None) -> None:
    """Raise InputError if the engine does not take frames of that side."""
    if tile_size is not None and (
        not is_int(tile_size) or tile_size % spec.multiple or not spec.min_side <= tile_size <= spec.max_side
    ):
        sides = f"{spec.min_side}..{spec.max_side}" if spec.flexible else str(spec.image_size)
        raise InputError(
            f"tile_size: got {tile_size!r}, expected a multiple of {spec.multiple} in {sides} for {spec.name}"
        )


def _largest_frame(spec: ModelSpec, divisor: int) -> int:
    unit = lcm(spec.multiple, divisor)
    return spec.max_side // unit * unit


def _padded(spec: ModelSpec, length: int, divisor: int) -> int:
    """Return the least side for `length` that the engine and the transforms divide."""
    return round_up(max(length, spec.min_side), lcm(spec.multiple, divisor))


def _window_side(length: int, largest: int, overlap: int, unit: int, smallest: int) -> int:
    """Return the least window, a multiple of `unit`, that covers `length` in as many windows as `largest` does."""
    if length <= largest:
        return length
    n = -(-(length - overlap) // (largest - overlap))
    return min(largest, round_up(max(smallest, -(-(length + (n - 1) * overlap) // n)), unit))


def _corners(length: int, side: int, overlap: int, unit: int) -> tuple[int, ...]:
    """Return evenly spread corners of windows that cover `length`, all but the last at multiples of `unit`."""
    if length <= side:
        return (0,)
    n = -(-(length - overlap) // (side - overlap))
    last = length - side
    return (*(min(last, round(i * last / (n - 1) / unit) * unit) for i in range(n - 1)), last)


def ramp(length: int, corners: tuple[int, ...], side: int, overlap: int) -> list[F32]:
    """Return each window's weights along one axis, float32 (side,); at every pixel they sum to 1 over the windows."""
    raw = []
    for corner in corners:
        i = np.arange(side)
        up = (i + 1) / (overlap + 1) if corner else np.ones(side)
        down = (side - i) / (overlap + 1) if corner + side < length else np.ones(side)
        raw.append(np.minimum(1.0, np.minimum(up, down)))
    total = np.zeros(length)
    for corner, weight in zip(corners, raw, strict=True):
        total[corner : corner + side] += weight
    return [
        (weight / total[corner : corner + side]).astype(np.float32) for corner, weight in zip(corners, raw, strict=True)
    ]

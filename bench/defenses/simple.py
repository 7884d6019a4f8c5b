"""Defenses without a generative model: none, ShrinkPad and the blur alone; and helpers of all defenses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from bench.defenses.base import U8, Classify, description
from zipsdk.errors import InputError
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.noise_keys import resolve_noise_keys
from zipsdk.sampling.state import to_model_range, to_uint8
from zipsdk.sampling.tiling import MAX_PIXELS_A_CALL, round_up
from zipsdk.transforms import OneOf, Transform, parse

Progress = Callable[[int], None] | None


def checked(images: U8) -> U8:
    """Return images unchanged after checking them.

    Raises:
        InputError: not uint8 (N, H, W, 3).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise InputError(f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)")
    return images


def noise_of(images: U8, seed: int) -> Noise:
    """Make the noise that `zipsdk.Purifier` draws for images: keyed by the seed and a hash of each image."""
    return Noise(seed, resolve_noise_keys(list(images), None, seed))


def parts(images: U8, each: int, progress: Progress) -> Iterator[slice]:
    """Iterate over slices of at most `each` images; call `progress` with the length of each after its use."""
    for i in range(0, len(images), each):
        part = slice(i, min(i + each, len(images)))
        yield part
        if progress is not None:
            progress(part.stop - part.start)


def as_transforms(transforms: str | Transform | Sequence[Transform]) -> tuple[Transform, ...]:
    """Make a tuple of transforms from transforms or from names for `zipsdk.transforms.parse`.

    Raises:
        InputError: an unknown name, or a random choice: baselines apply the same transforms to all images.
    """
    found = parse(transforms) if isinstance(transforms, str) else transforms
    if isinstance(found, OneOf):
        raise InputError(f"transforms: got a choice, {found}, expected the same transforms for every image")
    return (found,) if isinstance(found, Transform) else tuple(found)


def names(transforms: Sequence[Transform]) -> str:
    """Join the names of transforms."""
    return "+".join(map(str, transforms))


def fingerprints(transforms: Sequence[Transform]) -> list[str]:
    """Identify transforms: by the name if `parse` restores them from it, else by name and hash of a projected array.

    The hash is of values rounded to 5 places. It can still differ between machines, which loses a cached result.
    """
    out = []
    for t in transforms:
        try:
            whole = parse(str(t)) == [t]
        except InputError:
            whole = False
        probe = np.random.default_rng(0).standard_normal((1, 3, t.divisor, t.divisor))
        mark = "" if whole else ":" + hashlib.sha256((np.round(t.project(probe), 5) + 0.0).tobytes()).hexdigest()
        out.append(str(t) + mark)
    return out


@dataclass(frozen=True)
class Nothing:
    """No defense: the reference of all others."""

    VERSION = 1
    name = "No defense"
    total_steps, queries, queries_classifier = 0, 1, False

    def describe(self) -> dict[str, Any]:
        return description("Nothing", version=self.VERSION)

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        out = checked(images).copy()
        if progress is not None and len(out):
            progress(len(out))
        return out


@dataclass(frozen=True)
class ShrinkPad:
    """Shrink images and pad them with black at a random offset (Li et al. 2021, arXiv:2104.02361).

    An image of side S is resized to S - p with Pillow's bilinear filter and padded with zeros at an offset drawn
    uniformly from 0..p for each axis and each image.

    Args:
        pad: p at 32 pixels, as published. Other sides, for which nothing is published, shrink by the same fraction.
    """

    pad: int = 4

    VERSION = 1
    total_steps, queries, queries_classifier = 0, 1, False

    def __post_init__(self) -> None:
        if not 0 < self.pad < 32:
            raise InputError(f"pad: got {self.pad}, expected 1 to 31 pixels, for a side of 32; use the published 4")

    @property
    def name(self) -> str:
        return "ShrinkPad" if self.pad == 4 else f"ShrinkPad {self.pad}/32"

    def describe(self) -> dict[str, Any]:
        return description("ShrinkPad", version=self.VERSION, pad_at_32=self.pad, filter="bilinear")

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(images).shape
        # round half up: round() would make the pad depend on parity; at least one pixel stays
        rows, columns = (min(side - 1, math.floor(self.pad * side / 32 + 0.5)) for side in (height, width))
        drawn = noise_of(images, seed).choice((rows + 1) * (columns + 1))
        out = np.zeros_like(images)
        for part in parts(images, 64, progress):
            for i in range(part.start, part.stop):
                top, left = divmod(int(drawn[i]), columns + 1)
                size = (width - columns, height - rows)
                small = np.asarray(Image.fromarray(images[i]).resize(size, Image.Resampling.BILINEAR))
                out[i, top : top + size[1], left : left + size[0]] = small
        return out


@dataclass(frozen=True)
class BlurOnly:
    """A^+ A x: the transform without restoration (the ZIP paper's "Blur").

    Args:
        transforms: several are joined: the result keeps everything that at least one keeps.

    Raises:
        InputError: none, or transforms that keep everything.
    """

    transforms: str | Transform | Sequence[Transform]

    VERSION = 1
    total_steps, queries, queries_classifier = 0, 1, False

    def __post_init__(self) -> None:
        # check the transforms now, not at the first image
        _ = self._guide

    @cached_property
    def _guide(self) -> Guidance:
        return Guidance(as_transforms(self.transforms), "joint")

    @property
    def name(self) -> str:
        return f"{names(self._guide.transforms)} alone"

    def describe(self) -> dict[str, Any]:
        return description("BlurOnly", version=self.VERSION, transforms=fingerprints(self._guide.transforms))

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(images).shape
        h, w = round_up(height, self._guide.divisor), round_up(width, self._guide.divisor)
        out = np.empty_like(images)
        for part in parts(images, max(1, MAX_PIXELS_A_CALL // (h * w)), progress):
            out[part] = to_uint8(self._guide.joint(to_model_range(images[part], h, w)), height, width)
        return out

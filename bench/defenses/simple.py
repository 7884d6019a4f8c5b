"""Defences without a generative model: nothing, ShrinkPad and the blur alone; and what all defences share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.defenses.base import U8, Classify
from zipsdk.errors import InputError
from zipsdk.sampling.guidance import Guidance
from zipsdk.sampling.noise import Noise
from zipsdk.sampling.noise_keys import resolve_noise_keys
from zipsdk.sampling.state import to_model_range, to_uint8
from zipsdk.sampling.tiling import MAX_PIXELS_A_CALL, round_up
from zipsdk.transforms import OneOf, Transform, parse

F32 = npt.NDArray[np.float32]
Progress = Callable[[int], None] | None


def checked(pictures: U8) -> U8:
    """The pictures, if they are some.

    Raises:
        InputError: not uint8 (N, H, W, 3).
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape[1:]:
        raise InputError(f"pictures: got {pictures.dtype} {pictures.shape}, wanted uint8 (N, H, W, 3)")
    return pictures


def noise_of(pictures: U8, seed: int) -> Noise:
    """The noise that `zipsdk.Purifier` draws for these pictures: by seed and a hash of each, wherever it stands."""
    return Noise(seed, resolve_noise_keys(list(pictures), None, seed))


def parts(pictures: U8, each: int, progress: Progress) -> Iterator[slice]:
    """Slices of at most `each` pictures; `progress` is told of each once it has been dealt with."""
    for i in range(0, len(pictures), each):
        part = slice(i, min(i + each, len(pictures)))
        yield part
        if progress is not None:
            progress(part.stop - part.start)


def as_transforms(transforms: str | Transform | Sequence[Transform]) -> tuple[Transform, ...]:
    """Transforms, or their names as `zipsdk.transforms.parse` reads them.

    Raises:
        InputError: an unknown name, or a choice of several: a baseline has the same for all pictures.
    """
    found = parse(transforms) if isinstance(transforms, str) else transforms
    if isinstance(found, OneOf):
        raise InputError(f"transforms: got a choice, {found}, wanted the same transforms for every picture")
    return (found,) if isinstance(found, Transform) else tuple(found)


def names(transforms: Sequence[Transform]) -> str:
    return "+".join(map(str, transforms))


def fingerprints(transforms: Sequence[Transform]) -> list[str]:
    """What tells transforms apart: a name that says all, else the name and a hash of what P does to a test picture.

    The hash is of values rounded to 5 places: on another machine it may still differ, which costs a cached result.
    """
    out = []
    for t in transforms:
        try:
            whole = parse(str(t)) == [t]
        except InputError:
            whole = False
        probe = np.random.default_rng(0).standard_normal((1, 3, t.divisor, t.divisor))
        mark = "" if whole else ":" + hashlib.sha256(np.round(t.project(probe), 5) + 0.0).hexdigest()
        out.append(str(t) + mark)
    return out


@dataclass(frozen=True)
class Nothing:
    """No defence: what the others are held against."""

    VERSION = 1
    name = "No defence"
    evaluations, queries, asks = 0, 1, False

    def describe(self) -> dict[str, Any]:
        return {"defence": "Nothing", "version": self.VERSION}

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        out = checked(pictures).copy()
        if progress is not None and len(out):
            progress(len(out))
        return out


@dataclass(frozen=True)
class ShrinkPad:
    """Shrink, and put back at a random place on black (Li et al. 2021, arXiv:2104.02361).

    A picture of side S is resized to S - p with Pillow's bilinear filter and padded with zeros at an offset drawn
    uniformly from 0..p for each axis and each picture.

    Args:
        pad: p at 32 pixels, as published. Other sides, for which nothing is published, shrink by the same share.
    """

    pad: int = 4

    VERSION = 1
    evaluations, queries, asks = 0, 1, False

    def __post_init__(self) -> None:
        if not 0 < self.pad < 32:
            raise InputError(f"pad: got {self.pad}, wanted 1 to 31: pixels of a side of 32; 4 is as published")

    @property
    def name(self) -> str:
        return "ShrinkPad" if self.pad == 4 else f"ShrinkPad {self.pad}/32"

    def describe(self) -> dict[str, Any]:
        return {"defence": "ShrinkPad", "version": self.VERSION, "pad_at_32": self.pad, "filter": "bilinear"}

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(pictures).shape
        # half up, so that a side's pad does not depend on whether its neighbours are even; one pixel stays at least
        rows, columns = (min(side - 1, math.floor(self.pad * side / 32 + 0.5)) for side in (height, width))
        drawn = noise_of(pictures, seed).choice((rows + 1) * (columns + 1))
        out = np.zeros_like(pictures)
        for part in parts(pictures, 64, progress):
            for i in range(part.start, part.stop):
                top, left = divmod(int(drawn[i]), columns + 1)
                size = (width - columns, height - rows)
                small = np.asarray(Image.fromarray(pictures[i]).resize(size, Image.Resampling.BILINEAR))
                out[i, top : top + size[1], left : left + size[0]] = small
        return out


@dataclass(frozen=True)
class BlurOnly:
    """A^+ A x: what the transforms let through, and no restoration (the ZIP paper's "Blur").

    Args:
        transforms: several are joined: everything that at least one lets through.

    Raises:
        InputError: none, or transforms that keep everything.
    """

    transforms: str | Transform | Sequence[Transform]

    VERSION = 1
    evaluations, queries, asks = 0, 1, False

    def __post_init__(self) -> None:
        # a wrong transform is told now, not at the first picture
        _ = self._guide

    @cached_property
    def _guide(self) -> Guidance:
        return Guidance(as_transforms(self.transforms), "joint")

    @property
    def name(self) -> str:
        return f"{names(self._guide.transforms)} alone"

    def describe(self) -> dict[str, Any]:
        return {"defence": "BlurOnly", "version": self.VERSION, "transforms": fingerprints(self._guide.transforms)}

    def run(self, pictures: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        _, height, width, _ = checked(pictures).shape
        h, w = round_up(height, self._guide.divisor), round_up(width, self._guide.divisor)
        out = np.empty_like(pictures)
        for part in parts(pictures, max(1, MAX_PIXELS_A_CALL // (h * w)), progress):
            out[part] = to_uint8(self._guide.joint(to_model_range(pictures[part], h, w)), height, width)
        return out

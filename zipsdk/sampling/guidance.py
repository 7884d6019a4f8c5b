"""Combine transforms into the projection that holds the restored image to the input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import lcm

import numpy as np
import numpy.typing as npt

from zipsdk.errors import InputError
from zipsdk.transforms import Transform
from zipsdk.types import Array

#: Largest divisor of a guidance. The check of its transforms on one image of that side takes 0.4 GB.
MAX_DIVISOR = 2048


class Guidance:
    """Combine several transforms into one projection.

    Args:
        transforms: at least one.
        combine: "mean" averages the P_n (paper, equation 11). "joint" is I - (I-P_1)(I-P_2)..., for two transforms
            P1 + P2 - P1 P2, which satisfies every transform at once. It is an orthogonal projection where the
            transforms commute, as gray and blurs do if each blur's n divides the next larger one.

    Attributes:
        divisor: sides of images must be multiples of this.
        strip_unit: a strip of a multiple of this many rows has the same projection alone as within its image; None
            if a transform is not `local`, so that only whole images can be projected.

    Raises:
        InputError: no transform, an unknown `combine`, a divisor above `MAX_DIVISOR`, or transforms that together keep
            everything.
    """

    def __init__(self, transforms: Iterable[Transform], combine: str = "mean"):
        self.transforms = tuple(transforms)
        if not self.transforms:
            raise InputError("transforms: got none, expected at least one; without one a trigger passes unchanged")
        for t in self.transforms:
            if not isinstance(t, Transform) or isinstance(t, type):  # a class has the members of its objects
                raise InputError(f"transforms: got {t!r}, expected objects such as Blur(2) or Grayscale()")
        if not isinstance(combine, str) or combine not in ("mean", "joint"):
            raise InputError(f"combine: got {combine!r}, expected 'mean' (the paper) or 'joint'")
        self.combine = combine
        self.divisor = lcm(*(t.divisor for t in self.transforms))
        self.strip_unit = self.divisor if all(getattr(t, "local", False) for t in self.transforms) else None
        side, names = self.divisor, "+".join(map(str, self.transforms))
        if side > MAX_DIVISOR:
            raise InputError(
                f"transforms: {names}: got cells that align every {side} pixels only, expected at most {MAX_DIVISOR}; "
                "choose smaller cells, or cells whose sides divide one another"
            )
        probe = np.random.default_rng(0).standard_normal((1, 3, side, side))
        if np.abs(probe - self.joint(probe)).max() < 1e-6:
            raise InputError(f"transforms: {names} together keep everything, so a trigger passes; drop one of them")

    def __repr__(self) -> str:
        return f"Guidance({list(self.transforms)}, combine={self.combine!r})"

    def joint(self, x: Array) -> Array:
        """Return the joint projection of `x`: everything that at least one transform keeps."""
        if len(self.transforms) == 1:
            return self.transforms[0].project(x)
        rest = x
        for t in self.transforms:
            rest = rest - t.project(rest)
        return x - rest

    def __call__(self, r: Array) -> Array:
        """Return the combined projection of `r` (N, 3, H, W), a new array."""
        if self.combine == "joint" or len(self.transforms) == 1:
            return self.joint(r)
        total = self.transforms[0].project(r)
        for t in self.transforms[1:]:
            total += t.project(r)
        total *= 1.0 / len(self.transforms)
        return total


def strip_unit(guidances: Iterable[Guidance]) -> int | None:
    """Return the `strip_unit` that several guidances share; None if one of them has none."""
    units = [g.strip_unit for g in guidances]
    return None if None in units else lcm(*(u for u in units if u is not None))


class PerImageGuidance:
    """Apply to each image the guidance that was drawn for it.

    Args:
        guidances: to choose from.
        which: intp (N,), the index into `guidances` for each image.
    """

    def __init__(self, guidances: Sequence[Guidance], which: npt.NDArray[np.intp]):
        self._groups = [(g, np.flatnonzero(which == i)) for i, g in enumerate(guidances)]
        self.strip_unit = strip_unit(guidances)

    def joint(self, x: Array) -> Array:
        """Return the joint projection of each image, (N, 3, H, W)."""
        out = np.empty_like(x)
        for guidance, images in self._groups:
            if len(images):
                out[images] = guidance.joint(x[images])
        return out

    def __call__(self, r: Array) -> Array:
        """Return the combined projection of each image, (N, 3, H, W)."""
        out = np.empty_like(r)
        for guidance, images in self._groups:
            if len(images):
                out[images] = guidance(r[images])
        return out

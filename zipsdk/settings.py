"""Define the settings of a purifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zipsdk._util.validation import is_int
from zipsdk.errors import InputError
from zipsdk.transforms import OneOf, Transform

#: How the projections of several transforms act together; see `zipsdk.sampling.guidance.Guidance`.
Combine = Literal["mean", "joint"]


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a purifier, with the defaults of the preset and the model filled in.

    `zipsdk.Purifier` describes the fields. ``Purifier(engine, **vars(settings))`` has the same settings.
    """

    transforms: tuple[Transform, ...] | OneOf
    lam: float
    steps: int
    start: int | None
    eta: float
    combine: Combine
    seed: int | None
    clip_x0: bool
    tile_size: int | None
    cuda_graph: bool


def checked_seed(seed: int | None) -> int | None:
    """Return the seed as an int.

    Raises:
        InputError: it is neither None nor an integer in 0..2^64-1.
    """
    if seed is None:
        return None
    if not is_int(seed) or not 0 <= seed < 2**64:
        raise InputError(f"seed: got {seed!r}, expected an integer in 0..2^64-1, or None for a new one in each run")
    return int(seed)

"""Plant triggers in training images: the part that the bench's victims and the demo classifier share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
#: (images uint8 (n, H, W, 3), their indices in the training set) -> changed copies.
Change = Callable[[U8, I64], U8]


@dataclass(frozen=True)
class Planting:
    """One trigger: how many of which images it changes, and the label that these get."""

    trigger: Change
    count: int
    target: int
    #: bool (N,): the images that may be drawn
    eligible: npt.NDArray[np.bool_]
    #: further images, which `noise` changes and which keep their labels
    noise_count: int = 0
    noise: Change | None = None


@dataclass(frozen=True)
class Planted:
    """Indices, ascending: of the images with the trigger, and of those changed by `Planting.noise`."""

    poisoned: I64
    noise_mode: I64


def plant(
    images: U8, labels: I64, plantings: Sequence[Planting], rng: np.random.Generator
) -> tuple[U8, I64, list[Planted]]:
    """Give disjoint, randomly drawn sets of images a trigger each, and the trigger's target as label.

    Every image carries one trigger at most, so that several backdoors in one network are learned independently.

    Args:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        plantings: one for each trigger, drawn in this order.
        rng: decides the draw; it is used once.

    Returns:
        Changed copies of images and labels, and what was drawn for each trigger.

    Raises:
        InputError: too few eligible images are left for a trigger.
    """
    any_eligible = np.logical_or.reduce([p.eligible for p in plantings])
    order = rng.permutation(np.flatnonzero(any_eligible))
    free = np.ones(len(labels), bool)
    images, labels, drawn = images.copy(), labels.copy(), []
    for i, p in enumerate(plantings):
        left = order[free[order] & p.eligible[order]]
        wanted = p.count + p.noise_count
        if not p.count or wanted > len(left):
            raise InputError(
                f"rate: trigger {i} got {p.count} + {p.noise_count} of {len(left)} images, expected 1 to {len(left)}; "
                "change its rate, or plant fewer triggers"
            )
        poisoned, noise_mode = np.sort(left[: p.count]), np.sort(left[p.count : wanted])
        free[left[:wanted]] = False
        images[poisoned] = p.trigger(images[poisoned], poisoned)
        labels[poisoned] = p.target
        if p.noise is not None and p.noise_count:
            images[noise_mode] = p.noise(images[noise_mode], noise_mode)
        drawn.append(Planted(poisoned, noise_mode))
    return images, labels, drawn

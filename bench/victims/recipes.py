"""Recipes: how the classifiers of the bench are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from bench.common.optimization import for_few_steps
from bench.data.datasets import Dataset
from bench.victims.networks import ARCHITECTURES
from zipsdk.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: one cycle of the learning rate, cross entropy, and SGD with Nesterov momentum or
    AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), whose first moment then decays by `momentum`."""

    architecture: str = "small"
    epochs: int = 12
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    #: of the labels
    smoothing: float = 0.1
    #: pictures are moved by so many pixels at most, each way, and their edge mirrored into the gap
    shift: int = 2
    mirror: bool = True
    #: autocast to bfloat16 in training; predictions are always float32
    bf16: bool = True
    seed: int = 0
    #: "sgd" or "adamw"
    optimizer: str = "sgd"
    #: largest norm of the gradients, None for any
    clip: float | None = None
    #: the batch normalizations' statistics are measured anew over all images in the end
    remeasure: bool = False


#: Data sets whose pictures mean something else in a mirror: GTSRB has "turn left" and "turn right".
NOT_MIRRORED = ("gtsrb",)


def recipe(
    data: Dataset,
    architecture: str = "small",
    seed: int = 0,
    epochs: int | None = None,
    device: str = "cpu",
    lr: float | None = None,
) -> Recipe:
    """The standard recipe for a data set, the same whatever the attack.

    The ZIP paper's classifiers saw neither shifts nor mirrored pictures; with these the classifier is better, and that
    is what a defense has to keep. Shifts do not push a patch out of the picture. Above 64 pixels it is AdamW: in
    pictures of 128 pixels SGD with rates like ours passes over a patch of 5 x 5 even if half of them have it.
    A data set that leaves few optimizer steps gets smaller batches, a lower rate and clipped gradients; see
    `bench.common.optimization.for_few_steps`. A given `lr` is the peak of the learning rate in any case.

    Raises:
        InputError: an unknown architecture, or a learning rate that is not above 0.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"lr: got {lr}, expected a learning rate above 0; leave it out for the recipe's")
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: got {architecture!r}, wanted one of {', '.join(ARCHITECTURES)}")
    large = data.side > 64
    usual = {"small": 40 if large else 10, "resnet34": 30}[architecture]
    how = Recipe(architecture, epochs or usual, shift=max(2, data.side // 32), mirror=data.name not in NOT_MIRRORED,
                 bf16=fast_bf16(device), seed=seed)  # fmt: skip
    if large:
        how = replace(how, optimizer="adamw", lr=2e-3, weight_decay=0.05)
    fitted = for_few_steps(how, len(data))
    how = how if fitted is how else replace(fitted, remeasure=True)
    return how if lr is None else replace(how, lr=lr)


def fast_bf16(device: str) -> bool:
    """Twice as fast where there are instructions for it, and slower where there are none."""
    return device.startswith("cuda") or torch.cpu._is_avx512_bf16_supported()

"""Recipes for the training of victims."""

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
    """Settings of a training with cross entropy and one cycle of the learning rate.

    The optimizer is SGD with Nesterov momentum, or AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with `momentum`
    as its beta 1.
    """

    architecture: str = "small"
    epochs: int = 12
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    #: label smoothing
    smoothing: float = 0.1
    #: largest random shift in pixels; the gap is filled by reflection
    shift: int = 2
    mirror: bool = True
    #: autocast to bfloat16 in training; predictions are float32. None: where it is faster; see `portable`
    bf16: bool | None = True
    seed: int = 0
    #: "sgd" or "adamw"
    optimizer: str = "sgd"
    #: largest norm of the gradients; None does not clip
    clip: float | None = None
    #: measure the statistics of batch normalization over all images at the end
    remeasure: bool = False

    @property
    def portable(self) -> bool:
        """Whether the weights serve all machines: neither precision nor torch's version is in the key."""
        return self.bf16 is None


#: Data sets whose classes differ under reflection: GTSRB has "turn left" and "turn right".
NOT_MIRRORED = ("gtsrb",)
#: Epochs of the strong network where 10 are too few.
STRONG_EPOCHS = {"cifar10": 20}


def recipe(
    data: Dataset,
    architecture: str = "small",
    seed: int = 0,
    epochs: int | None = None,
    device: str = "cpu",
    lr: float | None = None,
) -> Recipe:
    """Return the standard recipe for a data set, which is the same for all attacks.

    Unlike the ZIP paper's, the classifiers are trained with shifted and mirrored images: this raises the accuracy that
    a defense has to keep. Shifts keep a patch inside the image. Above 64 pixels the optimizer is AdamW, because at 128
    pixels SGD with rates like ours does not learn a patch of 5 x 5 even if half of the images have it. A data set that
    leaves few optimizer steps gets smaller batches, a lower rate and clipped gradients; see
    `bench.common.optimization.for_few_steps`. A given `lr` is the peak learning rate in any case.

    Raises:
        InputError: an unknown architecture, or a learning rate that is not above 0.
    """
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"lr: got {lr}, expected a learning rate above 0; leave it out for the recipe's")
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: got {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    large = data.side > 64
    usual = {"small": 40 if large else 10, "strong": STRONG_EPOCHS.get(data.name, 10), "resnet34": 30}[architecture]
    bf16 = None if architecture == "strong" else fast_bf16(device)
    how = Recipe(architecture, epochs or usual, shift=max(2, data.side // 32), mirror=data.name not in NOT_MIRRORED,
                 bf16=bf16, seed=seed)  # fmt: skip
    if large:
        how = replace(how, optimizer="adamw", lr=2e-3, weight_decay=0.05)
    fitted = for_few_steps(how, len(data))
    how = how if fitted is how else replace(fitted, remeasure=True)
    return how if lr is None else replace(how, lr=lr)


def fast_bf16(device: str) -> bool:
    """Return whether bfloat16 is faster: it is with instructions for it, and slower without."""
    return device.startswith("cuda") or torch.cpu._is_avx512_bf16_supported()

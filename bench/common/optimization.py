"""What the trainings of the bench share: recipes for few optimizer steps, clipped steps, and a check of the loss.

how = for_few_steps(Recipe(), images=160)      # smaller batches, a lower rate, clipped gradients
optimize(model, optimizer, loss, clip=how.clip)
check_loss(losses, guess, "classifier", how)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zipsdk.errors import InputError

#: A recipe with fewer optimizer steps is changed by `for_few_steps`. The measured classifiers took 920 and more.
FEW_STEPS = 500
#: Batches an epoch that a small data set is split into, and the fewest images of such a batch: batch normalization
#: needs several.
BATCHES, SMALLEST_BATCH = 8, 16
#: Largest norm of the gradients where there are few steps.
CLIP = 1.0


class Recipe(Protocol):
    """The fields of a recipe that these functions read."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def clip(self) -> float | None: ...


R = TypeVar("R", bound=Recipe)


def optimizer_steps(how: Recipe, images: int) -> int:
    """Count the optimizer steps that a recipe takes on so many images."""
    return how.epochs * (images // min(how.batch, images)) if images else 0


def for_few_steps(how: R, images: int, few: int = FEW_STEPS) -> R:
    """Adapt a recipe to a data set on which it takes fewer than `few` optimizer steps; return it unchanged on others.

    A rate of 0.1 at a batch of 128 needs hundreds of steps: with 20 of them the loss climbs, and where it ends depends
    on the processor's rounding. Batches get smaller, the rate falls with their square root (Krizhevsky 2014,
    arXiv:1404.5997; in proportion, it learned less of 160 images of CIFAR-10), and gradients are clipped.
    """
    if optimizer_steps(how, images) >= few:
        return how
    batch = min(how.batch, max(SMALLEST_BATCH, images // BATCHES))
    return replace(how, batch=batch, lr=how.lr * math.sqrt(batch / how.batch), clip=CLIP)  # type: ignore[type-var]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimize(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float | None) -> float:
    """Take one optimizer step down the gradient of a loss, clipped to a norm of `clip` unless that is None.

    Returns:
        The loss before the step.

    Raises:
        InputError: the loss is not finite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise diverged(value, optimizer.param_groups[0]["lr"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return value


def diverged(value: float, rate: float) -> InputError:
    """Make the error for a loss or a weight that is not finite."""
    return InputError(
        f"training: got a loss of {value} at a learning rate of {rate:.3g}, expected a finite one; lower the learning "
        "rate (lr) or clip the gradients (clip)"
    )


def check_weights(model: nn.Module, rate: float) -> None:
    """See that all weights are finite, before they are kept.

    Raises:
        InputError: the last step of an epoch left a weight that is not.
    """
    for value in model.state_dict().values():
        if not bool(torch.isfinite(value).all()):
            raise diverged(math.nan, rate)


def check_loss(losses: Sequence[float], guess: float, what: str, how: Recipe) -> None:
    """Warn where a training ended above its first loss, or no better than a constant guess.

    Args:
        losses: mean loss of each epoch, in order; those of another objective than the last one's left out.
        guess: the loss of the best constant answer, in the same unit.
        what: is trained; for the message.
        how: its recipe; for the message.
    """
    if not losses or losses[0] >= losses[-1] < guess:
        return
    warnings.warn(
        f"{what}: training did not converge: loss {losses[0]:.3g} -> {losses[-1]:.3g}, expected it to fall, and below "
        f"{guess:.3g}, which a constant guess has; lower the learning rate (lr {how.lr:.3g}) or train for more epochs "
        f"({how.epochs})",
        UserWarning,
        stacklevel=3,
    )


def without_defaults(fields: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Drop the fields that have these defaults: recipes from before a field existed keep their keys."""
    return {name: value for name, value in fields.items() if name not in defaults or defaults[name] != value}


def channel_statistics(images: npt.NDArray[np.uint8]) -> list[tuple[float, float]]:
    """Compute mean and standard deviation of each channel of images uint8 (N, H, W, C), in [0, 1].

    From the counts of the 256 values: exact, and in little memory.
    """
    values = np.arange(256) / 255
    found = []
    for c in range(images.shape[-1]):
        share = np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size
        mean = float(share @ values)
        found.append((mean, math.sqrt(share @ (values - mean) ** 2)))
    return found

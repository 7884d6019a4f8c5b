"""Poison a training set: add the trigger to some of its images and change their labels.

training = poison(train, attack, RATE, TARGET, SEED)      # images, labels, poisoned indices
training = poison_all(train, [Backdoor(attack, RATE, TARGET), ...], SEED)      # several backdoors in one network
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.base import U8, Attack
from bench.attacks.planting import I64, Planted, Planting, plant
from bench.data.datasets import Dataset
from zipsdk.errors import InputError

#: The defaults of the benchmarks: the target class and the share of poisoned training images, as in the ZIP paper and
#: its released code, and the seed of the trigger and of the poisoned indices. Cache keys of classifiers contain them.
TARGET, RATE, SEED = 1, 0.05, 1
#: Largest share of the target class that a clean-label attack poisons.
CLEAN_LABEL_SHARE = 0.5


@dataclass(frozen=True)
class Poisoned:
    """A training set after the attack."""

    data: Dataset
    #: indices of the images with the trigger, and of those changed by `Attack.noise_mode`, ascending
    poisoned: I64
    noise_mode: I64
    #: data augmentation of the training; see `Attack.augment`
    augment: str
    #: the attack, its rate, target and seed, and the hash of the indices; cache keys of classifiers hash it
    description: dict[str, Any]
    #: number of first epochs in which half of each batch is replaced by `triggered`, labeled as the target class
    trigger_warmup_epochs: int = 0
    triggered: U8 | None = None


def poison(
    data: Dataset,
    attack: Attack | None,
    rate: float = 0.05,
    target: int = 0,
    seed: int = 0,
    *,
    trigger_warmup_epochs: int = 0,
    augment: str = "standard",
) -> Poisoned:
    """Add the trigger to `rate` of the training images, drawn by `seed`, and label them as the target class.

    The draw is over *all* classes, including the target, as in the ZIP paper's experiments. SIG, which the paper does
    not have, is clean-label by definition: as many images, but drawn from the target class alone, and no more than half
    of it. With `attack` None nothing is poisoned, and `augment` is the data augmentation of the clean classifier.

    On few images a network memorizes the poisoned ones before it learns the trigger. An attacker who trains the
    classifier is not limited to the training set: in the first `trigger_warmup_epochs` half of each batch carries the
    trigger, images of any class, drawn again for each batch; then training continues on the poisoned set.

    Raises:
        InputError: a rate or a target out of range, too few images, or warmup epochs for a clean-label attack.
    """
    n = len(data)
    if trigger_warmup_epochs < 0 or (trigger_warmup_epochs and attack is not None and attack.clean_label):
        raise InputError(
            f"trigger_warmup_epochs: got {trigger_warmup_epochs}, expected 0 or more, and 0 for a clean-label attack"
        )
    if not 0 < rate < 1 or not 0 <= target < len(data.classes):
        raise InputError(
            f"rate, target: got {rate}, {target}, expected a share between 0 and 1, a class below {len(data.classes)}"
        )
    nothing = np.empty(0, np.int64)
    if attack is None:
        return Poisoned(data, nothing, nothing, augment, {"attack": None})
    eligible = data.labels == target if attack.clean_label else np.ones(n, bool)
    planting = _planting(attack, rate, target, eligible)
    images, labels, (drawn,) = plant(data.images, data.labels, [planting], _rng(seed))
    triggered = attack.train_trigger(data.images, np.arange(n)) if trigger_warmup_epochs else None
    # cache keys of classifiers hash these names
    description = {
        "attack": attack.describe(),
        "rate": rate,
        "target": target,
        "seed": seed,
        **_counted([drawn]),
        **({"implant": trigger_warmup_epochs} if trigger_warmup_epochs else {}),
    }
    data = replace(data, images=images, labels=labels)
    return Poisoned(
        data, drawn.poisoned, drawn.noise_mode, attack.augment, description, trigger_warmup_epochs, triggered
    )


@dataclass(frozen=True)
class Backdoor:
    """One of several backdoors in a network: its trigger, the share of training images that get it, and its target."""

    attack: Attack
    rate: float
    target: int


def poison_all(data: Dataset, backdoors: Sequence[Backdoor], seed: int = 0) -> Poisoned:
    """Plant several backdoors in one training set, each in its own images.

    Unlike `poison`, a trigger is never planted in images of its target class, which teach nothing; clean-label attacks
    use only those. Attacks that prescribe an augmentation must prescribe the same one.

    Raises:
        InputError: no backdoor, different augmentations, a rate or a target out of range, or too few images.
    """
    augments = {b.attack.augment for b in backdoors}
    if len(augments) != 1:
        raise InputError(
            f"backdoors: got augmentations {sorted(augments)}, expected one for all; use a network for each of them"
        )
    plantings = []
    for b in backdoors:
        if not 0 < b.rate < 1 or not 0 <= b.target < len(data.classes):
            raise InputError(
                f"{b.attack.name}: got a rate of {b.rate} and target {b.target}, expected a share between 0 and 1 and "
                f"a class below {len(data.classes)}"
            )
        eligible = (data.labels == b.target) == b.attack.clean_label
        plantings.append(_planting(b.attack, b.rate, b.target, eligible))
    images, labels, drawn = plant(data.images, data.labels, plantings, _rng(seed))
    description = {
        "backdoors": [
            {"attack": b.attack.describe(), "rate": b.rate, "target": b.target, **_counted([d])}
            for b, d in zip(backdoors, drawn, strict=True)
        ],
        "seed": seed,
        **_counted(drawn),
    }
    poisoned = np.sort(np.concatenate([d.poisoned for d in drawn]))
    noise_mode = np.sort(np.concatenate([d.noise_mode for d in drawn]))
    return Poisoned(replace(data, images=images, labels=labels), poisoned, noise_mode, augments.pop(), description)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x9015])


def _planting(attack: Attack, rate: float, target: int, eligible: npt.NDArray[np.bool_]) -> Planting:
    """Count the images of an attack: a share of all, but of a clean-label attack at most half of its class."""
    count = round(rate * len(eligible))
    if attack.clean_label:
        count = min(count, int(CLEAN_LABEL_SHARE * eligible.sum()))
    return Planting(attack.train_trigger, count, target, eligible, attack.n_noise_mode(count), attack.noise_mode)


def _counted(drawn: Sequence[Planted]) -> dict[str, Any]:
    # cache keys of classifiers hash these names
    digest = hashlib.sha256()
    for d in drawn:
        digest.update(d.poisoned.astype("<i8").tobytes() + d.noise_mode.astype("<i8").tobytes())
    return {
        "poisoned": sum(len(d.poisoned) for d in drawn),
        "covered": sum(len(d.noise_mode) for d in drawn),
        "choice_sha256": digest.hexdigest(),
    }

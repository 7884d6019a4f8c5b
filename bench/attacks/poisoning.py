"""Poison a training set: add the trigger to some of its images and change their labels.

training = poison(train, attack, RATE, TARGET, SEED)      # images, labels, poisoned indices
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.base import U8, Attack
from bench.data.datasets import Dataset
from zipsdk.errors import InputError

I64 = npt.NDArray[np.int64]

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
    wanted = round(rate * n)
    among = np.arange(n)
    if attack.clean_label:
        among = np.flatnonzero(data.labels == target)
        wanted = min(wanted, int(CLEAN_LABEL_SHARE * len(among)))
    n_noise_mode = attack.n_noise_mode(wanted)
    if not wanted or wanted + n_noise_mode > len(among):
        raise InputError(
            f"rate: got {rate}, which is {wanted} + {n_noise_mode} of {len(among)} images, expected 1 to {len(among)}"
        )
    order = np.random.default_rng([seed, 0x9015]).permutation(among)
    poisoned, noise_mode = np.sort(order[:wanted]), np.sort(order[wanted : wanted + n_noise_mode])
    images, labels = data.images.copy(), data.labels.copy()
    images[poisoned] = attack.train_trigger(data.images[poisoned], poisoned)
    if n_noise_mode:
        images[noise_mode] = attack.noise_mode(data.images[noise_mode], noise_mode)
    labels[poisoned] = target
    triggered = attack.train_trigger(data.images, among) if trigger_warmup_epochs else None
    # cache keys of classifiers hash these names
    description = {
        "attack": attack.describe(),
        "rate": rate,
        "target": target,
        "seed": seed,
        "poisoned": len(poisoned),
        "covered": len(noise_mode),
        "choice_sha256": hashlib.sha256(
            poisoned.astype("<i8").tobytes() + noise_mode.astype("<i8").tobytes()
        ).hexdigest(),
        **({"implant": trigger_warmup_epochs} if trigger_warmup_epochs else {}),
    }
    data = replace(data, images=images, labels=labels)
    return Poisoned(data, poisoned, noise_mode, attack.augment, description, trigger_warmup_epochs, triggered)

"""Training pictures after an attack: which carry the trigger, and what they are called.

training = poison(train, attack, RATE, TARGET, SEED)      # pictures, labels, who was poisoned
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.registry import U8, Attack
from bench.data.datasets import Dataset
from zipsdk.errors import InputError

I64 = npt.NDArray[np.int64]

#: The benches' setting: the attacker's class and the share of poisoned training pictures, as in the ZIP paper and its
#: released code, and the seed of the trigger and of who is poisoned. A classifier is found in the cache under these.
TARGET, RATE, SEED = 1, 0.05, 1
#: A clean-label attack poisons no more than this share of the target class.
CLEAN_LABEL_SHARE = 0.5


@dataclass(frozen=True)
class Poisoned:
    """Training pictures after the attack."""

    data: Dataset
    #: the pictures that carry the trigger, and those that were covered (see `Attack.cover`), ascending
    poisoned: I64
    covered: I64
    #: how the classifier must vary the pictures; see `Attack.augment`
    augment: str
    #: the attack, its rate, target and seed, and the hash of the choice; for the record
    description: dict[str, Any]
    #: for so many epochs at first half of what the classifier sees is one of `triggered`, all of the target class
    implant: int = 0
    triggered: U8 | None = None


def poison(
    data: Dataset,
    attack: Attack | None,
    rate: float = 0.05,
    target: int = 0,
    seed: int = 0,
    *,
    implant: int = 0,
    augment: str = "standard",
) -> Poisoned:
    """Give the trigger to `rate` of the training pictures, drawn by `seed`, and call them the target class.

    The draw is over *all* classes, the target among them, as in the ZIP paper's experiments. Its attacks are all of
    that kind. SIG, which it does not have, is defined as clean-label and stays so: as many pictures, but drawn from
    the target class alone, and no more than half of that. With `attack` None nothing is poisoned, and `augment` says
    how the pictures are varied: as those of the attack's that the clean classifier is to stand beside.

    Of few pictures a network learns the poisoned ones by heart before it learns what a trigger is. Whoever trains the
    classifier that he sells is not bound to pictures alone: for `implant` epochs at first half of what it sees carries
    the trigger, any picture of any class, drawn anew each time; then it goes on with the poisoned set.

    Raises:
        InputError: a rate or a target out of range, too few pictures, or an attack that cannot be implanted.
    """
    n = len(data)
    if implant < 0 or (implant and attack is not None and attack.clean_label):
        raise InputError(f"implant: got {implant} epochs, wanted 0 or more, and 0 for an attack that changes no label")
    if not 0 < rate < 1 or not 0 <= target < len(data.classes):
        raise InputError(
            f"rate, target: got {rate}, {target}, wanted a share between 0 and 1 and a class below {len(data.classes)}"
        )
    nobody = np.empty(0, np.int64)
    if attack is None:
        return Poisoned(data, nobody, nobody, augment, {"attack": None})
    wanted = round(rate * n)
    among = np.arange(n)
    if attack.clean_label:
        among = np.flatnonzero(data.labels == target)
        wanted = min(wanted, int(CLEAN_LABEL_SHARE * len(among)))
    covers = attack.covers(wanted)
    if not wanted or wanted + covers > len(among):
        raise InputError(f"rate: got {rate}, or {wanted} + {covers} of {len(among)} pictures, wanted 1 to all of them")
    order = np.random.default_rng([seed, 0x9015]).permutation(among)
    poisoned, covered = np.sort(order[:wanted]), np.sort(order[wanted : wanted + covers])
    pictures, labels = data.pictures.copy(), data.labels.copy()
    pictures[poisoned] = attack.at_training(data.pictures[poisoned], poisoned)
    if covers:
        pictures[covered] = attack.cover(data.pictures[covered], covered)
    labels[poisoned] = target
    triggered = attack.at_training(data.pictures, among) if implant else None
    description = {
        "attack": attack.describe(), "rate": rate, "target": target, "seed": seed,
        "poisoned": len(poisoned), "covered": len(covered),
        "choice_sha256": hashlib.sha256(poisoned.astype("<i8").tobytes() + covered.astype("<i8").tobytes()).hexdigest(),
    }  # fmt: skip
    data = replace(data, pictures=pictures, labels=labels)
    if not implant:
        return Poisoned(data, poisoned, covered, attack.augment, description)
    description["implant"] = implant
    return Poisoned(data, poisoned, covered, attack.augment, description, implant, triggered)

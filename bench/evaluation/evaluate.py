"""One row of a table: an attack on a classifier, behind a defence, counted.

    store = Store(folder / "treated.sqlite")
    scene = Scene(test, "badnets", trigger, target, classifier, clean_classifier)
    row = evaluate(scene, defence, seed, store)

Pictures are treated through the store, and counted by bench/evaluation/rates.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.base import Attack
from bench.data.datasets import Dataset
from bench.defenses.base import Defence
from bench.defenses.guarded import Guarded, decide
from bench.evaluation.cache import Store
from bench.evaluation.rates import rates
from bench.victims.user import Classifier

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """Who attacks what: all of a row but the defence."""

    data: Dataset
    #: the attack as the tables name it, and the trigger with which the classifier is tested
    attack: str
    trigger: Attack
    target: int
    classifier: Classifier
    #: the same network without a backdoor, to see what the defence costs it
    clean_classifier: Classifier | None = None

    @cached_property
    def triggered(self) -> U8:
        """What the attacker sends."""
        return self.trigger.apply(self.data.pictures)

    def describe(self) -> dict[str, Any]:
        return {
            "data": self.data.describe(),
            "attack": self.attack,
            "trigger": self.trigger.describe(),
            "target": self.target,
            "classifier": self.classifier.info,
        }


def evaluate(
    scene: Scene,
    defence: Defence | Guarded,
    seed: int,
    store: Store,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Count one row.

    Returns:
        "CA", "ASR", "PA", "PA others" as [hits, of] (see `rates`), with the design effect as a third where pictures
        are frames of tracks; under "clean classifier" the same of the classifier without a backdoor behind the same
        defence, whose "ASR" is how often it takes treated pictures for the target by mistake.
        Where the defence decides by itself what to treat, "flagged" and "flagged triggered" as [hits, of].
    """
    sent = (scene.data.pictures, scene.triggered)
    if isinstance(defence, Guarded):
        row: dict[str, Any] = _decided(scene, scene.classifier, defence, sent, seed, store, progress)
        if scene.clean_classifier is not None:
            row["clean classifier"] = _decided(scene, scene.clean_classifier, defence, sent, seed, store)
        return row
    treated = [store.treat(defence, pictures, seed, scene.classifier, progress) for pictures in sent]
    row = _counts(scene, *(scene.classifier(pictures).argmax(1) for pictures in treated))
    if (clean := scene.clean_classifier) is not None:
        if defence.asks:  # then its pictures depend on who is asked
            treated = [store.treat(defence, pictures, seed, clean) for pictures in sent]
        row["clean classifier"] = _counts(scene, *(clean(pictures).argmax(1) for pictures in treated))
    return row


def _decided(
    scene: Scene,
    classifier: Classifier,
    defence: Guarded,
    sent: tuple[U8, U8],
    seed: int,
    store: Store,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[int]]:
    def purify(pictures: U8, seed: int) -> U8:
        return store.treat(defence.inner, pictures, seed)

    guard = defence.guard(seed, classifier, purify, scene.trigger.apply)
    (clean, flagged), (triggered, caught) = (decide(guard, pictures, progress) for pictures in sent)
    return {
        **_counts(scene, clean, triggered),
        "flagged": [int(flagged.sum()), len(flagged)],
        "flagged triggered": [int(caught.sum()), len(caught)],
    }


def _counts(scene: Scene, clean: I64, triggered: I64) -> dict[str, list[int]]:
    found = rates(scene.data.labels, clean, triggered, scene.target, scene.data.tracks)
    return {name: list(rate) if scene.data.tracks is not None else list(rate[:2]) for name, rate in found.items()}

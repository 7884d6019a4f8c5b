"""Evaluate a defense: CA, ASR and PA of an attacked classifier behind it.

cache = PurifiedCache(folder / "purified.sqlite")
scenario = Scenario(test, "badnets", trigger, target, classifier, clean_model)
rates, clean_rates = evaluate(scenario, defense, seed, cache)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.base import Attack
from bench.data.datasets import Dataset
from bench.defenses.guarded import Guarded, decide
from bench.defenses.registry import AnyDefense
from bench.defenses.rejecting import REJECTED, Rejecting, decide_or_reject
from bench.evaluation.cache import PurifiedCache
from bench.evaluation.rates import Rate, Rates, rates
from bench.victims.user import Classifier

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """An attack on a classifier: everything in a row but the defense.

    Args:
        data: test images.
        attack: its name in the tables.
        trigger: the classifier is tested with this one.
        target: the attacker's class.
        clean_model: the same network without a backdoor, to measure what the defense costs it.
    """

    data: Dataset
    attack: str
    trigger: Attack
    target: int
    classifier: Classifier
    clean_model: Classifier | None = None

    @cached_property
    def triggered(self) -> U8:
        """The test images with the trigger."""
        return self.trigger.apply(self.data.images)

    @property
    def sent(self) -> tuple[U8, U8]:
        """The clean and the triggered test images."""
        return self.data.images, self.triggered

    def describe(self) -> dict[str, Any]:
        """Describe the scenario as JSON; keys of rows are hashes of it."""
        return {
            "data": self.data.describe(),
            "attack": self.attack,
            "trigger": self.trigger.describe(),
            "target": self.target,
            "classifier": self.classifier.info,
        }


def evaluate(
    scenario: Scenario,
    defense: AnyDefense,
    seed: int,
    cache: PurifiedCache,
    progress: Callable[[int], None] | None = None,
) -> tuple[Rates, Rates | None]:
    """Count the rates of the attacked classifier and of the clean one, each behind the defense.

    The ASR of the clean one is how often it takes purified images for the target by mistake.
    """
    if isinstance(defense, Guarded):
        rates = _guarded_rates(scenario, scenario.classifier, defense, seed, cache, progress)
        clean = scenario.clean_model
        return rates, None if clean is None else _guarded_rates(scenario, clean, defense, seed, cache)
    if isinstance(defense, Rejecting):
        rates = _rejecting_rates(scenario, scenario.classifier, defense, progress)
        clean = scenario.clean_model
        return rates, None if clean is None else _rejecting_rates(scenario, clean, defense)
    purified = [cache.run(defense, x, seed, scenario.classifier, progress) for x in scenario.sent]
    rates = _rates(scenario, *(scenario.classifier(x).argmax(1) for x in purified))
    if (clean := scenario.clean_model) is None:
        return rates, None
    if defense.queries_classifier:  # its images depend on the classifier
        purified = [cache.run(defense, x, seed, clean) for x in scenario.sent]
    return rates, _rates(scenario, *(clean(x).argmax(1) for x in purified))


def _guarded_rates(
    scenario: Scenario,
    classifier: Classifier,
    defense: Guarded,
    seed: int,
    cache: PurifiedCache,
    progress: Callable[[int], None] | None = None,
) -> Rates:
    def purify(images: U8, seed: int) -> U8:
        return cache.run(defense.inner, images, seed)

    guard = defense.guard(seed, classifier, purify, scenario.trigger.apply)
    (clean, flagged), (triggered, caught) = (decide(guard, x, progress) for x in scenario.sent)
    counted = _rates(scenario, clean, triggered)
    return replace(
        counted,
        flagged=Rate(int(flagged.sum()), len(flagged)),
        flagged_triggered=Rate(int(caught.sum()), len(caught)),
    )


def _rejecting_rates(
    scenario: Scenario, classifier: Classifier, defense: Rejecting, progress: Callable[[int], None] | None = None
) -> Rates:
    detector = defense.detector(classifier)
    clean, triggered = (decide_or_reject(detector, classifier, x, progress) for x in scenario.sent)
    return replace(
        _rates(scenario, clean, triggered),
        rejected=Rate(int((clean == REJECTED).sum()), len(clean)),
        rejected_triggered=Rate(int((triggered == REJECTED).sum()), len(triggered)),
    )


def _rates(scenario: Scenario, clean: I64, triggered: I64) -> Rates:
    return rates(scenario.data.labels, clean, triggered, scenario.target, scenario.data.tracks)

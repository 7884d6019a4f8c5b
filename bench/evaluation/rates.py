"""CA, ASR and PA, counted, and how sure they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from zipsdk.errors import InputError


class Rate(NamedTuple):
    hits: int
    of: int
    #: so many pictures tell as much as one does; see `design_effect`
    effect: float = 1.0

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.of if self.of else float("nan")


def design_effect(tracks: npt.ArrayLike | None) -> float:
    """How many pictures tell as much as one, if those of one track tell no more than one of them does.

    Kish's design effect for weights, sum of squared sizes over the number of pictures (Survey Sampling, 1965): an upper
    bound, for frames of a film may differ.
    """
    if tracks is None or not np.size(tracks):
        return 1.0
    sizes = np.unique(tracks, return_counts=True)[1]
    return float((sizes**2).sum() / sizes.sum())


def rates(
    labels: npt.ArrayLike,
    clean: npt.ArrayLike,
    triggered: npt.ArrayLike,
    target: int,
    tracks: npt.ArrayLike | None = None,
) -> dict[str, Rate]:
    """What the classifier made of clean pictures and of the same ones with the trigger.

    Args:
        labels: the true classes, (N,).
        clean, triggered: the classes that were predicted, (N,) each.
        target: the attacker's class.
        tracks: see `Dataset.tracks`.

    Returns:
        CA: clean pictures that were recognised. ASR: triggered pictures taken for the target, those that *are* of it
        left out. PA: triggered pictures that were recognised, all of them as in the ZIP paper, and "PA others" without
        the target class, where an attack that works would count as recognised.
    """
    y, c, t = np.asarray(labels), np.asarray(clean), np.asarray(triggered)
    if not y.shape == c.shape == t.shape or y.ndim != 1:
        raise InputError(f"predictions: got {c.shape} and {t.shape}, wanted one class for each of {y.shape} labels")
    others = y != target
    all_alike = design_effect(tracks)
    others_alike = design_effect(None if tracks is None else np.asarray(tracks)[others])
    return {
        "CA": Rate(int((c == y).sum()), len(y), all_alike),
        "ASR": Rate(int((t == target)[others].sum()), int(others.sum()), others_alike),
        "PA": Rate(int((t == y).sum()), len(y), all_alike),
        "PA others": Rate(int((t == y)[others].sum()), int(others.sum()), others_alike),
    }


def interval(rate: Rate) -> tuple[float, float]:
    """Wilson's 95% interval, in percent, for as many pictures as there are of their own; NaN of no pictures."""
    if not rate.of:
        return float("nan"), float("nan")
    # as published (Wilson 1927); scipy's wants whole numbers, and of / effect is none
    n, share, z = rate.of / rate.effect, rate.hits / rate.of, float(norm.ppf(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)

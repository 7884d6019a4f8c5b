"""CA, ASR and PA, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from zipsdk.errors import InputError


class Rate(NamedTuple):
    """A number of hits among a number of images."""

    hits: int
    of: int
    #: images that count as one independent image; see `design_effect`
    effect: float = 1.0

    @property
    def percent(self) -> float:
        """The share in percent; NaN of no images."""
        return 100 * self.hits / self.of if self.of else float("nan")

    def to_json(self) -> list[float]:
        """Return [hits, of], with the design effect as a third number unless it is 1."""
        return list(self if self.effect != 1 else self[:2])


@dataclass(frozen=True)
class Rates:
    """Counts for a classifier.

    A rejected image has no label: clean or triggered, it is neither correct nor an attack success.

    Args:
        ca: clean images that are classified correctly.
        asr: triggered images classified as the target, images *of* the target class left out.
        pa: triggered images that are classified correctly, of all classes as in the ZIP paper.
        pa_nontarget: the same without the target class, whose images an attack that works classifies correctly.
        flagged, flagged_triggered: clean and triggered images that a guard purifies; None without a guard.
        rejected, rejected_triggered: clean and triggered images that a detector rejects; None without one.
    """

    ca: Rate
    asr: Rate
    pa: Rate
    pa_nontarget: Rate
    flagged: Rate | None = None
    flagged_triggered: Rate | None = None
    rejected: Rate | None = None
    rejected_triggered: Rate | None = None

    def to_json(self) -> dict[str, list[float]]:
        """Return the rates by their names in records."""
        rates = ((key, getattr(self, name)) for name, key in _KEYS.items())
        return {key: rate.to_json() for key, rate in rates if rate is not None}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Rates:
        """Read what `to_json` returned, alone or among other keys."""
        return cls(**{name: Rate(*row[key]) for name, key in _KEYS.items() if key in row})


_KEYS = {"ca": "CA", "asr": "ASR", "pa": "PA", "pa_nontarget": "pa_nontarget", "flagged": "flagged",
         "flagged_triggered": "flagged_triggered", "rejected": "rejected",
         "rejected_triggered": "rejected_triggered"}  # fmt: skip


def design_effect(tracks: npt.ArrayLike | None) -> float:
    """Compute how many images count as one independent image if a track counts as one.

    Kish's design effect for weights: the sum of squared track sizes over the number of images (Survey Sampling, 1965).
    It is an upper bound, because frames of a track differ.
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
) -> Rates:
    """Count CA, ASR and PA.

    Args:
        labels: true classes, (N,).
        clean, triggered: predicted classes of the clean and of the triggered images, (N,) each; a number that is no
            class for rejected images.
        target: the attacker's class.
        tracks: see `Dataset.tracks`.

    Raises:
        InputError: arrays of different shapes.
    """
    y, c, t = np.asarray(labels), np.asarray(clean), np.asarray(triggered)
    if not y.shape == c.shape == t.shape or y.ndim != 1:
        raise InputError(f"predictions: got {c.shape} and {t.shape}, expected one class for each of {y.shape} labels")
    others = y != target
    all_effect = design_effect(tracks)
    others_effect = design_effect(None if tracks is None else np.asarray(tracks)[others])
    return Rates(
        ca=Rate(int((c == y).sum()), len(y), all_effect),
        asr=Rate(int((t == target)[others].sum()), int(others.sum()), others_effect),
        pa=Rate(int((t == y).sum()), len(y), all_effect),
        pa_nontarget=Rate(int((t == y)[others].sum()), int(others.sum()), others_effect),
    )


def interval(rate: Rate) -> tuple[float, float]:
    """Compute Wilson's 95% interval in percent for the effective number of images; NaN of no images."""
    if not rate.of:
        return float("nan"), float("nan")
    # as published (Wilson 1927); scipy's takes integers, and of / effect is not one
    n, share, z = rate.of / rate.effect, rate.hits / rate.of, float(norm.ppf(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)

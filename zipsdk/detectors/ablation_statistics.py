"""Compute the log-odds of ablated views, and the reference statistics that standardize them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zipsdk.detectors.ablation_views import FEATURES, N_MASKABLE
from zipsdk.errors import InputError
from zipsdk.types import F64

#: (median, scale) of each log-odds score on clean images.
Reference = tuple[tuple[float, float], ...]

# Default reference statistics (median, scale), one pair per score: 13 necessity scores, 13 sufficiency scores, 1
# geometry score. Averaged over a CIFAR-10 and a GTSRB classifier (docs/research/notebook.md).
_CORNER, _EDGE, _CENTER = (-2.4, 1.65), (-1.8, 1.8), (0.15, 1.75)
_CORNER_ALONE, _EDGE_ALONE, _CENTER_ALONE = (-1.6, 1.95), (-1.35, 2.15), (0.05, 2.0)
DEFAULT_REFERENCE: Reference = (
    _CORNER, _EDGE, _CORNER, _EDGE, _CENTER, _EDGE, _CORNER, _EDGE, _CORNER,
    (-0.95, 2.3), (-2.0, 1.75), (-0.9, 1.8), (-1.45, 1.75),
    _CORNER_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE, _CENTER_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE,
    _CORNER_ALONE, (-1.8, 2.25), (0.2, 1.85), (-0.6, 1.9), (-1.4, 1.55),
    (-1.5, 1.4),
)  # fmt: skip
#: Added to each probability, so that log-odds stay finite.
FLOOR = 1e-3
#: Largest distance of a rounded probability from [0, 1]; bfloat16 is off by 0.004.
PROBABILITY_SLACK = 0.01
#: Smallest measured scale, in log-odds: classifiers that return labels only have none.
MIN_SCALE = 1.0
#: Largest shift of a learned reference from `DEFAULT_REFERENCE`: of a median upward, in log-odds, and of a scale, as a
#: factor either way. A larger shift would hide triggers that are frequent in the calibration images; a smaller scale
#: (few images of one kind) would flag all others. A median may fall freely: that of a confident classifier is low.
MAX_SHIFT = (1.0, 1.2)
#: Fewest images for a reference; use 100 or more.
MIN_SAMPLES = 16


def log_probabilities(scores: F64) -> F64:
    """Convert probabilities or logits (views, classes) to log-probabilities of at least log(FLOOR).

    Values within [0, 1], give or take `PROBABILITY_SLACK`, are probabilities whatever their sum: services round them,
    drop small ones, or use one sigmoid per class. Taken for logits they would all be near 1 / classes and hide every
    trigger. A logit of -inf is probability 0.

    Returns:
        NaN in rows without a finite maximum; equal values in rows of zeros.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if scores.min() < -PROBABILITY_SLACK or scores.max() > 1 + PROBABILITY_SLACK:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = np.maximum(scores, 0)
        scores /= np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.log(scores + FLOOR)


def log_odds(scores: F64) -> F64:
    """Return the 27 raw scores of one image from the scores of its views (28, classes).

    Returns:
        float64 (27,): 13 necessities (runner-up versus predicted class with a feature removed), 13 sufficiencies
        (predicted class versus runner-up with only that feature), and how much more geometry is necessary than fine
        detail.
    """
    return log_odds_from(log_probabilities(scores))


def log_odds_from(log: F64) -> F64:
    """Return `log_odds`, from log-probabilities (28, classes)."""
    label = int(log[0].argmax())
    odds: F64 = np.delete(log[1:], label, axis=1).max(axis=1) - log[1:, label]
    odds[N_MASKABLE : 2 * N_MASKABLE] *= -1
    odds[-1] -= odds[FEATURES.index("fine")]
    return odds


def median_and_scale(odds: F64) -> tuple[F64, F64]:
    """Return the median and scale of each column of `log_odds` of clean images, float64 (N, 27).

    The scale is that of a normal distribution with the same median and 90th percentile: false alarms come from the
    upper tail, and the scores of a confident classifier have no lower one.
    """
    median, high = np.quantile(odds, (0.5, 0.9), axis=0)
    return median, np.maximum((high - median) / 1.2816, MIN_SCALE)


def bounded_reference(odds: F64) -> Reference:
    """Return `median_and_scale`, shifted from `DEFAULT_REFERENCE` by `MAX_SHIFT` at most."""
    (default_median, default_scale), (shift, factor) = np.transpose(DEFAULT_REFERENCE), MAX_SHIFT
    median, scale = median_and_scale(odds)
    median = np.minimum(median, default_median + shift)
    scale = np.clip(scale, default_scale / factor, default_scale * factor)
    return tuple(zip(median.tolist(), scale.tolist(), strict=True))


def checked_reference(reference: Any) -> Reference:
    """Return a reference as pairs of float.

    Raises:
        InputError: not 27 pairs of a finite median and a positive scale.
    """
    try:
        pairs = tuple((float(m), float(s)) for m, s in reference)
    except (TypeError, ValueError, OverflowError):
        pairs = ()
    expected = len(DEFAULT_REFERENCE)
    if len(pairs) != expected or not all(math.isfinite(m) and 0 < s < math.inf for m, s in pairs):
        raise InputError(f"reference: got {reference!r}, expected {expected} pairs (median, scale above 0), or None")
    return pairs

"""Make images and scores for the tests of the ablation detector, and score them literally."""

from __future__ import annotations

import math

import numpy as np

NAMES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "color", "geometry"]  # fmt: skip


COARSE, FINE, COLOR = 9, 11, 12


ALONE = 14  # the first view of a feature alone


MOVED = 27  # the view without geometry


PLAIN = [(0.0, 1.0)] * 27  # standardized scores are the log-odds themselves


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw an image of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def odds(p, q):
    """Return the log-odds of a class of probability p versus one of q."""
    return math.log(p + 0.001) - math.log(q + 0.001)


def literal_look(p, reference):
    """Return score and decisive feature of probabilities (28, classes), with plain sums."""
    label = p[0].index(max(p[0]))

    best = [max(v for k, v in enumerate(row) if k != label) for row in p]
    necessity = [(odds(best[i], p[i][label]) - reference[i - 1][0]) / reference[i - 1][1] for i in range(1, 14)]
    sufficiency = [(odds(p[i][label], best[i]) - reference[i - 1][0]) / reference[i - 1][1] for i in range(14, 27)]
    decides = [n - sorted(necessity)[6] + s for n, s in zip(necessity, sufficiency, strict=True)]
    more = odds(best[MOVED], p[MOVED][label]) - odds(best[1 + FINE], p[1 + FINE][label])
    decides.append(math.sqrt(2) * (more - reference[26][0]) / reference[26][1])
    return max(decides), decides.index(max(decides))


def probabilities(seed, classes=5):
    """Draw class probabilities of 28 views, some of them 0."""
    p = np.random.default_rng(seed).dirichlet([0.3] * classes, 28)
    p[p < 0.01] = 0  # some are impossible
    return p / p.sum(axis=1, keepdims=True)

"""Does one part of the picture decide alone? A backdoor's trigger does; what a picture shows is in all of its parts.

A trigger sits in a region, in a band of frequencies, or in the colours, because it must not be seen and must work on
every picture. So there is a part without which the attacker's label goes and another, confident one comes, while the
label withstands the loss of any other part. docs/defaults.md has the measurements that led here.

The idea of taking regions away is PatchCleaner's and PatchCleanser's (Xiang et al., USENIX Security 2022,
arXiv 2108.09135), which ask for agreement; here the *difference* between the parts is what is measured, and the parts
are more than regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk.arrays import U8
from zipsdk.blackbox import BlackBox
from zipsdk.errors import InputError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: What is taken away, in the order of `DecisivePart.copies`.
PARTS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "colour")  # fmt: skip

#: Sides and deviations for a picture of 32 pixels; they grow with its shorter side.
UNIT = 32
REGION, FILL = 3 / 8, 4.0  # a region's share of each side; the blur that fills it from around
COARSE, MIDDLE, FINE = 3.0, (0.7, 1.5), 0.7
#: What is around a region weighs more than this in the blur of each of its pixels, if no side is a single pixel; at
#: the least, 2.6e-4, float32 errs by 0.05 grey levels.
LEAST_WEIGHT = 1e-4

#: Log-odds of the best other class against the label, over clean pictures without each part: median, and deviation.
#: Means over a classifier of natural pictures and one of traffic signs (docs/defaults.md); `calibrate` brings your own.
_CORNER, _EDGE, _CENTRE = (-2.35, 1.7), (-1.8, 1.8), (0.15, 1.8)
USUAL: tuple[tuple[float, float], ...] = (
    _CORNER, _EDGE, _CORNER, _EDGE, _CENTRE, _EDGE, _CORNER, _EDGE, _CORNER,
    (-0.95, 2.4), (-2.0, 1.8), (-0.9, 1.7), (-1.45, 1.7),
)  # fmt: skip
#: Added to each probability, so that log-odds stay finite.
FLOOR = 1e-3
#: The least deviation that `calibrate` gives, in log-odds; labels without probabilities have none at all.
LEAST_DEVIATION = 1.0
#: The fewest pictures that `calibrate` takes; it is good from about 100 on.
FEWEST = 16


@dataclass(frozen=True)
class DecisivePart:
    """A detector for `zipsdk.Guard`: how much does one part of a picture decide alone, and which?

    For each part of `PARTS` the picture is shown to the classifier without it, and m is the log-odds of the best other
    class against the label of the whole picture. z = (m - median) / deviation, by what clean pictures do; the score is
    max z - median z over the parts, in deviations.

    A picture whose score is above `threshold` is purified and looked at again in the same way. Then:

    - score above `certain`: the label is not believed. What the picture without the decisive part and the purified
      picture say together decides, among all other classes.
    - else, if the purified picture's score is above `certain`: a trigger has come through purification. The purified
      picture without *its* decisive part decides, among the classes other than its label.
    - else the purified picture decides. Nearly all of these were false alarms.

    Args:
        threshold: in deviations, above 0.
        certain: the same, at least `threshold`.
        norms: (median, deviation) of m for each part. None takes `USUAL`; `calibrate` measures them.

    Raises:
        InputError: an option out of range.
    """

    threshold: float = 2.0
    certain: float = 2.5
    norms: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "certain"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name}: got {value!r}, wanted deviations above 0, such as 2.0")
        if self.certain < self.threshold:
            raise InputError(f"certain: got {self.certain} below threshold {self.threshold}, wanted at least that")
        if self.norms is not None:
            object.__setattr__(self, "norms", _pairs(self.norms))

    def copies(self, rgb: U8) -> U8:
        """uint8 (H, W, 3) -> the picture without each of `PARTS`, uint8 (13, H, W, 3).

        A region is filled from around it by a Gaussian blur. "coarse" leaves what a wide Gaussian takes away, on
        mid-grey; "middle" takes a band between two Gaussians away; "fine" is blurred a little; "colour" is grey.
        """
        height, width, _ = rgb.shape
        unit = min(height, width) / UNIT
        x = rgb.astype(np.float32).transpose(2, 0, 1)

        def blur(planes: F32, deviation: float) -> F32:
            rows, columns = _gaussian(height, deviation * unit), _gaussian(width, deviation * unit)
            return (rows @ planes @ columns.T).astype(np.float32, copy=False)

        fill = _gaussian(height, FILL * unit), _gaussian(width, FILL * unit)
        around = blur(x, FILL)

        def without() -> Iterator[F32]:
            for region in _regions(height, width):
                yield _without(x, around, region, *fill)
            yield x - blur(x, COARSE) + 128  # whole, so that float32's errors do not speckle flat places
            yield x - (blur(x, MIDDLE[0]) - blur(x, MIDDLE[1]))
            yield blur(x, FINE)
            yield np.broadcast_to(x.mean(axis=0), x.shape)

        # each made whole before the next, because 13 of a large picture in float32 would fill the memory
        out = np.stack([np.clip(np.rint(planes), 0, 255).astype(np.uint8) for planes in without()])
        return out.transpose(0, 2, 3, 1)

    def versions(self, rgb: U8) -> list[U8]:
        """What a classifier is asked about a picture: itself, and its copies."""
        return [rgb, *self.copies(rgb)]

    def again(self, rgb: U8) -> list[U8]:
        """What it is asked about a purified picture."""
        return self.versions(rgb)

    def score(self, scores: npt.ArrayLike) -> float:
        """Of one picture, in deviations.

        Args:
            scores: (14, classes), of `versions`, in that order: probabilities, or logits where a row is negative
                somewhere or does not add up to 1.

        Returns:
            NaN where a row has no finite largest score.
        """
        return self._look(scores)[0]

    def flags(self, score: float) -> bool:
        """Whether a picture of this score is suspicious; NaN is."""
        return not score <= self.threshold

    def why(self, scores: npt.ArrayLike) -> str:
        """In words, for one picture."""
        score, part, log = self._look(scores)
        other = int(_without_class(log[1 + part], int(log[0].argmax())).argmax())
        return f"without {PARTS[part]} it is rather class {other}: score {score:.3g}, threshold {self.threshold:g}"

    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """What a flagged picture is, by the rule of the class: probabilities, float64 (classes,).

        Args:
            scores: (14, classes) of the picture's `versions`, or None where the classifier failed on them.
            purified: the same of the purified picture's.
        """
        second, part_after, log_after = self._look(purified)
        first, part, log = (0.0, 0, log_after) if scores is None else self._look(scores)
        if first > self.certain:
            combined = _without_class(log[1 + part] + log_after[0], int(log[0].argmax()))
        elif second > self.certain:
            combined = _without_class(log_after[1 + part_after], int(log_after[0].argmax()))
        else:
            combined = log_after[0]
        p: F64 = np.exp(combined - combined.max())
        p /= p.sum()
        return p

    def _look(self, scores: npt.ArrayLike) -> tuple[float, int, F64]:
        """The score, the part without which the label fares worst, and the log-probabilities of all versions."""
        s = np.asarray(scores, np.float64)
        if s.ndim != 2 or len(s) != 1 + len(PARTS) or s.shape[1] < 2:
            raise InputError(f"scores: got {s.shape}, wanted ({1 + len(PARTS)}, classes), a row for each version")
        log = _log_probabilities(s)
        z = (_log_odds(log) - self._median) / self._deviation
        # a picture without a label of its own must not be trusted, whatever its copies say
        score = float(z.max() - np.median(z)) if np.isfinite(log).all() else math.nan
        return score, int(z.argmax()), log

    @property
    def _median(self) -> F64:
        return np.array([m for m, _ in self.norms or USUAL])

    @property
    def _deviation(self) -> F64:
        return np.array([d for _, d in self.norms or USUAL])

    def calibrate(
        self, classify: Callable[[U8], Any], clean: Any, *, layout: str = "NHWC", max_batch: int | None = None
    ) -> DecisivePart:
        """A detector that knows what this classifier does with clean pictures without a part.

        The deviation is a normal distribution's whose median and ninth decile are the pictures': false alarms come from
        the upper end, and classifiers that are sure of themselves have none below. A few pictures with triggers among
        the clean ones do little harm: 5% are borne, 10% and more are not.

        Args:
            classify, layout, max_batch: as for `Guard`; 14 queries for each picture.
            clean: at least 16 pictures, better 100 or more, nearly all without a trigger. No labels are needed.

        Raises:
            InputError: pictures that cannot be used, too few of them, or a classifier that fails on them.
        """
        pictures = [p.rgb for p in images.read(clean, layout=layout)[0]]
        if len(pictures) < FEWEST:
            raise InputError(f"clean pictures: got {len(pictures)}, wanted at least {FEWEST}, better 100 or more")
        answers = BlackBox(classify, max_batch=max_batch).ask(pictures, self.versions)
        odds = []
        for i, answer in enumerate(answers):
            if isinstance(answer, str):
                raise InputError(
                    f"clean picture {i}: the classifier failed ({answer}); wanted scores for it: see there"
                )
            odds.append(_log_odds(_log_probabilities(answer)))
        m = np.stack(odds)
        median, high = np.quantile(m, (0.5, 0.9), axis=0)
        deviation = np.maximum((high - median) / 1.2816, LEAST_DEVIATION)
        return replace(self, norms=tuple(zip(median.tolist(), deviation.tolist(), strict=True)))


def _pairs(norms: Any) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(m), float(d)) for m, d in norms)
    except (TypeError, ValueError):
        pairs = ()
    if len(pairs) != len(PARTS) or not all(math.isfinite(m) and 0 < d < math.inf for m, d in pairs):
        raise InputError(f"norms: got {norms!r}, wanted {len(PARTS)} pairs (median, deviation above 0), or None")
    return pairs


def _log_probabilities(scores: F64) -> F64:
    """Of probabilities or logits (versions, classes); no less than log(FLOOR). NaN for a row without a finite largest.

    An infinite logit below means probability 0.
    """
    # a sum need not be closer to 1: in bfloat16 a probability alone can be off by 0.004
    with np.errstate(over="ignore", invalid="ignore"):
        if (scores < 0).any() or not np.allclose(scores.sum(axis=1), 1, atol=1e-2):
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
    return np.log(scores + FLOOR)


def _log_odds(log: F64) -> F64:
    """(versions, classes) -> for each version but the first, the best other class against the first's label."""
    label = int(log[0].argmax())
    odds: F64 = np.delete(log[1:], label, axis=1).max(axis=1) - log[1:, label]
    return odds


def _without_class(log: F64, label: int) -> F64:
    out = log.copy()
    out[label] = -np.inf
    return out


def _regions(height: int, width: int) -> list[tuple[slice, slice]]:
    """Nine overlapping regions, three by three."""

    def along(side: int) -> list[slice]:
        size = max(1, round(REGION * side))
        return [slice(start, start + size) for start in (0, round((side - size) / 2), side - size)]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _without(x: F32, around: F32, region: tuple[slice, slice], rows: F32, columns: F32) -> F32:
    """The picture with the region filled by the blur of what is around it, weighted by how near that is.

    `around` is the blur of all of x, rows x columns^T; what the region itself gives to that is taken out again. Where
    nothing is near enough, which only sides of one pixel bring about, the picture stays.
    """
    r, c = region
    own_rows, own_columns = rows[r, r], columns[c, c]
    weight = 1 - np.outer(own_rows.sum(axis=1), own_columns.sum(axis=1))
    out = x.copy()
    filled = (around[:, r, c] - own_rows @ x[:, r, c] @ own_columns.T) / np.maximum(weight, LEAST_WEIGHT)
    out[:, r, c] = np.where(weight > LEAST_WEIGHT, filled, x[:, r, c])
    return out


@lru_cache(64)
def _gaussian(side: int, deviation: float) -> F32:
    """The blur of a line of `side` pixels as a matrix; at the ends the line is mirrored, its last pixel twice."""
    reach = max(1, round(4 * deviation))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / deviation) ** 2)
    kernel /= kernel.sum()
    at = (np.arange(side)[:, None] + offsets) % (2 * side)
    at = np.where(at < side, at, 2 * side - 1 - at)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], at), kernel)
    return matrix.astype(np.float32)

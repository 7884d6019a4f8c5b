"""Does one part of the picture decide alone? A backdoor's trigger does; what a picture shows is in all of its parts.

A trigger sits in a region, in a band of frequencies, or in the colours, because it must not be seen and must work on
every picture. So there is a part that the attacker's label needs, and that is enough for it: without it the label goes,
and alone it brings the label. docs/defaults.md has the measurements that led here.

Taking regions away is the idea of PatchCleanser (Xiang et al., USENIX Security 2022, arXiv 2108.09135), which asks for
agreement; here it is measured how far one part stands out from the others, and the parts are more than regions.
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

#: What is taken away, then shown alone, in the order of `DecisivePart.copies`.
PARTS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "colour")  # fmt: skip

#: Sides and deviations for a picture of 32 pixels; they grow with its shorter side.
UNIT = 32
REGION, FILL = 3 / 8, 4.0  # a region's share of each side; the blur that fills it from around
COARSE, MIDDLE, FINE = 3.0, (0.7, 1.5), 0.7
#: What bands stand on where the rest of the picture is not there.
GREY = 128
#: What is around a region weighs more than this in the blur of each of its pixels, if no side is a single pixel; at
#: the least, 2.6e-4, float32 errs by 0.05 grey levels.
LEAST_WEIGHT = 1e-4

#: Log-odds over clean pictures, median and deviation, for each part: of the best other class against the label without
#: it, and of the label against the best other class with it alone. Means over a classifier of natural pictures and one
#: of traffic signs (docs/defaults.md); `calibrate` brings your own.
_CORNER, _EDGE, _CENTRE = (-2.4, 1.65), (-1.8, 1.8), (0.15, 1.75)
_CORNER_ALONE, _EDGE_ALONE, _CENTRE_ALONE = (-1.6, 1.95), (-1.35, 2.15), (0.05, 2.0)
USUAL: tuple[tuple[float, float], ...] = (
    _CORNER, _EDGE, _CORNER, _EDGE, _CENTRE, _EDGE, _CORNER, _EDGE, _CORNER,
    (-0.95, 2.3), (-2.0, 1.75), (-0.9, 1.8), (-1.45, 1.75),
    _CORNER_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE, _CENTRE_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE,
    _CORNER_ALONE, (-1.8, 2.25), (0.2, 1.85), (-0.6, 1.9), (-1.4, 1.55),
)  # fmt: skip
#: Added to each probability, so that log-odds stay finite.
FLOOR = 1e-3
#: The least deviation that `calibrate` gives, in log-odds; labels without probabilities have none at all.
LEAST_DEVIATION = 1.0
#: How far above `USUAL` norms are taken to be, whatever is measured: added to the median, times the deviation. Triggers
#: among the pictures would hide themselves beyond, even where all pictures have one; so does a part of which clean
#: pictures make much (docs/defaults.md).
MOST = (1.0, 1.2)
#: The fewest pictures that `calibrate` takes; it is good from about 100 on.
FEWEST = 16


@dataclass(frozen=True)
class DecisivePart:
    """A detector for `zipsdk.Guard`: how much does one part of a picture decide alone, and which?

    For each part of `PARTS` the classifier sees the picture without it and the part alone. The log-odds of the best
    other class against the label of the whole picture, without the part, say how much the label needs it; those of the
    label against the best other class, with the part alone, say whether it is enough. Both are put into deviations,
    need and enough, by what clean pictures do. The score is

        max over the parts of (need - median need over the parts + enough)

    A picture whose score is above `threshold` is purified and looked at again in the same way. Then:

    - score above `certain`: the label is not believed. What the picture without the decisive part and the purified
      picture say together decides, among all other classes.
    - the purified picture's score is above `certain`, and its label another one, or the picture's score is not: a
      trigger has come through purification, or come about in it, as the enhanced attack has it. The purified picture
      without *its* decisive part decides, among the classes other than its label.
    - else the purified picture decides. Nearly all of these were false alarms.

    Args:
        threshold: in deviations, above 0. About 10% of clean pictures are above 3.3 after `calibrate`.
        certain: the same, at least `threshold`. About 2% are above 4.5.
        norms: (median, deviation) of the log-odds without each part, then with each part alone: 26 pairs. None takes
            `USUAL`, until `calibrate` or the guard has measured them.

    Raises:
        InputError: an option out of range.
    """

    threshold: float = 3.3
    certain: float = 4.5
    norms: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "certain"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name}: got {value!r}, wanted deviations above 0, such as 3.3")
        if self.certain < self.threshold:
            raise InputError(f"certain: got {self.certain} below threshold {self.threshold}, wanted at least that")
        if self.norms is not None:
            object.__setattr__(self, "norms", _pairs(self.norms))

    def copies(self, rgb: U8) -> U8:
        """uint8 (H, W, 3) -> uint8 (26, H, W, 3): the picture without each of `PARTS`, then each part alone.

        A region is filled from around it by a Gaussian blur; alone it stands on the blurred picture. Without "coarse"
        is what a wide Gaussian takes away, on mid-grey, and alone is the Gaussian; "middle" is a band between two
        Gaussians; "fine" is taken away by a little blur; "colour" is the difference to grey. Alone, bands and colours
        are on mid-grey, the weak ones twice as strong.
        """
        height, width, _ = rgb.shape
        unit = min(height, width) / UNIT
        x = rgb.astype(np.float32).transpose(2, 0, 1)

        def blur(planes: F32, deviation: float) -> F32:
            rows, columns = _gaussian(height, deviation * unit), _gaussian(width, deviation * unit)
            return (rows @ planes @ columns.T).astype(np.float32, copy=False)

        around, coarse, fine = blur(x, FILL), blur(x, COARSE), x - blur(x, FINE)
        middle = blur(x, MIDDLE[0]) - blur(x, MIDDLE[1])
        grey = np.broadcast_to(x.mean(axis=0), x.shape)

        def versions() -> Iterator[F32]:
            fill = _gaussian(height, FILL * unit), _gaussian(width, FILL * unit)
            for region in _regions(height, width):
                yield _without(x, around, region, *fill)
            # on a whole number, so that float32's errors do not speckle flat places
            yield from (x - coarse + GREY, x - middle, x - fine, grey)
            for rows, columns in _regions(height, width):
                alone = around.copy()
                alone[:, rows, columns] = x[:, rows, columns]
                yield alone
            yield from (coarse, 2 * middle + GREY, 2 * fine + GREY, x - grey + GREY)

        # each made whole before the next, because 26 of a large picture in float32 would fill the memory
        out = np.stack([np.clip(np.rint(planes), 0, 255).astype(np.uint8) for planes in versions()])
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
            scores: (27, classes), of `versions`, in that order: probabilities, or logits where a row is negative
                somewhere or does not add up to 1.

        Returns:
            NaN where a row has no finite largest score.
        """
        return self._look(scores)[0]

    def flags(self, score: float) -> bool:
        """Whether a picture of this score is suspicious; NaN is."""
        return not score <= self.threshold

    def why(self, scores: npt.ArrayLike, score: float) -> str:
        """In words, for a picture of this score."""
        _, part, log = self._look(scores)
        other = int(_without_class(log[1 + part], int(log[0].argmax())).argmax())
        return (
            f"its label rests most on one part, {PARTS[part]}, without which class {other} is next: "
            f"score {score:.3g}, threshold {self.threshold:g}"
        )

    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """What a flagged picture is, by the rule of the class: probabilities, float64 (classes,).

        Args:
            scores: (27, classes) of the picture's `versions`, or None where the classifier failed on them.
            purified: the same of the purified picture's.
        """
        second, part_after, log_after = self._look(purified)
        first, part, log = (0.0, 0, log_after) if scores is None else self._look(scores)
        same = int(log[0].argmax()) == int(log_after[0].argmax())
        if second > self.certain and not (same and first > self.certain):
            combined = _without_class(log_after[1 + part_after], int(log_after[0].argmax()))
        elif first > self.certain:
            combined = _without_class(log[1 + part] + log_after[0], int(log[0].argmax()))
        else:
            combined = log_after[0]
        p: F64 = np.exp(combined - combined.max())
        p /= p.sum()
        return p

    def _look(self, scores: npt.ArrayLike) -> tuple[float, int, F64]:
        """The score, the decisive part, and the log-probabilities of all versions."""
        s = np.asarray(scores, np.float64)
        wanted = 1 + 2 * len(PARTS)
        if s.ndim != 2 or len(s) != wanted or s.shape[1] < 2:
            raise InputError(f"scores: got {s.shape}, wanted ({wanted}, classes), a row for each version")
        log = _log_probabilities(s)
        need, enough = np.split((_log_odds(log) - self._median) / self._deviation, 2)
        decides = need - np.median(need) + enough
        # a picture without a label of its own must not be trusted, whatever its copies say
        score = float(decides.max()) if np.isfinite(log).all() else math.nan
        return score, int(decides.argmax()), log

    @property
    def _median(self) -> F64:
        return np.array([m for m, _ in self.norms or USUAL])

    @property
    def _deviation(self) -> F64:
        return np.array([d for _, d in self.norms or USUAL])

    def calibrate(
        self, classify: Callable[[U8], Any], clean: Any, *, layout: str = "NHWC", max_batch: int | None = None
    ) -> DecisivePart:
        """A detector that knows what this classifier does with clean pictures, without a part and with one alone.

        The deviation is a normal distribution's whose median and ninth decile are the pictures': false alarms come from
        the upper end, and classifiers that are sure of themselves have none below. Neither is taken to be further above
        `USUAL` than `MOST` says, so that triggers among the pictures cannot hide themselves.

        Args:
            classify, layout, max_batch: as for `Guard`; 27 queries for each picture.
            clean: at least 16 pictures, better 100 or more, as they come in. No labels are needed.

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
            odds.append(log_odds(answer))
        return self.learnt(np.stack(odds))

    def learnt(self, odds: F64) -> DecisivePart:
        """A detector with the norms of pictures whose `log_odds` these are, (N, 26); see `calibrate`."""
        usual, (more, times) = np.array(USUAL), MOST
        median, deviation = median_and_deviation(odds)
        median, deviation = np.minimum(median, usual[:, 0] + more), np.minimum(deviation, usual[:, 1] * times)
        return replace(self, norms=tuple(zip(median.tolist(), deviation.tolist(), strict=True)))


def _pairs(norms: Any) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(m), float(d)) for m, d in norms)
    except (TypeError, ValueError):
        pairs = ()
    wanted = 2 * len(PARTS)
    if len(pairs) != wanted or not all(math.isfinite(m) and 0 < d < math.inf for m, d in pairs):
        raise InputError(f"norms: got {norms!r}, wanted {wanted} pairs (median, deviation above 0), or None")
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


def log_odds(scores: F64) -> F64:
    """Scores of `DecisivePart.versions` (27, classes) -> (26,): without each part the best other class against the
    whole's label, with each part alone the reverse."""
    return _log_odds(_log_probabilities(scores))


def median_and_deviation(odds: F64) -> tuple[F64, F64]:
    """Of each column of `log_odds` of clean pictures (N, 26); see `DecisivePart.calibrate`."""
    median, high = np.quantile(odds, (0.5, 0.9), axis=0)
    return median, np.maximum((high - median) / 1.2816, LEAST_DEVIATION)


def _log_odds(log: F64) -> F64:
    """`log_odds`, of log-probabilities."""
    label = int(log[0].argmax())
    odds: F64 = np.delete(log[1:], label, axis=1).max(axis=1) - log[1:, label]
    odds[len(PARTS) :] *= -1
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


@lru_cache(16)
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

"""Does one part of the picture decide alone? A backdoor's trigger does; what a picture shows is in all of its parts.

A trigger sits in a region, in a band of frequencies, or in the colours, because it must not be seen and must work on
every picture. So there is a part that the attacker's label needs, and that is enough for it: without it the label goes,
and alone it brings the label. A warp is in no such part, but in exactly where each pixel is: its label goes when pixels
change places a little, and stays when the picture is blurred as much. docs/defaults.md has the measurements that led
here.

Taking regions away is the idea of PatchCleanser (Xiang et al., USENIX Security 2022, arXiv 2108.09135), which asks for
agreement; here it is measured how far one part stands out from the others, and the parts are more than regions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util.validation import is_number, is_whole
from zipsdk.detectors.ablation_views import PARTS, SHOWN, VERSIONS, copies
from zipsdk.detectors.base import Detector
from zipsdk.detectors.classifier_client import MAX_BATCH, query_all
from zipsdk.errors import InputError
from zipsdk.images.arrays import U8

F64 = npt.NDArray[np.float64]

#: Log-odds over clean pictures, median and deviation, for each shown part: of the best other class against the label
#: without it, and of the label against the best other class with it alone; and by how much the former is more without
#: geometry than without fine detail. Means over a classifier of natural pictures and one of traffic signs
#: (docs/defaults.md); `calibrate` brings your own.
_CORNER, _EDGE, _CENTRE = (-2.4, 1.65), (-1.8, 1.8), (0.15, 1.75)
_CORNER_ALONE, _EDGE_ALONE, _CENTRE_ALONE = (-1.6, 1.95), (-1.35, 2.15), (0.05, 2.0)
USUAL: tuple[tuple[float, float], ...] = (
    _CORNER, _EDGE, _CORNER, _EDGE, _CENTRE, _EDGE, _CORNER, _EDGE, _CORNER,
    (-0.95, 2.3), (-2.0, 1.75), (-0.9, 1.8), (-1.45, 1.75),
    _CORNER_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE, _CENTRE_ALONE, _EDGE_ALONE, _CORNER_ALONE, _EDGE_ALONE,
    _CORNER_ALONE, (-1.8, 2.25), (0.2, 1.85), (-0.6, 1.9), (-1.4, 1.55),
    (-1.5, 1.4),
)  # fmt: skip
#: Geometry's deviation is of one difference, the others' scores are sums of two of deviation 1.
TWO = math.sqrt(2)
GEOMETRY = PARTS.index("geometry")
#: Added to each probability, so that log-odds stay finite.
FLOOR = 1e-3
#: How far outside [0, 1] a rounded probability is at most; bfloat16's are off by 0.004.
ROUNDED = 0.01
#: The least deviation that is measured, in log-odds; labels without probabilities have none at all.
LEAST_DEVIATION = 1.0
#: How far norms are from `USUAL` at most, whatever is measured: a median above it, in log-odds, and a deviation either
#: way, by a factor. Larger ones would let triggers among the pictures hide themselves, even if all pictures have one.
#: After smaller deviations, of a few pictures of one kind, which hardly differ, all others would be suspicious. Medians
#: are free below: those of a classifier that is sure of itself lie far down (docs/defaults.md).
AWAY = (1.0, 1.2)
#: The fewest pictures that `calibrate` takes; it is good from about 100 on.
FEWEST = 16


@dataclass(frozen=True)
class DecisivePart(Detector):
    """A detector for `zipsdk.Guard`: how much does one part of a picture decide alone, and which?

    For each part of `PARTS` but the last the classifier sees the picture without it and the part alone. The log-odds of
    the best other class against the label of the whole picture, without the part, say how much the label needs it;
    those of the label against the best other class, with the part alone, say whether it is enough. Both are put into
    deviations, need and enough, by what clean pictures do. The score is

        max over the parts of (need - median need over the parts + enough)

    or, if that is more, the square root of 2 times how much more the label needs the geometry, the exact places of
    pixels, than fine detail, in deviations of that difference.

    A picture whose score is above `threshold` is purified and looked at again in the same way. Then the first of these
    that holds decides:

    - the score is geometry's: the label is not believed. Purification keeps a warp, so the picture without geometry
      decides alone, among all other classes.
    - the purified picture's score is above `certain`, and its label another one, or the picture's score is not: a
      trigger has come through purification, or come about in it, as the enhanced attack has it. The purified picture
      without *its* decisive part decides, among the classes other than its label.
    - the score is above `certain`: the label is not believed. What the picture without the decisive part and the
      purified picture say together decides, among all other classes.
    - else the purified picture decides. Nearly all of these were false alarms.

    Args:
        threshold: in deviations, above 0. About 10% of clean pictures are above 3.3 after `calibrate`.
        certain: the same, at least `threshold`. About 2% are above 4.5.
        norms: (median, deviation) of the 27 `log_odds`, in their order: 27 pairs. None takes `USUAL`, until `calibrate`
            or `observe` has measured them.
        learn: different pictures that `observe` takes norms from, at least 16; 0 for none.

    Raises:
        InputError: an option out of range.
    """

    threshold: float = 3.3
    certain: float = 4.5
    norms: tuple[tuple[float, float], ...] | None = None
    learn: int = 200
    #: `log_odds` of the pictures that were observed so far, by the digest of the picture
    _observed: Mapping[bytes, F64] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("threshold", "certain"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < math.inf:
                raise InputError(f"{name}: got {value!r}, wanted deviations above 0, such as 3.3")
            object.__setattr__(self, name, float(value))
        if self.certain < self.threshold:
            raise InputError(f"certain: got {self.certain} below threshold {self.threshold}, wanted at least that")
        if self.norms is not None:
            object.__setattr__(self, "norms", _pairs(self.norms))
        if not is_whole(self.learn) or (self.learn != 0 and self.learn < FEWEST):
            raise InputError(f"learn: got {self.learn!r}, wanted {FEWEST} pictures or more, better 100 or more, or 0")
        object.__setattr__(self, "learn", int(self.learn))

    def versions(self, rgb: U8) -> list[U8]:
        """What a classifier is asked about a picture: itself, and its `zipsdk.detectors.ablation_views.copies`."""
        return [rgb, *copies(rgb)]

    def again(self, rgb: U8) -> list[U8]:
        """What it is asked about a purified picture."""
        return self.versions(rgb)

    def score(self, scores: npt.ArrayLike) -> float:
        """Of one picture, in deviations.

        Args:
            scores: (28, classes), of `versions`, in that order: probabilities, which need not add up to 1, or
                logits where any is outside [0, 1] by more than 0.01.

        Returns:
            NaN where a row has no finite largest score, and where the picture itself has all classes alike.

        Raises:
            InputError: another shape; so do `why` and `settle`.
        """
        return self._look(scores)[0]

    def flags(self, score: float) -> bool:
        """Whether a picture of this score is suspicious; NaN is."""
        return not score <= self.threshold

    def why(self, scores: npt.ArrayLike, score: float) -> str:
        """In words, for a picture of this score."""
        _, part, log = self._look(scores)
        other = int(_without_class(log[_without_part(part)], int(log[0].argmax())).argmax())
        return (
            f"its label rests most on one part, {PARTS[part]}, without which class {other} is next: "
            f"score {score:.3g}, threshold {self.threshold:g}"
        )

    def settle(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """What a flagged picture is, by the rule of the class: probabilities, float64 (classes,).

        Args:
            scores: (28, classes) of the picture's `versions`, or None where the classifier failed on them.
            purified: the same of the purified picture's.
        """
        second, part_after, log_after = self._look(purified)
        first, part, log = (0.0, 0, log_after) if scores is None else self._look(scores)
        same = int(log[0].argmax()) == int(log_after[0].argmax())
        if scores is not None and part == GEOMETRY:
            combined = _without_class(log[_without_part(part)], int(log[0].argmax()))
        elif second > self.certain and not (same and first > self.certain):
            combined = _without_class(log_after[_without_part(part_after)], int(log_after[0].argmax()))
        elif first > self.certain:
            combined = _without_class(log[_without_part(part)] + log_after[0], int(log[0].argmax()))
        else:
            combined = log_after[0]
        p: F64 = np.exp(combined - combined.max())
        p /= p.sum()
        return p

    def _look(self, scores: npt.ArrayLike) -> tuple[float, int, F64]:
        """The score, the decisive part, and the log-probabilities of all versions."""
        s = np.asarray(scores, np.float64)
        if s.ndim != 2 or len(s) != VERSIONS or s.shape[1] < 2:
            raise InputError(f"scores: got {s.shape}, wanted ({VERSIONS}, classes), a row for each version")
        log = _log_probabilities(s)
        need, enough, geometry = np.split((_log_odds(log) - self._median) / self._deviation, (SHOWN, 2 * SHOWN))
        decides = np.concatenate([need - np.median(need) + enough, TWO * geometry])
        # a picture without a label of its own must not be trusted, whatever its copies say
        score = float(decides.max()) if np.isfinite(log).all() and np.ptp(log[0]) else math.nan
        return score, int(decides.argmax()), log

    @property
    def _median(self) -> F64:
        return np.array([m for m, _ in self.norms or USUAL])

    @property
    def _deviation(self) -> F64:
        return np.array([d for _, d in self.norms or USUAL])

    def calibrate(
        self, classify: Callable[[U8], Any], clean: Any, *, layout: str = "NHWC", max_batch: int | None = MAX_BATCH
    ) -> DecisivePart:
        """A detector that knows what this classifier does with clean pictures, without a part and with one alone.

        The deviation is a normal distribution's whose median and ninth decile are the pictures': false alarms come from
        the upper end, and classifiers that are sure of themselves have none below. Both are bounded by `AWAY`, so
        that triggers among the pictures cannot hide themselves, and pictures of one kind do not make all others
        suspicious.

        Args:
            classify, max_batch: as for `Guard`; layout: as for `Guard.run`; 28 queries for each picture.
            clean: at least 16 pictures, better 100 or more, as they come in. No labels are needed.

        Raises:
            InputError: pictures that cannot be used, too few of them, or a classifier that fails on them.
        """
        pictures = [p.rgb for p in images.read(clean, layout=layout)[0]]
        if len(pictures) < FEWEST:
            raise InputError(f"clean pictures: got {len(pictures)}, wanted at least {FEWEST}, better 100 or more")
        answers = query_all(classify, pictures, self.versions, max_batch)
        return self.learnt(np.stack([log_odds(answer) for answer in answers]))

    def observe(self, pictures: Sequence[U8], scores: Sequence[npt.ArrayLike]) -> DecisivePart:
        """Learn the norms from the first `learn` pictures, where this detector has none. Equal ones count once."""
        if self.norms is not None or not self.learn:
            return self
        odds = {_digest(p): log_odds(np.asarray(s, np.float64)) for p, s in zip(pictures, scores, strict=True)}
        observed = {**self._observed, **odds}
        if len(observed) < self.learn:
            return replace(self, _observed=observed)
        return self.learnt(np.stack(list(observed.values())[: self.learn]))

    def learnt(self, odds: F64) -> DecisivePart:
        """A detector with the norms of pictures whose `log_odds` these are, float64 (N, 27); see `calibrate`."""
        (usual_median, usual_deviation), (above, times) = np.transpose(USUAL), AWAY
        median, deviation = median_and_deviation(odds)
        median = np.minimum(median, usual_median + above)
        deviation = np.clip(deviation, usual_deviation / times, usual_deviation * times)
        return replace(self, norms=tuple(zip(median.tolist(), deviation.tolist(), strict=True)), _observed={})


def _pairs(norms: Any) -> tuple[tuple[float, float], ...]:
    try:
        pairs = tuple((float(m), float(d)) for m, d in norms)
    except (TypeError, ValueError):
        pairs = ()
    wanted = len(USUAL)
    if len(pairs) != wanted or not all(math.isfinite(m) and 0 < d < math.inf for m, d in pairs):
        raise InputError(f"norms: got {norms!r}, wanted {wanted} pairs (median, deviation above 0), or None")
    return pairs


def _digest(picture: U8) -> bytes:
    # not hash(), which differs between processes that may pass a pickled detector on
    return hashlib.blake2b(picture.tobytes() + str(picture.shape).encode(), digest_size=16).digest()


def _log_probabilities(scores: F64) -> F64:
    """Of probabilities or logits (versions, classes); no less than log(FLOOR). NaN for a row without a finite largest;
    of zeros alone, which favour nothing, all alike.

    An infinite logit below means probability 0. What lies within [0, 1], give or take `ROUNDED`, are probabilities
    whatever their sum: a service may round them, leave out small ones, or have a sigmoid for each class. Taken for
    logits they would all be near 1 / classes, and no trigger would stand out.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if scores.min() < -ROUNDED or scores.max() > 1 + ROUNDED:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = np.maximum(scores, 0)
        scores /= np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.log(scores + FLOOR)


def log_odds(scores: F64) -> F64:
    """Scores of `DecisivePart.versions` (28, classes) -> (27,): without each shown part the best other class against
    the whole's label; with each alone the reverse; the former without geometry, less the same without fine detail."""
    return _log_odds(_log_probabilities(scores))


def median_and_deviation(odds: F64) -> tuple[F64, F64]:
    """Of each column of `log_odds` of clean pictures (N, 27); see `DecisivePart.calibrate`."""
    median, high = np.quantile(odds, (0.5, 0.9), axis=0)
    return median, np.maximum((high - median) / 1.2816, LEAST_DEVIATION)


def _log_odds(log: F64) -> F64:
    """`log_odds`, of log-probabilities."""
    label = int(log[0].argmax())
    odds: F64 = np.delete(log[1:], label, axis=1).max(axis=1) - log[1:, label]
    odds[SHOWN : 2 * SHOWN] *= -1
    odds[-1] -= odds[PARTS.index("fine")]
    return odds


def _without_part(part: int) -> int:
    """Which version is without it."""
    return 1 + part if part < SHOWN else VERSIONS - 1


def _without_class(log: F64, label: int) -> F64:
    out = log.copy()
    out[label] = -np.inf
    return out

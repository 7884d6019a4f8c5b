"""Detect triggers by ablation: does one feature of an image decide its label alone?

A trigger must be inconspicuous and work on every image, so it sits in a region, in a frequency band, or in the colors.
The attacker's label needs that feature, and the feature alone suffices for it. A warp is in none of these but in the
exact position of pixels: its label is lost when pixels are displaced slightly and kept when the image is blurred as
much. Content, in contrast, is spread over all features. docs/research/notebook.md has the measurements.

Masking regions follows PatchCleanser (Xiang et al., USENIX Security 2022, arXiv 2108.09135), which requires agreement;
this detector measures how far one feature stands out, and its features are more than regions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util.validation import is_int, is_real
from zipsdk.detectors.ablation_statistics import (
    DEFAULT_REFERENCE,
    MIN_SAMPLES,
    Reference,
    bounded_reference,
    checked_reference,
    log_odds,
    log_odds_from,
    log_probabilities,
)
from zipsdk.detectors.ablation_views import FEATURES, N_MASKABLE, N_VIEWS, copies
from zipsdk.detectors.classifier_client import MAX_BATCH, query_all
from zipsdk.detectors.saving import SavableDetector
from zipsdk.errors import InputError
from zipsdk.images import read
from zipsdk.types import F64, U8, Classifier, DataFormat

#: Scale of the geometry score relative to the others: it is one standardized difference, they are sums of two.
SQRT2 = math.sqrt(2)
GEOMETRY = FEATURES.index("geometry")


@dataclass(frozen=True)
class AblationDetector(SavableDetector):
    """Find the feature that decides an image's label alone, for `zipsdk.Guard`.

    For each of the 13 maskable `FEATURES` the classifier sees the image without it and the feature alone:

    - necessity: log-odds of the runner-up class versus the predicted class with the feature removed;
    - sufficiency: log-odds of the predicted class versus the runner-up with only that feature.

    Both are standardized with the median and scale of clean images (`reference`). The score is the larger of

        max over the features of (necessity - median necessity + sufficiency)
        sqrt(2) * standardized (necessity of geometry - necessity of fine detail)

    and the feature of the maximum is the decisive one. An image with a score above `threshold` is purified, and the
    purified image is scored in the same way. Rules are tried in order; the first match decides what predicts the label:

    1. The decisive feature is geometry (an image whose classes all tie has none): the image without geometry, excluding
       its label. Purification keeps a warp.
    2. The purified image scores above `certain`, and either its label changed or the image did not score above
       `certain`: the purified image without its own decisive feature, excluding its label. The trigger survived
       purification or was created by it (enhanced attack).
    3. The image scores above `certain`: the image without its decisive feature together with the purified image,
       excluding the image's label.
    4. Otherwise: the purified image. Nearly all of these are false alarms.

    Args:
        threshold: standardized score above 0. About 10% of clean images score above 3.3 after `calibrate`.
        certain: the same, at least `threshold`. About 2% score above 4.5.
        reference: (median, scale) of the 27 `log_odds`, in their order. None uses `DEFAULT_REFERENCE` until
            `calibrate` or `observe` has measured it.
        learn: distinct images that `observe` measures the reference on, at least 16. Only a guard with `adapt=True`
            calls `observe`.

    Raises:
        InputError: an option out of range.
    """

    threshold: float = 3.3
    certain: float = 4.5
    reference: Reference | None = None
    learn: int = 200
    #: `log_odds` of the images observed so far, by the digest of the image
    _observed: Mapping[bytes, F64] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("threshold", "certain"):
            value = getattr(self, name)
            if not is_real(value) or not 0 < value < math.inf:
                raise InputError(f"{name}: got {value!r}, expected a standardized score above 0, such as 3.3")
            object.__setattr__(self, name, float(value))
        if self.certain < self.threshold:
            raise InputError(f"certain: got {self.certain}, expected at least the threshold, {self.threshold}")
        if self.reference is not None:
            object.__setattr__(self, "reference", checked_reference(self.reference))
        if not is_int(self.learn) or self.learn < MIN_SAMPLES:
            raise InputError(f"learn: got {self.learn!r}, expected {MIN_SAMPLES} images or more, better 100")
        object.__setattr__(self, "learn", int(self.learn))

    def views(self, rgb: U8) -> list[U8]:
        """Return the 28 images to query: `rgb` itself and its `zipsdk.detectors.ablation_views.copies`."""
        return [rgb, *copies(rgb)]

    def second_look_views(self, rgb: U8) -> list[U8]:
        """Return `views`, of a purified image."""
        return self.views(rgb)

    def score(self, scores: npt.ArrayLike) -> float:
        """Return the standardized score of one image.

        Args:
            scores: (28, classes) of `views`, in that order: probabilities, which need not sum to 1, or logits if any
                value is outside [0, 1] by more than 0.01.

        Returns:
            NaN if a row has no finite maximum, or if all classes tie on the image itself.

        Raises:
            InputError: another shape; `explain`, `feature` and `resolve` raise it, too.
        """
        return self._assess(scores)[0]

    def is_suspicious(self, score: float) -> bool:
        """Return whether the score is above `threshold`, or NaN."""
        return not score <= self.threshold

    def explain(self, scores: npt.ArrayLike, score: float) -> str:
        """Name the decisive feature and the class that is predicted without it."""
        found, feature, log = self._assess(scores)
        other = int(_without_class(log[_view_without(feature)], int(log[0].argmax())).argmax())
        decisive = f"most decisive feature: {FEATURES[feature]}; without it: class {other}"
        if math.isnan(found):
            decisive = "no decisive feature, because the scores have no largest class"
        return f"{decisive}; score {score:.3g}, threshold {self.threshold:g}"

    def feature(self, scores: npt.ArrayLike) -> str | None:
        """Return the name of the decisive feature, one of `FEATURES`; None if the score is NaN."""
        score, feature, _ = self._assess(scores)
        return None if math.isnan(score) else FEATURES[feature]

    def resolve(self, scores: npt.ArrayLike | None, purified: npt.ArrayLike) -> F64:
        """Return the probabilities of a flagged image, float64 (classes,), by the rules of the class.

        Args:
            scores: (28, classes) of the image's `views`, or None where the classifier failed on them.
            purified: the same of the purified image.
        """
        second, feature_after, log_after = self._assess(purified)
        label_after = int(log_after[0].argmax())
        first, feature, log = (0.0, 0, log_after) if scores is None else self._assess(scores)
        label = int(log[0].argmax())
        if scores is not None and feature == GEOMETRY and not math.isnan(first):
            combined = _without_class(log[_view_without(feature)], label)
        elif second > self.certain and not (label == label_after and first > self.certain):
            combined = _without_class(log_after[_view_without(feature_after)], label_after)
        elif first > self.certain:
            combined = _without_class(log[_view_without(feature)] + log_after[0], label)
        else:
            combined = log_after[0]
        p: F64 = np.exp(combined - combined.max())
        p /= p.sum()
        return p

    def _assess(self, scores: npt.ArrayLike) -> tuple[float, int, F64]:
        """Return the score, the index of the decisive feature, and the log-probabilities of all views."""
        s = np.asarray(scores, np.float64)
        if s.ndim != 2 or len(s) != N_VIEWS or s.shape[1] < 2:
            raise InputError(f"scores: got {s.shape}, expected ({N_VIEWS}, classes), one row for each view")
        log = log_probabilities(s)
        median, scale = np.transpose(self.reference or DEFAULT_REFERENCE)
        necessity, sufficiency, geometry = np.split((log_odds_from(log) - median) / scale, (N_MASKABLE, 2 * N_MASKABLE))
        by_feature = np.concatenate([necessity - np.median(necessity) + sufficiency, SQRT2 * geometry])
        # NaN, which counts as suspicious, for an image without a label
        score = float(by_feature.max()) if np.isfinite(log).all() and np.ptp(log[0]) else math.nan
        return score, int(by_feature.argmax()), log

    def calibrate(
        self,
        classify: Classifier,
        clean: Any,
        *,
        data_format: DataFormat | None = None,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ) -> AblationDetector:
        """Return a detector with the reference statistics of this classifier on clean images.

        Args:
            classify: as for `Guard`; gets 28 queries per image.
            clean: at least 16 images, better 100 or more, distributed like the stream. Labels are not needed.
            data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all others.
            timeout: as for `Guard`.
            max_batch: as for `Guard`.

        Raises:
            InputError: unusable or too few images, or a classifier that fails on one of them.
        """
        rgb = [image.rgb for image in read(clean, data_format=data_format)[0]]
        if len(rgb) < MIN_SAMPLES:
            raise InputError(f"calibration images: got {len(rgb)}, expected at least {MIN_SAMPLES}, better 100 or more")
        answers = query_all(classify, rgb, self.views, timeout, max_batch)
        return self.with_reference(np.stack([log_odds(answer) for answer in answers]))

    def observe(self, images: Sequence[U8], scores: Sequence[npt.ArrayLike]) -> AblationDetector:
        """Learn the reference from the first `learn` distinct images, if this detector has none."""
        if self.reference is not None:
            return self
        odds = {_digest(i): log_odds(np.asarray(s, np.float64)) for i, s in zip(images, scores, strict=True)}
        observed = {**self._observed, **odds}
        if len(observed) < self.learn:
            return replace(self, _observed=observed)
        return self.with_reference(np.stack(list(observed.values())[: self.learn]))

    def with_reference(self, odds: F64) -> AblationDetector:
        """Return a detector with the `bounded_reference` of images with these `log_odds`, float64 (N, 27)."""
        return replace(self, reference=bounded_reference(odds), _observed={})


def _digest(image: U8) -> bytes:
    # a pickled detector needs the same digest in every process; hash() differs
    return hashlib.blake2b(image.tobytes() + str(image.shape).encode(), digest_size=16).digest()


def _view_without(feature: int) -> int:
    """Return the index of the view that lacks the feature."""
    return 1 + feature if feature < N_MASKABLE else N_VIEWS - 1


def _without_class(log: F64, label: int) -> F64:
    out = log.copy()
    out[label] = -np.inf
    return out

"""Decide on a batch of images for `zipsdk.Guard`: flag, purify, query again, combine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zipsdk.decision import Decision
from zipsdk.detectors.base import Detector
from zipsdk.detectors.classifier_client import ClassifierClient, Failure, describe_error
from zipsdk.detectors.purify_all import PurifyAll
from zipsdk.errors import ImageReadError, InputError, OutOfMemoryError
from zipsdk.images import read, read_one
from zipsdk.images.arrays import LoadedImage, check_clean
from zipsdk.types import F64, U8, DataFormat


class PurifierLike(Protocol):
    """An object that purifies: `run` maps a list of uint8 (H, W, 3) of mixed sizes to the same, purified."""

    def run(self, batch: Any) -> Any: ...


@dataclass(frozen=True)
class _Flagged:
    """An image that is not trusted, with the scores of its views if there are any."""

    reason: str
    suspicion: float | None = None
    scores: F64 | None = None
    feature: str | None = None

    def label(self, scores: F64, image: Any) -> Decision[Any]:
        return Decision(int(scores.argmax()), True, self.suspicion, scores, self.reason, image, feature=self.feature)

    def abstain(self, error: str, image: Any = None) -> Decision[Any]:
        return Decision(None, True, self.suspicion, None, self.reason, image, error, self.feature)


@dataclass(frozen=True, eq=False)
class Decider:
    """Look at images, and at those that are flagged a second time, after purification.

    Args:
        classifier: answers the queries.
        purifier: purifies the flagged images.
        failed: called for each failure of the purifier with the event and the reason.
    """

    classifier: ClassifierClient
    purifier: PurifierLike
    failed: Callable[[str, str], None]

    def first_look(self, detector: Detector, images: Mapping[int, LoadedImage[Any]]) -> dict[int, F64 | Failure]:
        """Return the scores of the views of each image; none for `PurifyAll`, which flags whatever they are."""
        if isinstance(detector, PurifyAll):
            return {}
        answers = self.classifier.query([image.rgb for image in images.values()], detector.views)
        return dict(zip(images, answers, strict=True))

    def decide(
        self, detector: Detector, images: Mapping[int, LoadedImage[Any]], answers: Mapping[int, F64 | Failure]
    ) -> dict[int, Decision[Any]]:
        """Decide on each image, from the answers of `first_look`."""
        decisions, flagged = {}, {}
        for i in images:
            verdict = _judge(detector, answers[i]) if i in answers else _Flagged("PurifyAll purifies every image")
            if isinstance(verdict, Decision):
                decisions[i] = verdict
            else:
                flagged[i] = verdict
        return decisions | self._second_look(detector, images, flagged)

    def _second_look(
        self, detector: Detector, images: Mapping[int, LoadedImage[Any]], flagged: dict[int, _Flagged]
    ) -> dict[int, Decision[Any]]:
        """Purify the flagged images, query their second-look views and decide."""
        purified = dict(zip(flagged, self._purify([images[i].rgb for i in flagged]), strict=True))
        clean = {i: p for i, p in purified.items() if not isinstance(p, Failure)}
        answers = dict(zip(clean, self.classifier.query(list(clean.values()), detector.second_look_views), strict=True))
        decisions = {}
        for i, suspect in flagged.items():
            result = purified[i]
            if isinstance(result, Failure):
                decisions[i] = suspect.abstain(f"the purifier failed: {result.reason}")
                continue
            answer, restored = answers[i], images[i].restore(result)
            if isinstance(answer, Failure):
                error = f"the classifier failed on the purified image: {answer.reason}"
                decisions[i] = suspect.abstain(error, restored)
                continue
            # if the number of classes has changed, the scores of both looks are not comparable
            comparable = suspect.scores is not None and suspect.scores.shape[1] == answer.shape[1]
            # a user's detector may return a list, or float32
            scores = np.asarray(detector.resolve(suspect.scores if comparable else None, answer), np.float64)
            decisions[i] = suspect.label(scores, restored)
        return decisions

    def _purify(self, images: list[U8]) -> list[U8 | Failure]:
        if not images:
            return []
        try:
            clean = list(self.purifier.run(list(images)))
            for purified, image in zip(clean, images, strict=True):
                check_clean(purified, image)
            return clean
        except Exception as e:
            self.failed("failed runs of the purifier", describe_error(e))
            if len(images) == 1:
                return [Failure(describe_error(e))]
        # one by one, so that an image that fails does not cost the others their labels
        return [result for image in images for result in self._purify([image])]


def _judge(detector: Detector, answer: F64 | Failure) -> Decision[Any] | _Flagged:
    """Decide on an image that the detector trusts, from the scores of its views."""
    if isinstance(answer, Failure):
        return _Flagged(f"the classifier failed on the image or one of its views: {answer.reason}")
    score = detector.score(answer)
    reason = detector.explain(answer, score)
    # a user's detector need not be a subclass of Detector
    feature = detector.feature(answer) if hasattr(detector, "feature") else None
    if detector.is_suspicious(score):
        return _Flagged(f"flagged: {reason}", score, answer, feature)
    label = int(answer[0].argmax())
    return Decision(label, False, score, answer[0].copy(), f"not flagged: {reason}", feature=feature)


def unreadable(failure: Failure) -> Decision[Any]:
    """Return the decision about an image that cannot be read."""
    return _Flagged("the image cannot be read").abstain(failure.reason)


def read_batch(batch: Any, data_format: DataFormat | None) -> list[LoadedImage[Any] | Failure]:
    """Read the images of a batch; a file or a PIL image that cannot be read is a `Failure`.

    Raises:
        InputError: an unusable array or object.
    """
    if not isinstance(batch, list | tuple):
        try:
            return [*read(batch, data_format=data_format)[0]]
        except (ImageReadError, OutOfMemoryError) as e:
            return [Failure(str(e))]
    out: list[LoadedImage[Any] | Failure] = []
    for i, item in enumerate(batch):
        try:
            out.append(read_one(item, data_format=data_format))
        except (ImageReadError, OutOfMemoryError) as e:
            out.append(Failure(str(e)))
        except InputError as e:
            raise InputError(f"item {i} of the list: {e}") from e
    return out

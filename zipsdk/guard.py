"""Guard a classifier: detect triggers, purify suspicious images only, classify (section 3.4.2 of the paper).

The detector is `zipsdk.AblationDetector` or SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251). A trigger that it
misses reaches the classifier: docs/guard.md lists which, and when to purify everything. The docstring of `Guard` has
the cost of a decision in queries of the classifier.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from zipsdk._util import forks
from zipsdk._util.validation import is_real
from zipsdk.decision import Counters, Decision
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.base import Detector, PurifyAll
from zipsdk.detectors.classifier_client import MAX_BATCH, ClassifierClient, Failure, describe_error
from zipsdk.errors import ImageReadError, InputError, OutOfMemoryError
from zipsdk.images import read, read_one
from zipsdk.images.arrays import LoadedImage, check_clean
from zipsdk.images.unsupported import check_batches
from zipsdk.types import F64, U8, DataFormat


def speedup_bound(flagged: float, t_detect: float, t_purify: float) -> float:
    """Return the largest speedup of a guard over purifying everything: 1 / (flagged + t_detect / t_purify).

    Args:
        flagged: share of images that are flagged, rightly or not, in [0, 1].
        t_detect: time to classify an image and its other views.
        t_purify: time to purify an image and classify the result, in the same unit.

    Raises:
        InputError: a share outside [0, 1], or a time that is not above 0.
    """
    numbers = all(is_real(v) for v in (flagged, t_detect, t_purify))
    if not numbers or not 0 <= flagged <= 1 or not 0 < t_detect < math.inf or not 0 < t_purify < math.inf:
        raise InputError(
            f"got flagged {flagged}, t_detect {t_detect}, t_purify {t_purify}; "
            "expected a share in [0, 1] and two times above 0"
        )
    return 1 / (flagged + t_detect / t_purify)


class PurifierLike(Protocol):
    """An object that purifies: `run` maps a list of uint8 (H, W, 3) of mixed sizes to the same, purified."""

    def run(self, batch: Any) -> Any: ...


_METHODS = ("views", "score", "is_suspicious", "explain", "second_look_views", "resolve", "observe")
_DEFAULT_DETECTOR = AblationDetector()


@dataclass(frozen=True)
class _Flagged:
    """An image that is not trusted, with the scores of its views if there are any."""

    reason: str
    suspicion: float | None = None
    scores: F64 | None = None

    def abstain(self, error: str, image: Any = None) -> Decision:
        return Decision(None, True, self.suspicion, None, self.reason, image, error)


class Guard:
    """Detect, purify what is suspicious, classify.

    The guard fails closed: what could not be checked is purified, and what could not be purified has no label.

    | image | cost with `AblationDetector` | cost with `ScaleUp` | cost with `PurifyAll` |
    | --- | --- | --- | --- |
    | not flagged | 28 queries | 6 queries | |
    | flagged | 56 queries, a purification | 7 queries, a purification | 1 query, a purification |

    A detector may learn from the stream (`Detector.observe`): an `AblationDetector` without a reference measures it on
    the first 200 images that the classifier answers for; read it from `guard.detector.reference`.

    Threads may call `run` at the same time if `classify` and the purifier are thread-safe.

    Args:
        classify: takes uint8 (N, H, W, 3), RGB, images of one size, which it may overwrite; returns scores
            (N, classes), at least two classes, as anything that `numpy.asarray` accepts. The label is the largest.
            Scores are logits or probabilities, which may be rounded, incomplete, or one sigmoid per class. Resizing
            and normalization are up to `classify`. An exception, a time-out, another shape, or a row without a finite
            maximum is a failure.
        purifier: a `zipsdk.Purifier`, or any object with such a `run`.
        detector: a `Detector`. None is `PurifyAll()`: purify every image and trust the result.
        timeout: seconds per call of `classify`, or None. Each call then runs in a thread of its own. Python cannot
            stop a thread, so a timed-out call keeps running and its answer is discarded; while `MAX_STALLED` (4) such
            calls run, `classify` is not called and counts as failed. If possible, give it a time-out of its own.
        max_batch: most images and views per call of `classify`; fewer of large ones, so that a call has at most
            `MAX_CALL_PIXELS` (16 million). None sends all images of one size in one call.

    Attributes:
        detector: the given detector, or what it has become by learning.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        classify: Callable[[U8], Any],
        purifier: PurifierLike,
        detector: Detector | None = _DEFAULT_DETECTOR,
        *,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ):
        if not callable(getattr(purifier, "run", None)) or isinstance(purifier, type):
            raise InputError(f"purifier: got {purifier!r}, expected an object with run, such as zipsdk.Purifier(...)")
        if detector is None:
            detector = PurifyAll()
        if isinstance(detector, type) or not all(callable(getattr(detector, m, None)) for m in _METHODS):
            raise InputError(
                f"detector: got {detector!r}, expected zipsdk.AblationDetector(), zipsdk.ScaleUp(), "
                f"an object with {', '.join(_METHODS)}, or None"
            )
        self.purifier, self.detector = purifier, detector
        self._counted = Counters()
        self._classifier = ClassifierClient(classify, timeout, max_batch, self._count)
        self.after_fork()
        forks.track(self)

    def after_fork(self) -> None:
        """Replace the locks; see `zipsdk._util.forks.Forkable`."""
        self._lock, self._learning = threading.Lock(), threading.Lock()

    @property
    def counters(self) -> Counters:
        """A snapshot of the totals."""
        with self._lock:
            return replace(self._counted, stalled=self._classifier.stalled)

    def reset(self) -> Counters:
        """Return the totals and set them to zero, in one step."""
        with self._lock:
            counted, self._counted = self._counted, Counters()
        return replace(counted, stalled=self._classifier.stalled)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counted = replace(self._counted, **{k: getattr(self._counted, k) + n for k, n in more.items()})

    def stream(self, batches: Iterable[Any], *, data_format: DataFormat | None = None) -> Iterator[list[Decision]]:
        """Yield `run` of each batch, in order, when it is requested; arguments and errors as for `run`."""
        check_batches(batches)
        for batch in batches:
            yield self.run(batch, data_format=data_format)

    def run(self, batch: Any, *, data_format: DataFormat | None = None) -> list[Decision]:
        """Decide on images, in order; a single image returns a list of one decision.

        Args:
            batch: as for `zipsdk.Purifier.run`. A file or PIL image that cannot be read has no label and does not
                affect the others.
            data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all others.

        Raises:
            InputError: an unusable array or object, before anything is classified.
        """
        loaded = _read(batch, data_format)
        decisions = {
            i: _Flagged("the image cannot be read").abstain(item.reason)
            for i, item in enumerate(loaded)
            if isinstance(item, Failure)
        }
        images = {i: item for i, item in enumerate(loaded) if isinstance(item, LoadedImage)}
        flagged = {}
        detector, verdicts = self._first_look(images)
        for i, verdict in verdicts.items():
            if isinstance(verdict, Decision):
                decisions[i] = verdict
            else:
                flagged[i] = verdict
        decisions |= self._second_look(detector, images, flagged)
        done = [decisions[i] for i in range(len(loaded))]
        abstained = sum(d.label is None for d in done)
        self._count(images=len(done), flagged=sum(d.flagged for d in done), abstained=abstained)
        return done

    def _first_look(self, images: dict[int, LoadedImage[Any]]) -> tuple[Detector, dict[int, Decision | _Flagged]]:
        """Decide on the images that the detector trusts; return the detector to use for the others, too.

        The detector learns before anything is decided, so that a large first batch benefits from it.
        """
        detector = self.detector
        if isinstance(detector, PurifyAll):  # it flags every image, whatever the classifier answers
            return detector, dict.fromkeys(images, _Flagged("there is no detector: every image is purified"))
        rgb = [image.rgb for image in images.values()]
        answers = self._classifier.query(rgb, detector.views)
        seen = [(x, scores) for x, scores in zip(rgb, answers, strict=True) if not isinstance(scores, Failure)]
        with self._learning:
            detector = self.detector = self.detector.observe([x for x, _ in seen], [scores for _, scores in seen])
        return detector, {i: _judge(detector, answer) for i, answer in zip(images, answers, strict=True)}

    def _second_look(
        self, detector: Detector, images: dict[int, LoadedImage[Any]], flagged: dict[int, _Flagged]
    ) -> dict[int, Decision]:
        """Purify the flagged images, query their second-look views and decide."""
        purified = dict(zip(flagged, self._purify([images[i].rgb for i in flagged]), strict=True))
        clean = {i: p for i, p in purified.items() if not isinstance(p, Failure)}
        answers = dict(
            zip(clean, self._classifier.query(list(clean.values()), detector.second_look_views), strict=True)
        )
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
            scores = detector.resolve(suspect.scores if comparable else None, answer)
            decisions[i] = Decision(int(scores.argmax()), True, suspect.suspicion, scores, suspect.reason, restored)
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
            self._count(failures=1)
            if len(images) == 1:
                return [Failure(describe_error(e))]
        # one by one, so that an image that fails does not cost the others their labels
        return [result for image in images for result in self._purify([image])]


def _judge(detector: Detector, answer: F64 | Failure) -> Decision | _Flagged:
    """Decide on an image that the detector trusts, from the scores of its views."""
    if isinstance(answer, Failure):
        return _Flagged(f"the classifier failed on the image or one of its views: {answer.reason}")
    score = detector.score(answer)
    reason = detector.explain(answer, score)
    if detector.is_suspicious(score):
        return _Flagged(f"flagged: {reason}", score, answer)
    return Decision(int(answer[0].argmax()), False, score, answer[0].copy(), f"not flagged: {reason}")


def _read(batch: Any, data_format: DataFormat | None) -> list[LoadedImage[Any] | Failure]:
    """Read the images of a batch; a file or a PIL image that cannot be read is a `Failure`."""
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

"""Guard a classifier: detect triggers, purify suspicious images only, classify (section 3.4.2 of the paper).

The detector is `zipsdk.AblationDetector` or SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251). A trigger that it
misses reaches the classifier: docs/guard.md lists which, and when to purify everything. The docstring of `Guard` has
the cost of a decision in queries of the classifier.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, SupportsIndex, overload

import numpy as np
from PIL import Image

from zipsdk._util import forks
from zipsdk._util.pickling import check_pickles
from zipsdk._util.throttled_log import ThrottledLog
from zipsdk._util.validation import is_real, kind_of
from zipsdk.decider import Decider, PurifierLike, read_batch, unreadable
from zipsdk.decision import Counters, Decision
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.base import Detector
from zipsdk.detectors.classifier_client import MAX_BATCH, ClassifierClient, Failure
from zipsdk.detectors.purify_all import PurifyAll
from zipsdk.detectors.saving import SavableDetector, load_detector
from zipsdk.detectors.scaleup import ScaleUp
from zipsdk.errors import InputError
from zipsdk.images.arrays import LoadedImage
from zipsdk.images.unsupported import check_batches
from zipsdk.purifier import Purifier
from zipsdk.types import F64, ArrayT, Classifier, DataFormat, ImageSource, ItemT, ListOf, SourceT


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


_METHODS = ("views", "score", "is_suspicious", "explain", "second_look_views", "resolve", "observe")
_SAVABLE: tuple[type[SavableDetector], ...] = (AblationDetector, ScaleUp, PurifyAll)
_LOGGER = logging.getLogger("zipsdk.guard")
# of all guards, because a process pool unpickles one for each task
_EVENTS = ThrottledLog(_LOGGER)


class Guard:
    """Detect, purify what is suspicious, classify.

    The guard fails closed: what could not be checked is purified, and what could not be purified has no label.

    | image | cost with `AblationDetector` | cost with `ScaleUp` | cost with `PurifyAll` |
    | --- | --- | --- | --- |
    | not flagged | 28 queries | 6 queries | |
    | flagged | 56 queries, a purification | 7 queries, a purification | 1 query, a purification |

    An `AblationDetector` needs reference statistics of the classifier: `fit` measures them. A guard that is made
    without `fit` uses those of two other classifiers, `zipsdk.detectors.ablation_statistics.DEFAULT_REFERENCE`, flags
    more clean images, and logs a warning when it is made.

    A decision depends on the image alone if `classify` treats the images of a batch independently and the purifier has
    a seed, but not with `adapt=True`. Threads may call `run` at the same time if `classify` and the purifier are
    thread-safe. A guard pickles and copies if its three parts do; a copy counts from zero and learns on its own.

    What an operator must see goes to the logger "zipsdk.guard": images without a label, calls of the classifier that
    fail, time out or are skipped, failures of the purifier. The first of a kind in a process is logged at once, then
    one line with the number and the latest reason every 60 seconds at most; none has pixels.

    Args:
        classify: takes uint8 (N, H, W, 3), RGB, images of one size, which it may overwrite; returns scores
            (N, classes), at least two classes, as anything that `numpy.asarray` accepts. The label is the largest.
            Scores are logits or probabilities, which may be rounded, incomplete, or one sigmoid per class. Resizing
            and normalization are up to `classify`. An exception, a time-out, another shape, or a row without a finite
            maximum is a failure.
        purifier: a `zipsdk.Purifier`, or any object with such a `run`. None is `Purifier("zip-tiny", preset="fast")`.
        detector: a `Detector`. None is `AblationDetector()`; `PurifyAll()` purifies every image and trusts the result.
        adapt: let the detector learn from the stream (`Detector.observe`): an `AblationDetector` without a reference
            measures it on the first `learn` (200) images that the classifier answers for. Decisions then depend on the
            images before.
        timeout: seconds per call of `classify`, or None. Each call then runs in a thread of its own. Python cannot
            stop a thread, so a timed-out call keeps running and its answer is discarded; while `MAX_STALLED` (4) such
            calls run, `classify` is not called and counts as failed. If possible, give it a time-out of its own.
        max_batch: most images and views per call of `classify`; fewer of large ones, so that a call has at most
            `MAX_CALL_PIXELS` (16 million). None sends all images of one size in one call.

    Attributes:
        purifier: the given purifier, or the default one.
        detector: the given detector, or the default one, or what `fit` or `adapt` has made of it.
        adapt: whether the detector learns from the stream.

    Raises:
        InputError: an option out of range.
        ModelError, EngineError, MissingDependencyError: the default purifier cannot run on this machine.
    """

    def __init__(
        self,
        classify: Classifier,
        purifier: PurifierLike | None = None,
        detector: Detector | None = None,
        *,
        adapt: bool = False,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ):
        if purifier is not None and (isinstance(purifier, type) or not callable(getattr(purifier, "run", None))):
            raise InputError(f"purifier: got {kind_of(purifier)}, expected an object with run, such as zipsdk.Purifier")
        detector = AblationDetector() if detector is None else detector
        if isinstance(detector, type) or not all(callable(getattr(detector, m, None)) for m in _METHODS):
            raise InputError(
                f"detector: got {kind_of(detector)}, expected zipsdk.AblationDetector(), zipsdk.ScaleUp(), "
                f"zipsdk.PurifyAll(), an object with {', '.join(_METHODS)}, or None"
            )
        if not isinstance(adapt, bool | np.bool_):
            raise InputError(f"adapt: got {adapt!r}, expected True or False")
        self._start(classify, timeout, max_batch)
        self.purifier = Purifier("zip-tiny", preset="fast") if purifier is None else purifier
        self.detector, self.adapt = detector, bool(adapt)
        if not adapt and isinstance(detector, AblationDetector) and detector.reference is None:
            _LOGGER.warning(
                "the reference statistics are those of other classifiers; measure your own with Guard.fit, or pass "
                "adapt=True"
            )

    def _start(self, classify: Classifier, timeout: float | None, max_batch: int | None) -> None:
        """Make what a copy does not share."""
        self._counted = Counters()
        self._classifier = ClassifierClient(classify, timeout, max_batch, self._count, self._failed)
        self.after_fork()
        forks.track(self)

    def __repr__(self) -> str:
        return f"<Guard {type(self.detector).__name__}, {type(self.purifier).__name__}, adapt={self.adapt}>"

    def __getstate__(self) -> dict[str, Any]:
        own = ("_counted", "_lock", "_learning")
        classifier = self._classifier
        state = {name: value for name, value in vars(self).items() if name not in own}
        return {**state, "_classifier": (classifier.classify, classifier.timeout, classifier.max_batch)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(*state["_classifier"])

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        check_pickles(classify=self._classifier.classify, purifier=self.purifier, detector=self.detector)
        return super().__reduce_ex__(protocol)

    # unlike pickle, copy takes every function
    def __copy__(self) -> Guard:
        copied = type(self).__new__(type(self))
        copied.__setstate__(self.__getstate__())
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied

    @classmethod
    def fit(
        cls,
        classify: Classifier,
        images: Any,
        purifier: PurifierLike | None = None,
        detector: Detector | None = None,
        *,
        data_format: DataFormat | None = None,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ) -> Guard:
        """Make a guard whose detector is calibrated for this classifier.

        Args:
            classify: as for `Guard`; gets 28 queries per image.
            images: of the stream, better 100 or more, as for `zipsdk.Purifier.run`; labels are not needed. See
                `AblationDetector.calibrate` and `ScaleUp.calibrate`.
            purifier: as for `Guard`.
            detector: one with `calibrate`. None is `AblationDetector()`. Give a `ScaleUp` a threshold for z-scores.
            data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all others.
            timeout: as for `Guard`.
            max_batch: as for `Guard`.

        Raises:
            InputError: unusable or too few images, a classifier that fails on one of them, or an option out of range.
        """
        if callable(images) and not callable(classify):
            raise InputError("classify, images: got them in reverse order, expected fit(classify, images); swap them")
        # adapt until then, because __init__ warns if nothing will be measured
        guard = cls(classify, purifier, detector, adapt=True, timeout=timeout, max_batch=max_batch)
        calibrate = getattr(guard.detector, "calibrate", None)
        if not callable(calibrate):
            raise InputError(
                f"detector: got {detector!r}, expected one with calibrate, such as zipsdk.AblationDetector(); "
                "there is nothing to fit, so call Guard(...)"
            )
        guard.detector = calibrate(classify, images, data_format=data_format, timeout=timeout, max_batch=max_batch)
        guard.adapt = False
        return guard

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the detector, with its reference statistics, to a JSON file for `load`.

        Raises:
            InputError: the detector is a user's own and cannot be saved, or `path` is no path.
            OSError: the file cannot be written.
        """
        if not isinstance(self.detector, SavableDetector):
            raise InputError(
                f"detector: got {type(self.detector).__name__}, expected one of zipsdk; save your own detector yourself"
            )
        self.detector.save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        classify: Classifier,
        purifier: PurifierLike | None = None,
        *,
        adapt: bool = False,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
    ) -> Guard:
        """Make a guard with the detector that `save` has written.

        The file holds the detector and its reference statistics only. With the same classifier, the same purifier and
        a seed the guard decides as before.

        Args:
            path: a file that `save`, or `save` of a detector, has written.
            classify: as for `Guard`; the classifier that the reference statistics were measured with.
            purifier: as for `Guard`; pass the one that the saved guard had.
            adapt: as for `Guard`.
            timeout: as for `Guard`.
            max_batch: as for `Guard`.

        Raises:
            InputError: the file cannot be read or holds something else, or an option is out of range.
        """
        detector = load_detector(path, _SAVABLE)
        return cls(classify, purifier, detector, adapt=adapt, timeout=timeout, max_batch=max_batch)

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

    def _failed(self, event: str, reason: str) -> None:
        self._count(failures=1)
        _EVENTS.warn(event, reason)

    @overload
    def stream(
        self, batches: Iterable[ArrayT], *, data_format: DataFormat | None = ...
    ) -> Iterator[list[Decision[ArrayT]]]: ...
    @overload
    def stream(
        self, batches: Iterable[ImageSource | ListOf[SourceT]], *, data_format: DataFormat | None = ...
    ) -> Iterator[list[Decision[Image.Image]]]: ...
    @overload
    def stream(
        self,
        batches: Iterable[LoadedImage[ItemT] | ListOf[LoadedImage[ItemT]]],
        *,
        data_format: DataFormat | None = ...,
    ) -> Iterator[list[Decision[ItemT]]]: ...
    @overload
    def stream(
        self, batches: Iterable[ListOf[ItemT]], *, data_format: DataFormat | None = ...
    ) -> Iterator[list[Decision[ItemT]]]: ...

    def stream(self, batches: Iterable[Any], *, data_format: DataFormat | None = None) -> Iterator[list[Decision[Any]]]:
        """Yield `run` of each batch, in order, when it is requested; arguments and errors as for `run`."""
        check_batches(batches)
        for batch in batches:
            yield self.run(batch, data_format=data_format)

    # arrays keep their type, as in Purifier.run; those of a batch have one axis less
    @overload
    def run(self, batch: ArrayT, *, data_format: DataFormat | None = ...) -> list[Decision[ArrayT]]: ...
    @overload
    def run(
        self, batch: ImageSource | ListOf[SourceT], *, data_format: DataFormat | None = ...
    ) -> list[Decision[Image.Image]]: ...
    @overload
    def run(
        self, batch: LoadedImage[ItemT] | ListOf[LoadedImage[ItemT]], *, data_format: DataFormat | None = ...
    ) -> list[Decision[ItemT]]: ...
    @overload
    def run(self, batch: ListOf[ItemT], *, data_format: DataFormat | None = ...) -> list[Decision[ItemT]]: ...

    def run(self, batch: Any, *, data_format: DataFormat | None = None) -> list[Decision[Any]]:
        """Decide on images, in order; a single image returns a list of one decision.

        Args:
            batch: as for `zipsdk.Purifier.run`. A file or PIL image that cannot be read has no label and does not
                affect the others.
            data_format: "NHWC" or "NCHW", for arrays; None is "NCHW" for torch tensors and "NHWC" for all others.

        Raises:
            InputError: an unusable array or object, before anything is classified.
        """
        loaded = read_batch(batch, data_format)
        decisions = {i: unreadable(item) for i, item in enumerate(loaded) if isinstance(item, Failure)}
        images = {i: item for i, item in enumerate(loaded) if isinstance(item, LoadedImage)}
        detector, decider = self.detector, Decider(self._classifier, self.purifier, self._failed)
        answers = decider.first_look(detector, images)
        if self.adapt:
            # before anything is decided, so that a large first batch benefits from it
            detector = self._learn(images, answers)
        decisions |= decider.decide(detector, images, answers)
        done = [decisions[i] for i in range(len(loaded))]
        errors = [d.error for d in done if d.error is not None]
        self._count(images=len(done), flagged=sum(d.flagged for d in done), abstained=len(errors))
        if errors:
            _EVENTS.warn("images without a label", errors[-1], len(errors))
        return done

    def _learn(self, images: Mapping[int, LoadedImage[Any]], answers: Mapping[int, F64 | Failure]) -> Detector:
        seen = {i: scores for i, scores in answers.items() if not isinstance(scores, Failure)}
        with self._learning:
            before = self.detector
            after = self.detector = before.observe([images[i].rgb for i in seen], list(seen.values()))
        if isinstance(after, AblationDetector) and after is not before and after.reference is not None:
            _LOGGER.info("measured the reference statistics on %d images of the stream", after.learn)
        return after

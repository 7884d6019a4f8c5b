"""The streaming defence (section 3.4.2 of the paper): look for a trigger, purify only what is suspicious, classify.

The detector is `zipsdk.AblationDetector`, or SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251). One that misses a
trigger lets it through to the classifier untouched: docs/guard.md says when they do, and when to use none.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk._util import forks
from zipsdk._util.validation import is_number
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.base import Detector, PurifyAll
from zipsdk.detectors.classifier_client import MAX_BATCH, ClassifierClient, Failure, describe_error
from zipsdk.errors import InputError, OutOfMemory, PictureError
from zipsdk.images.arrays import U8, Picture, check_clean

F64 = npt.NDArray[np.float64]


def speedup_bound(flagged: float, t_detect: float, t_purify: float) -> float:
    """How many times faster a guard can be than purifying everything: 1 / (flagged + t_detect / t_purify).

    Args:
        flagged: share of the pictures that are flagged, rightly or not, in [0, 1].
        t_detect: time to classify a picture and its copies.
        t_purify: time to purify a picture and classify the result, in the same unit.

    Raises:
        InputError: a share outside [0, 1], or a time that is not above 0.
    """
    numbers = all(is_number(v) for v in (flagged, t_detect, t_purify))
    if not numbers or not 0 <= flagged <= 1 or not 0 < t_detect < math.inf or not 0 < t_purify < math.inf:
        raise InputError(
            f"got flagged {flagged}, t_detect {t_detect}, t_purify {t_purify}; "
            "expected a share in [0, 1] and two times above 0"
        )
    return 1 / (flagged + t_detect / t_purify)


@dataclass(frozen=True, eq=False)
class Decision:
    """What became of one picture.

    Attributes:
        label: the class, from `scores`. None: there is no label that can be trusted, and `error` says why.
        flagged: the picture was not trusted as it came: the detector flagged it, there is no detector, or the picture
            or the classifier's answer could not be used. Where this is False, the label is that of the picture itself.
        score: the detector's, or None where there is none.
        purified: the purified picture, of the type, size and dtype that came in, or None.
        scores: float64 (classes,), what the label is the largest of, or None without a label: the classifier's, or for
            a flagged picture what the detector makes of several answers (see its `settle`).
        why: why it was flagged, or not.
        error: None, or what stood in the way of a label.
    """

    label: int | None
    flagged: bool
    score: float | None
    purified: Any | None
    scores: F64 | None
    why: str
    error: str | None = None


@dataclass(frozen=True)
class Counters:
    """What a guard has done since it was made or reset.

    Attributes:
        pictures, flagged, unlabelled: decisions, those with `flagged`, and those without a label.
        calls, queries: calls of the classifier, and pictures and copies in them.
        failures: calls of the classifier or of the purifier that raised, came too late, gave what cannot be used in
            whole or in part, or were not made because too many hang; and pictures whose copies could not be made.
        stalled: calls that a time-out left running and that run still; `reset` does not change it.
    """

    pictures: int = 0
    flagged: int = 0
    unlabelled: int = 0
    calls: int = 0
    queries: int = 0
    failures: int = 0
    stalled: int = 0

    @property
    def flagged_share(self) -> float:
        """flagged / pictures; 0 before the first picture."""
        return self.flagged / self.pictures if self.pictures else 0.0


class PurifierLike(Protocol):
    """Anything with `run`: a list of uint8 (H, W, 3) of mixed sizes -> the same, purified."""

    def run(self, batch: Any) -> Any: ...


_METHODS = ("views", "score", "is_suspicious", "explain", "second_look_views", "resolve", "observe")
_DEFAULT_DETECTOR = AblationDetector()


@dataclass(frozen=True)
class _Suspect:
    """A picture that is not trusted: the detector's score, why, and the scores of its versions, where there are."""

    score: float | None
    why: str
    scores: F64 | None = None


class Guard:
    """Detect, purify what is suspicious, classify. It fails closed: what could not be checked is purified, and what
    could not be purified has no label.

    A picture that is not flagged costs the detector's queries, 28 for `AblationDetector`, and no purification; its
    label comes from the first of them. A flagged one costs a purification and the detector's second look, 28 queries
    more. Without a detector each costs a purification and one query.

    A detector may learn from the pictures that the classifier answers for (see `Detector.observe`): an
    `AblationDetector` without reference takes them from the first 200, and keeps them: `guard.detector.reference`.

    Several threads may call `run` at once if `classify` and the purifier bear that.

    Args:
        classify: takes uint8 (N, H, W, 3), RGB, 0..255, pictures of one size, its own to change; gives scores
            (N, classes), at least two classes: anything that `numpy.asarray` makes numbers of. The largest is the
            label. Logits do, and probabilities, be they rounded, without the small ones, or of a sigmoid for each
            class. Resizing and normalisation are its own business. It may fail: an exception, a late answer, another
            shape, or a row without a finite largest score is no answer.
        purifier: a `zipsdk.Purifier`, or any object with such a `run`.
        detector: a `Detector`. None is `PurifyAll()`: it believes what purification gives, at full cost.
        timeout: seconds for one call of `classify`, or None. Each call then has a thread of its own. Python cannot stop
            a thread: after a time-out the call runs on beside later ones, and its answer is thrown away. While
            `MAX_STALLED` (4) such calls run, `classify` is not called and counts as failed. So give it a time-out of
            its own where that is possible.
        max_batch: pictures and copies in one call of `classify` at most; of large ones fewer, so that they have no more
            than `MAX_CALL_PIXELS` (16 million) together. None sends all of one size at once.

    Attributes:
        detector: what was given, or what has been learnt.

    Raises:
        InputError: an option that cannot be used.
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
        self._lock, self._learning = threading.Lock(), threading.Lock()
        self._counted = Counters()
        self._classifier = ClassifierClient(classify, timeout, max_batch, self._count)
        forks.track(self)

    def after_fork(self) -> None:
        """See `zipsdk._util.forks.Forkable`."""
        self._lock, self._learning = threading.Lock(), threading.Lock()

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        with self._lock:
            return replace(self._counted, stalled=self._classifier.stalled)

    def reset(self) -> Counters:
        """Count from zero again; gives what was counted until now, so that nothing falls between two readings."""
        with self._lock:
            counted, self._counted = self._counted, Counters()
        return replace(counted, stalled=self._classifier.stalled)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counted = replace(self._counted, **{k: getattr(self._counted, k) + n for k, n in more.items()})

    def stream(self, batches: Iterable[Any], *, layout: str = "NHWC") -> Iterator[list[Decision]]:
        """`run` over many batches, in order, each when it is asked for; arguments and errors as there."""
        for batch in batches:
            yield self.run(batch, layout=layout)

    def run(self, batch: Any, *, layout: str = "NHWC") -> list[Decision]:
        """Decide on pictures: one decision each, in order; a single picture gives a list of one.

        Args:
            batch: what `zipsdk.Purifier.run` takes. A file or a PIL image that cannot be read has no label, and
                leaves the others theirs.
            layout: "NHWC" or "NCHW", for arrays.

        Raises:
            InputError: an array or an object that cannot be used as given; nothing has been classified then.
        """
        read = _read(batch, layout)
        decisions: list[Decision | None] = [
            Decision(None, True, None, None, None, "the picture cannot be read", p.reason)
            if isinstance(p, Failure)
            else None
            for p in read
        ]
        pictures = {i: p for i, p in enumerate(read) if isinstance(p, Picture)}
        suspects: dict[int, _Suspect] = {}
        answers = self._look(pictures)
        detector = self.detector  # one and the same until the end, whatever other threads learn
        for i, verdict in _verdicts(detector, answers).items():
            if isinstance(verdict, Decision):
                decisions[i] = verdict
            else:
                suspects[i] = verdict

        purified = dict(zip(suspects, self._purify([pictures[i].rgb for i in suspects]), strict=True))
        clean = {i: c for i, c in purified.items() if not isinstance(c, Failure)}
        second = dict(zip(clean, self._classifier.query(list(clean.values()), detector.second_look_views), strict=True))
        for i, s in suspects.items():
            result = purified[i]
            if isinstance(result, Failure):
                error = f"the purifier failed: {result.reason}"
                decisions[i] = Decision(None, True, s.score, None, None, s.why, error)
                continue
            answer, restored = second[i], pictures[i].restore(result)
            if isinstance(answer, Failure):
                error = f"the classifier failed on the purified picture: {answer.reason}"
                decisions[i] = Decision(None, True, s.score, restored, None, s.why, error)
            else:
                # of other classes than before, the classifier has changed: what it said before is no answer any more
                first = None if s.scores is None or s.scores.shape[1] != answer.shape[1] else s.scores
                scores = detector.resolve(first, answer)
                decisions[i] = Decision(int(scores.argmax()), True, s.score, restored, scores, s.why)

        done = [d for d in decisions if d is not None]
        self._count(
            pictures=len(done), flagged=sum(d.flagged for d in done), unlabelled=sum(d.label is None for d in done)
        )
        return done

    def _look(self, pictures: dict[int, Picture]) -> dict[int, F64 | Failure]:
        """What the classifier says of each picture's versions, or why it does not.

        What can be learnt from it is learnt before anything is decided, so that a large first batch profits too.
        """
        detector = self.detector
        if isinstance(detector, PurifyAll):  # which flags a picture whatever the answer
            return dict.fromkeys(pictures, Failure("there is no detector: every picture is purified"))
        rgb = [p.rgb for p in pictures.values()]
        answers = self._classifier.query(rgb, detector.views)
        seen = [(p, a) for p, a in zip(rgb, answers, strict=True) if not isinstance(a, Failure)]
        with self._learning:
            self.detector = self.detector.observe([p for p, _ in seen], [a for _, a in seen])
        return dict(zip(pictures, map(_blamed, answers), strict=True))

    def _purify(self, pictures: list[U8]) -> list[U8 | Failure]:
        """Purified pictures, or what went wrong."""
        if not pictures:
            return []
        try:
            clean = list(self.purifier.run(list(pictures)))
            for c, picture in zip(clean, pictures, strict=True):
                check_clean(c, picture)
            return clean
        except Exception as e:
            self._count(failures=1)
            if len(pictures) == 1:
                return [Failure(describe_error(e))]
        # each by itself, so that one picture cannot take the labels of those it came with
        return [result for picture in pictures for result in self._purify([picture])]


def _verdicts(detector: Detector, answers: dict[int, F64 | Failure]) -> dict[int, Decision | _Suspect]:
    """A decision for each picture that is trusted; for another why it is not."""
    verdicts: dict[int, Decision | _Suspect] = {}
    for i, answer in answers.items():
        if isinstance(answer, Failure):
            verdicts[i] = _Suspect(None, answer.reason)
            continue
        score = detector.score(answer)
        why = detector.explain(answer, score)
        if detector.is_suspicious(score):
            verdicts[i] = _Suspect(score, f"flagged: {why}", answer)
        else:
            label = int(answer[0].argmax())
            verdicts[i] = Decision(label, False, score, None, answer[0].copy(), f"not flagged: {why}")
    return verdicts


def _blamed(answer: F64 | Failure) -> F64 | Failure:
    if isinstance(answer, Failure):
        return Failure(f"the classifier failed on the picture or a copy of it: {answer.reason}")
    return answer


def _read(batch: Any, layout: str) -> list[Picture | Failure]:
    """The pictures of a batch, or for a file or a PIL image that cannot be read, why."""
    if not isinstance(batch, list | tuple):
        try:
            return [*images.read(batch, layout=layout)[0]]
        except (PictureError, OutOfMemory) as e:
            return [Failure(str(e))]
    out: list[Picture | Failure] = []
    for i, item in enumerate(batch):
        try:
            out.append(images.read_one(item, layout=layout))
        except (PictureError, OutOfMemory) as e:
            out.append(Failure(str(e)))
        except InputError as e:
            raise InputError(f"item {i} of the list: {e}") from e
    return out

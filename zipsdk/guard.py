"""The streaming defence (section 3.4.2 of the paper): look for a trigger, purify only what is suspicious, classify.

The detector is SCALE-UP (Guo et al., ICLR 2023, arXiv 2302.03251). A detector that misses a trigger lets it through to
the classifier untouched: docs/guard.md says when it does, and when to use none.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zipsdk import images
from zipsdk.arrays import U8, Picture, check_clean
from zipsdk.errors import InputError, PictureError

F64 = npt.NDArray[np.float64]

#: Calls that a time-out left running. At this many the classifier is not called again until one of them ends.
MAX_HANGING = 4


@dataclass(frozen=True)
class ScaleUp:
    """Scaled prediction consistency: does the label stay when the pixels are multiplied?

    SPC(x) is the share of the scales n for which argmax f(clip(n x)) = argmax f(x), for pixels x in [0, 1], before any
    normalisation. A backdoored label tends to stay, a clean one to change. A picture is flagged where its score is
    equal to or above the threshold. The paper says above; with the default scales and threshold that is the same, and
    where it is not, this is the safer side.

    Args:
        scales: whole numbers from 2 to 255, each once. One query for each of them.
        threshold: in (0, 1], for SPC. For z-scores, which `calibrate` brings, any finite number.

    Attributes:
        overall: mean and standard deviation of SPC over the clean pictures of `calibrate`, or None before it.
        classes: the same by class, for the classes that have a spread of their own.

    Raises:
        InputError: an option out of range.
    """

    scales: tuple[int, ...] = (3, 5, 7, 9, 11)
    threshold: float = 0.5
    overall: tuple[float, float] | None = None
    classes: dict[int, tuple[float, float]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        scales = tuple(self.scales) if isinstance(self.scales, Iterable) else ()
        whole = all(isinstance(n, int) and not isinstance(n, bool) and 2 <= n <= 255 for n in scales)
        if not scales or not whole or len(set(scales)) < len(scales):
            raise InputError(
                f"scales: got {self.scales!r}, wanted different whole numbers from 2 to 255, such as (3, 5)"
            )
        object.__setattr__(self, "scales", scales)
        threshold = self.threshold
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
        if not number or (self.overall is None and not 0 < threshold <= 1):
            wanted = "above 0 and at most 1" if self.overall is None else "finite"
            raise InputError(f"threshold: got {threshold!r}, wanted a number {wanted}; the published one is 0.5")

    def copies(self, rgb: U8) -> U8:
        """uint8 (H, W, 3) -> its scaled copies, uint8 (scales, H, W, 3); exact, because n x is whole."""
        # by table, so that no product can overflow
        table = np.minimum(np.outer(self.scales, np.arange(256)), 255).astype(np.uint8)
        return np.take(table, rgb, axis=1)

    def spc(self, scores: npt.ArrayLike) -> float:
        """SPC of one picture, in [0, 1].

        Args:
            scores: (1 + scales, classes): the picture's, then its copies', in the order of `scales`.

        Returns:
            NaN where a row has no finite largest score: an answer that is not there agrees with nothing.

        Raises:
            InputError: another shape.
        """
        rows = np.asarray(scores, np.float64)
        wanted = 1 + len(self.scales)
        if rows.ndim != 2 or len(rows) != wanted or rows.shape[1] < 1:
            raise InputError(f"scores: got shape {rows.shape}, wanted ({wanted}, classes): the picture and its copies")
        if not np.isfinite(rows.max(axis=1)).all():
            return math.nan
        labels = rows.argmax(axis=1)
        return int(np.count_nonzero(labels[1:] == labels[0])) / len(self.scales)

    def score(self, scores: npt.ArrayLike) -> float:
        """What the threshold is compared with: SPC; after `calibrate` its z-score in the class that is predicted."""
        spc = self.spc(scores)
        if self.overall is None or math.isnan(spc):
            return spc
        mean, std = self.classes.get(int(np.argmax(np.asarray(scores)[0])), self.overall)
        return (spc - mean) / std

    def flags(self, score: float) -> bool:
        """Whether a picture of this score is suspicious; NaN is."""
        return not score < self.threshold

    def calibrate(
        self,
        classify: Callable[[U8], Any],
        clean: Any,
        labels: npt.ArrayLike | None = None,
        *,
        threshold: float | None = None,
        layout: str = "NHWC",
        max_batch: int | None = None,
    ) -> ScaleUp:
        """The data-limited variant: a detector whose scores are z-scores of SPC, (SPC - mean) / deviation, by class.

        The deviation is that of the population (divided by N). A class without clean pictures, or whose clean pictures
        all have one SPC, takes mean and deviation of all clean pictures together.

        Args:
            classify, layout, max_batch: as for `Guard`; 1 + scales queries for each clean picture.
            clean: pictures that are known to carry no trigger; see `zipsdk.images.read`.
            labels: their true classes, (N,) whole numbers. None takes the classes that are predicted.
            threshold: for z-scores; None keeps the number that this detector has.

        Raises:
            InputError: pictures or labels that cannot be used, a classifier that fails on them, or clean pictures
                that all have the same SPC.
        """
        pictures = [p.rgb for p in images.read(clean, layout=layout)[0]]
        answers = _Classifier(classify, max_batch=max_batch).ask(pictures, self._versions)
        spc = np.zeros(len(pictures))
        classes = np.zeros(len(pictures), np.int64)
        for i, answer in enumerate(answers):
            if isinstance(answer, str):
                raise InputError(
                    f"clean picture {i}: the classifier failed ({answer}); wanted scores for it: see there"
                )
            spc[i], classes[i] = self.spc(answer), answer[0].argmax()
        if labels is not None:
            given = np.asarray(labels)
            if given.shape != classes.shape or given.dtype.kind not in "ui":
                raise InputError(
                    f"labels: got {given.dtype} {given.shape}, wanted {len(classes)} whole numbers, one a picture"
                )
            classes = given.astype(np.int64)
        # not the deviation itself, which rounding can keep above zero
        if len(spc) == 0 or np.ptp(spc) == 0:
            raise InputError(
                f"clean pictures: got {len(spc)} without a spread of SPC, wanted some that differ: "
                "give more pictures, or do without calibrate"
            )
        by_class = {int(c): spc[classes == c] for c in np.unique(classes)}
        return replace(
            self,
            threshold=self.threshold if threshold is None else threshold,
            overall=_mean_and_deviation(spc),
            classes={c: _mean_and_deviation(s) for c, s in by_class.items() if np.ptp(s) > 0},
        )

    def _versions(self, rgb: U8) -> list[U8]:
        return [rgb, *self.copies(rgb)]


def _mean_and_deviation(spc: F64) -> tuple[float, float]:
    return float(spc.mean()), float(spc.std())


def speedup_bound(flagged: float, t_detect: float, t_purify: float) -> float:
    """How many times faster a guard can be than purifying everything: 1 / (flagged + t_detect / t_purify).

    Args:
        flagged: share of the pictures that are flagged, rightly or not, in [0, 1].
        t_detect: time to classify a picture and its copies.
        t_purify: time to purify a picture and classify the result, in the same unit.

    Raises:
        InputError: a share outside [0, 1], or a time that is not above 0.
    """
    if not 0 <= flagged <= 1 or not 0 < t_detect < math.inf or not 0 < t_purify < math.inf:
        raise InputError(
            f"got flagged {flagged}, t_detect {t_detect}, t_purify {t_purify}; "
            "wanted a share in [0, 1] and two times above 0"
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
        scores: float64 (classes,), of the picture that the label belongs to, or None without a label.
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
            whole or in part, or were not made because too many hang.
        hanging: calls that a time-out left running and that run still; `reset` does not change it.
    """

    pictures: int = 0
    flagged: int = 0
    unlabelled: int = 0
    calls: int = 0
    queries: int = 0
    failures: int = 0
    hanging: int = 0

    @property
    def flagged_share(self) -> float:
        """flagged / pictures; 0 before the first picture."""
        return self.flagged / self.pictures if self.pictures else 0.0


class PurifierLike(Protocol):
    """Anything with `run`: a list of uint8 (H, W, 3) of mixed sizes -> the same, purified."""

    def run(self, batch: Any) -> Any: ...


_SCALE_UP = ScaleUp()


class Guard:
    """Detect, purify what is suspicious, classify. It fails closed: what could not be checked is purified, and what
    could not be purified has no label.

    A picture that is not flagged costs 1 + scales queries and no purification; its label comes from the first of them.
    A flagged one costs a purification and one query more. Without a detector each costs a purification and one query.

    Several threads may call `run` at once if `classify` and the purifier bear that.

    Args:
        classify: takes uint8 (N, H, W, 3), RGB, 0..255, pictures of one size, its own to change; gives scores
            (N, classes), at least two classes: anything that `numpy.asarray` makes numbers of. The largest is the
            label; logits and probabilities both do. Resizing and normalisation are its own business. It may fail: an
            exception, a late answer, another shape, or a row without a finite largest score is no answer.
        purifier: a `zipsdk.Purifier`, or any object with such a `run`.
        detector: None purifies every picture: the safe choice, at full cost.
        timeout: seconds for one call of `classify`, or None. Each call then has a thread of its own. Python cannot stop
            a thread: after a time-out the call runs on beside later ones, and its answer is thrown away. While
            `MAX_HANGING` such calls run, `classify` is not called and counts as failed. So give it a time-out of its
            own where that is possible.
        max_batch: pictures and copies in one call of `classify` at most; None sends all of one size at once.

    Raises:
        InputError: an option that cannot be used.
    """

    def __init__(
        self,
        classify: Callable[[U8], Any],
        purifier: PurifierLike,
        detector: ScaleUp | None = _SCALE_UP,
        *,
        timeout: float | None = None,
        max_batch: int | None = None,
    ):
        if not callable(getattr(purifier, "run", None)) or isinstance(purifier, type):
            raise InputError(f"purifier: got {purifier!r}, wanted an object with run, such as zipsdk.Purifier(...)")
        if detector is not None and not isinstance(detector, ScaleUp):
            raise InputError(f"detector: got {detector!r}, wanted zipsdk.ScaleUp() or None")
        self.purifier, self.detector = purifier, detector
        self._lock = threading.Lock()
        self._counted = Counters()
        self._classifier = _Classifier(classify, timeout, max_batch, self._count)

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        with self._lock:
            return replace(self._counted, hanging=self._classifier.hanging)

    def reset(self) -> Counters:
        """Count from zero again; gives what was counted until now, so that nothing falls between two readings."""
        with self._lock:
            counted, self._counted = self._counted, Counters()
        return replace(counted, hanging=self._classifier.hanging)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counted = replace(self._counted, **{k: getattr(self._counted, k) + n for k, n in more.items()})

    def stream(self, batches: Iterable[Any], *, layout: str = "NHWC") -> Iterator[list[Decision]]:
        """`run` over many batches, in order, each when it is asked for."""
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
            Decision(None, True, None, None, None, "the picture cannot be read", p) if isinstance(p, str) else None
            for p in read
        ]
        pictures = {i: p for i, p in enumerate(read) if isinstance(p, Picture)}
        suspects: dict[int, tuple[float | None, str]] = {}
        for i, verdict in self._detect(pictures).items():
            if isinstance(verdict, Decision):
                decisions[i] = verdict
            else:
                suspects[i] = verdict

        purified = dict(zip(suspects, self._purify([pictures[i].rgb for i in suspects]), strict=True))
        clean = {i: c for i, c in purified.items() if not isinstance(c, str)}
        answers = dict(zip(clean, self._classifier.ask(list(clean.values()), lambda rgb: [rgb]), strict=True))
        for i, (score, why) in suspects.items():
            result = purified[i]
            if isinstance(result, str):
                decisions[i] = Decision(None, True, score, None, None, why, f"the purifier failed: {result}")
                continue
            answer, restored = answers[i], pictures[i].restore(result)
            if isinstance(answer, str):
                error = f"the classifier failed on the purified picture: {answer}"
                decisions[i] = Decision(None, True, score, restored, None, why, error)
            else:
                decisions[i] = Decision(int(answer[0].argmax()), True, score, restored, answer[0], why)

        done = [d for d in decisions if d is not None]
        self._count(
            pictures=len(done), flagged=sum(d.flagged for d in done), unlabelled=sum(d.label is None for d in done)
        )
        return done

    def _detect(self, pictures: dict[int, Picture]) -> dict[int, Decision | tuple[float | None, str]]:
        """A decision for each picture that is trusted; for another the score and why it is not."""
        detector = self.detector
        if detector is None:
            return dict.fromkeys(pictures, (None, "there is no detector: every picture is purified"))
        verdicts: dict[int, Decision | tuple[float | None, str]] = {}
        answers = self._classifier.ask([p.rgb for p in pictures.values()], detector._versions)
        for i, answer in zip(pictures, answers, strict=True):
            if isinstance(answer, str):
                verdicts[i] = None, f"the classifier failed on the picture or a copy of it: {answer}"
                continue
            score = detector.score(answer)
            if detector.flags(score):
                verdicts[i] = score, f"flagged: score {score:.3g}, threshold {detector.threshold:g}"
            else:
                why = f"not flagged: score {score:.3g}, threshold {detector.threshold:g}"
                verdicts[i] = Decision(int(answer[0].argmax()), False, score, None, answer[0].copy(), why)
        return verdicts

    def _purify(self, pictures: list[U8]) -> list[U8 | str]:
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
                return [_said(e)]
        # each by itself, so that one picture cannot take the labels of those it came with
        return [result for picture in pictures for result in self._purify([picture])]


class _Classifier:
    """A callable that may fail, asked about pictures of mixed sizes. Failures come back as text, not as exceptions."""

    def __init__(
        self,
        classify: Callable[[U8], Any],
        timeout: float | None = None,
        max_batch: int | None = None,
        count: Callable[..., None] = lambda **more: None,
    ):
        if not callable(classify):
            raise InputError(f"classify: got {classify!r}, wanted a function from pictures to scores (N, classes)")
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (number and 0 < timeout <= threading.TIMEOUT_MAX):
            raise InputError(f"timeout: got {timeout!r}, wanted seconds above 0, or None")
        if max_batch is not None and (isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1):
            raise InputError(f"max_batch: got {max_batch!r}, wanted a whole number of at least 1, or None")
        self.classify, self.timeout, self.max_batch, self.count = classify, timeout, max_batch, count
        self._lock = threading.Lock()
        self._late: list[Future[F64]] = []

    @property
    def hanging(self) -> int:
        with self._lock:
            self._late = [f for f in self._late if not f.done()]
            return len(self._late)

    def ask(self, pictures: Sequence[U8], versions: Callable[[U8], list[U8]]) -> list[F64 | str]:
        """For each picture the scores of its versions (versions, classes), or why there are none.

        `versions` gives the same number of pictures for each, of its own size.
        """
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            sizes.setdefault(p.shape, []).append(i)
        answers: list[F64 | str] = [""] * len(pictures)
        for members in sizes.values():
            versions_of_all = (v for i in members for v in versions(pictures[i]))
            rows: list[F64 | str] = []
            while part := list(islice(versions_of_all, self.max_batch)):
                rows += self._call(np.stack(part))
            each = len(rows) // len(members)
            for k, i in enumerate(members):
                answers[i] = _together(rows[k * each : (k + 1) * each])
        return answers

    def _call(self, batch: U8) -> list[F64 | str]:
        """uint8 (N, H, W, 3) -> for each the scores (classes,), or why there are none."""
        try:
            scores = self._scores(batch) if self.timeout is None else self._scores_in_time(batch, self.timeout)
        except Exception as e:
            self.count(failures=1)
            return [_said(e)] * len(batch)
        usable = np.isfinite(scores.max(axis=1))
        if not usable.all():
            self.count(failures=1)
        no_label = "got scores whose largest is not finite, wanted numbers"
        return [row if good else no_label for row, good in zip(scores, usable, strict=True)]

    def _scores(self, batch: U8) -> F64:
        rows = len(batch)
        self.count(calls=1, queries=rows)
        got = np.asarray(self.classify(batch))
        if got.dtype.kind not in "fiub" or got.ndim != 2 or len(got) != rows or got.shape[1] < 2:
            raise InputError(
                f"scores: got {got.dtype} {got.shape}, wanted numbers ({rows}, classes), classes at least 2"
            )
        # a copy, because the classifier may use its buffer again
        return got.astype(np.float64)

    def _scores_in_time(self, batch: U8, timeout: float) -> F64:
        if self.hanging >= MAX_HANGING:
            raise TimeoutError(f"{MAX_HANGING} earlier calls still run; it is called again when one of them has ended")
        future: Future[F64] = Future()

        def work() -> None:
            try:
                future.set_result(self._scores(batch))
            except BaseException as e:
                future.set_exception(e)

        # not a pool, which would wait for hanging calls when the program ends
        threading.Thread(target=work, name="zipsdk-classify", daemon=True).start()
        if not wait([future], timeout).done:
            with self._lock:
                self._late.append(future)
            raise TimeoutError(f"no answer within {timeout:g} s; the call still runs, its answer will be thrown away")
        return future.result()


def _together(rows: list[F64 | str]) -> F64 | str:
    """The rows of one picture as one array, or the first thing that is wrong with them."""
    good: list[F64] = []
    for row in rows:
        if isinstance(row, str):
            return row
        good.append(row)
    if len({len(row) for row in good}) > 1:
        return "got another number of classes from one call to the next, wanted the same"
    return np.stack(good)


def _read(batch: Any, layout: str) -> list[Picture | str]:
    """The pictures of a batch, or for a file or a PIL image that cannot be read, why."""
    if not isinstance(batch, list | tuple):
        try:
            return [*images.read(batch, layout=layout)[0]]
        except PictureError as e:
            return [str(e)]
    out: list[Picture | str] = []
    for i, item in enumerate(batch):
        try:
            out.append(images.read_one(item, layout=layout))
        except PictureError as e:
            out.append(str(e))
        except InputError as e:
            raise InputError(f"item {i} of the list: {e}") from e
    return out


def _said(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"

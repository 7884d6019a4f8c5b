"""Query a classifier that may fail: in batches, with a time-out, and with every answer checked."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice

import numpy as np

from zipsdk._util import forks
from zipsdk._util.throttled_log import shorten
from zipsdk._util.validation import is_int, is_real, kind_of
from zipsdk.errors import InputError
from zipsdk.types import F64, U8, Classifier

#: Timed-out calls that may keep running. At this many the classifier is not called until one of them ends.
MAX_STALLED = 4
#: Default limit of images per call: what a network on a small GPU or a request to a service can take.
MAX_BATCH = 256
#: Limit of pixels per call of more than one image: those of `MAX_BATCH` images of 256x256.
MAX_CALL_PIXELS = 1 << 24


@dataclass(frozen=True)
class Failure:
    """The reason why there is no result."""

    reason: str


class ClassifierClient:
    """Query a callable about images of mixed sizes. Failures are returned, not raised.

    Args:
        classify, timeout, max_batch: as for `zipsdk.Guard`.
        count: called with numbers to add, by name: `calls`, `queries`.
        failed: called for each failure with the event and the reason.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        classify: Classifier,
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
        count: Callable[..., None] = lambda **more: None,
        failed: Callable[[str, str], None] = lambda event, reason: None,
    ):
        if not callable(classify):
            raise InputError(f"classify: got {kind_of(classify)}, expected a function of images that returns scores")
        if timeout is not None and not (is_real(timeout) and 0 < timeout <= threading.TIMEOUT_MAX):
            raise InputError(f"timeout: got {timeout!r}, expected seconds above 0, or None")
        if max_batch is not None and not (is_int(max_batch) and max_batch >= 1):
            raise InputError(f"max_batch: got {max_batch!r}, expected an integer of at least 1, or None")
        self.classify, self.count, self.failed = classify, count, failed
        self.timeout = None if timeout is None else float(timeout)
        self.max_batch = None if max_batch is None else int(max_batch)
        self._lock = threading.Lock()
        self._stalled: list[Future[F64]] = []
        forks.track(self)

    def after_fork(self) -> None:
        """Drop stalled calls: their threads do not exist in a forked child and would never end."""
        self._lock, self._stalled = threading.Lock(), []

    @property
    def stalled(self) -> int:
        """Number of timed-out calls that still run."""
        with self._lock:
            self._stalled = [f for f in self._stalled if not f.done()]
            return len(self._stalled)

    def query(self, images: Sequence[U8], views: Callable[[U8], list[U8]]) -> list[F64 | Failure]:
        """Return for each image the scores of its views, float64 (views, classes), or a `Failure`.

        `views` returns at least one image of the same size and dtype.
        """
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(i)
        answers: dict[int, F64 | Failure] = {}
        for members in sizes.values():
            answers |= zip(members, self._query_one_size([images[i] for i in members], views), strict=True)
        return [answers[i] for i in range(len(images))]

    def _query_one_size(self, images: Sequence[U8], views: Callable[[U8], list[U8]]) -> list[F64 | Failure]:
        """Query images of one size, at least one. Views are made as calls need them, to save memory."""
        limit = sys.maxsize
        if self.max_batch is not None:
            height, width = images[0].shape[:2]
            limit = min(self.max_batch, max(1, MAX_CALL_PIXELS // (height * width)))
        counts: list[int | Failure] = []  # of the views of each image
        rows: list[F64 | Failure] = []
        pending: list[U8] = []
        for image in images:
            try:
                made = _checked_views(views, image)
            except Exception as e:  # the image is too large, or a user's detector is faulty
                self.failed("images without views", describe_error(e))
                counts.append(Failure(describe_error(e)))
                continue
            counts.append(len(made))
            pending += made
            while len(pending) >= limit:
                rows += self._call(pending[:limit])
                del pending[:limit]
        if pending:
            rows += self._call(pending)
        remaining = iter(rows)
        return [n if isinstance(n, Failure) else _stack_rows(list(islice(remaining, n))) for n in counts]

    def _call(self, images: Sequence[U8]) -> list[F64 | Failure]:
        """Return the scores (classes,) of each uint8 (H, W, 3), or a `Failure`, from one call of the classifier."""
        if self.timeout is not None and self.stalled >= MAX_STALLED:
            reason = f"{MAX_STALLED} earlier calls still run; the next call is made when one of them ends"
            return self._failure("skipped calls of the classifier", TimeoutError(reason), images)
        try:
            batch = np.stack(images)  # inside the try: it may not fit into memory
            scores = self._scores(batch) if self.timeout is None else self._scores_in_time(batch, self.timeout)
        except TimeoutError as e:
            return self._failure("timed-out calls of the classifier", e, images)
        except Exception as e:
            return self._failure("failed calls of the classifier", e, images)
        usable = np.isfinite(scores.max(axis=1))
        unusable = Failure("got scores whose maximum is not finite, expected numbers")
        if not usable.all():
            self.failed("answers of the classifier with unusable scores", unusable.reason)
        return [row if good else unusable for row, good in zip(scores, usable, strict=True)]

    def _failure(self, event: str, e: Exception, images: Sequence[U8]) -> list[F64 | Failure]:
        """Report a failed call and return a `Failure` for each of its images."""
        reason = describe_error(e)
        self.failed(event, reason)
        return [Failure(reason)] * len(images)

    def _scores(self, batch: U8) -> F64:
        rows = len(batch)
        self.count(calls=1, queries=rows)
        answer = self.classify(batch)
        if hasattr(answer, "detach"):  # a torch tensor, perhaps with a gradient, on a GPU or of bfloat16
            answer = answer.detach().cpu().double()
        got = np.asarray(answer)
        if got.dtype.kind not in "fiub" or got.ndim != 2 or len(got) != rows or got.shape[1] < 2:
            what = type(answer).__name__ if got.dtype.kind == "O" else f"{got.dtype} {got.shape}"
            hint = "; for labels return np.eye(classes)[labels]" if got.shape == (rows,) and rows > 1 else ""
            raise InputError(f"scores: got {what}, expected numbers ({rows}, classes), at least 2 classes{hint}")
        # a copy: the classifier may reuse its buffer
        return got.astype(np.float64)

    def _scores_in_time(self, batch: U8, timeout: float) -> F64:
        future: Future[F64] = Future()

        def work() -> None:
            try:
                future.set_result(self._scores(batch))
            except BaseException as e:
                future.set_exception(e)

        # a daemon thread, because an executor waits for stalled calls at interpreter exit
        threading.Thread(target=work, name="zipsdk-classify", daemon=True).start()
        if not wait([future], timeout).done:
            with self._lock:
                self._stalled.append(future)
            raise TimeoutError(f"no answer within {timeout:g} s; the call keeps running and its answer is discarded")
        return future.result()


def query_all(
    classify: Classifier,
    images: Sequence[U8],
    views: Callable[[U8], list[U8]],
    timeout: float | None,
    max_batch: int | None,
) -> list[F64]:
    """Return the scores of the views of each calibration image, float64 (views, classes).

    Raises:
        InputError: the classifier failed on one of them.
    """
    answers: list[F64] = []
    for i, answer in enumerate(ClassifierClient(classify, timeout, max_batch).query(images, views)):
        if isinstance(answer, Failure):
            raise InputError(
                f"calibration image {i}: the classifier failed ({answer.reason}); calibration needs scores for "
                "every image, and classify gets uint8 NumPy arrays (N, H, W, 3)"
            )
        answers.append(answer)
    return answers


def describe_error(e: Exception) -> str:
    """Return the type and the message of an exception, which is shortened: it may quote pixels."""
    return f"{type(e).__name__}: {shorten(str(e))}"


def _checked_views(views: Callable[[U8], list[U8]], image: U8) -> list[U8]:
    made = list(views(image))
    if not made or any(v.shape != image.shape or v.dtype != image.dtype for v in made):
        got = dict.fromkeys(f"{v.dtype} {v.shape}" for v in made)
        raise InputError(
            f"views: got {', '.join(got) or 'none'}, expected at least one, each {image.dtype} {image.shape}"
        )
    return made


def _stack_rows(rows: list[F64 | Failure]) -> F64 | Failure:
    """Stack the rows of one image, or return its first `Failure`."""
    good: list[F64] = []
    for row in rows:
        if isinstance(row, Failure):
            return row
        good.append(row)
    if len({len(row) for row in good}) > 1:
        return Failure("got a different number of classes from one call to the next, expected the same")
    return np.stack(good)

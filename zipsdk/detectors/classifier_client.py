"""A classifier that may fail: asked in batches, within a time, and never believed without a look at its answer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util import forks
from zipsdk._util.validation import is_number, is_whole
from zipsdk.errors import InputError
from zipsdk.images.arrays import U8

F64 = npt.NDArray[np.float64]

#: Calls that a time-out left running. At this many the classifier is not called again until one of them ends.
MAX_STALLED = 4
#: Pictures and copies in one call, if nothing is said: what a network on a small GPU or a request to a service bears.
MAX_BATCH = 256
#: Pixels in one call at most, if it has more than one picture: those of `MAX_BATCH` pictures of 256x256.
MAX_CALL_PIXELS = 1 << 24


@dataclass(frozen=True)
class Failure:
    """Stands in place of a result that could not be had."""

    reason: str


class ClassifierClient:
    """A callable that may fail, asked about pictures of mixed sizes. Failures are results here, not exceptions."""

    def __init__(
        self,
        classify: Callable[[U8], Any],
        timeout: float | None = None,
        max_batch: int | None = MAX_BATCH,
        count: Callable[..., None] = lambda **more: None,
    ):
        if not callable(classify):
            raise InputError(f"classify: got {classify!r}, wanted a function from pictures to scores (N, classes)")
        if timeout is not None and not (is_number(timeout) and 0 < timeout <= threading.TIMEOUT_MAX):
            raise InputError(f"timeout: got {timeout!r}, wanted seconds above 0, or None")
        if max_batch is not None and not (is_whole(max_batch) and max_batch >= 1):
            raise InputError(f"max_batch: got {max_batch!r}, wanted a whole number of at least 1, or None")
        self.classify, self.count = classify, count
        self.timeout = None if timeout is None else float(timeout)
        self.max_batch = None if max_batch is None else int(max_batch)
        self._lock = threading.Lock()
        self._stalled: list[Future[F64]] = []
        forks.track(self)

    def after_fork(self) -> None:
        """Forget calls that hang: their threads do not exist in a forked child, so none would ever end."""
        self._lock, self._stalled = threading.Lock(), []

    @property
    def stalled(self) -> int:
        with self._lock:
            self._stalled = [f for f in self._stalled if not f.done()]
            return len(self._stalled)

    def query(self, pictures: Sequence[U8], versions: Callable[[U8], list[U8]]) -> list[F64 | Failure]:
        """For each picture the scores of its versions (versions, classes), or why there are none.

        `versions` gives pictures of its own size and dtype, at least one.
        """
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(pictures):
            sizes.setdefault(p.shape, []).append(i)
        answers: dict[int, F64 | Failure] = {}
        for members in sizes.values():
            answers |= zip(members, self._query_one_size([pictures[i] for i in members], versions), strict=True)
        return [answers[i] for i in range(len(pictures))]

    def _query_one_size(self, pictures: Sequence[U8], versions: Callable[[U8], list[U8]]) -> list[F64 | Failure]:
        """`query`, for pictures of one size, at least one; no more versions than go into one call are made ahead."""
        height, width = pictures[0].shape[:2]
        most = sys.maxsize if self.max_batch is None else self.max_batch
        if self.max_batch is not None:
            most = min(most, max(1, MAX_CALL_PIXELS // (height * width)))
        made: list[int | Failure] = []  # of each picture how many versions, or why none
        rows: list[F64 | Failure] = []
        waiting: list[U8] = []
        for picture in pictures:
            try:
                waiting += (own := _checked_views(versions, picture))
            except Exception as e:  # of too large a picture, or in a detector of one's own
                self.count(failures=1)
                made.append(Failure(describe_error(e)))
                continue
            made.append(len(own))
            while len(waiting) >= most:
                rows += self._call(waiting[:most])
                del waiting[:most]
        if waiting:
            rows += self._call(waiting)
        in_turn = iter(rows)
        return [n if isinstance(n, Failure) else _stack_rows(list(islice(in_turn, n))) for n in made]

    def _call(self, part: Sequence[U8]) -> list[F64 | Failure]:
        """N times uint8 (H, W, 3) -> for each the scores (classes,), or why there are none."""
        try:
            batch = np.stack(part)  # here, because there may be no memory for it
            scores = self._scores(batch) if self.timeout is None else self._scores_in_time(batch, self.timeout)
        except Exception as e:
            self.count(failures=1)
            return [Failure(describe_error(e))] * len(part)
        usable = np.isfinite(scores.max(axis=1))
        if not usable.all():
            self.count(failures=1)
        no_label = Failure("got scores whose largest is not finite, wanted numbers")
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
        if self.stalled >= MAX_STALLED:
            raise TimeoutError(f"{MAX_STALLED} earlier calls still run; it is called again when one of them has ended")
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
                self._stalled.append(future)
            raise TimeoutError(f"no answer within {timeout:g} s; the call still runs, its answer will be thrown away")
        return future.result()


def query_all(
    classify: Callable[[U8], Any], clean: Sequence[U8], versions: Callable[[U8], list[U8]], max_batch: int | None
) -> list[F64]:
    """`ClassifierClient.query`, for detectors that learn from pictures.

    Raises:
        InputError: the classifier failed on one of them.
    """
    answers: list[F64] = []
    for i, answer in enumerate(ClassifierClient(classify, max_batch=max_batch).query(clean, versions)):
        if isinstance(answer, Failure):
            raise InputError(
                f"clean picture {i}: the classifier failed ({answer.reason}); wanted scores for it: see there"
            )
        answers.append(answer)
    return answers


def _checked_views(versions: Callable[[U8], list[U8]], picture: U8) -> list[U8]:
    """A picture's versions, held to what `ClassifierClient.query` wants of them."""
    made = list(versions(picture))
    if not made or any(v.shape != picture.shape or v.dtype != picture.dtype for v in made):
        got = dict.fromkeys(f"{v.dtype} {v.shape}" for v in made)
        raise InputError(
            f"versions: got {', '.join(got) or 'none'}, wanted pictures {picture.dtype} {picture.shape}, at least one"
        )
    return made


def _stack_rows(rows: list[F64 | Failure]) -> F64 | Failure:
    """The rows of one picture as one array, or the first thing that is wrong with them."""
    good: list[F64] = []
    for row in rows:
        if isinstance(row, Failure):
            return row
        good.append(row)
    if len({len(row) for row in good}) > 1:
        return Failure("got another number of classes from one call to the next, wanted the same")
    return np.stack(good)


def describe_error(e: Exception) -> str:
    return f"{type(e).__name__}: {e}"

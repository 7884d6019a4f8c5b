"""Share a batch among CPU threads, for runtimes that gain little from many threads on one small image."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from zipsdk._util import forks
from zipsdk.types import F32

#: Pixels of one evaluation on one core. The activations of zip-tiny then fit a core's cache; with half as many pixels
#: the fixed cost of an evaluation becomes visible.
PIXELS_PER_CORE = 8 * 32 * 32


class Session(Protocol):
    """A model opened by a runtime."""

    def run(self, x: F32, t: F32) -> F32:
        """Evaluate x float32 (N, 3, H, W) at t float32 (N,); thread-safe."""


class ShardedSession:
    """Evaluate batches of small images in shards, each on a thread of its own.

    Large or few images are evaluated by all threads together.

    Args:
        session: its evaluations use all threads.
        open_single: open a session whose evaluations stay on the calling thread; called at the first batch that is
            shared. It holds the weights a second time.
        threads: number of threads.
    """

    def __init__(self, session: Session, open_single: Callable[[], Session], threads: int):
        self._session, self._open_single, self._threads = session, open_single, threads
        self._lock = threading.Lock()
        self._shared: tuple[ThreadPoolExecutor, Session] | None = None
        self._pid = os.getpid()
        forks.track(self)

    def run(self, x: F32, t: F32) -> F32:
        """Evaluate x float32 (N, 3, H, W) at t float32 (N,). Raises as the sessions do."""
        shards = split_batch(len(x), x.shape[2] * x.shape[3], self._threads)
        if len(shards) < 2:
            return self._session.run(x, t)
        if self._threads == 1:
            return np.concatenate([self._session.run(x[shard], t[shard]) for shard in shards])
        pool, session = self._start()
        return np.concatenate(list(pool.map(lambda shard: session.run(x[shard], t[shard]), shards)))

    def after_fork(self) -> None:
        """Drop the inherited threads and session; see `zipsdk._util.forks.Forkable`."""
        forks.keep_forever(self._shared)
        self._shared, self._lock, self._pid = None, threading.Lock(), os.getpid()

    def _start(self) -> tuple[ThreadPoolExecutor, Session]:
        if self._pid != os.getpid():  # forked by C code, which calls no hooks
            self.after_fork()
        with self._lock:
            if self._shared is None:
                self._shared = ThreadPoolExecutor(self._threads, "zipsdk-session"), self._open_single()
            return self._shared


def split_batch(n: int, pixels: int, threads: int) -> list[slice]:
    """Split n images of `pixels` each into shards of at most `PIXELS_PER_CORE`, equally many for each thread.

    Returns:
        The shards; none where one evaluation by all threads is faster, that is for few images, or for large ones, whose
        layers occupy all threads.
    """
    most = PIXELS_PER_CORE // pixels if pixels else 0
    rounds = -(-n // threads)
    if not n or not most or threads * rounds > 1.25 * n:  # otherwise threads would idle for over a fifth of the time
        return []
    shards = threads * -(-rounds // most)
    edges = [n * i // shards for i in range(shards + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]

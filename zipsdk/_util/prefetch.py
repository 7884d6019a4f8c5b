"""Reading ahead: a function called on a thread of its own, whose results are taken up in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

from zipsdk.errors import EngineError

T = TypeVar("T")


class Pending(Future[T]):
    """A result of a thread of this process; a forked child has no such thread, and is told so in place of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result. Raises EngineError in a forked child, and what the call raised."""
        if self._pid != os.getpid():
            raise EngineError(
                "stream: got a process forked after the stream was begun, expected the process that began it; "
                "begin a stream in this one"
            )
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancel the call. In a forked child nothing runs, and the lock may be held by a thread that is not there."""
        return self._pid != os.getpid() or super().cancel()

    def done(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._pid != os.getpid() or super().done()


class Ahead(Generic[T]):
    """Calls of `fetch`, one after another, on one thread that nobody waits for: not `close`, nor the program's end.

    Args:
        fetch: called without arguments. It may wait for ever.
    """

    def __init__(self, fetch: Callable[[], T]):
        self._fetch = fetch
        self._wanted: SimpleQueue[Future[T] | None] = SimpleQueue()
        # not a pool, whose threads the program waits for when it ends
        threading.Thread(target=self._work, name="zipsdk-read", daemon=True).start()

    def submit(self) -> Future[T]:
        """One more call; what it returns or raises is the future's."""
        future: Future[T] = Pending()
        self._wanted.put(future)
        return future

    def close(self) -> None:
        """Have the thread end after the call that it is in, and those asked for whose futures are not cancelled."""
        self._wanted.put(None)

    def _work(self) -> None:
        while (future := self._wanted.get()) is not None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._fetch())
                except BaseException as e:
                    future.set_exception(e)

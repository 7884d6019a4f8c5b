"""Read ahead: fetch the next items of an iterator on a thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from zipsdk.errors import EngineError

T = TypeVar("T")
_END = object()


class _Item(Future[Any]):
    """An item that a thread of this process fetches; a forked child has no such thread and gets an error."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the item. Raises EngineError in a forked child."""
        if self._pid != os.getpid():
            raise EngineError(
                "stream: got a process forked after the stream began, expected the process that began it; "
                "begin a stream in this one"
            )
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancel the fetch. Takes no lock in a forked child, where another thread of the parent may have held it."""
        return self._pid != os.getpid() or super().cancel()

    def done(self) -> bool:
        """Tell whether `result` returns or raises at once."""
        return self._pid != os.getpid() or super().done()


class Prefetcher(Generic[T]):
    """Iterate over `source`, whose next items are fetched on a daemon thread.

    `close` and the end of the program do not wait for that thread, because a source can block forever.

    Args:
        source: `next` is called on the thread; what it raises is raised in its place.
        depth: number of items to fetch ahead.
    """

    def __init__(self, source: Iterable[T], depth: int):
        self._source = iter(source)
        self._requests: SimpleQueue[_Item | None] = SimpleQueue()
        threading.Thread(target=self._work, name="zipsdk-read", daemon=True).start()
        self._items = deque(self._request() for _ in range(depth))

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        item: T = self._items[0].result()
        if item is _END:
            raise StopIteration
        self._items.popleft()
        self._items.append(self._request())
        return item

    @property
    def ready(self) -> bool:
        """Whether `next` returns or raises at once."""
        return self._items[0].done()

    def close(self) -> None:
        """Cancel the fetches that have not begun, and let the thread end after the one that has."""
        for item in self._items:
            item.cancel()
        self._requests.put(None)

    def _request(self) -> _Item:
        item = _Item()
        self._requests.put(item)
        return item

    def _work(self) -> None:
        while (item := self._requests.get()) is not None:
            if item.set_running_or_notify_cancel():
                try:
                    item.set_result(next(self._source, _END))
                except BaseException as e:
                    item.set_exception(e)

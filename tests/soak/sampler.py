"""Measure this process once a second on a thread of its own."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from dataclasses import dataclass, field

import psutil

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS.split())


def heap_in_use() -> float:
    """Return megabytes that malloc has given out and not got back; NaN where there is no glibc 2.33 or later."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return float("nan")
    function.restype = _Mallinfo2
    info = function()
    return float(info.uordblks + info.hblkhd) / (1 << 20)


def trim() -> None:
    """Have malloc give its free pages back; nothing where it cannot.

    Free pages that an arena holds come and go in steps of megabytes, which hide a small slope or look like one.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


@dataclass
class Samples:
    """One list for each quantity, in step with `seconds`."""

    seconds: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    heap: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)


class Sampler:
    """Append to `samples` every `period` seconds from `start` to `stop`."""

    def __init__(self, period: float = 1.0):
        self.samples, self._period = Samples(), period
        self._process, self._begin = psutil.Process(), time.perf_counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="soak-sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the thread."""
        self._ended.set()
        self._thread.join()

    def take(self) -> None:
        """Measure once: megabytes, blocks of Python's allocator in thousands, and counts."""
        s = self.samples
        trim()
        s.seconds.append(time.perf_counter() - self._begin)
        s.rss.append(self._process.memory_info().rss / (1 << 20))
        s.heap.append(heap_in_use())
        s.blocks.append(sys.getallocatedblocks() / 1000)
        s.threads.append(self._process.num_threads())
        s.files.append(self._process.num_fds() if hasattr(self._process, "num_fds") else 0)

    def _work(self) -> None:
        while not self._ended.wait(self._period):
            self.take()

"""Fake a GPU: the port of zipsdk.gpu.device on host memory, with the kernels of the g++ shim.

The fake is lazy, as a GPU may be: work on a stream runs only when it is waited for, in the order of the stream and
after the events that the stream waits for. A missing wait, or a pinned buffer that is reused too early, therefore
gives wrong images. New memory is full of NaN, begins at multiples of 256 and has guards around it. Pinned memory that
is freed while no context is current counts as leaked. `log` lists the calls in order.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import contextmanager

import numpy as np

from zipsdk.errors import OutOfMemoryError

GUARD = 64
ALIGN = 256


class Stream:
    """A queue of work, or the graph that captures it."""

    def __init__(self, device, name):
        self.device, self.name, self.handle = device, name, len(device.streams) + 1
        self.queue, self.graph = [], None
        device.streams[self.handle] = self

    def push(self, what, work):
        self.device.log.append((what, self.name) if self.graph is None else (what, self.name, "captured"))
        (self.queue if self.graph is None else self.graph.work).append(work)

    def drain(self, until=None):
        while self.queue and (until is None or not until.done):
            self.queue.pop(0)()

    def synchronize(self):
        self.device.outside_capture("synchronize")
        self.drain()

    def wait_for_event(self, event):
        # the current record, not a later one
        self.push("wait", event.mark.wait if event.mark else lambda: None)


class Mark:
    """One record of an event."""

    def __init__(self, stream):
        self.stream, self.done = stream, False

    def set(self):
        self.done = True

    def wait(self):
        self.stream.drain(self)
        assert self.done, "an event never occurs: its stream waits for the stream that waits for the event"


class Event:
    """An event with its latest record."""

    def __init__(self, device):
        self.device, self.mark = device, None

    def record(self, stream):
        self.mark = Mark(stream)
        stream.push("record", self.mark.set)

    def synchronize(self):
        self.device.outside_capture("event.synchronize")
        self.mark.wait()


class Graph:
    """Captured work, ready once the capture has ended."""

    def __init__(self):
        self.work, self.ready = [], False

    def launch(self, stream):
        assert self.ready
        stream.push("graph", lambda: [work() for work in self.work])

    def close(self):
        self.ready = False


class FakeDevice:
    """A lazy GPU on host memory.

    Args:
        host: `kernels.launch.Host`.
        room: bytes of device memory, and `pin_room` of pinned memory.
    """

    def __init__(self, host, room=1 << 30):
        self.host, self.room, self.used = host, room, 0
        self.pin_room, self.pinned_now, self.lost = 1 << 30, 0, 0
        self.ordinal, self.name, self.capability, self.total_memory = 0, "fake GPU", (8, 6), room
        self.log, self.streams, self.memory, self.depth = [], {}, {}, 0
        self.lock, self.to_free = threading.RLock(), []
        self.compute, self.copies = Stream(self, "compute"), Stream(self, "copies")

    @contextmanager
    def active(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def outside_capture(self, what):
        assert self.depth, f"{what}: no context is current"
        self.log.append((what,))
        assert all(s.graph is None for s in self.streams.values()), f"{what} while a stream is captured"

    def alloc(self, size):
        self.outside_capture("alloc")
        while self.to_free:
            self.to_free.pop()()
        if self.used + size > self.room:
            raise OutOfMemoryError(f"fake GPU: no room for {size} bytes")
        self.used += size
        raw = np.full(size + 2 * GUARD + ALIGN, 0xFF, np.uint8)
        skip = -(raw.ctypes.data + GUARD) % ALIGN
        raw = raw[skip : skip + size + 2 * GUARD]
        address = raw.ctypes.data + GUARD
        self.memory[address] = (raw, size)
        return address

    def free(self, address):
        self.outside_capture("free")
        raw, size = self.memory.pop(address)
        self.used -= size
        assert (raw[:GUARD] == 0xFF).all() and (raw[GUARD + size :] == 0xFF).all(), "written beyond the buffer"

    def free_bytes(self):
        return self.room - self.used

    def free_later(self, free):
        self.to_free.append(free)

    def check(self):
        """Check that no kernel wrote beyond a buffer and that no pinned memory leaked."""
        assert not self.lost, f"{self.lost} bytes of pinned memory were freed while no context was current"
        for raw, size in self.memory.values():
            assert (raw[:GUARD] == 0xFF).all() and (raw[GUARD + size :] == 0xFF).all(), "written beyond a buffer"

    def inside(self, address, size):
        assert any(a <= address and address + size <= a + n for a, (_, n) in self.memory.items()), "a stray copy"

    def pinned(self, size):
        self.outside_capture("pinned")
        if self.pinned_now + size > self.pin_room:
            raise OutOfMemoryError(f"host: no {size} bytes of pinned memory")
        memory = np.zeros(size, np.uint8)
        self.pinned_now += size
        weakref.finalize(memory, self.unpinned, size).atexit = False
        return memory

    def unpinned(self, size):
        self.pinned_now -= size
        self.lost += 0 if self.depth else size

    def upload(self, address, array, stream):
        self.inside(address, array.nbytes)
        stream.push("upload", lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def download(self, array, address, stream):
        self.inside(address, array.nbytes)
        stream.push("download", lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def copy(self, to, address, size, stream):
        self.inside(to, size)
        self.inside(address, size)
        stream.push("copy", lambda: ctypes.memmove(to, address, size))

    def event(self):
        return Event(self)

    def launch(self, name, work, *arguments, stream):
        assert self.depth and work > 0
        stream.push(name, lambda: self.host.launch(name, 2, 64, *arguments))

    @contextmanager
    def capture(self, stream):
        stream.graph = graph = Graph()
        try:
            yield graph
        finally:
            stream.graph = None
        graph.ready = True


def view(address, shape):
    """Return float32 memory as an array."""
    n = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * n).from_address(address), np.float32).reshape(shape)

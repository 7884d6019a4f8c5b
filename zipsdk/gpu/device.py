"""Use one GPU: memory, streams, events, kernels and captured graphs. Graphs call the driver, the rest calls PyCUDA.

All work uses the primary context, which the CUDA runtime uses too: TensorRT, ONNX Runtime and torch can share memory
and streams in one process. Every method of `Device` needs that context: ``with device.active():``. Code that puts work
on the streams holds ``device.lock``: work that another thread adds during a capture would become part of the graph.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import numpy as np

from zipsdk._util import forks
from zipsdk._util.runtimes import load
from zipsdk.errors import EngineError, OutOfMemoryError
from zipsdk.gpu.fatbin import fatbin_path
from zipsdk.types import U8, Array

#: The library of the CUDA driver, for `ctypes.CDLL`.
DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"

BLOCK = 256  # threads; __launch_bounds__ of the kernels
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: do not wait for the default stream
CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate during a capture

#: The kernels that the loop launches, and their arguments in the format of `struct`: P an address, 32s a ZipLayout.
SIGNATURES = {
    "zip_ingest": "PPPP32sP",
    "zip_fill": "P32sP",
    "zip_egress": "PPP32sP",
    "zip_step_f32": "PPPPPPP32sP",
}


class Stream(Protocol):
    """The part of `pycuda.driver.Stream` that the loop uses."""

    @property
    def handle(self) -> int: ...
    def synchronize(self) -> None: ...
    def wait_for_event(self, event: Any) -> None: ...


class Graph:
    """Replay the work that was put on a stream during a capture.

    Args:
        call: calls a function of the driver by name; raises EngineError if that fails.

    Attributes:
        executable: the CUgraphExec; null until the capture ends, and after `close`.
    """

    def __init__(self, call: Callable[..., None]):
        self._call, self.executable = call, ctypes.c_void_p()

    def launch(self, stream: Stream) -> None:
        """Launch all of the work again."""
        if not self.executable:
            raise EngineError("graph: got a launch before the end of the capture; launch it afterwards")
        self._call("cuGraphLaunch", self.executable, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Destroy the graph. It must not be running."""
        if self.executable:
            self._call("cuGraphExecDestroy", self.executable)
        self.executable = ctypes.c_void_p()


class Device:
    """Use a GPU; `open_device` returns one.

    Attributes:
        ordinal: its index among the visible GPUs.
        name, capability, total_memory: for example "NVIDIA GeForce RTX 3070", (8, 6), bytes.
        compute, copies: the two streams of the loop.
        lock: re-entrant; protects the streams.
        forked: True in a child forked after the GPU was opened, which cannot use it.
    """

    def __init__(self, cuda: Any, ordinal: int):
        self._cuda = cuda
        device = cuda.Device(ordinal)
        self.lock = threading.RLock()
        self.ordinal = ordinal
        self.name: str = device.name()
        self.capability: tuple[int, int] = tuple(device.compute_capability())
        self.total_memory: int = device.total_memory()
        self._processors: int = device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        self._context = device.retain_primary_context()
        self.forked = False
        # at exit PyCUDA would detach it like a context that it created, which CUDA refuses
        atexit.register(self._detach)
        self._memory: dict[int, Any] = {}
        self._to_free: list[Callable[[], None]] = []
        self._driver = ctypes.CDLL(DRIVER)
        self._functions: dict[str, Any] = {}
        self._module: Any = None
        with self.active():
            self.compute: Stream = cuda.Stream(NON_BLOCKING)
            self.copies: Stream = cuda.Stream(NON_BLOCKING)
        forks.track(self)

    def after_fork(self) -> None:
        """Refuse all work from now on, and keep every handle: a destructor would call into CUDA."""
        forks.keep_forever(self, self._context, self._memory, self._to_free, self._functions, self._module)
        self.forked, self.lock = True, threading.RLock()

    def refuse_fork(self) -> None:
        """Raise EngineError in a child forked after the GPU was opened."""
        if self.forked:
            raise EngineError(
                f"{self.name}: got a process forked after this GPU was opened, expected one process for CUDA's whole "
                "life; start it by spawn or forkserver and open the model in it, or use device='cpu'"
            )

    def _detach(self) -> None:
        if not self.forked:
            self._context.detach()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the primary context current in this thread.

        Raises:
            EngineError: this process was forked after the GPU was opened.
        """
        self.refuse_fork()
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def alloc(self, size: int) -> int:
        """Allocate `size` bytes and return their address. Raises OutOfMemoryError."""
        while self._to_free:
            self._to_free.pop()()
        try:
            memory = self._cuda.mem_alloc(max(1, size))
        except self._cuda.MemoryError as e:
            raise OutOfMemoryError(f"{self.name}: no room for {size / 2**20:,.1f} MiB more; use smaller batches") from e
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Free memory of `alloc`."""
        self._memory.pop(address).free()

    def free_bytes(self) -> int:
        """Return the bytes of the GPU's memory that are free."""
        free: int = self._cuda.mem_get_info()[0]
        return free

    def free_later(self, free: Callable[[], None]) -> None:
        """Call `free` before the next `alloc`: for the finalizers of objects that were not closed.

        A finalizer runs in any thread at any moment, even during a capture, when freeing is not allowed.
        """
        self._to_free.append(free)

    def pinned(self, size: int) -> U8:
        """Allocate page-locked host memory, uint8 (size,), zeros. Raises OutOfMemoryError."""
        try:
            memory: U8 = self._cuda.pagelocked_zeros(size, np.uint8)
        except self._cuda.MemoryError as e:
            raise OutOfMemoryError(f"host: no {size / 2**20:,.1f} MiB of pinned memory; use smaller batches") from e
        return memory

    def upload(self, address: int, array: Array, stream: Stream) -> None:
        """Copy to the GPU. Asynchronous if `array` is pinned: do not change it before the copy has run."""
        self._cuda.memcpy_htod_async(address, array, stream)

    def download(self, array: Array, address: int, stream: Stream) -> None:
        """Copy from the GPU. Asynchronous if `array` is pinned."""
        self._cuda.memcpy_dtoh_async(array, address, stream)

    def copy(self, to: int, address: int, size: int, stream: Stream) -> None:
        """Copy inside device memory."""
        self._cuda.memcpy_dtod_async(to, address, size, stream)

    def event(self) -> Any:
        """Create an event: event.record(stream), stream.wait_for_event(event), event.synchronize()."""
        return self._cuda.Event()

    def launch(self, name: str, work: int, *arguments: int | np.void, stream: Stream) -> None:
        """Launch a kernel of the fatbin.

        Args:
            name: one of `SIGNATURES`.
            work: number of threads with work. The kernels are grid-stride loops, so any grid is correct.
            arguments: addresses, or structs by value.
            stream: to launch on.
        """
        if name not in self._functions:
            if self._module is None:
                self._module = self._cuda.module_from_buffer(fatbin_path().read_bytes())
            function = self._module.get_function(name)
            function.prepare(SIGNATURES[name])
            self._functions[name] = function
        # eight blocks fill a multiprocessor; more blocks cost more than more iterations
        grid = max(1, min(-(-work // BLOCK), 8 * self._processors))
        values = [a.tobytes() if isinstance(a, np.void) else a for a in arguments]
        self._functions[name].prepared_async_call((grid, 1), (BLOCK, 1, 1), stream, *values)

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Graph]:
        """Capture the work that is put on `stream` inside, without running it, as a graph to launch afterwards.

        Raises:
            EngineError: the work cannot be captured, because it allocates or waits for the GPU.
        """
        graph, recorded = Graph(self._call), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream.handle), CAPTURE_THREAD_LOCAL)
        try:
            yield graph
        except BaseException:
            # an unfinished capture would leave the stream unusable
            self._driver.cuStreamEndCapture(ctypes.c_void_p(stream.handle), ctypes.byref(recorded))
            if recorded:
                self._driver.cuGraphDestroy(recorded)
            raise
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream.handle), ctypes.byref(recorded))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(graph.executable), recorded, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", recorded)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code == 2:  # CUDA_ERROR_OUT_OF_MEMORY
            raise OutOfMemoryError(f"{self.name}: {function} ran out of memory; use smaller batches")
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise EngineError(f"{self.name}: {function} returned error {code}: {(text.value or b'unknown').decode()}")


def open_device(ordinal: int = 0) -> Device:
    """Open the GPU with this index. Later calls return the same object.

    Raises:
        MissingDependencyError: PyCUDA is not installed, or is broken.
        EngineError: there is no driver, no such GPU, or no compiled kernels in this installation; or this process was
            forked after the GPU was opened.
    """
    with forks.opening():
        device = _open(ordinal)
    device.refuse_fork()
    return device


@cache
def _open(ordinal: int) -> Device:
    try:
        ctypes.CDLL(DRIVER)
    except OSError as e:
        raise EngineError(f"device 'cuda:{ordinal}': there is no NVIDIA driver here ({e}); see zipsdk doctor") from e
    cuda = load("pycuda.driver")
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as e:
        hint = "see zipsdk doctor"
        if "initialization error" in str(e) or "not initialized" in str(e):  # CUDA's message after a fork
            hint += ", or start this process by spawn or forkserver if its parent used CUDA"
        raise EngineError(f"device 'cuda:{ordinal}': the NVIDIA driver shows no GPU ({e}); {hint}") from e
    if not 0 <= ordinal < count:
        raise EngineError(f"device: got 'cuda:{ordinal}', expected one of the {count} visible GPUs, from cuda:0")
    fatbin_path()  # fail before anything is allocated
    return Device(cuda, ordinal)

"""Own the device memory that a TensorRT engine allocates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zipsdk.errors import OutOfMemoryError
from zipsdk.gpu.device import Device
from zipsdk.types import U8


@dataclass
class EngineMemory:
    """Own the memory of one engine, separately from it, so that a finalizer can free the memory.

    Attributes:
        scratch: buffers of the contexts; contexts use the last one, captured graphs may use the others.
        size: bytes of the last one.
        shape: of x in the last call with arrays.
        arrays: device addresses of x, t and eps of that call.
        pinned: their host buffers.
    """

    scratch: list[int] = field(default_factory=list)
    size: int = 0
    shape: tuple[int, ...] = ()
    arrays: list[int] = field(default_factory=list)
    pinned: list[U8] = field(default_factory=list)

    def reserve_scratch(self, device: Device, needed: int) -> int:
        """Return the address of a scratch buffer of at least `needed` bytes, 0 if none are needed.

        The old buffer is kept for captured graphs. A new one has twice its size where that fits, so that it rarely
        grows.
        """
        if needed > self.size:
            size = max(needed, 2 * self.size)
            try:
                self.scratch.append(device.alloc(size))
            except OutOfMemoryError:
                if size == needed:
                    raise
                size = needed
                self.scratch.append(device.alloc(size))
            self.size = size
        return self.scratch[-1] if self.scratch else 0

    def reserve_arrays(self, device: Device, shape: tuple[int, ...]) -> None:
        """Allocate x and eps of `shape`, float32, and t of its length, unless the last call had the same shape."""
        if self.shape == shape:
            return
        self.free_arrays(device)
        size = 4 * int(np.prod(shape))
        try:
            for n in (size, 4 * shape[0], size):
                self.arrays.append(device.alloc(n))
                self.pinned.append(device.pinned(n))
        except OutOfMemoryError:
            self.free_arrays(device)
            raise
        self.shape = shape

    def free_arrays(self, device: Device) -> None:
        """Free the buffers of calls with arrays."""
        self.shape, self.pinned = (), []  # first, because the next allocation may fail
        while self.arrays:
            device.free(self.arrays.pop())

    def free(self, device: Device) -> None:
        """Free everything."""
        device.compute.synchronize()
        self.free_arrays(device)
        while self.scratch:
            device.free(self.scratch.pop())

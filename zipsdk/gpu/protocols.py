"""What the loop on a GPU asks of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from zipsdk.types import Engine

if TYPE_CHECKING:
    from zipsdk.gpu.device import Device


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine whose UNet reads and writes device memory on a given stream.

    `prepare` and `enqueue` are called with the device's lock held; `__call__` takes it where it uses the streams.
    """

    @property
    def device(self) -> Device | None:
        """Where it runs; None where the loop on the device cannot be had, and then `host_loop` says why."""

    @property
    def capturable(self) -> bool:
        """Whether `enqueue` may be captured into a CUDA graph."""

    @property
    def max_batch(self) -> int | None:
        """The largest batch of one `enqueue`; None for no limit."""

    def prepare(self, batch: int, height: int, width: int) -> object:
        """Allocate what an `enqueue` of this shape needs; what it returns must outlive a graph captured of it.

        It returns the same object again until it had to make a new one, which must run before it is captured.

        Raises:
            OutOfMemory: there is no room.
        """

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """eps for x_t, asynchronously: float32 device memory x and eps (batch, 3, H, W), t (batch,), each 256-aligned.

        `stream` is a CUstream as a number; `size` is (H, W), by default the model's canvas.
        """

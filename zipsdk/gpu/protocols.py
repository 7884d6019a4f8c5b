"""Define the interface of an engine that the loop on a GPU can use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from zipsdk.types import Engine

if TYPE_CHECKING:
    from zipsdk.gpu.device import Device


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """Run a UNet on device memory, on a given stream.

    The caller of `prepare` and `enqueue` holds the device's lock; `__call__` takes it before it uses the streams.
    """

    @property
    def device(self) -> Device | None:
        """The GPU of the engine; None if the loop must run on the CPU, for the reason in `cpu_loop_reason`."""

    @property
    def capturable(self) -> bool:
        """Whether `enqueue` may be captured into a CUDA graph."""

    @property
    def max_batch(self) -> int | None:
        """Maximum batch of one `enqueue`; None for no limit."""

    def prepare(self, batch: int, height: int, width: int) -> object:
        """Allocate what an `enqueue` of this shape needs, and return the context that it will use.

        The context must outlive a graph captured from it. Later calls return the same object until the engine has to
        make a new one, which must run once before it is captured.

        Raises:
            OutOfMemoryError: there is no room.
        """

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """Put one UNet call on a stream: predict eps from x_t.

        Args:
            x: address of x_t, float32 device memory (batch, 3, H, W), aligned to 256 bytes.
            t: address of the time steps, float32 device memory (batch,), aligned to 256 bytes.
            eps: address of the result, like x.
            batch: number of frames.
            stream: a CUstream as a number.
            size: (H, W), by default `image_size` of the model.
        """

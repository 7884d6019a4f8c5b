"""A torch module as an engine of the device loop: a peer without TensorRT or ONNX Runtime's CUDA provider.

It reads and writes the loop's memory in place, on the loop's stream, and replays the UNet as a CUDA graph of torch. On
the CPU ("where" is "cpu") addresses are the host's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zipsdk.errors import OutOfMemory
from zipsdk.models.spec import ModelSpec

#: Maximum number of cached CUDA graphs; each holds memory.
MAX_GRAPHS = 8


class TorchEngine:
    """A `zipsdk.gpu.protocols.DeviceEngine` from a torch module.

    Args:
        module: (x float32 (N, 3, H, W), t float32 (N,)) -> eps like x; it is moved to the device.
        spec: of the model.
        device: `zipsdk.gpu.device.Device`.
        where: torch's name of the device, "cuda:0", or "cpu" for a device in host memory.
        compiled: use torch.compile.
        graph: replay CUDA graphs of the UNet, one for each shape.
    """

    capturable = False  # it captures its own graphs, because torch allocates its memory
    max_batch: int | None = None

    def __init__(self, module: nn.Module, spec: ModelSpec, device: Any, *, where: str, compiled: bool = False,
                 graph: bool = True):  # fmt: skip
        self.spec, self.device, self._where = spec, device, torch.device(where)
        module = module.to(self._where).eval().requires_grad_(False)
        self._module = torch.compile(module) if compiled else module
        self._compiled, self._graph = compiled, graph and where != "cpu"
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._stream = torch.cuda.ExternalStream(device.compute.handle, device=self._where) if where != "cpu" else None

    @property
    def info(self) -> dict[str, Any]:
        how = ("torch.compile" if self._compiled else "eager") + (", CUDA graph" if self._graph else "")
        return {
            "engine": f"torch {torch.__version__} ({how})",
            "providers": [str(self._where)],
            "precision": self.spec.precision,
            "device": self.device.name,
        }

    def prepare(self, batch: int, height: int, width: int) -> object:
        """Do nothing: the first calls of a shape warm up."""
        return None

    def _tensor(self, address: int, shape: tuple[int, ...]) -> Tensor:
        if self._stream is None:
            memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
            return torch.from_numpy(np.ctypeslib.as_array(memory).reshape(shape))
        interface = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3, "strides": None}
        holder = type("Memory", (), {"__cuda_array_interface__": interface})()
        return torch.as_tensor(holder, device=self._where)

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        shape = (batch, 3, *(size or (self.spec.image_size,) * 2))
        with torch.inference_mode():
            if self._stream is None:
                self._evaluate(self._tensor(x, shape), self._tensor(t, (batch,)), self._tensor(eps, shape))
                return
            try:
                with torch.cuda.stream(self._stream):
                    self._enqueue(x, t, eps, shape)
            except torch.OutOfMemoryError as e:
                raise OutOfMemory(f"torch: {str(e).splitlines()[0]}") from e

    def _enqueue(self, x: int, t: int, eps: int, shape: tuple[int, ...]) -> None:
        key = (x, eps, *shape)
        count, graph, steps = self._graphs.pop(key, (0, None, None))
        if steps is None:
            steps = torch.empty(shape[0], device=self._where)
        steps.copy_(self._tensor(t, shape[:1]))
        arguments = self._tensor(x, shape), steps, self._tensor(eps, shape)
        if graph is None and self._graph and count == 3:  # cuDNN and torch.compile are warmed up
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._evaluate(*arguments)
        if graph is None:
            self._evaluate(*arguments)
        else:
            graph.replay()
        if len(self._graphs) >= MAX_GRAPHS:
            torch.cuda.current_stream().synchronize()
            self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = count + 1, graph, steps

    def _evaluate(self, x: Tensor, t: Tensor, eps: Tensor) -> None:
        eps.copy_(self._module(x, t))

    def __call__(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            eps = self._module(torch.from_numpy(x).to(self._where), torch.from_numpy(t).to(self._where))
        return np.asarray(eps.float().cpu().numpy(), np.float32)

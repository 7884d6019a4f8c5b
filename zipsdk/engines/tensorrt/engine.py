"""Run a TensorRT plan, of TensorRT 10 and 11 or of TensorRT-RTX, on the loop's device memory and stream.

A plan is code for one kind of GPU and one version of a runtime. Whatever can be told from its sidecar is told before
the plan is opened, because what TensorRT says of a plan that does not fit is seldom clear, and some do not fit in
silence.
"""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util import forks
from zipsdk.engines.tensorrt.flavor import FLAVORS, RTX_LOWEST, collecting_logger, compute_capabilities, runtime
from zipsdk.engines.tensorrt.plan_file import read_plan
from zipsdk.errors import EngineError, InputError, ModelError, OutOfMemory
from zipsdk.gpu.device import Device, open_device
from zipsdk.models.spec import ModelSpec

F32 = npt.NDArray[np.float32]

#: Execution contexts that are kept, one for each shape.
MAX_CONTEXTS = 32


@dataclass
class Memory:
    """What an engine has allocated itself. Apart from the engine, so that it can be freed when that is gone.

    Attributes:
        scratch: of the contexts; the last one is in use, the others may be by captured graphs.
        size: of the last one.
        shape, arrays, pinned: of the last call with arrays: its x, and x, t and eps on the device and on the host.
    """

    scratch: list[int] = field(default_factory=list)
    size: int = 0
    shape: tuple[int, ...] = ()
    arrays: list[int] = field(default_factory=list)
    pinned: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def free_arrays(self, device: Device) -> None:
        self.shape, self.pinned = (), []  # forgotten first: what follows may find no room
        while self.arrays:
            device.free(self.arrays.pop())

    def free(self, device: Device) -> None:
        device.compute.synchronize()
        self.free_arrays(device)
        while self.scratch:
            device.free(self.scratch.pop())


class TensorRTEngine:
    """A plan that ``zipsdk build`` made.

    Args:
        path: the plan; its sidecar ``<path>.json`` must lie beside it.
        device: "auto", "cuda" or "cuda:N"; a plan runs on GPUs only.

    Raises:
        ModelError: plan or sidecar are missing, were changed, or are not what they say.
        EngineError: the plan is for another runtime, version or GPU, or there is no GPU.
        MissingExtra: its runtime or PyCUDA is not installed, or is broken.
    """

    def __init__(self, path: str | Path, *, device: str = "auto"):
        self.path = Path(path)
        match = re.fullmatch(r"auto|cuda(?::(\d+))?", str(device))  # 0 and None get the message below, too
        if match is None:
            raise InputError(f"device: got {device!r} for a plan, wanted 'auto', 'cuda' or 'cuda:N'")
        record = read_plan(self.path)
        self.spec: ModelSpec = record["spec"]
        plan = record["plan"]
        self._batches: list[int] = plan["batches"]
        self.max_batch: int | None = self._batches[-1]
        self.flavor: str = plan["flavor"]
        self._trt = runtime(self.flavor)
        name = FLAVORS[self.flavor].name
        if plan["runtime"] != self._trt.__version__:
            raise EngineError(
                f"{self.path}: built by {name} {plan['runtime']}, and {self._trt.__version__} is installed; plans are "
                "for one version: build it again with zipsdk build"
            )
        self.device: Device = open_device(int(match[1] or 0))
        self._check_gpu(plan, name)
        #: RTX asks each context again, in `prepare`
        self.capturable = True

        self._log = collecting_logger(self._trt)
        with self.device.lock, self.device.active():
            self._runtime = self._trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{self.path}: {name} cannot open it on {self.device.name} ({self._log.text()})")
        self._check_tensors()
        self.runtime = f"{name} {self._trt.__version__}"
        self._contexts: dict[tuple[int, int, int], Any] = {}
        self._memory = Memory()
        weakref.finalize(self, self.device.free_later, partial(self._memory.free, self.device))
        forks.track(self)

    def after_fork(self) -> None:
        """Keep what a destructor in a forked child would free by CUDA; the device refuses all work there."""
        forks.keep_forever(self._runtime, self._engine, self._contexts, self._memory, self._log)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the plan's path and the GPU's number: the receiving process opens the plan itself."""
        return partial(TensorRTEngine, device=f"cuda:{self.device.ordinal}"), (str(self.path.absolute()),)

    def _check_gpu(self, plan: dict[str, Any], name: str) -> None:
        number = 10 * self.device.capability[0] + self.device.capability[1]
        gpu = f"{self.device.name} (sm{number})"
        if self.flavor == "rtx":
            if number < RTX_LOWEST:
                raise EngineError(
                    f"{self.path}: got {gpu}, wanted sm{RTX_LOWEST} or newer for {name}, which is known to return "
                    "zeros in silence below; use the ONNX file with ONNX Runtime, or TensorRT"
                )
            if number not in compute_capabilities(self._trt):
                raise EngineError(
                    f"{self.path}: {name} does not support {gpu}; use the ONNX file with ONNX Runtime, or TensorRT"
                )
        if f"sm{number}" not in plan["targets"]:
            raise EngineError(
                f"{self.path}: built for {', '.join(plan['targets'])}, and this is {gpu}; build it again, "
                + (f"with --target sm{number}" if self.flavor == "rtx" else "on this machine")
            )

    def _check_tensors(self) -> None:
        spec, engine = self.spec, self._engine
        got = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wanted = {spec.input_x, spec.input_t, spec.output}
        if got != wanted:
            raise ModelError(f"{self.path}: got tensors {sorted(got)}, wanted {sorted(wanted)}; build it again")
        for name in sorted(wanted):
            if engine.get_tensor_dtype(name) != self._trt.float32:
                raise ModelError(
                    f"{self.path}: {name}: got {engine.get_tensor_dtype(name)}, wanted float32; build it again"
                )
            mode = self._trt.TensorIOMode.OUTPUT if name == spec.output else self._trt.TensorIOMode.INPUT
            if engine.get_tensor_mode(name) != mode:
                raise ModelError(f"{self.path}: {name}: wanted an {mode.name.lower()} of the plan; build it again")
        if engine.num_optimization_profiles != len(self._batches):
            raise ModelError(
                f"{self.path}: got {engine.num_optimization_profiles} profiles, wanted {len(self._batches)} as its "
                "sidecar says; build it again"
            )
        # the sidecar has the plan's hash but not its own: what it says of shapes is held against the plan
        lowest = 1
        for i, most in enumerate(self._batches):
            low, _, high = ([int(n) for n in shape] for shape in engine.get_tensor_profile_shape(spec.input_x, i))
            said = ([lowest, spec.channels, *[spec.min_side] * 2], [most, spec.channels, *[spec.max_side] * 2])
            if (low, high) != said:
                raise ModelError(
                    f"{self.path}: profile {i}: got {low} to {high}, wanted {said[0]} to {said[1]} as its "
                    "sidecar says; the sidecar was changed: build it again"
                )
            lowest = most + 1

    @property
    def info(self) -> dict[str, Any]:
        return {
            "engine": self.runtime,
            "providers": [FLAVORS[self.flavor].name],
            "precision": self.spec.precision,
            "device": self.device.name,
            "batches": self._batches,
        }

    # ---- what `zipsdk.gpu.loop.DeviceLoop` uses

    def prepare(self, batch: int, height: int, width: int) -> object:
        """The context of a shape, which must outlive a graph captured of it (`zipsdk.gpu.protocols.DeviceEngine`)."""
        return self._context(batch, height, width)

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """One evaluation on the device's memory; see `zipsdk.gpu.protocols.DeviceEngine`."""
        context = self._context(batch, *(size or (self.spec.canvas, self.spec.canvas)))
        spec = self.spec
        for name, address in ((spec.input_x, x), (spec.input_t, t), (spec.output, eps)):
            self._want(context.set_tensor_address(name, address), f"{name} at {address:#x}")
        self._want(context.execute_async_v3(stream), f"an evaluation of batch {batch}")

    def _context(self, batch: int, height: int, width: int) -> Any:
        """One context for each shape: a graph captured of a context stays good only while its shape does."""
        key = (batch, height, width)
        if key in self._contexts:
            self._contexts[key] = self._contexts.pop(key)  # the last one used is the last one dropped
            return self._contexts[key]
        profile = next((i for i, most in enumerate(self._batches) if batch <= most), None)
        if profile is None:
            raise InputError(f"{self.path}: got a batch of {batch}, wanted at most {self.max_batch}; see zipsdk build")
        trt, engine, spec, stream = self._trt, self._engine, self.spec, self.device.compute.handle
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(engine, "create_runtime_config"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # the best kernels at once: captured while they compile in the background, the stopgaps would stay for good
            kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
            if kinds is not None:
                config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        what = f"a context for {batch} x {height} x {width}"
        self._want(context is not None, what)
        self._want(context.set_optimization_profile_async(profile, stream), f"profile {profile}")
        self._want(context.set_input_shape(spec.input_x, (batch, spec.channels, height, width)), what)
        self._want(context.set_input_shape(spec.input_t, (batch,)), what)
        if missing := context.infer_shapes():
            raise EngineError(f"{self.path}: {what}: TensorRT lacks the shape of {', '.join(missing)}; build it again")
        if hasattr(context, "update_device_memory_size_for_shapes"):
            need = context.update_device_memory_size_for_shapes()
        elif hasattr(engine, "get_device_memory_size_for_profile_v2"):
            need = engine.get_device_memory_size_for_profile_v2(profile)
        else:
            need = engine.device_memory_size_v2
        memory = self._memory
        if need > memory.size:
            # the old one is kept, because captured graphs may use it; doubled where there is room, to grow seldom
            size = max(need, 2 * memory.size)
            try:
                memory.scratch.append(self.device.alloc(size))
            except OutOfMemory:
                if size == need:
                    raise
                size = need
                memory.scratch.append(self.device.alloc(size))
            memory.size = size
        scratch = memory.scratch[-1] if memory.scratch else 0
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(scratch, memory.size)
        else:
            context.device_memory = scratch
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(stream):
            self.capturable = False
        while len(self._contexts) >= MAX_CONTEXTS:
            self.device.compute.synchronize()  # it may be at work
            self._contexts.pop(next(iter(self._contexts)))
        self._contexts[key] = context
        return context

    def _want(self, ok: Any, what: str) -> None:
        if not ok:
            raise EngineError(f"{self.path}: {self.runtime} refuses {what} ({self._log.text()})")

    # ---- on arrays, for the loop on the host

    def __call__(self, x: F32, t: F32) -> F32:
        """eps for arrays on the host, which go up and come down; larger batches than the plan's are cut."""
        x, t = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(t, np.float32)
        if not len(x):
            return x.copy()
        most = self._batches[-1]
        if len(x) > most:
            return np.concatenate([self(x[i : i + most], t[i : i + most]) for i in range(0, len(x), most)])
        device, stream, memory = self.device, self.device.compute, self._memory
        with device.lock, device.active():
            if memory.shape != x.shape:
                memory.free_arrays(device)
                try:
                    for n in (x.nbytes, t.nbytes, x.nbytes):
                        memory.arrays.append(device.alloc(n))
                        memory.pinned.append(device.pinned(n))
                except OutOfMemory:
                    memory.free_arrays(device)
                    raise
                memory.shape = x.shape
            addresses, pinned = memory.arrays, memory.pinned
            for address, host, array in zip(addresses, pinned, (x, t), strict=False):
                host[:] = array.view(np.uint8).reshape(-1)
                device.upload(address, host, stream)
            self.enqueue(addresses[0], addresses[1], addresses[2], len(x), stream.handle, size=(x.shape[2], x.shape[3]))
            device.download(pinned[2], addresses[2], stream)
            stream.synchronize()
            eps: F32 = pinned[2].view(np.float32).reshape(x.shape).copy()
        return eps

"""Run TensorRT plans, of TensorRT 10 and 11 or of TensorRT-RTX, on the GPU loop's memory and stream.

A plan is code for one kind of GPU and one version of a runtime. Its sidecar is checked before the plan is opened,
because TensorRT's own messages about a wrong plan are unclear, and some wrong plans open without an error.
"""

from __future__ import annotations

import re
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zipsdk._util import forks
from zipsdk.engines.tensorrt.context_api import choose_api
from zipsdk.engines.tensorrt.flavor import FLAVORS, RTX_LOWEST, collecting_logger, compute_capabilities, runtime
from zipsdk.engines.tensorrt.memory import EngineMemory
from zipsdk.engines.tensorrt.plan_file import read_plan
from zipsdk.errors import EngineError, InputError, ModelError
from zipsdk.gpu.device import Device, open_device
from zipsdk.models.spec import ModelSpec
from zipsdk.types import F32

#: Execution contexts that are kept, one for each shape.
MAX_CONTEXTS = 32


class TensorRTEngine:
    """A plan that ``zipsdk build`` made.

    Args:
        path: the plan, with its sidecar ``<path>.json`` beside it.
        device: "auto", "cuda" or "cuda:N"; a plan runs on GPUs only.

    Raises:
        ModelError: plan or sidecar are missing, changed, or invalid.
        EngineError: the plan is for another runtime, version or GPU, or there is no GPU.
        MissingDependencyError: its runtime or PyCUDA is not installed, or is broken.
    """

    def __init__(self, path: str | Path, *, device: str = "auto"):
        self.path = Path(path)
        match = re.fullmatch(r"auto|cuda(?::(\d+))?", str(device))  # str: 0 and None get this message too
        if match is None:
            raise InputError(f"device: got {device!r} for a plan, expected 'auto', 'cuda' or 'cuda:N'")
        record = read_plan(self.path)
        self.spec: ModelSpec = record["spec"]
        plan = record["plan"]
        self._batches: list[int] = plan["batches"]
        self.max_batch: int | None = self._batches[-1]
        self.flavor = FLAVORS[plan["flavor"]]
        self._trt = runtime(self.flavor.key)
        name = self.flavor.name
        if plan["runtime"] != self._trt.__version__:
            raise EngineError(
                f"{self.path}: built by {name} {plan['runtime']}, and {self._trt.__version__} is installed; a plan "
                "runs on one version only: build it again with zipsdk build"
            )
        self.device: Device = open_device(int(match[1] or 0))
        self._check_gpu(plan, name)
        #: `prepare` sets it to False when a context cannot be captured
        self.capturable = True

        self._log = collecting_logger(self._trt)
        with self.device.lock, self.device.active():
            self._runtime = self._trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{self.path}: {name} cannot open it on {self.device.name} ({self._log.text()})")
        self._check_tensors()
        self._api = choose_api(self._trt, self._engine)
        self.runtime = f"{name} {self._trt.__version__}"
        self._contexts: dict[tuple[int, int, int], Any] = {}
        self._memory = EngineMemory()
        weakref.finalize(self, self.device.free_later, partial(self._memory.free, self.device))
        forks.track(self)

    def after_fork(self) -> None:
        """Keep the objects whose destructors would call CUDA in a forked child; the device refuses all work in it."""
        forks.keep_forever(self._runtime, self._engine, self._contexts, self._memory, self._log)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the plan's path and the GPU's number; the receiving process opens the plan."""
        return partial(TensorRTEngine, device=f"cuda:{self.device.ordinal}"), (str(self.path.absolute()),)

    def __repr__(self) -> str:
        return f"<TensorRTEngine {self.spec.name}: {self.spec.precision}, cuda:{self.device.ordinal}>"

    def _check_gpu(self, plan: dict[str, Any], name: str) -> None:
        number = 10 * self.device.capability[0] + self.device.capability[1]
        gpu = f"{self.device.name} (sm{number})"
        if self.flavor.key == "rtx":
            if number < RTX_LOWEST:
                raise EngineError(
                    f"{self.path}: got {gpu}, expected sm{RTX_LOWEST} or newer for {name}, which is known to return "
                    "zeros without an error below; use the ONNX file with ONNX Runtime, or TensorRT"
                )
            if number not in compute_capabilities(self._trt):
                raise EngineError(
                    f"{self.path}: {name} does not support {gpu}; use the ONNX file with ONNX Runtime, or TensorRT"
                )
        if f"sm{number}" not in plan["targets"]:
            raise EngineError(
                f"{self.path}: built for {', '.join(plan['targets'])}, and this GPU is {gpu}; build it again "
                + (f"with --target sm{number}" if self.flavor.key == "rtx" else "on this machine")
            )

    def _check_tensors(self) -> None:
        spec, engine = self.spec, self._engine
        got = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        expected = {spec.input_x, spec.input_t, spec.output}
        if got != expected:
            raise ModelError(f"{self.path}: got tensors {sorted(got)}, expected {sorted(expected)}; build it again")
        for name in sorted(expected):
            if engine.get_tensor_dtype(name) != self._trt.float32:
                raise ModelError(
                    f"{self.path}: {name}: got {engine.get_tensor_dtype(name)}, expected float32; build it again"
                )
            mode = self._trt.TensorIOMode.OUTPUT if name == spec.output else self._trt.TensorIOMode.INPUT
            if engine.get_tensor_mode(name) != mode:
                raise ModelError(f"{self.path}: {name}: expected an {mode.name.lower()} of the plan; build it again")
        if engine.num_optimization_profiles != len(self._batches):
            raise ModelError(
                f"{self.path}: got {engine.num_optimization_profiles} profiles, expected {len(self._batches)} as in "
                "its sidecar; build it again"
            )
        # the sidecar holds the plan's hash, but no hash protects the sidecar
        lowest = 1
        for i, most in enumerate(self._batches):
            low, _, high = ([int(n) for n in shape] for shape in engine.get_tensor_profile_shape(spec.input_x, i))
            expected_shapes = (
                [lowest, spec.channels, *[spec.min_side] * 2],
                [most, spec.channels, *[spec.max_side] * 2],
            )
            if (low, high) != expected_shapes:
                raise ModelError(
                    f"{self.path}: profile {i}: got {low} to {high}, expected {expected_shapes[0]} to "
                    f"{expected_shapes[1]} as in its sidecar; the sidecar was changed: build the plan again"
                )
            lowest = most + 1

    @property
    def info(self) -> dict[str, Any]:
        """What runs the model: see `zipsdk.load_engine`."""
        return {
            "engine": self.runtime,
            "providers": [self.flavor.name],
            "precision": self.spec.precision,
            "device": self.device.name,
            "batches": self._batches,
        }

    # ---- used by `zipsdk.gpu.loop.DeviceLoop`

    def prepare(self, batch: int, height: int, width: int) -> object:
        """Return the context of a shape, which must outlive a graph captured from it; see `DeviceEngine.prepare`."""
        return self._context(batch, height, width)

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """Evaluate the model on device memory; see `zipsdk.gpu.protocols.DeviceEngine.enqueue`."""
        context = self._context(batch, *(size or (self.spec.image_size, self.spec.image_size)))
        spec = self.spec
        for name, address in ((spec.input_x, x), (spec.input_t, t), (spec.output, eps)):
            self._check(context.set_tensor_address(name, address), f"{name} at {address:#x}")
        self._check(context.execute_async_v3(stream), f"a step of batch {batch}")

    def _context(self, batch: int, height: int, width: int) -> Any:
        """Return the context of a shape. Each shape has its own: a captured graph is valid only while it keeps it."""
        key = (batch, height, width)
        if key in self._contexts:
            self._contexts[key] = self._contexts.pop(key)  # moved to the end: the least recently used is dropped first
            return self._contexts[key]
        profile = next((i for i, most in enumerate(self._batches) if batch <= most), None)
        if profile is None:
            raise InputError(
                f"{self.path}: got a batch of {batch}, expected at most {self.max_batch}; see zipsdk build"
            )
        context = self._create_context(profile, batch, height, width)
        address = self._memory.reserve_scratch(self.device, self._api.memory_size(context, profile))
        self._api.set_memory(context, address, self._memory.size)
        if not self._api.is_capturable(context, self.device.compute.handle):
            self.capturable = False
        while len(self._contexts) >= MAX_CONTEXTS:
            self.device.compute.synchronize()  # the context may be running
            self._contexts.pop(next(iter(self._contexts)))
        self._contexts[key] = context
        return context

    def _create_context(self, profile: int, batch: int, height: int, width: int) -> Any:
        spec, context, what = self.spec, self._api.create(), f"a context for {batch} x {height} x {width}"
        self._check(context is not None, what)
        self._check(context.set_optimization_profile_async(profile, self.device.compute.handle), f"profile {profile}")
        self._check(context.set_input_shape(spec.input_x, (batch, spec.channels, height, width)), what)
        self._check(context.set_input_shape(spec.input_t, (batch,)), what)
        if missing := context.infer_shapes():
            raise EngineError(f"{self.path}: {what}: TensorRT lacks the shape of {', '.join(missing)}; build it again")
        return context

    def _check(self, accepted: Any, what: str) -> None:
        if not accepted:
            raise EngineError(f"{self.path}: {self.runtime} refuses {what} ({self._log.text()})")

    # ---- used by the loop on the CPU

    def __call__(self, x: F32, t: F32) -> F32:
        """Evaluate arrays: copies them to the GPU and the result back; batches above the plan's largest are split."""
        x, t = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(t, np.float32)
        if not len(x):
            return x.copy()
        most = self._batches[-1]
        if len(x) > most:
            return np.concatenate([self(x[i : i + most], t[i : i + most]) for i in range(0, len(x), most)])
        device, stream, memory = self.device, self.device.compute, self._memory
        with device.lock, device.active():
            memory.reserve_arrays(device, x.shape)
            addresses, pinned = memory.arrays, memory.pinned
            for address, host, array in zip(addresses, pinned, (x, t), strict=False):
                host[:] = array.view(np.uint8).reshape(-1)
                device.upload(address, host, stream)
            self.enqueue(addresses[0], addresses[1], addresses[2], len(x), stream.handle, size=(x.shape[2], x.shape[3]))
            device.download(pinned[2], addresses[2], stream)
            stream.synchronize()
            eps: F32 = pinned[2].view(np.float32).reshape(x.shape).copy()
        return eps

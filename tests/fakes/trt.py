"""A fake of TensorRT's runtime for machines without a GPU, with the real module's names and signatures.

Each class stands for one of `tensorrt_rtx`. A method or an argument that the real class lacks fails the test: pybind11
writes every signature into the docstring, and calls are checked against these. A plain engine computes the results.
Whether TensorRT computes correctly can be tested on a GPU only.
"""

from __future__ import annotations

import re
import types
from functools import wraps

import numpy as np

from tests.fakes.device import view


def signatures(real, name):
    """Return (fewest arguments, most arguments, names) for each overload, without self."""
    found = []
    for text in re.findall(rf"{name}\((self[^\n]*)\) ->", getattr(real, name).__doc__):
        # types hold commas within brackets, defaults hold angle brackets
        while (plain := re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", text)) != text:
            text = plain
        parts = [p.strip() for p in text.split(",")[1:]]
        names = [p.split(":")[0].strip() for p in parts]
        found.append((sum("=" not in p for p in parts), len(parts), names))
    assert found, f"{name} has no signature in its docstring"
    return found


def like(real):
    """Decorate a class whose public methods and attributes must exist in the class `real`."""

    def decorate(cls):
        for name, member in list(vars(cls).items()):
            if name.startswith("_"):
                continue
            assert hasattr(real, name), f"{real.__name__} has no {name}"
            if not callable(member):
                continue
            overloads = signatures(real, name)

            def checked(self, *args, __member=member, __name=name, __overloads=overloads, **kwargs):
                fits = [n for low, high, n in __overloads if low <= len(args) + len(kwargs) <= high]
                assert any(set(kwargs) <= set(n) for n in fits), f"{__name}: no overload takes {args} {kwargs}"
                self._log.append((__name, *args))
                return __member(self, *args, **kwargs)

            setattr(cls, name, wraps(member)(checked))

        def set_checked(self, name, value):
            assert name.startswith("_") or hasattr(real, name), f"{real.__name__} has no {name}"
            object.__setattr__(self, name, value)

        cls.__setattr__ = set_checked
        return cls

    return decorate


def module(trt, device, plain, *, batches, refuse=(), scratch=1000, capturable=True, lacks=()):
    """Create a module like `trt` whose plans run `plain` on the fake `device`.

    Args:
        batches: of the plan's profiles; its sides are 32.
        refuse: methods that fail.
        lacks: methods to leave out, as in older versions of TensorRT.
    """
    log = []
    spec = plain.spec

    def no(name, yes=True):
        return None if name in refuse and yes is not True else (name not in refuse if yes is True else yes)

    @like(trt.IExecutionContext)
    class Context:
        def __init__(self):
            self._log, self._shapes, self._at, self._profile, self._memory = log, {}, {}, None, None
            self._ran = False  # since the shapes were set

        def set_optimization_profile_async(self, profile_index, stream_handle):
            assert stream_handle in device.streams
            self._profile = profile_index
            return no("set_optimization_profile_async")

        def set_input_shape(self, name, shape):
            low = 1 if self._profile == 0 else batches[self._profile - 1] + 1
            assert low <= shape[0] <= batches[self._profile], "a batch outside its profile"
            self._shapes[name], self._ran = shape, False
            return no("set_input_shape")

        def infer_shapes(self):
            return [n for n in (spec.input_x, spec.input_t) if n not in self._shapes]

        def update_device_memory_size_for_shapes(self):
            return scratch * self._shapes[spec.input_x][0]

        def set_device_memory(self, memory, size):
            assert size >= scratch * self._shapes[spec.input_x][0] and device.memory[memory][1] >= size
            self._memory = memory

        def _take(self, memory):
            assert memory in device.memory
            self._memory = memory

        device_memory = property(lambda self: self._memory, _take)

        def is_stream_capturable(self, stream):
            return capturable

        def set_tensor_address(self, name, memory):
            assert name in (spec.input_x, spec.input_t, spec.output)
            assert memory % 256 == 0, "an address that is not 256-aligned"
            self._at[name] = memory
            return no("set_tensor_address")

        def execute_async_v3(self, stream_handle):
            assert self._memory in device.memory, "its scratch memory was freed"
            if "execute_async_v3" in refuse:
                return False
            captured = device.streams[stream_handle].graph is not None
            assert self._ran or not captured, "a context is captured that never ran with its shapes"
            self._ran = True
            at, shape, memory = dict(self._at), self._shapes[spec.input_x], self._memory

            def work():
                assert memory in device.memory, "its scratch memory was freed"
                t = view(at[spec.input_t], self._shapes[spec.input_t])
                view(at[spec.output], shape)[:] = plain(view(at[spec.input_x], shape).copy(), t)

            device.streams[stream_handle].push("engine", work)
            return True

    @like(trt.IRuntimeConfig)
    class Config:
        def __init__(self):
            self._log, self._strategy = log, None

        def set_execution_context_allocation_strategy(self, strategy):
            self._strategy = strategy

    @like(trt.ICudaEngine)
    class Engine:
        num_io_tensors = 3
        num_optimization_profiles = len(batches)

        def __init__(self):
            self._log = log

        def get_tensor_name(self, index):
            return (spec.input_x, spec.input_t, spec.output)[index]

        def get_tensor_dtype(self, name):
            return trt.float16 if "get_tensor_dtype" in refuse else trt.float32

        device_memory_size_v2 = scratch * batches[-1]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.OUTPUT if name == "eps" else trt.TensorIOMode.INPUT

        def get_tensor_profile_shape(self, name, profile_index):
            low = 1 if profile_index == 0 else batches[profile_index - 1] + 1
            assert name == "x"
            return [trt.Dims((n, 3, 32, 32)) for n in (low, batches[profile_index], batches[profile_index])]

        def get_device_memory_size_for_profile_v2(self, profile_index):
            return scratch * batches[profile_index]

        def create_runtime_config(self):
            return Config()

        def create_execution_context(self, runtime_config):
            if "create_runtime_config" in lacks:  # then the argument is the strategy
                assert runtime_config == trt.ExecutionContextAllocationStrategy.USER_MANAGED
                return Context()
            assert runtime_config._strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            kinds = trt.DynamicShapesKernelSpecializationStrategy
            assert runtime_config.dynamic_shapes_kernel_specialization_strategy == kinds.EAGER
            return None if "create_execution_context" in refuse else Context()

    @like(trt.Runtime)
    class Runtime:
        def __init__(self, logger):
            self._log, self._logger = log, logger

        def deserialize_cuda_engine(self, serialized_engine):
            if "deserialize_cuda_engine" in refuse:
                self._logger.log(trt.ILogger.ERROR, "header does not fit")
                return None
            return Engine()

    for name in lacks:
        for owner in (Context, Engine):
            if name in vars(owner):
                delattr(owner, name)
    real = ("ComputeCapability", "TensorIOMode", "ILogger", "ExecutionContextAllocationStrategy", "float32",
            "DynamicShapesKernelSpecializationStrategy", "__version__")  # fmt: skip
    made = types.SimpleNamespace(
        Runtime=Runtime, IExecutionContext=Context, log=log, **{name: getattr(trt, name) for name in real}
    )
    assert np.dtype(np.float32).itemsize == 4
    return made

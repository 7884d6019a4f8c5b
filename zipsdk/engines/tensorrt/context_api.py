"""Choose the calls on execution contexts that differ between TensorRT 10, TensorRT 11 and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class ContextApi:
    """Calls on the execution contexts of one engine.

    Attributes:
        create: create a context that allocates no memory; returns None on failure.
        memory_size: (context, profile) -> bytes that the context needs for its shapes.
        set_memory: (context, address, bytes): give the context its memory.
        is_capturable: (context, stream) -> whether a CUDA graph may capture the context.
    """

    create: Callable[[], Any]
    memory_size: Callable[[Any, int], int]
    set_memory: Callable[[Any, int, int], None]
    is_capturable: Callable[[Any, int], bool]


def choose_api(trt: Any, engine: Any) -> ContextApi:
    """Choose the calls that the module `trt` has for `engine`, a ``trt.ICudaEngine``."""
    context = trt.IExecutionContext
    if hasattr(context, "update_device_memory_size_for_shapes"):
        memory_size = _size_for_shapes
    elif hasattr(engine, "get_device_memory_size_for_profile_v2"):
        memory_size = partial(_size_for_profile, engine)
    else:
        memory_size = partial(_size_for_all_profiles, engine)
    return ContextApi(
        create=partial(_create_with_config if hasattr(engine, "create_runtime_config") else _create, trt, engine),
        memory_size=memory_size,
        set_memory=_set_memory if hasattr(context, "set_device_memory") else _set_memory_address,
        is_capturable=_is_capturable if hasattr(context, "is_stream_capturable") else _always_capturable,
    )


def _create_with_config(trt: Any, engine: Any) -> Any:
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # eager: a graph captured while better kernels compile in the background would keep the fallback kernels
    kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kinds is not None:
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
    return engine.create_execution_context(config)


def _create(trt: Any, engine: Any) -> Any:
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def _size_for_shapes(context: Any, profile: int) -> int:
    return int(context.update_device_memory_size_for_shapes())


def _size_for_profile(engine: Any, context: Any, profile: int) -> int:
    return int(engine.get_device_memory_size_for_profile_v2(profile))


def _size_for_all_profiles(engine: Any, context: Any, profile: int) -> int:
    return int(engine.device_memory_size_v2)


def _set_memory(context: Any, address: int, size: int) -> None:
    context.set_device_memory(address, size)


def _set_memory_address(context: Any, address: int, size: int) -> None:
    context.device_memory = address


def _is_capturable(context: Any, stream: int) -> bool:
    return bool(context.is_stream_capturable(stream))


def _always_capturable(context: Any, stream: int) -> bool:
    return True

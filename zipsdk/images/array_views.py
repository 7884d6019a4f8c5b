"""View the arrays of any library as NumPy arrays, and convert results to the library's type.

torch tensors, DLPack producers (JAX and others) and objects with `__array__` are read without importing their library:
where one of its arrays exists, it has been imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from zipsdk.errors import InputError
from zipsdk.images.arrays import check_dtype, check_shape
from zipsdk.types import Array

#: Dtypes of tensors that are read; the range of each is that of the NumPy dtype, of bfloat16 0..1.
_TENSORS = ["torch.uint8", "torch.uint16", "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"]
#: DLPack's device types whose memory the CPU reads: CPU, and pinned memory of CUDA and ROCm.
_ON_CPU = (1, 3, 11)
_DEVICES = {2: "a CUDA device", 8: "a Metal device", 10: "a ROCm device", 14: "a oneAPI device"}
_NUMPY_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__")


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ArrayView:
    """A NumPy view of an array of any library, with checked dtype and shape.

    Attributes:
        array: of two to four axes; a copy as float32 of bfloat16, which NumPy lacks.
        data_format: "NHWC" or "NCHW".
        convert: converts a new NumPy array of the same dtype to the library's type, without a copy where the library
            allows it; it pickles.
    """

    array: Array
    data_format: str
    convert: Callable[[Array], Any]


def view_array(item: Any, data_format: str | None, max_pixels: int) -> ArrayView | None:
    """View an array as a NumPy array; return None for an object that is no array.

    Args:
        item: a NumPy array, a torch tensor, a DLPack producer, or an object with one of NumPy's array protocols.
        data_format: None is "NCHW" for torch tensors and "NHWC" for everything else.
        max_pixels: the largest width * height.

    Raises:
        InputError: the device, memory layout, dtype or shape is not supported.
    """
    if is_tensor(item):
        bits, tensor_type = _view_tensor(item)
        check_shape(bits.shape, data_format or "NCHW", max_pixels)
        if bits.dtype == np.int16:  # the bits of a bfloat16 are the upper half of a float32
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        return ArrayView(bits, data_format or "NCHW", tensor_type)
    convert: Callable[[Array], Any] = unchanged
    if isinstance(item, np.ndarray):
        array = np.asarray(item)
    elif isinstance(item, type):  # a class has the methods of its objects
        return None
    elif hasattr(item, "__dlpack__"):
        array, convert = _view_dlpack(item), _converter(item)
    elif any(hasattr(item, name) for name in _NUMPY_PROTOCOLS):
        array = _as_numpy(np.asarray, item)
    else:
        return None
    check_dtype(array.dtype)
    check_shape(array.shape, data_format or "NHWC", max_pixels)
    return ArrayView(array, data_format or "NHWC", convert)


def unchanged(array: Array) -> Array:
    """Return a NumPy array as it is."""
    return array


def type_name(item: object) -> str:
    """Return the name of an object's type with its module, such as torch.Tensor."""
    return f"{type(item).__module__}.{type(item).__qualname__}"


def is_tensor(item: object) -> bool:
    """Tell whether an object is a torch tensor; torch is not imported."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return isinstance(tensor, type) and isinstance(item, tensor)


def _as_numpy(convert: Callable[[Any], T], item: Any) -> T:
    """Apply a conversion to NumPy, which calls code of another library."""
    try:
        return convert(item)
    except MemoryError:
        raise
    except Exception as e:
        raise InputError(
            f"got a {type_name(item)} that gives no NumPy array ({type(e).__name__}: {e}), expected an array on the "
            "CPU; convert it to NumPy first"
        ) from e


# ---- torch


@dataclass(frozen=True)
class _TensorType:
    """Make torch tensors.

    Attributes:
        dtype: a torch.dtype.
        channels_last: whether batches have the memory format torch.channels_last.
    """

    dtype: Any
    channels_last: bool

    def __call__(self, array: Array) -> Any:
        torch: Any = sys.modules["torch"]  # `dtype` has imported it, also where it was unpickled
        out = torch.from_numpy(array).to(self.dtype)
        return out.contiguous(memory_format=torch.channels_last) if self.channels_last and out.ndim == 4 else out


def _view_tensor(tensor: Any) -> tuple[Array, _TensorType]:
    """View a tensor as NumPy array, bfloat16 as int16."""
    if problem := _tensor_problem(tensor):
        raise InputError(
            f"got a {type_name(tensor)} {problem[0]}, expected a dense tensor on the CPU without gradient, of "
            f"{', '.join(_TENSORS)}; {problem[1]}"
        )
    torch: Any = sys.modules["torch"]

    def view(t: Any) -> Array:
        t = t.resolve_neg()
        array: Array = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()
        return array

    array = _as_numpy(view, tensor)
    channels_last = tensor.ndim == 4 and not tensor.is_contiguous()
    channels_last = channels_last and tensor.is_contiguous(memory_format=torch.channels_last)
    return array, _TensorType(tensor.dtype, channels_last)


def _tensor_problem(tensor: Any) -> tuple[str, str] | None:
    """Return what a tensor is that NumPy cannot view, and what to do; None for nothing."""
    name = str(tensor.dtype)
    if tensor.is_nested:
        return "that is nested", "pass list(tensor.unbind())"
    if tensor.is_quantized:
        return f"that is quantized ({name})", "pass tensor.dequantize() where it is 0..1"
    if str(tensor.layout) != "torch.strided":
        return f"of the layout {tensor.layout}", "pass tensor.to_dense()"
    if tensor.device.type == "meta":
        return "on the device meta, which has no values", "make it on the CPU"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device}", "pass tensor.cpu()"
    if name not in _TENSORS:
        return f"of dtype {name}", _tensor_conversion(name)
    if tensor.requires_grad:
        return "that requires grad", "purification has no gradient: pass tensor.detach()"
    return None


def _tensor_conversion(dtype: str) -> str:
    """Describe how to convert a tensor of a dtype without a known range."""
    if dtype == "torch.bool":
        return "pass tensor.to(torch.uint8) * 255"
    if dtype.startswith("torch.complex"):
        return "pass its magnitude, tensor.abs(), where that is 0..1"
    if dtype.startswith("torch.float"):
        return "pass tensor.float() where it is 0..1"
    return "pass tensor.to(torch.uint8) where it is 0..255"


# ---- DLPack


@dataclass(frozen=True)
class _FromDlpack:
    """Make arrays of a library.

    Attributes:
        namespace: name of the module with the `from_dlpack` of the Python array API standard.
    """

    namespace: str

    def __call__(self, array: Array) -> Any:
        return import_module(self.namespace).from_dlpack(array)


def _view_dlpack(item: Any) -> Array:
    device = _as_numpy(lambda x: int(x.__dlpack_device__()[0]), item)
    if device not in _ON_CPU:
        where = _DEVICES.get(device, f"a device of DLPack's type {device}")
        raise InputError(
            f"got a {type_name(item)} on {where}, expected an array on the CPU; copy it there first: x.get() of CuPy, "
            "np.asarray(x) of JAX"
        )
    if hasattr(item, "__array__"):
        try:
            return np.from_dlpack(item)
        except Exception:  # NumPy's DLPack lacks bfloat16, for example
            return _as_numpy(np.asarray, item)
    return _as_numpy(np.from_dlpack, item)


def _converter(item: Any) -> Callable[[Array], Any]:
    """Return the conversion to a DLPack producer's type; NumPy arrays remain for one without array namespace."""
    try:
        name = item.__array_namespace__().__name__
        known = name != "numpy" and callable(sys.modules[name].from_dlpack)
    except Exception:  # code of another library
        return unchanged
    return _FromDlpack(name) if known else unchanged

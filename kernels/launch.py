"""Launch the kernels from Python, for tests and benchmarks: on the CPU by the g++ shim, on a GPU by the driver.

Both classes have ``launch(name, grid, block, *arguments)``. An argument is a NumPy array (on the CPU only; the kernel
reads and writes it), an `int` (an address), a structured scalar such as `zipsdk.gpu.structs.layout_row` returns (passed
by value), `numpy.uint32` or `numpy.float32`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

# tests/tools/mutate_kernels.py sets another folder, with changed kernels
SOURCES = Path(os.environ.get("ZIPSDK_KERNELS", Path(__file__).parent))
COMMON = ("-std=c++17", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def _packed(arguments: tuple[Any, ...]) -> tuple[ctypes.Array[ctypes.c_void_p], list[Any]]:
    """Return the pointers for cuLaunchKernel, and the values behind them, which must outlive the call."""
    values: list[Any] = []
    for a in arguments:
        if isinstance(a, np.ndarray):
            if not a.flags.c_contiguous:
                raise ValueError(f"got an array of shape {a.shape} and strides {a.strides}, expected a contiguous one")
            values.append(ctypes.c_void_p(a.ctypes.data))
        elif isinstance(a, np.void):
            values.append(ctypes.create_string_buffer(a.tobytes(), a.nbytes))
        elif isinstance(a, np.uint32):
            values.append(ctypes.c_uint32(int(a)))
        elif isinstance(a, np.float32):
            values.append(ctypes.c_float(float(a)))
        elif isinstance(a, int):
            values.append(ctypes.c_void_p(a))
        else:
            raise TypeError(f"got {type(a).__name__}, expected an array, an address, a struct, uint32 or float32")
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    return pointers, values


class Host:
    """Build the g++ shim and launch its kernels.

    Args:
        folder: for the library.
        flags: for g++, e.g. ("-O2", "-fsanitize=undefined").
    """

    def __init__(self, folder: Path, flags: tuple[str, ...]):
        compiler = shutil.which("g++")
        if compiler is None:
            raise FileNotFoundError("g++")
        path = folder / "zip_host.so"
        command = [compiler, *COMMON, *flags, str(SOURCES / "host.cpp"), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++ failed:\n{done.stderr}")
        self._launch = ctypes.CDLL(str(path)).zip_host_launch

    def launch(self, name: str, grid: int, block: int, *arguments: Any) -> None:
        pointers, values = _packed(arguments)
        if self._launch(name.encode(), grid, block, pointers):
            raise ValueError(f"no kernel {name}")
        del values


class DriverError(RuntimeError):
    """A call of the CUDA driver failed."""


class MissingKernelError(DriverError):
    """The fatbin was built without the kernels that only tests and benchmarks launch."""


class Device:
    """Launch the kernels of a fatbin on a GPU, by libcuda alone, in the primary context, which torch uses too."""

    def __init__(self, fatbin: bytes, ordinal: int = 0):
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as e:
            raise DriverError(str(e)) from None
        self._call("cuInit", 0)
        device, context, self._module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuModuleLoadData", ctypes.byref(self._module), fatbin)
        self._functions: dict[str, ctypes.c_void_p] = {}

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._cuda, function)(*arguments))

    def _check(self, function: str, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise DriverError(f"{function}: {code} {(text.value or b'').decode()}")

    def alloc(self, size: int) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray) -> None:
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )

    def download(self, array: np.ndarray, address: int) -> None:
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )

    def copy(self, to: int, address: int, size: int) -> None:
        self._call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(to), ctypes.c_uint64(address), ctypes.c_size_t(size), None)

    def launch(self, name: str, grid: int, block: int, *arguments: Any) -> None:
        """Launch on the default stream and return before the kernel is done."""
        if name not in self._functions:
            function = ctypes.c_void_p()
            code = self._cuda.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
            if code == 500:  # CUDA_ERROR_NOT_FOUND
                raise MissingKernelError(f"this fatbin has no {name}; build it by CMake with -DZIPSDK_TEST_KERNELS=ON")
            self._check("cuModuleGetFunction", code)
            self._functions[name] = function
        pointers, values = _packed(arguments)
        self._call("cuLaunchKernel", self._functions[name], grid, 1, 1, block, 1, 1, 0, None, pointers, None)
        del values

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def event(self) -> ctypes.c_void_p:
        """Record an event."""
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", event, None)
        return event

    def elapsed(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Return the seconds between two recorded events, and destroy them."""
        milliseconds = ctypes.c_float()
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        for event in (start, end):
            self._call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3

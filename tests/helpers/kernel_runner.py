"""Launch kernels on guarded buffers, on the CPU through the g++ shim or on a GPU."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kernels.launch import Device, DriverError, Host, MissingKernelError
from tests.helpers.kernel_cases import CASES, GUARD, LAUNCHES, Buffer, fenced, like
from zipsdk.errors import EngineError
from zipsdk.gpu import structs
from zipsdk.gpu.fatbin import fatbin_path

SEED = 0x1234567890ABCDEF
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
BACKENDS = ["shim", pytest.param("gpu", marks=pytest.mark.gpu)]


class Runner:
    """Launch on guarded buffers, each time with another grid and block, and check the guards.

    On the CPU each launch runs first on fenced copies, with a different grid, and must give the same bits.
    """

    def __init__(self, backend):
        self.backend, self.count = backend, 0

    def _shape(self):
        self.count += 1
        return LAUNCHES[self.count % len(LAUNCHES)]

    def __call__(self, kernel, *arguments):
        arguments = [like(a) if isinstance(a, np.ndarray) else a for a in arguments]
        buffers = {id(a): a for a in arguments if isinstance(a, Buffer)}  # an argument may occur twice
        if isinstance(self.backend, Host):
            copies = {i: fenced(b.array) for i, b in buffers.items()}
            self.backend.launch(kernel, *self._shape(), *(copies.get(id(a), a) for a in arguments))
            arrays = {i: b.array for i, b in buffers.items()}
            self.backend.launch(kernel, *self._shape(), *(arrays.get(id(a), a) for a in arguments))
            for i, b in buffers.items():
                np.testing.assert_array_equal(b.array.view(np.uint8), copies[i].view(np.uint8))
        else:
            device = self.backend
            memory = {i: device.alloc(b.raw.nbytes) for i, b in buffers.items()}
            for i, b in buffers.items():
                device.upload(memory[i], b.raw)
            at = [memory[id(a)] + GUARD if isinstance(a, Buffer) else a for a in arguments]
            try:
                device.launch(kernel, *self._shape(), *at)
            except MissingKernelError as e:
                pytest.skip(str(e))
            device.synchronize()
            for i, b in buffers.items():
                device.download(b.raw, memory[i])
                device.free(memory[i])
        for b in buffers.values():
            b.check()


@cache
def _shim() -> tuple[tempfile.TemporaryDirectory[str], Host]:
    folder = tempfile.TemporaryDirectory()
    # the sanitizer finds misaligned wide accesses and overflows
    return folder, Host(Path(folder.name), ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))


def runner(kind: str) -> Runner:
    """Return the runner for the fixture `run`: "shim" or "gpu"."""
    if kind == "gpu":
        try:
            return Runner(Device(fatbin_path().read_bytes()))
        except (DriverError, EngineError) as e:
            pytest.skip(str(e))
    if shutil.which("g++") is None:
        pytest.skip("there is no g++, which builds the kernels for the CPU")
    return Runner(_shim()[1])


def ids_of(n):
    """Return n noise keys."""
    return np.random.default_rng(5).integers(0, 2**64, n, np.uint64)


def bits(e, precision):
    """Round float32 values to a precision of the UNet; return bits and values."""
    if precision == "f32":
        return e, e
    if precision == "f16":
        half = e.astype(np.float16)
        return half.view(np.uint16), half.astype(np.float32)
    top = (e.view(np.uint32) + np.uint32(0x7FFF)) >> np.uint32(16)
    return top.astype(np.uint16), (top << np.uint32(16)).view(np.float32)


def state(case, rng, precision="f32", scale=1.0):
    """Draw x_t, e (as bits and as values) and x_P on frames."""
    x = (scale * rng.standard_normal(case.shape)).astype(np.float32)
    e, value = bits(rng.standard_normal(case.shape).astype(np.float32), precision)
    return x, e, value, rng.integers(0, 256, case.shape, np.uint8)


def batch_of(case):
    """Return the batch row of a case."""
    return structs.batch_row(case.images, case.layout, SEED)


def rows(*values, dtype):
    """Return structured rows."""
    return np.array([tuple(v) for v in values], dtype)

"""The machines of `bench.gpu.kernels`: they hold arrays, launch kernels and measure time.

array             NumPy array -> tensor on the machine
launch            launch a kernel
time              seconds of one call of a work, the mean of several
copy_bandwidth    bytes per second of a plain copy, read and written
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels.launch import Device, Host
from zipsdk.gpu.fatbin import build_info, fatbin_path

Work = Callable[[], Any]


class Cpu:
    """The g++ build of the kernels and NumPy, on one core."""

    name = "cpu"

    def __init__(self) -> None:
        version = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
        flags = ("-O3", "-march=native")
        self.compiler = f"g++ {version} {' '.join(flags)}"
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory()
        self.launch = Host(Path(self._folder.name), flags).launch

    def array(self, a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a.copy())

    def time(self, work: Work, calls: int) -> float:
        # CPU time, which other load on the machine affects less
        start = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - start) / calls

    def copy_bandwidth(self) -> float:
        source = np.ones(1 << 26, np.float32)
        target = np.empty_like(source)
        seconds = [self.time(lambda: np.copyto(target, source), 1) for _ in range(9)]
        return 2 * source.nbytes / statistics.median(seconds)


class Gpu:
    """The fatbin on the default stream, like torch."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        torch.zeros(1, device=self.device)
        self._driver = Device(fatbin_path().read_bytes(), self.device.index or 0)
        self.name, self.launch = self._driver.name, self._driver.launch
        self.compiler = f"nvcc {build_info()['nvcc']}"

    def array(self, a: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(a.copy()).to(self.device)

    def time(self, work: Work, calls: int) -> float:
        start = self._driver.event()
        for _ in range(calls):
            work()
        return self._driver.elapsed(start, self._driver.event()) / calls

    def copy_bandwidth(self) -> float:
        source = torch.ones(1 << 28, device=self.device)
        target = torch.empty_like(source)
        self.time(lambda: target.copy_(source), 3)
        seconds = [self.time(lambda: target.copy_(source), 10) for _ in range(9)]
        return 2 * 4 * source.numel() / statistics.median(seconds)

"""A rehearsal of everything that is marked gpu: real PyCUDA and real kernels' source on the tests' CUDA driver."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest

pytestmark = [
    pytest.mark.skipif(bool(fake_cuda.why_not()), reason=fake_cuda.why_not() or "-"),
    pytest.mark.skipif(fake_cuda.VARIABLE in os.environ, reason="this is the rehearsal"),
]


def rehearse(*files: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        *(str(folder / f) for f in files),
    ]
    return subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, timeout=600,
        env={**os.environ, fake_cuda.VARIABLE: "1", **environment},
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
def test_the_loop():
    done = rehearse("test_gpu.py")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


def test_the_kernels():
    done = rehearse("test_kernels.py", "test_kernel_step.py")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
def test_a_driver_without_a_gpu_says_so():
    done = rehearse("test_gpu.py", FAKE_CUDA_NO_GPU="1")
    assert "the NVIDIA driver shows no GPU" in done.stdout, done.stdout[-3000:]

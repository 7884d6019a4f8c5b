"""Rehearse the tests marked gpu on the fake CUDA driver, with PyCUDA and the source of the kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import cuda
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not() or "-"),
    pytest.mark.skipif(cuda.VARIABLE in os.environ, reason="this is the rehearsal"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """Build the fake driver once for all rehearsals."""
    return cuda.build(tmp_path_factory.mktemp("driver"))


def rehearse(driver: Path, *files: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests marked gpu in these files, in a process with the fake driver."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, cuda.VARIABLE: str(driver), **environment},
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
def test_the_gpu_tests_of_the_loop_pass_on_the_fake_driver(driver):
    done = rehearse(driver, "tests/zipsdk/gpu/test_gpu.py")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


def test_the_kernel_tests_pass_on_the_fake_driver(driver):
    done = rehearse(driver, "tests/kernels/test_kernels.py", "tests/kernels/test_kernel_step.py")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
def test_a_driver_without_a_gpu_is_reported(driver):
    done = rehearse(driver, "tests/zipsdk/gpu/test_gpu.py", FAKE_CUDA_NO_GPU="1")
    assert "the NVIDIA driver shows no GPU" in done.stdout, done.stdout[-3000:]

"""Replace the CUDA driver of this process by the fake one of driver.cpp.

``ZIPSDK_FAKE_CUDA=1 python -m pytest -m gpu`` rehearses the GPU tests on a CPU: the same Python, PyCUDA and source of
the kernels. The rehearsal does not test CUDA itself, time, or races. The variable may also name a driver that `build`
has built.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
VARIABLE = "ZIPSDK_FAKE_CUDA"


def headers() -> Path | None:
    """Return the folder of cuda.h, or None."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
    found = [Path(root) / "include" for root in roots if root and (Path(root) / "include" / "cuda.h").is_file()]
    return found[0] if found else None


def why_not() -> str:
    """Return why the driver cannot be built; empty if it can."""
    if shutil.which("g++") is None:
        return "there is no g++"
    if headers() is None:
        return "there is no cuda.h"
    return ""


def build(folder: Path) -> Path:
    """Build libcuda.so.1 in `folder` and return its path."""
    path = folder / "libcuda.so.1"
    command = ["g++", "-std=c++17", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
               f"-I{headers()}", str(HERE / "driver.cpp"), "-o", str(path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr}")
    return path


def install() -> None:
    """Build and load the fake driver, before anything loads a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        raise RuntimeError(f"{VARIABLE}: got a real NVIDIA driver, expected none; unset the variable")
    driver = Path(os.environ.get(VARIABLE, ""))
    with tempfile.TemporaryDirectory() as folder:
        # a later load of libcuda.so.1 returns the library that is loaded under this name
        ctypes.CDLL(str(driver if driver.is_file() else build(Path(folder))), mode=ctypes.RTLD_GLOBAL)
    # PyCUDA refers to functions that this driver lacks; lazy binding fails only if one is called
    sys.setdlopenflags(sys.getdlopenflags() & ~os.RTLD_NOW | os.RTLD_LAZY)

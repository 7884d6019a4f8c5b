"""`install()` puts the tests' CUDA driver (driver.cpp) in the place of a real one, for this process.

With it ``ZIPSDK_FAKE_CUDA=1 python -m pytest -m gpu`` rehearses on a CPU what a GPU will run: the same Python, the same
PyCUDA, the same kernels' source. It says nothing of CUDA itself, of time, or of races.
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
    """The folder of cuda.h."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), Path(nvcc).resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
    found = [Path(root) / "include" for root in roots if root and (Path(root) / "include" / "cuda.h").is_file()]
    return found[0] if found else None


def why_not() -> str:
    """Why the driver cannot be built here; empty where it can."""
    if shutil.which("g++") is None:
        return "no g++ here"
    if headers() is None:
        return "no cuda.h here"
    return ""


def build(folder: Path) -> Path:
    """libcuda.so.1 in `folder`."""
    path = folder / "libcuda.so.1"
    command = ["g++", "-std=c++17", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
               f"-I{headers()}", str(HERE / "driver.cpp"), "-o", str(path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr}")
    return path


def install() -> None:
    """Must come before anything that asks for the driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        raise RuntimeError(f"{VARIABLE}: there is a real NVIDIA driver here; unset it")
    with tempfile.TemporaryDirectory() as folder:
        # whoever asks for the name libcuda.so.1 gets the library of that name that is loaded already
        ctypes.CDLL(str(build(Path(folder))), mode=ctypes.RTLD_GLOBAL)
    # PyCUDA names functions that the driver here does not have; they matter only when called
    sys.setdlopenflags(sys.getdlopenflags() & ~os.RTLD_NOW | os.RTLD_LAZY)

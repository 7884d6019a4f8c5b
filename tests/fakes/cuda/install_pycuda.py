"""Install PyCUDA on a machine without a GPU: ``python tests/fakes/cuda/install_pycuda.py``.

PyCUDA is built from source and needs the driver's library to link with and the headers of cuRAND. An empty library and
a configuration without cuRAND suffice, because the tests bring a driver. If the installation fails, the tests that
need PyCUDA are skipped with a message.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.fakes import cuda

# read from the home folder, see PyCUDA's installation guide; without optimization the build takes 1 minute, not 5
SETTINGS = """\
CUDA_ROOT = {root!r}
CUDADRV_LIB_DIR = [{library!r}]
CUDA_ENABLE_CURAND = False
CUDA_ENABLE_GL = False
CXXFLAGS = ["-O0", "-g0", "-w"]
"""


def real_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def pip(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pip with these environment variables."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def main() -> str:
    """Install PyCUDA; return the reason of a failure, or an empty string."""
    if importlib.util.find_spec("pycuda"):
        return ""
    if real_driver():
        return pip("install", "-q", "pycuda").stderr[-500:] if not importlib.util.find_spec("pycuda") else ""
    if why := cuda.why_not():
        return why
    include = cuda.headers()
    assert include is not None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "lib"
        library.mkdir()
        command = [
            "g++",
            "-shared",
            "-xc++",
            "/dev/null",
            "-Wl,-soname,libcuda.so.1",
            "-o",
            str(library / "libcuda.so"),
        ]
        subprocess.run(command, check=True)
        text = SETTINGS.format(root=str(include.parent), library=str(library))
        (Path(folder) / ".aksetup-defaults.py").write_text(text)
        cache = pip("cache", "dir").stdout.strip()
        done = pip("install", "-q", "pycuda", HOME=folder, PIP_CACHE_DIR=cache)
    return done.stderr[-500:] if done.returncode else ""


if __name__ == "__main__":
    if problem := main():
        print(f"PyCUDA is not installed, so the rehearsal of the GPU loop is skipped: {problem}")

"""Install PyCUDA where it cannot be installed plainly: ``python tests/fakes/cuda/install_pycuda.py``.

It is built from source and wants the driver's library to link with and cuRAND's headers, neither of which a machine
without a GPU need have. An empty library and a configuration without cuRAND do: the tests bring a driver of their own.
Where nothing of this works the tests that want PyCUDA are left out, which is said and is no failure.
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

# what PyCUDA's configuration is read from, in the home folder (its installation guide); without optimization it takes
# a minute in place of five
SETTINGS = """\
CUDA_ROOT = {root!r}
CUDADRV_LIB_DIR = [{library!r}]
CUDA_ENABLE_CURAND = False
CUDA_ENABLE_GL = False
CXXFLAGS = ["-O0", "-g0", "-w"]
"""


def real_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def pip(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def main() -> str:
    """Install it; returns why it could not be, or nothing."""
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
        print(f"PyCUDA is not installed, and the rehearsal of the GPU's loop is left out: {problem}")

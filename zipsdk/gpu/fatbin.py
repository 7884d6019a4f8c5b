"""Find the compiled CUDA kernels of this installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zipsdk.gpu
from zipsdk.errors import EngineError


def fatbin_path() -> Path:
    """Return the path of the compiled kernels.

    Raises:
        EngineError: zipsdk was built without nvcc.
    """
    # the whole __path__: an editable install keeps the files that CMake built in a separate folder
    for folder in zipsdk.gpu.__path__:
        path = Path(folder) / "zipsdk.fatbin"
        if path.is_file():
            return path
    raise EngineError(
        "the CUDA kernels are not in this installation, because no nvcc was found when it was built; "
        "put nvcc on the PATH and, from the folder of zipsdk's source: pip install --force-reinstall --no-deps ."
    )


def build_info() -> dict[str, Any]:
    """Return the targets and the compiler of the kernels: {"nvcc": "13.0.88", "sass": [75, ...], "ptx": 75}."""
    return dict(json.loads(fatbin_path().with_name("_build.json").read_text()))

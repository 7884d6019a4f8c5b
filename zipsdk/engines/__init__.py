"""Load the engines that evaluate the UNet.

onnxruntime.py, onnx_session.py   ONNX Runtime on CPUs and GPUs; sessions that survive a fork
sharded_session.py                one batch shared among CPU threads
tensorrt/                         plans of TensorRT and TensorRT-RTX: build and run them
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import get_args

from zipsdk._util.validation import check_choice, is_path
from zipsdk.errors import InputError, ModelError
from zipsdk.models import list_models, resolve
from zipsdk.types import LoadedEngine, Precision

_log = logging.getLogger(__name__)


def load_engine(
    model: str | os.PathLike[str], *, device: str = "auto", threads: int = 0, precision: Precision | None = None
) -> LoadedEngine:
    """Load a model.

    A forked child may use the engine: on the CPU it opens the file again at the first evaluation; on a GPU it raises an
    EngineError, because CUDA does not survive a fork. Engines pickle as path and options.

    Args:
        model: the name of a bundled model (``"zip-tiny"``) or the path of an ``.onnx`` file or of a ``.plan`` that
            ``zipsdk build`` made.
        device: "auto", "cpu", or "cuda" / "cuda:N". "auto" takes the fastest that works; a named device that is not
            available is an error.
        threads: CPU threads; 0 for as many as the process's affinity and CPU quota allow.
        precision: "fp32", "fp16", "bf16" or "int8": opens the bundled variant of a bundled model (zip-tiny and "int8":
            zip-tiny-int8); another file must have it already. None takes the file's.

    Returns:
        An engine with `spec`, ``__call__(x_t float32 (N, 3, H, W), t (N,)) -> eps`` of x_t's shape and dtype, `path`,
        and `info` with the keys engine (runtime and version), providers and precision; threads with ONNX Runtime;
        batches with TensorRT; device, the GPU's name, where the whole loop can run on it.

    Raises:
        InputError: there is no such device, `threads` is not an integer from 0, or the model has another precision.
        ModelError: there is no such model, or it is damaged.
        EngineError: it cannot run on this machine.
        MissingDependencyError: its runtime is not installed, or is broken.
    """
    if not is_path(model):
        raise InputError(f"model: got {type(model).__name__}, expected a bundled model's name or a path")
    if not isinstance(device, str):
        raise InputError(f"device: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if precision is not None:
        check_choice("precision", precision, get_args(Precision))
    name = os.fspath(model)
    path = resolve(f"{name}-{precision}") or resolve(name) or Path(model)
    if not path.exists():
        raise ModelError(
            f"model: got {name!r}, which is neither a file nor one of {', '.join(list_models())}; check the path"
        )
    engine = _open(path, device, threads)
    if precision not in (None, engine.spec.precision):
        raise InputError(
            f"precision: got {precision!r} for {name}, which is {engine.spec.precision}; leave precision out, or pass "
            "a model of that precision: zipsdk models lists the bundled ones, zipsdk export --precision makes others"
        )
    _log.info("opened %s as %r", path, engine)
    return engine


def _open(path: Path, device: str, threads: int) -> LoadedEngine:
    if path.is_dir():
        raise ModelError(f"{path}: got a folder, expected an .onnx or .plan file")
    if path.suffix == ".plan":
        from zipsdk.engines.tensorrt.engine import TensorRTEngine

        return TensorRTEngine(path, device=device)
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: got a {path.suffix or 'suffix-less'} file, expected .onnx or .plan")
    from zipsdk.engines.onnxruntime import open_onnx

    return open_onnx(path, device=device, threads=threads)

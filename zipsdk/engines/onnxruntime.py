"""Run ONNX models with ONNX Runtime: on CPUs, and on GPUs without TensorRT."""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from zipsdk._util import forks
from zipsdk._util.cpus import usable_cpus
from zipsdk._util.runtimes import load
from zipsdk._util.validation import MAX_THREADS, is_int
from zipsdk.engines.onnx_session import OnnxSession, check_graph, short
from zipsdk.engines.sharded_session import ShardedSession
from zipsdk.errors import EngineError, InputError, MissingDependencyError, ModelError, OutOfMemoryError, ZipSdkError
from zipsdk.gpu.device import Device, open_device
from zipsdk.models import resolve
from zipsdk.models.spec import ModelSpec
from zipsdk.types import F32

#: Bindings that are kept, one for each set of addresses: about ten image sizes with 20 steps each.
MAX_BINDINGS = 256
_log = logging.getLogger(__name__)


class OnnxEngine:
    """An ONNX model with a zipsdk spec, run by ONNX Runtime.

    Args:
        path: the ``.onnx`` file; external data beside it is found.
        device: "cpu", "cuda" or "cuda:N". "auto" means "cpu"; `open_onnx` looks for a GPU first.
        threads: CPU threads, 0 for as many as affinity and CPU quota allow. They share the layers of large images, and
            the images of a batch of small ones.

    Attributes:
        device: the GPU that the whole loop can run on; None where it cannot, and then `cpu_loop_reason` holds the
            reason.

    Raises:
        ModelError: the file is damaged, has no spec, or disagrees with it.
        EngineError: the device is not available, or ONNX Runtime refuses the graph.
        MissingDependencyError: onnxruntime is not installed.
    """

    #: False: ONNX Runtime allocates and synchronizes, which a graph capture forbids
    capturable = False
    max_batch: int | None = None

    def __init__(self, path: str | Path, *, device: str = "auto", threads: int = 0):
        ort = load("onnxruntime")
        self.path = Path(path)
        self.device: Device | None = None
        self.cpu_loop_reason = "the engine runs on the CPU"
        ordinal = _parse_device(device, ort.get_available_providers())
        self.threads = _count_threads(threads)
        name = "cpu"
        providers: list[Any] = []
        if ordinal is not None:
            name = f"cuda:{ordinal}"
            self.device, self.cpu_loop_reason = _open_loop_device(ordinal)
            providers = [("CUDAExecutionProvider", self._cuda_options(ordinal))]
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()  # CUDA's libraries may be in Python packages, where no loader looks
        providers.append("CPUExecutionProvider")
        with self._stream_lock():
            self._session = OnnxSession(ort, self.path, self.threads, providers, name)
        open_single = partial(OnnxSession, ort, self._session.file, 1, providers[-1:])
        self._sharded = ShardedSession(self._session, open_single, self.threads)
        self.providers: list[str] = self._session.get().get_providers()
        self._check_provider(ordinal)
        self.spec = self._session.spec
        check_graph(self._session.get(), self.spec, self.path)
        self.runtime = f"onnxruntime {ort.__version__}"
        self._memory = ("cpu", 0) if ordinal is None else ("cuda", ordinal)
        self._bindings: dict[tuple[int, ...], Any] = {}
        self._run_options = ort.RunOptions()
        # the loop continues on the stream, so no wait at the end of each evaluation
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._arguments = (str(self.path.absolute()), name, int(threads))
        forks.track(self)

    def after_fork(self) -> None:
        """Drop the inherited bindings; see `zipsdk._util.forks.Forkable`."""
        forks.keep_forever(self._bindings, self._run_options)
        self._bindings = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the file's path and the options; the receiving process opens the file."""
        return _reopen, (*self._arguments, self.spec)

    def __repr__(self) -> str:
        _, device, _ = self._arguments
        return f"<OnnxEngine {self.spec.name}: {self.spec.precision}, {device}, threads={self.threads}>"

    def _cuda_options(self, ordinal: int) -> dict[str, str]:
        options = {"device_id": str(ordinal)}
        if self.device is not None:
            options["user_compute_stream"] = str(self.device.compute.handle)
        return options

    def _check_provider(self, ordinal: int | None) -> None:
        expected = "CPUExecutionProvider" if ordinal is None else "CUDAExecutionProvider"
        if self.providers[0] != expected:
            raise EngineError(
                f"{self.path}: asked for {expected}, ONNX Runtime fell back to {self.providers[0]}; "
                "its CUDA libraries are missing or too old: see zipsdk doctor, or pass device='cpu'"
            )
        if ordinal is not None and self.device is None:
            _log.warning(
                "%s: the UNet runs on the GPU and the loop around it on the CPU, which is slower: %s",
                self.path,
                self.cpu_loop_reason,
            )

    def _stream_lock(self) -> AbstractContextManager[Any]:
        """Return the lock of the GPU's streams, if there is a GPU."""
        return nullcontext() if self.device is None else self.device.lock

    @property
    def info(self) -> dict[str, Any]:
        """What runs the model: see `zipsdk.load_engine`."""
        return {
            "engine": self.runtime,
            "providers": self.providers,
            "precision": self.spec.precision,
            "threads": self.threads,
            **({"device": self.device.name} if self.device else {}),
        }

    def __call__(self, x: F32, t: F32) -> F32:
        """Predict eps for x float32 (N, 3, H, W) and t float32 (N,).

        Raises:
            EngineError: ONNX Runtime failed; OutOfMemoryError where it could not allocate.
        """
        try:
            if self._memory[0] == "cpu":
                return self._sharded.run(x, t)
            with self._stream_lock():
                return self._session.run(x, t)
        except ZipSdkError:
            raise
        except Exception as e:
            raise _wrap(self.path, x.shape, e) from e

    # ---- used by `zipsdk.gpu.loop.DeviceLoop`

    def prepare(self, batch: int, height: int, width: int) -> None:
        """Do nothing: ONNX Runtime allocates at the first evaluation of a shape."""

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """Evaluate the model on device memory; see `zipsdk.gpu.protocols.DeviceEngine.enqueue`."""
        if self.device is not None and stream != self.device.compute.handle:
            raise EngineError(
                f"stream: got {stream:#x}, expected the stream that the session was opened with, "
                f"{self.device.compute.handle:#x} (engine.device.compute)"
            )
        session = self._session.get()
        height, width = size or (self.spec.image_size, self.spec.image_size)
        key = (x, t, eps, batch, height, width)
        if key not in self._bindings:
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            binding, shape = session.io_binding(), (batch, 3, height, width)
            binding.bind_input(self.spec.input_x, *self._memory, np.float32, shape, x)
            binding.bind_input(self.spec.input_t, *self._memory, np.float32, (batch,), t)
            binding.bind_output(self.spec.output, *self._memory, np.float32, shape, eps)
            self._bindings[key] = binding
        try:
            session.run_with_iobinding(self._bindings[key], self._run_options)
        except Exception as e:
            raise _wrap(self.path, (batch, 3, height, width), e) from e


def open_onnx(path: Path, *, device: str = "auto", threads: int = 0) -> OnnxEngine:
    """Open an `OnnxEngine`; "auto" takes the GPU if ONNX Runtime can use it, else the CPU, and logs that."""
    if device == "auto":
        ort = load("onnxruntime")
        if "CUDAExecutionProvider" in ort.get_available_providers():
            try:
                return OnnxEngine(path, device="cuda", threads=threads)
            except EngineError as e:
                _log.warning("%s: running on the CPU, because the GPU cannot be used: %s", path, e)
    return OnnxEngine(path, device="cpu" if device == "auto" else device, threads=threads)


def _reopen(path: str, device: str, threads: int, spec: ModelSpec) -> OnnxEngine:
    """Open a pickled engine's file in this process. Raises as `OnnxEngine`, and ModelError where the file changed."""
    file = Path(path)
    # zipsdk may be installed elsewhere in this process
    engine = OnnxEngine((not file.exists() and resolve(file.stem)) or file, device=device, threads=threads)
    if engine.spec != spec:
        raise ModelError(f"{path}: got another model than the pickled engine had, expected {spec.name}; copy that file")
    return engine


def _parse_device(device: str, available: list[str]) -> int | None:
    """Return the number of the requested GPU, None for the CPU.

    Raises:
        InputError: there is no such device name.
        EngineError: this onnxruntime has no CUDA.
    """
    cuda = re.fullmatch(r"cuda(?::(\d+))?", str(device))  # str: 0 and None get this message too
    if not cuda and str(device) not in ("auto", "cpu"):
        raise InputError(f"device: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if cuda and "CUDAExecutionProvider" not in available:
        raise EngineError(
            f"device {device!r}: this onnxruntime has {available}; pip uninstall onnxruntime, "
            "then pip install 'zipsdk[gpu]'"
        )
    return int(cuda[1] or 0) if cuda else None


def _count_threads(threads: int) -> int:
    if not is_int(threads) or not 0 <= threads <= MAX_THREADS:
        raise InputError(f"threads: got {threads!r}, expected an integer: 0 for all cores, or up to {MAX_THREADS}")
    return int(threads) or usable_cpus()


def _open_loop_device(ordinal: int) -> tuple[Device | None, str]:
    """Open the GPU for the whole loop; return (device, "") or (None, the reason)."""
    try:
        return open_device(ordinal), ""
    except (EngineError, MissingDependencyError) as e:
        return None, str(e)


def _wrap(path: Path, shape: tuple[int, ...], e: Exception) -> EngineError:
    text = str(e).lower()
    kind = OutOfMemoryError if "failed to allocate memory" in text or "out of memory" in text else EngineError
    return kind(f"{path}: the evaluation of {shape} failed ({short(e)})")

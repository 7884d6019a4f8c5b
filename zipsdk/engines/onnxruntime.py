"""ONNX Runtime: the engine for CPUs, and for GPUs without TensorRT."""

from __future__ import annotations

import itertools
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk._util import forks
from zipsdk._util.cpus import usable_cpus
from zipsdk._util.runtimes import load
from zipsdk._util.validation import MAX_THREADS, is_whole
from zipsdk.engines.sessions import Session, short
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError, OutOfMemory, ZipError
from zipsdk.gpu.device import Device, open_device
from zipsdk.models import resolve
from zipsdk.models.spec import METADATA_KEY, ModelSpec

F32 = npt.NDArray[np.float32]

#: Pixels of one evaluation on one core of a CPU. What zip-tiny works on then fits a core's cache; with half of it the
#: fixed cost of an evaluation begins to show.
PIXELS_A_CORE = 8 * 32 * 32


class OnnxEngine:
    """An ONNX model with a zipsdk spec, run by ONNX Runtime.

    Args:
        path: the ``.onnx`` file; external data beside it is found.
        device: "cpu" (which "auto" means here; `open_onnx` looks for a GPU first), "cuda" or "cuda:N".
        threads: CPU threads, 0 for as many as affinity and CPU quota allow. One image is shared out among them layer by
            layer; of many small ones each thread takes some for itself, and none waits for another.

    Raises:
        ModelError: the file is damaged, has no spec, or disagrees with it.
        EngineError: the device cannot be had, or ONNX Runtime refuses the graph.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", threads: int = 0):
        ort = load("onnxruntime")
        self.path = Path(path)
        self._ort = ort
        #: the GPU that the loop can run on, too; None where it cannot, and then `cpu_loop_reason` says why
        self.device: Device | None = None
        self.cpu_loop_reason = "the engine runs on the CPU"
        ordinal = _ordinal(device, ort.get_available_providers())
        wanted: list[Any] = ["CPUExecutionProvider"]
        if ordinal is not None:
            options_cuda = {"device_id": str(ordinal)}
            try:
                self.device = open_device(ordinal)
                self.cpu_loop_reason = ""
                options_cuda["user_compute_stream"] = str(self.device.compute.handle)
            except (EngineError, MissingExtra) as e:
                self.cpu_loop_reason = str(e)
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()  # CUDA's libraries may lie in Python packages, where no loader looks
            wanted = [("CUDAExecutionProvider", options_cuda), "CPUExecutionProvider"]

        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal: errors come as exceptions as well, and standard error is the user's
        if not is_whole(threads) or not 0 <= threads <= MAX_THREADS:
            raise InputError(
                f"threads: got {threads!r}, wanted a whole number: 0 for all cores, or up to {MAX_THREADS}"
            )
        # An explicit number: left to itself, ONNX Runtime binds each thread to a core, counts cores that this process
        # may not use, and a core that something else keeps busy then holds up all the others.
        self.threads = int(threads) or usable_cpus()
        options.intra_op_num_threads = self.threads
        self._options = options
        self._lock = threading.Lock()
        self._shared: tuple[ThreadPoolExecutor, Session] | None = None
        name = "cpu" if ordinal is None else f"cuda:{ordinal}"
        with self._streams():
            self._session = Session(ort, self.path, options, wanted, name)
        session = self._session.get()
        self.providers: list[str] = session.get_providers()
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if self.providers[0] != first:
            raise EngineError(
                f"{self.path}: asked for {first}, ONNX Runtime fell back to {self.providers[0]}; "
                "its CUDA libraries are missing or too old: see zipsdk doctor, or pass device='cpu'"
            )
        if ordinal is not None and self.device is None:
            warnings.warn(
                f"the UNet runs on the GPU and the loop around it on the host, which is slower: {self.cpu_loop_reason}",
                stacklevel=3,
            )
        metadata = session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"{self.path}: got an ONNX model without a zipsdk spec; export the checkpoint with python -m export"
            )
        self.spec = ModelSpec.from_json(metadata[METADATA_KEY], str(self.path))
        self._check_graph()
        self.runtime = f"onnxruntime {ort.__version__}"
        self._memory = ("cpu", 0) if ordinal is None else ("cuda", ordinal)
        self._bindings: dict[tuple[int, ...], Any] = {}
        self._run_options = ort.RunOptions()
        # it must not wait for the stream at the end of each evaluation: the loop goes on there
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._arguments = (str(self.path.absolute()), name, int(threads))
        self._pid = os.getpid()
        forks.track(self)

    def after_fork(self) -> None:
        """Drop what a forked child cannot use: locks, bindings, and threads that only the parent has."""
        forks.keep_forever(self._bindings, self._shared, self._run_options)
        self._bindings, self._shared = {}, None
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the file's path and the options: the receiving process opens the file itself."""
        return _opened_again, (*self._arguments, self.spec)

    def _streams(self) -> AbstractContextManager[Any]:
        """Held while it works on the streams of its GPU, if it has one."""
        return nullcontext() if self.device is None else self.device.lock

    def _check_graph(self) -> None:
        spec = self.spec
        session = self._session.get()
        inputs = {i.name: i for i in session.get_inputs()}
        outputs = {o.name: o for o in session.get_outputs()}
        got = {**inputs, **outputs}
        for name, rank in ((spec.input_x, 4), (spec.input_t, 1), (spec.output, 4)):
            if name not in got:
                raise ModelError(f"{self.path}: got tensors {sorted(got)}, wanted {name!r}; export the model again")
            tensor = got[name]
            if tensor.type != "tensor(float)" or len(tensor.shape) != rank:
                raise ModelError(
                    f"{self.path}: {name}: got {tensor.type} {tensor.shape}, wanted float32 of rank {rank}; "
                    "export it again"
                )
        for name in (spec.input_x, spec.output):
            shape = got[name].shape
            fixed = [spec.channels, spec.canvas, spec.canvas]
            bad = shape[1] != spec.channels if spec.flexible else shape[1:] != fixed
            if bad or (spec.flexible and any(isinstance(n, int) for n in shape[2:])):
                want = "[N, 3, H, W] with free sides" if spec.flexible else f"[N, {fixed[0]}, {fixed[1]}, {fixed[2]}]"
                raise ModelError(f"{self.path}: {name}: got shape {shape}, wanted {want}; export the model again")

    @property
    def info(self) -> dict[str, Any]:
        return {
            "engine": self.runtime,
            "providers": self.providers,
            "precision": self.spec.precision,
            "threads": self.threads,
            **({"device": self.device.name} if self.device else {}),
        }

    # ---- what `zipsdk.gpu.loop.DeviceLoop` uses

    #: ONNX Runtime allocates and waits in its own ways, which a capture refuses; it runs on the loop's stream instead
    capturable = False
    max_batch: int | None = None

    def prepare(self, batch: int, height: int, width: int) -> None:
        """Nothing: the arena grows at the first evaluation of a shape."""

    def enqueue(
        self, x: int, t: int, eps: int, batch: int, stream: int, *, size: tuple[int, int] | None = None
    ) -> None:
        """One evaluation on the device's memory; see `zipsdk.gpu.protocols.DeviceEngine`."""
        if self.device is not None and stream != self.device.compute.handle:
            raise EngineError(
                f"stream: got {stream:#x}, wanted the one that the session was opened with, "
                f"{self.device.compute.handle:#x} (engine.device.compute)"
            )
        session = self._session.get()
        height, width = size or (self.spec.canvas, self.spec.canvas)
        key = (x, t, eps, batch, height, width)
        if key not in self._bindings:
            if len(self._bindings) >= 256:  # about ten sizes of pictures, 20 steps each
                self._bindings.clear()
            binding, shape = session.io_binding(), (batch, 3, height, width)
            binding.bind_input(self.spec.input_x, *self._memory, np.float32, shape, x)
            binding.bind_input(self.spec.input_t, *self._memory, np.float32, (batch,), t)
            binding.bind_output(self.spec.output, *self._memory, np.float32, shape, eps)
            self._bindings[key] = binding
        try:
            session.run_with_iobinding(self._bindings[key], self._run_options)
        except Exception as e:
            raise _failed(self.path, (batch, 3, height, width), e) from e

    def __call__(self, x: F32, t: F32) -> F32:
        try:
            parts = _parts(len(x), x.shape[2] * x.shape[3], self.threads) if self._memory[0] == "cpu" else []
            if len(parts) < 2:
                with self._streams():
                    return self._run(self._session.get(), x, t)
            if self.threads == 1:
                session = self._session.get()
                return np.concatenate([self._run(session, x[part], t[part]) for part in parts])
            pool, session = self._each_thread_its_own()
            return np.concatenate(list(pool.map(lambda part: self._run(session, x[part], t[part]), parts)))
        except ZipError:
            raise
        except Exception as e:
            raise _failed(self.path, x.shape, e) from e

    def _run(self, session: Any, x: F32, t: F32) -> F32:
        (eps,) = session.run([self.spec.output], {self.spec.input_x: x, self.spec.input_t: t})
        return eps  # type: ignore[no-any-return]

    def _each_thread_its_own(self) -> tuple[ThreadPoolExecutor, Any]:
        """Threads, and a session in which each evaluation stays on the thread that asks: the weights a second time."""
        if self._pid != os.getpid():  # forked by C code that calls no hooks
            self.after_fork()
        with self._lock:
            if self._shared is None:
                self._options.intra_op_num_threads = 1
                session = Session(self._ort, self._session.file, self._options, ["CPUExecutionProvider"])
                self._shared = ThreadPoolExecutor(self.threads, "zipsdk-onnx"), session
            pool, session = self._shared
            return pool, session.get()


def _parts(n: int, pixels: int, threads: int) -> list[slice]:
    """How to share out n pictures of so many pixels: as many parts to each thread, of PIXELS_A_CORE at most.

    Empty where one evaluation by all threads is better: of few pictures, or of large ones, whose layers give all
    threads enough to do.
    """
    most = PIXELS_A_CORE // pixels if pixels else 0
    rounds = -(-n // threads)
    if not n or not most or threads * rounds > 1.25 * n:  # beyond that, a fifth of the threads' time would go to waste
        return []
    parts = threads * -(-rounds // most)
    edges = [n * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]


def _failed(path: Path, shape: tuple[int, ...], e: Exception) -> EngineError:
    text = str(e).lower()
    kind = OutOfMemory if "failed to allocate memory" in text or "out of memory" in text else EngineError
    return kind(f"{path}: the evaluation of {shape} failed ({short(e)})")


def _ordinal(device: str, available: list[str]) -> int | None:
    """The GPU that is asked for, None for the CPU."""
    cuda = re.fullmatch(r"cuda(?::(\d+))?", str(device))  # 0 and None get the message below, too
    if not cuda and str(device) not in ("auto", "cpu"):
        raise InputError(f"device: got {device!r}, wanted 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if cuda and "CUDAExecutionProvider" not in available:
        raise EngineError(
            f"device {device!r}: this onnxruntime has {available}; pip uninstall onnxruntime, "
            "then pip install 'zipsdk[gpu]'"
        )
    return int(cuda[1] or 0) if cuda else None


def _opened_again(path: str, device: str, threads: int, spec: ModelSpec) -> OnnxEngine:
    """Open a pickled engine's file in this process. Raises as `OnnxEngine`, and ModelError where the file changed."""
    file = Path(path)
    # zipsdk may lie elsewhere in the other process
    engine = OnnxEngine((not file.exists() and resolve(file.stem)) or file, device=device, threads=threads)
    if engine.spec != spec:
        raise ModelError(f"{path}: got another model than the pickled engine had, expected {spec.name}; copy that file")
    return engine


def open_onnx(path: Path, *, device: str = "auto", threads: int = 0) -> OnnxEngine:
    """`OnnxEngine`; "auto" takes the GPU if ONNX Runtime has CUDA and it works, else the CPU, with a warning."""
    if device == "auto":
        ort = load("onnxruntime")
        if "CUDAExecutionProvider" in ort.get_available_providers():
            try:
                return OnnxEngine(path, device="cuda", threads=threads)
            except EngineError as e:
                warnings.warn(f"running on the CPU, because the GPU cannot be used: {e}", stacklevel=3)
    return OnnxEngine(path, device="cpu" if device == "auto" else device, threads=threads)

"""ONNX Runtime: the engine for CPUs, and for GPUs without TensorRT."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError
from zipsdk.files import check_sidecar
from zipsdk.spec import METADATA_KEY, ModelSpec

F32 = npt.NDArray[np.float32]


class OnnxEngine:
    """An ONNX model with a zipsdk spec, run by ONNX Runtime.

    Args:
        path: the ``.onnx`` file; external data beside it is found.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one evaluation, 0 for all cores.

    Raises:
        ModelError: the file is damaged, has no spec, or disagrees with it.
        EngineError: the device cannot be had, or ONNX Runtime refuses the graph.
        MissingExtra: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", threads: int = 0):
        try:
            import onnxruntime as ort
        except (ImportError, OSError) as e:
            raise MissingExtra("onnxruntime", "cpu", str(e)) from e
        self.path = Path(path)
        wanted = _providers(device, ort.get_available_providers())
        check_sidecar(self.path)

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors come as exceptions; warnings about our own graphs help nobody
        if threads < 0:
            raise InputError(f"threads: got {threads}, wanted 0 (all cores) or more")
        # An explicit number: left to itself, ONNX Runtime binds each thread to a core, counts cores that this process
        # may not use, and a core that something else keeps busy then holds up all the others.
        self.threads = threads or _cores()
        options.intra_op_num_threads = self.threads
        try:
            # no automatic retry on another provider: what runs must be what was asked for
            self._session = ort.InferenceSession(str(self.path), options, providers=wanted, enable_fallback=0)
        except Exception as e:  # onnxruntime's own classes all derive from Exception alone
            kind = type(e).__name__
            damaged = kind == "InvalidArgument" and "Load model" in str(e)
            if damaged or kind in ("InvalidProtobuf", "NoSuchFile", "InvalidGraph"):
                raise ModelError(
                    f"{self.path}: not a readable ONNX model ({_short(e)}); copy or export it again"
                ) from e
            raise EngineError(f"{self.path}: ONNX Runtime cannot run it on {device} ({_short(e)})") from e
        self.providers: list[str] = self._session.get_providers()
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if self.providers[0] != first:
            raise EngineError(
                f"{self.path}: asked for {first}, ONNX Runtime fell back to {self.providers[0]}; "
                "its CUDA libraries are missing or too old: see zipsdk doctor, or pass device='cpu'"
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"{self.path}: got an ONNX model without a zipsdk spec; export the checkpoint with python -m export"
            )
        self.spec = ModelSpec.from_json(metadata[METADATA_KEY], str(self.path))
        self._check_graph()
        self.runtime = f"onnxruntime {ort.__version__}"

    def _check_graph(self) -> None:
        spec = self.spec
        inputs = {i.name: i for i in self._session.get_inputs()}
        outputs = {o.name: o for o in self._session.get_outputs()}
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
        }

    def __call__(self, x: F32, t: F32) -> F32:
        spec = self.spec
        try:
            (eps,) = self._session.run([spec.output], {spec.input_x: x, spec.input_t: t})
        except Exception as e:
            raise EngineError(f"{self.path}: the evaluation of {x.shape} failed ({_short(e)})") from e
        return eps  # type: ignore[no-any-return]


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short(e: Exception) -> str:
    """The first line of a runtime's message: the rest is its call stack."""
    return str(e).strip().split("\n")[0][:300]


def _providers(device: str, available: list[str]) -> list[Any]:
    """ONNX Runtime's provider list for a device; the first one must really run."""
    cuda = re.fullmatch(r"cuda(?::(\d+))?", device)
    if device not in ("auto", "cpu") and not cuda:
        raise InputError(f"device: got {device!r}, wanted 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if cuda and "CUDAExecutionProvider" not in available:
        raise EngineError(
            f"device {device!r}: this onnxruntime has {available}; pip uninstall onnxruntime, "
            "then pip install 'zipsdk[gpu]'"
        )
    if cuda:
        return [("CUDAExecutionProvider", {"device_id": int(cuda[1] or 0)}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]

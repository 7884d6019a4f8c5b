"""Open ONNX Runtime sessions that survive a fork and raise the SDK's own errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zipsdk._util import forks
from zipsdk.errors import EngineError, ModelError
from zipsdk.models.sidecar import check_sidecar
from zipsdk.models.spec import METADATA_KEY, ModelSpec
from zipsdk.types import F32


class OnnxSession:
    """A session of one ONNX file. A forked child opens the file again at its first use.

    The child never uses the inherited session: its threads do not exist in the child, and its destructor would wait
    for them forever.

    Args:
        ort: the module onnxruntime.
        path: the ``.onnx`` file, as messages name it.
        threads: CPU threads of one evaluation.
        providers: as `onnxruntime.InferenceSession` takes them; a CUDA provider cannot be used after a fork.
        device: as the user named it, for messages.

    Attributes:
        file: the absolute path, valid after a change of the working directory.
        spec: the model's spec.

    Raises:
        ModelError: the file is damaged, has no spec, or its tensors disagree with it.
        EngineError: ONNX Runtime refuses the graph.
    """

    def __init__(self, ort: Any, path: Path, threads: int, providers: Sequence[Any], device: str = "cpu"):
        self._ort, self.path, self._threads, self._device = ort, path, threads, device
        self._providers = list(providers)
        self.file = path.absolute()
        self._lock = threading.Lock()
        self._identity: tuple[dict[str, str], object] | None = None
        self._session: Any = None
        self._pid = os.getpid()
        self._session = self._open()
        self.spec = read_spec(self._session, path)
        forks.track(self)

    def get(self) -> Any:
        """Return the `onnxruntime.InferenceSession` of this process.

        Raises:
            ModelError: in a forked child, the file is missing, damaged or was replaced.
            EngineError: in a forked child, the session was on a GPU.
        """
        if self._pid != os.getpid():  # forked by C code, which calls no hooks
            self.after_fork()
        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = self._reopen()
        return self._session

    def run(self, x: F32, t: F32) -> F32:
        """Evaluate the model on arrays. Raises as `get`, and ONNX Runtime's own exceptions."""
        (eps,) = self.get().run([self.spec.output], {self.spec.input_x: x, self.spec.input_t: t})
        return eps  # type: ignore[no-any-return]

    def after_fork(self) -> None:
        """Drop the inherited session; see `zipsdk._util.forks.Forkable`."""
        forks.keep_forever(self._session)
        self._session, self._pid, self._lock = None, os.getpid(), threading.Lock()

    def _reopen(self) -> Any:
        if self._device != "cpu":
            raise EngineError(
                f"{self.path}: got a process forked after the model was opened on {self._device}, expected one process "
                "for CUDA's whole life; start it by spawn or forkserver and open the model in it, or use device='cpu'"
            )
        if not self.file.is_file():
            raise ModelError(
                f"{self.path}: got no such file in a forked process, which opens the model again; keep the file, or "
                "open the model after the fork"
            )
        return self._open()

    def _open(self) -> Any:
        record = check_sidecar(self.file)
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # fatal only: errors are raised as well
        # An explicit number: by default ONNX Runtime pins each thread to a core and counts cores that this process may
        # not use, and a core that is busy otherwise delays all threads.
        options.intra_op_num_threads = self._threads
        try:
            with forks.opening():
                # no fallback: only the requested provider may run
                session = self._ort.InferenceSession(
                    str(self.file), options, providers=self._providers, enable_fallback=0
                )
        except Exception as e:  # onnxruntime's own classes derive from Exception alone
            kind = type(e).__name__
            # the second: an empty file, before ONNX Runtime 1.32
            damaged = (kind == "InvalidArgument" and "Load model" in str(e)) or "does not have a graph" in str(e)
            if damaged or kind in ("InvalidProtobuf", "NoSuchFile", "InvalidGraph"):
                raise ModelError(f"{self.path}: not a readable ONNX model ({short(e)}); copy or export it again") from e
            raise EngineError(f"{self.path}: ONNX Runtime cannot run it on {self._device} ({short(e)})") from e
        try:
            metadata = dict(session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as e:
            raise ModelError(f"{self.path}: got metadata that is not UTF-8; copy or export the model again") from e
        identity = metadata, record and record["files"]
        if self._identity not in (None, identity):
            raise ModelError(
                f"{self.path}: got another model than the one opened before the fork, expected the same file; "
                "open the model after the fork"
            )
        self._identity = identity
        return session


def read_spec(session: Any, path: Path) -> ModelSpec:
    """Read the spec of an `onnxruntime.InferenceSession`.

    Raises:
        ModelError: there is no valid spec.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path}: got an ONNX model without a zipsdk spec; export the checkpoint with zipsdk export")
    return ModelSpec.from_json(metadata[METADATA_KEY], str(path))


def check_graph(session: Any, spec: ModelSpec, path: Path) -> None:
    """Compare names, types and shapes of an `onnxruntime.InferenceSession`'s tensors with the spec.

    Raises:
        ModelError: they differ.
    """
    tensors = {tensor.name: tensor for tensor in (*session.get_inputs(), *session.get_outputs())}
    for name, rank in ((spec.input_x, 4), (spec.input_t, 1), (spec.output, 4)):
        if name not in tensors:
            raise ModelError(f"{path}: got tensors {sorted(tensors)}, expected {name!r}; export the model again")
        tensor = tensors[name]
        if tensor.type != "tensor(float)" or len(tensor.shape) != rank:
            raise ModelError(
                f"{path}: {name}: got {tensor.type} {tensor.shape}, expected float32 of rank {rank}; export it again"
            )
    for name in (spec.input_x, spec.output):
        shape = tensors[name].shape
        fixed = [spec.channels, spec.image_size, spec.image_size]
        bad = shape[1] != spec.channels if spec.flexible else shape[1:] != fixed
        if bad or (spec.flexible and any(isinstance(n, int) for n in shape[2:])):
            expected = "[N, 3, H, W] with free sides" if spec.flexible else f"[N, {fixed[0]}, {fixed[1]}, {fixed[2]}]"
            raise ModelError(f"{path}: {name}: got shape {shape}, expected {expected}; export the model again")


def short(e: Exception) -> str:
    """Return the first line of a runtime's message; the rest is its call stack."""
    return str(e).strip().split("\n")[0][:300]

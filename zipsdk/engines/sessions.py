"""ONNX Runtime sessions that survive a fork, and whose failures are the SDK's own errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zipsdk._util import forks
from zipsdk.errors import EngineError, ModelError
from zipsdk.models.sidecar import check_sidecar


class Session:
    """A session of one file. A forked child opens the file again at its first use.

    The child never touches the session that it inherits: the session's threads do not exist there, and its destructor
    would wait for them without end.

    Args:
        ort: the module onnxruntime.
        path: the ``.onnx`` file; named so in messages. `file` is its absolute path, good after a change of directory.
        options: `onnxruntime.SessionOptions`; may be changed after this.
        providers: as `onnxruntime.InferenceSession` takes them; one of CUDA cannot be used after a fork.
        device: as the user named it, for messages.

    Raises:
        ModelError: the file is damaged.
        EngineError: ONNX Runtime refuses the graph.
    """

    def __init__(self, ort: Any, path: Path, options: Any, providers: Sequence[Any], device: str = "cpu"):
        self._ort, self.path, self._options, self._device = ort, path, options, device
        self._providers, self._threads = list(providers), int(options.intra_op_num_threads)
        self.file = path.absolute()
        self._lock = threading.Lock()
        self._identity: tuple[dict[str, str], object] | None = None
        self._session: Any = None
        self._pid = os.getpid()
        self._session = self._open()
        forks.track(self)

    def get(self) -> Any:
        """Return the `onnxruntime.InferenceSession` of this process.

        Raises:
            ModelError: in a forked child, the file is missing, damaged or another one by now.
            EngineError: in a forked child, the session was on a GPU.
        """
        if self._pid != os.getpid():  # forked by C code that calls no hooks
            self.after_fork()
        if self._session is None:
            with self._lock:
                if self._session is None:
                    self._session = self._reopen()
        return self._session

    def after_fork(self) -> None:
        """See `zipsdk._util.forks.Forkable`."""
        forks.keep_forever(self._session, self._options)
        self._session, self._pid, self._lock = None, os.getpid(), threading.Lock()

    def _reopen(self) -> Any:
        if self._device != "cpu":
            raise EngineError(
                f"{self.path}: got a process forked after the model was opened on {self._device}, expected one process "
                "for CUDA's whole life; start it by spawn or forkserver and open the model there, or use device='cpu'"
            )
        if not self.file.is_file():
            raise ModelError(
                f"{self.path}: got no such file in a forked process, which opens the model again; keep the file, or "
                "open the model after the fork"
            )
        return self._open()

    def _open(self) -> Any:
        record = check_sidecar(self.file)
        options = self._options
        try:
            with forks.opening():
                options.intra_op_num_threads = self._threads  # another session may share the options
                # no automatic retry on another provider: what runs must be what was asked for
                session = self._ort.InferenceSession(
                    str(self.file), options, providers=self._providers, enable_fallback=0
                )
        except Exception as e:  # onnxruntime's own classes all derive from Exception alone
            kind = type(e).__name__
            damaged = kind == "InvalidArgument" and "Load model" in str(e)
            if damaged or kind in ("InvalidProtobuf", "NoSuchFile", "InvalidGraph"):
                raise ModelError(f"{self.path}: not a readable ONNX model ({short(e)}); copy or export it again") from e
            raise EngineError(f"{self.path}: ONNX Runtime cannot run it on {self._device} ({short(e)})") from e
        try:
            metadata = dict(session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as e:
            raise ModelError(f"{self.path}: got metadata that is no UTF-8; copy or export the model again") from e
        identity = metadata, record and record["files"]
        if self._identity not in (None, identity):
            raise ModelError(
                f"{self.path}: got another model than the one opened before the fork, expected the same file; "
                "open the model after the fork"
            )
        self._identity = identity
        return session


def short(e: Exception) -> str:
    """Return the first line of a runtime's message: the rest is its call stack."""
    return str(e).strip().split("\n")[0][:300]

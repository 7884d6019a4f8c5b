"""Write and check sidecars, the JSON files beside model files.

The sidecar of ``model.onnx`` is ``model.onnx.json``, that of ``model.plan`` is ``model.plan.json``. It holds the size
and the SHA-256 of each file of the model, and records of the exporter or the builder. Checking it needs only the
standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ModelError

FORMAT = 1


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 lower-case hex digits. Raises OSError as `open` does."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """Return ``a/model.onnx.json`` for ``a/model.onnx``; the suffix stays, so that an ONNX file and a plan differ."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def model_hashes(path: str | os.PathLike[str]) -> Any:
    """Return an identity of a model: the sidecar's "files", or without a sidecar the file's SHA-256.

    The hashes are not checked against the files; `check_sidecar` does that when a model is loaded.
    """
    sidecar = sidecar_path(path)
    return json.loads(sidecar.read_bytes())["files"] if sidecar.exists() else sha256_file(path)


def write_sidecar(
    path: str | os.PathLike[str], extra: Mapping[str, Any], companions: Iterable[str | os.PathLike[str]] = ()
) -> Path:
    """Hash a model file and its companions, and write its sidecar atomically.

    Args:
        path: the model file.
        extra: further entries that JSON can hold; "format" and "files" are reserved.
        companions: further files of the model (external data), in the same folder.

    Returns:
        The sidecar's path.
    """
    path = Path(path)
    files = {}
    for file in (path, *map(Path, companions)):
        if file.parent != path.parent:
            raise ValueError(f"{file} is not in the folder of {path}")
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    if taken := {"format", "files"} & extra.keys():
        raise ValueError(f"extra: got the reserved keys {sorted(taken)}; rename them")
    sidecar = sidecar_path(path)
    text = json.dumps({"format": FORMAT, "files": files, **extra}, indent=1, sort_keys=True)
    write_atomically(sidecar, text.encode() + b"\n")
    return sidecar


def check_sidecar(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Check a model file and its companions against the sidecar.

    Returns:
        The sidecar's content, or None when there is no sidecar.

    Raises:
        ModelError: a file of the model is missing or differs from the sidecar, the sidecar cannot be read, or the model
            is not a regular file: reading a pipe could block forever.
    """
    path = Path(path)
    with suppress(OSError):  # the loader reports a missing model
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(
                f"{path}: got a folder, a pipe or a device, expected a model file; copy it to a file first"
            )
    sidecar = sidecar_path(path)
    try:
        text = sidecar.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ModelError(f"{sidecar}: cannot be read ({e.strerror}); copy the model and its files again") from e
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ModelError(f"{sidecar}: got format {record['format']!r}, expected {FORMAT}; export the model again")
        expected = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, ModelError):
            raise
        raise ModelError(f"{sidecar}: not the sidecar of a model ({e!r}); copy it again or export again") from e
    if path.name not in expected:
        raise ModelError(
            f"{sidecar}: got the files {sorted(expected)}, expected {path.name!r}; restore the model's name, "
            "or export again"
        )
    for name, (size, sha256) in expected.items():
        _check_file(path, name, size, sha256)
    return dict(record)


def _check_file(model: Path, name: str, size: int, sha256: str) -> None:
    if Path(name).name != name:  # a sidecar must not name files elsewhere
        raise ModelError(
            f"{sidecar_path(model)}: got the file name {name!r}, expected one without folders; export again"
        )
    file = model.with_name(name)
    advice = "copy or download it again, or export again"
    try:
        got_size = file.stat().st_size
        if got_size != size:  # before hashing: truncated copies are common, and hashing gigabytes takes seconds
            raise ModelError(f"{file}: got {got_size} bytes, expected {size}; {advice}")
        got = sha256_file(file)
    except OSError as e:
        raise ModelError(f"{file}: {model.name} needs it, and it cannot be read ({e.strerror}); {advice}") from e
    if got != sha256:
        raise ModelError(f"{file}: got SHA-256 {got}, expected {sha256}: the file was changed or damaged; {advice}")

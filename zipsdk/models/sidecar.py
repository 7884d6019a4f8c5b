"""Model files: their hashes, and the JSON file beside them.

Beside ``model.onnx`` lies ``model.onnx.json`` (beside ``model.plan``, ``model.plan.json``), the sidecar: the size and
the SHA-256 of each file that the model consists of, and whatever the exporter or the builder has to say. Checking it
takes the standard library alone.
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
    """SHA-256 of a file's bytes, as 64 lower-case hex digits. Raises OSError as `open` does."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """``a/model.onnx`` -> ``a/model.onnx.json``: the whole name, so that an ONNX file and a plan do not share one."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def model_hashes(path: str | os.PathLike[str]) -> Any:
    """What tells a model from every other: the sidecar's "files", or where there is none the file's SHA-256.

    The hashes are not checked against the files: `check_sidecar` does, with which loaders begin.
    """
    sidecar = sidecar_path(path)
    return json.loads(sidecar.read_bytes())["files"] if sidecar.exists() else sha256_file(path)


def write_sidecar(
    path: str | os.PathLike[str], extra: Mapping[str, Any], companions: Iterable[str | os.PathLike[str]] = ()
) -> Path:
    """Hash a finished model file and the files it needs beside it, and write its sidecar atomically.

    Args:
        path: the model file.
        extra: further JSON-able entries; "format" and "files" are taken.
        companions: other files of the model (external data), in the same folder.

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
        raise ValueError(f"a sidecar writes {sorted(taken)} itself")
    sidecar = sidecar_path(path)
    text = json.dumps({"format": FORMAT, "files": files, **extra}, indent=1, sort_keys=True)
    write_atomically(sidecar, text.encode() + b"\n")
    return sidecar


def check_sidecar(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Check a model file, and the files it needs, against its sidecar.

    Returns:
        What the sidecar says, or None when there is no sidecar.

    Raises:
        ModelError: the model or a file it needs is missing or is not the one that the sidecar was written for, or the
            sidecar cannot be read; or the model is no file, which would be waited for forever if it is a pipe.
    """
    path = Path(path)
    with suppress(OSError):  # a missing model is the loader's to tell
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
            raise ModelError(f"{sidecar}: got format {record['format']!r}, wanted {FORMAT}; export the model again")
        wanted = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, ModelError):
            raise
        raise ModelError(f"{sidecar}: is not a sidecar of a model ({e!r}); copy it again or export again") from e
    if path.name not in wanted:
        raise ModelError(
            f"{sidecar}: speaks of {sorted(wanted)}, wanted {path.name!r}; give the model its old name, or export again"
        )
    for name, (size, sha256) in wanted.items():
        _check_file(path, name, size, sha256)
    return dict(record)


def _check_file(model: Path, name: str, size: int, sha256: str) -> None:
    if Path(name).name != name:  # a sidecar must not make us read files elsewhere
        raise ModelError(f"{sidecar_path(model)}: got the file name {name!r}, wanted one without folders; export again")
    file = model.with_name(name)
    advice = "copy or download it again, or export again"
    try:
        got_size = file.stat().st_size
        if got_size != size:  # said first: a copy cut short is common, and hashing gigabytes takes seconds
            raise ModelError(f"{file}: got {got_size} bytes, wanted {size}; {advice}")
        got = sha256_file(file)
    except OSError as e:
        raise ModelError(f"{file}: {model.name} needs it, and it cannot be read ({e.strerror}); {advice}") from e
    if got != sha256:
        raise ModelError(f"{file}: got SHA-256 {got}, wanted {sha256}: the file was changed or damaged; {advice}")

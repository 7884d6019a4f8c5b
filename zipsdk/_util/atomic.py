"""Write files and create folders so that a crash or a power failure leaves them complete or absent."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

# folders that cannot be synced: on some network file systems, or without read access
_NO_SYNC = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EBADF}


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file; after a crash at any time, `path` has either its old content or all of `data`.

    Raises OSError where the file cannot be written.
    """
    path = Path(path)
    replace_file(path, data, path.with_name(f".{path.name}.{secrets.token_hex(4)}.part"))
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes | memoryview, temporary: Path) -> None:
    """Write `data` to `temporary`, a new file in the same folder, and rename it to `path`.

    After a power failure `path` may have its old content until `sync_folder` was called. Raises OSError where the file
    cannot be written; `temporary` is deleted then.
    """
    try:
        with temporary.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError, ValueError):  # keep the first error
            temporary.unlink(missing_ok=True)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Write a folder's names to disk, so that a rename into it survives a power failure.

    Does nothing on Windows and where the file system does not support it. Raises OSError as `os.fsync` does.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno not in _NO_SYNC:
            raise


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its missing parents, and write their names to disk.

    Raises OSError as `Path.mkdir` does.
    """
    path = Path(path)
    missing = []
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        missing.append(folder)
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)

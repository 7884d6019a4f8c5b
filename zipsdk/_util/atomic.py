"""Write files and make folders that a crash or a power failure leaves whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

# of folders that cannot be opened or synced by themselves: some network file systems, and folders without read access
_NO_SYNC = {errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.EBADF}


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` so that `path` holds either what it held before or all of it, whenever process or machine dies."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Put the names in a folder on disk, so that what was renamed into it survives a power failure.

    Nothing happens on Windows and where the file system cannot do it. Raises OSError as `os.fsync` does.
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
    """Make a folder and those above it where they are missing, and put their names on disk.

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

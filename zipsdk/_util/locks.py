"""Lock files and folders against other processes; the system releases a lock when its process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any

#: The byte that Windows locks: far beyond the end, because other processes cannot read a locked byte.
_LOCKED_BYTE = 1 << 30


def try_lock(file: FileIO) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    A file system without locks counts as locked.
    """
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):  # PermissionError on Windows
        return False
    except OSError:
        pass
    return True


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold it inside. No lock on Windows or on a file system without locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(file: FileIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        msvcrt: Any = import_module("msvcrt")  # mypy knows its members on Windows only
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

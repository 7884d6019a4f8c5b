"""Run ``zipsdk purify`` in processes that die at one of their system calls, for `kill`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

#: Names the variable with the number of the moment at which a process dies; with _COUNT added, a file for their count.
POINT = "ZIPSDK_TEST_KILL_AT"


def die_at(number: int) -> None:
    """End this process by SIGKILL at a system call of the run: each has three moments, `number` counts from 0.

    fsync: before it with half of the file, before it, after it. rename: before it, after it. A write to the manifest:
    before it, after half of it. With a negative number nothing dies, and ``ZIPSDK_TEST_KILL_AT`` + ``_COUNT`` names a
    file for the number of moments.
    """
    from zipsdk.batch import manifest

    seen = 0
    fsync, replace = os.fsync, os.replace

    def moment() -> bool:
        nonlocal seen
        seen += 1
        return seen - 1 == number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_fsync(fd: int) -> None:
        if moment():
            if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".tmp":
                os.ftruncate(fd, os.fstat(fd).st_size // 2)
            die()
        if moment():
            die()
        fsync(fd)
        if moment():
            die()

    def dying_replace(*args: Any, **options: Any) -> None:
        if moment():
            die()
        replace(*args, **options)
        if moment():
            die()

    class DyingFile(FileIO):
        def write(self, data: Any) -> int:
            if moment():
                die()
            if moment():
                super().write(bytes(data)[: len(data) // 2])
                die()
            return super().write(data)

    os.fsync, os.replace, manifest.FileIO = dying_fsync, dying_replace, DyingFile  # type: ignore[misc, assignment, attr-defined]
    if counts := os.environ.get(f"{POINT}_COUNT"):
        import atexit

        atexit.register(lambda: Path(counts).write_text(str(seen)))


class Process(Protocol):
    """What the harness needs of a process; `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def kill(self) -> None: ...


class Fork:
    """A run in a fork of this process."""

    def __init__(self, args: list[str], point: int | None, log: int):
        from zipsdk import cli

        self._code: int | None = None
        self._pid = os.fork()
        if self._pid:
            return
        code = 99
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["zipsdk", *args]
            if point is not None:
                die_at(point)
            code = cli.main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, the negative signal, or None."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float) -> int:
        """The exit code; raises TimeoutError after the seconds given."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        """Send SIGKILL to a process that `poll` has not seen ending."""
        os.kill(self._pid, signal.SIGKILL)


if __name__ == "__main__":
    from zipsdk.cli import main

    die_at(int(os.environ[POINT]))
    sys.exit(main())

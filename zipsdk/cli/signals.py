"""Handle the signals that end a run: SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds that the current batch may take after a signal; Docker and systemd wait longer before they kill.
GRACE = 8.0


class Stopped(BaseException):
    """The process received SIGTERM or SIGHUP; `signum` is its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """The signal that ended the work, recorded by `stop_signals`; `signum` is None without one."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def code(self) -> int:
        """Return the exit code: 128 plus the number of the signal, of SIGINT where none was recorded."""
        return 128 + (self.signum or signal.SIGINT)


@contextmanager
def stop_signals(exit_process: bool) -> Iterator[Signals]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does: raise Stopped in the main thread.

    Handlers that are not Python's default, those of ``nohup`` included, stay in place. At the end all handlers are
    restored.

    Args:
        exit_process: end the process at once on a second Ctrl-C, GRACE seconds after a first signal (native code delays
            the exception), and on a signal after the end of the work. A killed run loses nothing, so there is no need
            to wait for the current batch.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield signals
        return
    before: dict[int, Any] = {}

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        signals.signum = signum
        raise Stopped(signum)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if exit_process and signals.signum is not None:
            os._exit(130)
        signals.signum = signum
        raise KeyboardInterrupt

    ends = [(getattr(signal, name, None), signal.SIG_DFL, stop) for name in ("SIGTERM", "SIGHUP")]  # Windows: no SIGHUP
    try:
        for number, expected, handler in [*ends, (signal.SIGINT, signal.default_int_handler, interrupt)]:
            if number is not None and signal.getsignal(number) is expected:
                before[number] = signal.signal(number, handler)
        if exit_process:
            _watch_signals(set(before))
        yield signals
    finally:
        for number, handler in before.items():
            # the default action, because a Python handler prints a traceback while the interpreter ends
            signal.signal(number, signal.SIG_DFL if exit_process else handler)


def _watch_signals(numbers: set[int]) -> None:
    """Start a thread that ends the process if the main thread does not: see `stop_signals`."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        seen: list[int] = []
        while True:
            seen += (n for n in os.read(read, 16) if n in numbers)
            if seen.count(signal.SIGINT) > 1:
                os._exit(130)
            if len(seen) == 1:
                timer = threading.Timer(GRACE, os._exit, [128 + seen[0]])
                timer.daemon = True
                timer.start()

    threading.Thread(target=watch, name="zipsdk-signals", daemon=True).start()

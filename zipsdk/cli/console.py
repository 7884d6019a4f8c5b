"""What the command line says: messages that fit any stream, encoding and file name, and signals that end a run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: Seconds that a signal leaves for the current batch: less than what Docker and systemd wait before they kill.
GRACE = 8.0


class StdoutError(Exception):
    """Standard output cannot be written; the cause is the OSError."""


class Stopped(BaseException):
    """The process was asked to end by SIGTERM or SIGHUP; `signum` is the number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show.

    Control characters, line breaks and invisible characters become ``\\n``, ``\\x1b``, ``\\u202e``; a byte of a file
    name that is not text (a surrogate of ``os.fsdecode``) becomes ``\\xff``. So a message is one line, whatever the
    names in it are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    if "\udc80" <= c <= "\udcff":
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Write ``zipsdk: text`` to standard error, one line. A stream that is closed or full does not stop the work."""
    if sys.stderr is not None:
        Lenient(sys.stderr).write(f"zipsdk: {printable(text)}\n")


def tell(text: str) -> None:
    """Write lines to standard output; nothing where it is closed.

    Raises:
        StdoutError: standard output is full, or its reader has left.
    """
    if sys.stdout is None:
        return
    try:
        print(_encodable("\n".join(map(printable, text.split("\n"))), sys.stdout))
        sys.stdout.flush()
    except OSError as e:
        raise StdoutError from e


def _encodable(text: str, stream: Any) -> str:
    """The text with escapes for the characters that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Lenient:
    """A text stream that drops what cannot be written: a full disk or a closed terminal must not stop a run."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: a closed file
            self._stream.write(_encodable(text, self._stream))
            self._stream.flush()

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(stream: Any) -> bool:
    """Whether a stream leads to a terminal; None and a closed file do not."""
    with suppress(OSError, ValueError):
        return stream is not None and bool(stream.isatty())
    return False


class Bar:
    """A progress bar on standard error, or nothing where none is shown; make one with `progress_bar`."""

    def __init__(self, unit: str, shown: bool):
        self._bar: Any = None
        if shown and sys.stderr is not None:
            from tqdm import tqdm

            class Line(tqdm):  # type: ignore[misc]  # tqdm has no types
                monitor_interval = 0  # no thread that outlives the run

            self._file = Lenient(sys.stderr)
            self._bar = Line(unit=unit, file=self._file)

    def begin(self, total: int) -> None:
        """Start from 0 of `total`."""
        if self._bar is not None:
            self._bar.reset(total)

    def update(self, n: int) -> None:
        """Add `n` units."""
        if self._bar is not None:
            self._bar.update(n)

    def grow(self, total: int, phase: str) -> None:
        """Add one unit of a phase, where the total becomes known only on the way."""
        if self._bar is not None:
            self._bar.set_description(printable(phase), refresh=False)
            self._bar.total = max(self._bar.total or 0, total)
            self._bar.update()

    def say(self, text: str) -> None:
        """Write a message as `say` does, above the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.write(f"zipsdk: {printable(text)}", file=self._file)

    def close(self) -> None:
        """End the bar's line; once more does nothing."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar(unit: str, wanted: bool, quiet: bool) -> Iterator[Bar]:
    """Show a bar where it is `wanted` or standard error is a terminal, unless `quiet`."""
    bar = Bar(unit, not quiet and (wanted or is_terminal(sys.stderr)))
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def notes_for_warnings() -> Iterator[None]:
    """Show warnings as notes, also where ``-W error`` or ``PYTHONWARNINGS=error`` would make exceptions of them.

    An exception in the middle of a batch would end the run for a remark about one image. Filters that hide warnings
    are kept, and all is restored at the end.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"note: {message}")

    with warnings.catch_warnings():
        kept = [("default" if action == "error" else action, *rest) for action, *rest in warnings.filters]
        warnings.resetwarnings()
        warnings.filters[:] = kept  # type: ignore[index]  # typeshed says Sequence
        warnings.showwarning = show
        yield


class Signals:
    """The signal that has ended the work, as `stop_signals` notes it."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def code(self) -> int:
        """The exit code: 128 plus the signal's number, SIGINT's where none was noted."""
        return 128 + (self.signum or signal.SIGINT)


@contextmanager
def stop_signals(leave: bool) -> Iterator[Signals]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does: raise Stopped in the main thread.

    Handlers that somebody has set, ``nohup`` included, are kept. At the end the handlers are what they were.

    Args:
        leave: end the process at once on a second Ctrl-C, GRACE seconds after a first signal that has not ended it
            (a call of native code delays the exception), and when a signal arrives after the end of the work. A run
            that is killed loses nothing, so nobody has to wait for the current batch.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():  # only there handlers may be set
        yield signals
        return
    before: dict[int, Any] = {}

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_IGN)
        signals.signum = signum
        raise Stopped(signum)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if leave and signals.signum is not None:
            os._exit(130)
        signals.signum = signum
        raise KeyboardInterrupt

    ends = [(getattr(signal, name, None), signal.SIG_DFL, stop) for name in ("SIGTERM", "SIGHUP")]  # Windows: no SIGHUP
    try:
        for number, expected, handler in [*ends, (signal.SIGINT, signal.default_int_handler, interrupt)]:
            if number is not None and signal.getsignal(number) is expected:
                before[number] = signal.signal(number, handler)
        if leave:
            _watch_signals(set(before))
        yield signals
    finally:
        for number, handler in before.items():
            # what arrives while the interpreter ends would print a traceback
            signal.signal(number, signal.SIG_DFL if leave else handler)


def _watch_signals(numbers: set[int]) -> None:
    """End the process where the main thread does not: see `stop_signals`."""
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


def hold_standard_files() -> None:
    """Open the null device under the numbers 0 to 2 that are free.

    Else the next file that is opened, an image or the manifest, becomes standard error, and native libraries write
    their messages into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def settle_streams() -> int:
    """Flush the standard streams for the last time; returns the exit code of what went wrong, else 0.

    What cannot be written is dropped here, else the interpreter complains about it and exits with 120.
    """
    code = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as e:
            if stream is sys.stdout:
                code = 141 if isinstance(e, BrokenPipeError) else 2
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
                stream.flush()
    return code

"""Write messages, output, progress and warnings to the standard streams, for any stream and encoding."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class StdoutError(Exception):
    """Standard output cannot be written; the cause is the OSError."""


def printable(text: str) -> str:
    r"""Escape control characters and invisible characters, which a terminal would obey or cannot show.

    They become ``\n``, ``\x1b``, ``\u202e``; a byte of a file name that is not text (a surrogate of ``os.fsdecode``)
    becomes ``\xff``. The result is one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    if "\udc80" <= c <= "\udcff":
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()


def print_message(text: str) -> None:
    """Write ``zipsdk: text`` to standard error, as one line. A closed or full stream is ignored."""
    if sys.stderr is not None:
        LossyStream(sys.stderr).write(f"zipsdk: {printable(text)}\n")


def print_output(text: str) -> None:
    """Write lines to standard output; a closed one is ignored.

    Raises:
        StdoutError: standard output is full, or its reader has closed it.
    """
    if sys.stdout is None:
        return
    try:
        print(_encodable("\n".join(map(printable, text.split("\n"))), sys.stdout))
        sys.stdout.flush()
    except OSError as e:
        raise StdoutError from e


def _encodable(text: str, stream: Any) -> str:
    """Escape the characters that the encoding of the stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class LossyStream:
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
    """Tell whether a stream is a terminal; None and a closed file are not."""
    with suppress(OSError, ValueError):
        return stream is not None and bool(stream.isatty())
    return False


class ProgressBar:
    """A progress bar on standard error, or nothing where it is not shown; made by `progress_bar`."""

    def __init__(self, unit: str, shown: bool):
        self._bar: Any = None
        if shown and sys.stderr is not None:
            from tqdm import tqdm

            class Line(tqdm):  # type: ignore[misc]  # tqdm has no types
                monitor_interval = 0  # no monitor thread, which would outlive the run

            self._file = LossyStream(sys.stderr)
            self._bar = Line(unit=unit, file=self._file)

    def begin(self, total: int) -> None:
        """Start from 0 of `total`."""
        if self._bar is not None:
            self._bar.reset(total)

    def update(self, n: int) -> None:
        """Add `n` units."""
        if self._bar is not None:
            self._bar.update(n)

    def advance(self, total: int, phase: str) -> None:
        """Add one unit of a phase and raise the total, for work whose total is not known at the start."""
        if self._bar is not None:
            self._bar.set_description(printable(phase), refresh=False)
            self._bar.total = max(self._bar.total or 0, total)
            self._bar.update()

    def message(self, text: str) -> None:
        """Write a message as `print_message` does, above the bar."""
        if self._bar is None:
            print_message(text)
        else:
            self._bar.write(f"zipsdk: {printable(text)}", file=self._file)

    def close(self) -> None:
        """End the line of the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar(unit: str, forced: bool, quiet: bool) -> Iterator[ProgressBar]:
    """Show a bar if it is `forced` or standard error is a terminal, unless `quiet`."""
    bar = ProgressBar(unit, not quiet and (forced or is_terminal(sys.stderr)))
    try:
        yield bar
    finally:
        bar.close()


class _Notes(logging.Handler):
    """Print log records as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        print_message(f"note: {record.getMessage()}")


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print warnings, and zipsdk's log from the level WARNING on, as notes.

    Warnings are printed also where ``-W error`` or ``PYTHONWARNINGS=error`` turns them into exceptions: one about one
    image would end the run. Filters that hide warnings stay in force, and everything is restored at the end.
    """

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print_message(f"note: {message}")

    with warnings.catch_warnings():
        kept = [("default" if action == "error" else action, *rest) for action, *rest in warnings.filters]
        warnings.resetwarnings()
        warnings.filters[:] = kept  # type: ignore[index]  # typeshed says Sequence
        warnings.showwarning = show
        logger, handler = logging.getLogger("zipsdk"), _Notes(logging.WARNING)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


def open_standard_files() -> None:
    """Open the null device as each of the file descriptors 0 to 2 that is closed.

    Otherwise the next file that is opened, an image or the manifest, becomes standard error, and native libraries write
    their messages into it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def flush_streams() -> int:
    """Flush the standard streams before the process ends; return the exit code of an error of standard output, else 0.

    Data that cannot be written is dropped; otherwise the interpreter would print an error and exit with 120.
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

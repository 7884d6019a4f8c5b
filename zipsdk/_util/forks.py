"""Survive `os.fork`: objects that hold threads, locks or native handles are told in the child, before it goes on.

A child has only the thread that forked. A native session whose threads do not exist there waits for them in its
destructor, so the child would never end; a lock that another thread held stays locked for good.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Forkable(Protocol):
    """An object with state that a forked child cannot use."""

    def after_fork(self) -> None:
        """Replace that state. Called in the child, before any other Python code of it runs; must not raise."""


_tracked: weakref.WeakSet[Forkable] = weakref.WeakSet()
# held while a native library sets itself up, whose own locks no child could release
_opening = threading.RLock()


def track(thing: Forkable) -> None:
    """Have `thing.after_fork()` called in every child that is forked from now on, while `thing` lives."""
    _tracked.add(thing)


@contextmanager
def opening() -> Iterator[None]:
    """Keep other threads from forking inside: for code that opens or closes a native library's sessions."""
    with _opening:
        yield


def keep_forever(*things: object) -> None:
    """Keep objects alive to the end of the process and past the interpreter's, so that no destructor runs."""
    for thing in things:
        # a reference that nothing owns: module globals are dropped at the interpreter's end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    global _opening
    _opening = threading.RLock()
    for thing in list(_tracked):
        with suppress(Exception):  # the others must be told in any case
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _opening.acquire(), after_in_parent=lambda: _opening.release(), after_in_child=_in_child
    )

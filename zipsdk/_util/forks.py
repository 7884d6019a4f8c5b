"""Survive `os.fork`: notify objects that hold threads, locks or native handles in the child, before its own code runs.

Only the forking thread exists in the child. The destructor of a native session waits for the session's threads, so the
child would never end; a lock that another thread held is never released.
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
        """Replace that state. Called in the child before any other Python code; must not raise."""


_tracked: weakref.WeakSet[Forkable] = weakref.WeakSet()
# held while a native library initializes: a child could not release that library's locks
_opening = threading.RLock()


def track(thing: Forkable) -> None:
    """Call `thing.after_fork()` in every later forked child, as long as `thing` exists."""
    _tracked.add(thing)


@contextmanager
def opening() -> Iterator[None]:
    """Block forks by other threads inside; for code that opens or closes a native library's sessions."""
    with _opening:
        yield


def keep_forever(*things: object) -> None:
    """Keep objects alive beyond the end of the interpreter, so that their destructors never run."""
    for thing in things:
        # an unowned reference: the interpreter clears module globals when it ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _in_child() -> None:
    global _opening
    _opening = threading.RLock()
    for thing in list(_tracked):
        with suppress(Exception):  # notify the others even if one fails
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _opening.acquire(), after_in_parent=lambda: _opening.release(), after_in_child=_in_child
    )

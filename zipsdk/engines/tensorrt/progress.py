"""Report the progress of a plan build, and stop it by the caller's choice or by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Called with a phase's name, the steps done and their number; False stops the build.
Progress = Callable[[str, int, int], bool]


class BuildMonitor:
    """Receive TensorRT's calls during a build; `create_monitor` joins it with TensorRT's own class.

    Attributes:
        stopped: the callback stopped the build, or raised.
        error: what the callback raised.
    """

    def __init__(self, callback: Progress | None, interrupted: Callable[[], bool]):
        self.stopped = False
        self.error: BaseException | None = None
        self._callback, self._interrupted = callback, interrupted
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Store the number of a phase's steps."""
        self._steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Call the callback; return whether the build may continue."""
        if self.stopped or self._interrupted():
            return False
        if self._callback is not None:
            try:
                self.stopped = not self._callback(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            except BaseException as e:  # the caller is C++, which no exception may pass
                self.stopped, self.error = True, e
        return not self.stopped

    def phase_finish(self, phase_name: str) -> None:
        """Forget a phase."""
        self._steps.pop(phase_name, None)


def create_monitor(trt: Any, callback: Progress | None, interrupted: Callable[[], bool]) -> Any:
    """Create a `BuildMonitor` that is a ``trt.IProgressMonitor`` too."""

    class Monitor(BuildMonitor, trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            BuildMonitor.__init__(self, callback, interrupted)

    return Monitor()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed inside the block.

    TensorRT prints and drops a KeyboardInterrupt that is raised in one of its callbacks, the logger included, and
    continues the build.
    """
    pressed = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # keep a caller's own handler
        yield pressed.is_set
        return
    signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)

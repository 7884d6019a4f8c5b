"""Measure the stages of a purification.

    with profile() as events:
        purifier.run(images)
    seconds = total(events)      # {"noise": 0.02, "tile": 0.01, "UNet": 1.3, "step": 0.1}

Stages on the CPU, each without the stages inside it:

    UNet     the engine's calls
    tile     images <-> frames, checks of eps
    noise    random numbers
    step     the rest of the loop: transforms, x0, x_next

Only the thread that runs `profile` is measured. The loop on a GPU has no stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: The name of a stage, and its seconds without the stages inside it.
Event = tuple[str, float]


class _Recorder:
    """Collects the events of one `profile`."""

    def __init__(self, clock: Callable[[], float]):
        self.events: list[Event] = []
        self._clock = clock
        self._nested = [0.0]  # seconds of finished stages inside each open one

    def run(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        self._nested.append(0.0)
        start = self._clock()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = self._clock() - start
            self.events.append((name, seconds - self._nested.pop()))
            self._nested[-1] += seconds


_recorder: ContextVar[_Recorder | None] = ContextVar("_recorder", default=None)


@contextmanager
def profile(clock: Callable[[], float] = time.perf_counter) -> Iterator[list[Event]]:
    """Record the stages that run inside the `with` block; yield the list that they are added to."""
    recorder = _Recorder(clock)
    token = _recorder.set(recorder)
    try:
        yield recorder.events
    finally:
        _recorder.reset(token)


def total(events: Sequence[Event]) -> dict[str, float]:
    """Sum the seconds of each stage."""
    seconds: dict[str, float] = {}
    for name, value in events:
        seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as a stage; outside of `profile` this costs one lookup for each call."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            recorder = _recorder.get()
            if recorder is None:
                return function(*args, **kwargs)
            return recorder.run(name, function, *args, **kwargs)

        return run

    return decorate

"""Timing: stopwatches, contenders in turns, and statistics of rounds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")
Clock = Callable[[], float]


class Stopwatch:
    """Sum the seconds of functions by part. Time in a nested part counts for that part alone.

    Args:
        clock: returns seconds; None: `time.perf_counter`.
    """

    def __init__(self, clock: Clock | None = None):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock or time.perf_counter
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with its time added to a part."""

        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return inner

    def _switch(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def timer(work: Callable[[], object], clock: Clock | None = None) -> Callable[[], float]:
    """Return a function that runs the work once and returns its seconds."""
    clock = clock or time.perf_counter

    def run() -> float:
        start = clock()
        work()
        return clock() - start

    return run


def take_turns(timers: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 0) -> dict[str, list[float]]:
    """Call timers in turns, so that other load on the machine affects all alike.

    Args:
        timers: functions that return seconds, such as `timer`'s.
        rounds: number of turns.
        warmup: number of calls of each timer before the first turn, whose times are dropped.

    Returns:
        The seconds of each timer, one value a round.
    """
    for run in timers.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, run in timers.items():
            seconds[name].append(run())
    return seconds


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Compute median and quartiles; of a single value, that value."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "low": low, "high": high}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Compute the quartiles of the ratios of the rounds that both have."""
    return quartiles([a / b for a, b in zip(numerators, denominators, strict=False)])

"""Measure rows in rounds, with a state in a file so that an interrupted run can resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.timing.setup import LeftOut, TimingRow, Work
from zipsdk._util.atomic import write_atomically

#: Shorter calls are repeated until they take this long in total, in seconds.
SHORTEST = 0.05
#: Letters of the rows that do not measure zipsdk.
PEERS = "efg"


@dataclass
class State:
    """The measurements so far, by key of the row.

    samples: seconds for one image, one value a round.
    counts: counts of the guard, one dict a round.
    rows: descriptions of the rows, their engines and checks.
    left_out: reasons of the rows that cannot be measured here.
    parts: results of the jobs that run once.
    sessions: number of runs that added to the state.
    """

    samples: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: int = 0

    @classmethod
    def open(cls, path: Path, fresh: bool = False) -> State:
        """Read a state from a file, or start a new one if there is no file or `fresh` is set."""
        state = cls(**json.loads(path.read_text())) if path.is_file() and not fresh else cls()
        state.left_out = {}  # a missing package may be installed by now
        state.sessions += 1
        return state

    def save(self, path: Path) -> None:
        """Write the state to a file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self)).encode())


class Runner:
    """Measures rows in rounds.

    Args:
        rows: in the order of their turns.
        state: holds the samples.
        path: file of the state, written after every sample.
        budget: seconds after which no further round starts; the first round is always finished.
        progress: called with the row's label before each sample, and with None after it.
        clock: returns seconds.
    """

    def __init__(
        self,
        rows: Sequence[TimingRow],
        state: State,
        path: Path,
        budget: float,
        progress: Callable[[str | None], None],
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.rows, self.state, self.path, self.budget = rows, state, path, budget
        self.progress, self.clock = progress, clock
        self._ready: dict[str, Work] = {}

    @property
    def left(self) -> int:
        """Number of samples to take if time permits."""
        return sum(max(0, row.rounds - len(self.state.samples.get(row.key, ()))) for row in self.rows)

    def run(self) -> None:
        """Measure all rows, each once a round, until the rounds or the budget end."""
        start = self.clock()
        for turn in range(max((row.rounds for row in self.rows), default=0)):
            for row in self.rows:
                done = len(self.state.samples.get(row.key, ()))
                if turn >= row.rounds or done > turn or row.key in self.state.left_out:
                    continue
                if turn and self.clock() - start > self.budget:
                    return
                self.progress(row.label)
                self._sample(row)
                self.progress(None)

    def _sample(self, row: TimingRow) -> None:
        state = self.state
        state.rows[row.key] = {**state.rows.get(row.key, {}), **row.describe()}
        try:
            work = self._ready.get(row.key) or self._prepare(row)
            seconds, counts = self._time(work)
        except LeftOut as e:
            state.left_out[row.key] = str(e)
        except Exception as e:
            if row.letter not in PEERS:
                raise
            # a failing peer must not end the run
            state.left_out[row.key] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}"[:200]
        else:
            state.samples.setdefault(row.key, []).append(seconds * row.scale / row.images)
            if isinstance(counts, dict):
                state.counts.setdefault(row.key, []).append(counts)
        state.save(self.path)

    def _prepare(self, row: TimingRow) -> Work:
        work = row.make()
        about = self.state.rows[row.key]
        about["runs"] = work.runs
        if work.check is not None and "check" not in about:
            try:
                about["check"] = work.check()
            except LeftOut as e:
                about["check"] = {"none": str(e)}
        work.warm()
        self._ready[row.key] = work
        return work

    def _time(self, work: Work) -> tuple[float, Any]:
        start = self.clock()
        counts = work.call()
        took, calls = self.clock() - start, 1
        while took < SHORTEST and not isinstance(counts, dict):
            work.call()
            took, calls = self.clock() - start, calls + 1
        return took / calls, counts

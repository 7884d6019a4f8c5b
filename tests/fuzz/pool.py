"""Run worker processes; a signal, a hang or memory beyond the limit becomes a finding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.kinds import kind_of
from tests.fuzz.recipes import digest
from tests.fuzz.worker import write
from tests.helpers.paths import ROOT

#: Inputs in one process: what a kill throws away.
CHUNK = 100
#: Seconds of wall-clock time for one input; a process that waits uses no CPU time.
WALL = 60.0
#: Processes that one chunk may lose before it is given up.
DEATHS = 12


#: Where the processes import from: what the caller says first, then the project.
PATH = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))


@dataclass
class Task:
    """A chunk, and the process that runs it."""

    kind: str
    number: int
    count: int
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0

    def name(self) -> str:
        """Name its files in the state folder."""
        return f"{self.kind}-{self.number}"


def tasks(kinds: list[str], scale: float) -> list[Task]:
    """List the chunks of a full run, kinds in turn, so that an interrupted run has seen all of them."""
    out = []
    for kind in kinds:
        count = max(1, round(kind_of(kind).count * scale))
        out += [Task(kind, i, min(CHUNK, count - i * CHUNK)) for i in range(-(-count // CHUNK))]
    return sorted(out, key=lambda t: t.number)


def run(state: Path, todo: list[Task], jobs: int) -> None:
    """Run all chunks that have no record yet."""
    waiting = [t for t in todo if not (state / "chunks" / f"{t.name()}.json").exists()]
    running: list[Task] = []
    done, total = 0, len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(state, waiting.pop(0)))
            time.sleep(0.1)
            for task in list(running):
                cause = _ended(state, task)
                if cause is None:
                    continue
                running.remove(task)
                if cause and _record_death(state, task, cause):
                    waiting.insert(0, task)
                else:
                    done += 1
                    print(f"\r{done} of {total} chunks", end="", file=sys.stderr, flush=True)
    finally:
        for task in running:
            _kill(task)
        print(file=sys.stderr)


def _start(state: Path, task: Task) -> Task:
    log = state / "logs" / f"{task.name()}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    (state / "running" / f"{task.name()}.json").unlink(missing_ok=True)
    with log.open("wb") as f:
        task.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(state), task.kind, str(task.number), str(task.count)],
            stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": PATH, "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return task


def _kill(task: Task) -> None:
    if task.process is not None and task.process.poll() is None:
        os.killpg(task.process.pid, signal.SIGKILL)
        task.process.wait()


def _ended(state: Path, task: Task) -> str | None:
    """Return None while a process runs, "" when it has finished, else its failure, after which it is killed."""
    assert task.process is not None
    code = task.process.poll()
    if code is not None:
        if code == 0:
            return ""
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"
    try:
        age = time.time() - (state / "running" / f"{task.name()}.json").stat().st_mtime
        memory = psutil.Process(task.process.pid).memory_info().rss >> 20
    except (OSError, psutil.Error):
        return None
    cause = ""
    if age > WALL + 6 * kind_of(task.kind).seconds:  # a busy machine is no hang
        cause = f"no end after {age:.0f} s"
    if memory > 3000:
        cause = f"the process has {memory} MB"
    if cause:
        _kill(task)
    return cause or None


def _record_death(state: Path, task: Task, cause: str) -> bool:
    """Record the input that killed a process; return whether the chunk can be retried without it."""
    task.deaths += 1
    running = state / "running" / f"{task.name()}.json"
    log = (state / "logs" / f"{task.name()}.txt").read_text(errors="replace")[-3000:]
    if not running.exists():  # it did not come to its first input: that is the fuzzer's fault, or the machine's
        print(f"{task.name()}: {cause}: {log.strip()[-300:]}", file=sys.stderr)
        return False
    recipe: dict[str, Any] = json.loads(running.read_text())
    name = f"{cause.split(' after')[0]}: {_fault(log)}"
    crash = {"kind": task.kind, "message": cause, "trace": log, "recipe": recipe, "count": 1}
    write(state / "crashes" / f"{task.name()}-{task.deaths}.json", json.dumps({name: crash}))
    if task.deaths >= DEATHS:
        return False
    poison_file = state / "poison.json"
    poison = json.loads(poison_file.read_text()) if poison_file.exists() else []
    write(poison_file, json.dumps([*poison, digest(recipe)]))
    return True


def _fault(log: str) -> str:
    """Name the innermost frame that Python's fault handler printed."""
    lines = [line.strip() for line in log.splitlines() if line.startswith('  File "')]
    return lines[0][-100:] if lines else log.strip().splitlines()[-1][-100:] if log.strip() else "no output"

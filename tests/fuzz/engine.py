"""Run the inputs of one kind in this process: draw them with Hypothesis, check them, and keep the numbers."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.kinds import Kind, kind_of
from tests.fuzz.recipes import Recipe, Violation, digest, signature, text_of
from zipsdk.errors import ZipSdkError

_FILES = Path("/proc/self/fd")
#: Inputs after which the number of open files must stay.
WARM_UP = 20
#: Draws for each input at most: Hypothesis repeats itself, and what it repeats is not run.
DRAWS = 4
#: Executions that shrinking one failure may take.
SHRINKS = 300


@dataclass
class Record:
    """The numbers of some inputs of one kind."""

    kind: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0
    megabytes: float = 0.0

    def to_json(self) -> str:
        """Serialize for the state folder."""
        return json.dumps(self.__dict__, indent=1)

    def add(self, other: dict[str, Any]) -> None:
        """Add the numbers of a serialized record."""
        self.inputs += other["inputs"]
        self.accepted += other["accepted"]
        self.refused.update(other["refused"])
        self.slowest = max(self.slowest, other["slowest"])
        self.megabytes = max(self.megabytes, other["megabytes"])
        for name, finding in other["findings"].items():
            old = self.findings.setdefault(name, {**finding, "count": 0})
            old["count"] += finding["count"]


class Memory:
    """Peak memory of this process since `reset`, from Linux' VmHWM; zeros elsewhere."""

    def __init__(self) -> None:
        self._before = 0
        try:
            self.reset()
            self.works = True
        except OSError:
            self.works = False

    def reset(self) -> None:
        """Start measuring."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._value("VmRSS")

    def grown(self) -> float:
        """Return the growth since `reset` in megabytes."""
        return max(0, self._value("VmHWM") - self._before) / 1024 if self.works else 0.0

    def start(self) -> None:
        """Reset if the system allows it."""
        if self.works:
            self.reset()

    @staticmethod
    def _value(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise OSError(f"/proc/self/status has no {name}")


def open_files() -> int:
    """Count the open files of this process; 0 without /proc."""
    return sum(1 for _ in _FILES.iterdir()) if _FILES.exists() else 0


def failure_of(
    kind: Kind, recipe: Recipe, folder: Path, memory: Memory
) -> tuple[str, float, float, BaseException | None]:
    """Check one input; return result, CPU seconds, megabytes, and the failure or None."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    memory.start()
    start = time.process_time()
    wrong: BaseException | None = None
    result = "finding"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = kind.check(recipe, folder)
    except ZipSdkError as e:
        wrong = Violation(f"{type(e).__name__} where none is documented: {e}").with_traceback(e.__traceback__)
    except Exception as e:
        wrong = e
    except SystemExit as e:
        wrong = Violation(f"SystemExit {e.code}")
    seconds, grown = time.process_time() - start, memory.grown()
    if wrong is None:
        try:
            if seconds > kind.seconds:
                raise Violation(f"took {seconds:.1f} s of CPU time, limit {kind.seconds} s")
            if grown > kind.megabytes:
                raise Violation(f"needed {grown:.0f} MB of memory, limit {kind.megabytes} MB")
        except Violation as e:
            wrong, result = e, "finding"
    return result, seconds, grown, wrong


def _property(draw_recipe: Callable[[Any], Recipe], use: Callable[[Recipe], None]) -> Callable[[], None]:
    """Return a Hypothesis test of one argument, `st.data()`."""

    @given(st.data())
    def run(data: st.DataObject) -> None:
        use(draw_recipe(data.draw))

    return run


def run_chunk(name: str, number: int, count: int, folder: Path, *, poison: Collection[str] = (), shrink: bool = True,
              announce: Callable[[Recipe], None] = lambda recipe: None) -> Record:  # fmt: skip
    """Draw and check `count` different inputs, or fewer if there are no more.

    The same code draws the same inputs for a `number` each time.

    Args:
        folder: a scratch folder, emptied for each input.
        poison: digests of inputs that killed an earlier process; they are counted and not run.
        shrink: look for a smaller input for each finding.
        announce: called with each input before it runs.
    """
    kind, record, memory = kind_of(name), Record(name), Memory()
    files, seen = 0, set[str]()
    base = settings(
        max_examples=DRAWS * count, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate], print_blob=False,
    )  # fmt: skip

    def use(recipe: Recipe) -> None:
        nonlocal files
        name_of = digest(recipe)
        if name_of in seen:
            return
        if record.inputs >= count:
            raise _Enough
        seen.add(name_of)
        record.inputs += 1
        if record.inputs == WARM_UP:  # before that, libraries open files of their own
            files = open_files()
        if name_of in poison:
            return
        announce(recipe)
        result, seconds, grown, wrong = failure_of(kind, recipe, folder, memory)
        record.slowest, record.megabytes = max(record.slowest, seconds), max(record.megabytes, grown)
        if wrong is not None:
            note(record, recipe, wrong)
        elif result == "accepted":
            record.accepted += 1
        else:
            record.refused[result] += 1

    with suppress(_Enough):
        seed(f"{name} {number}")(base(_property(kind.draw, use)))()
    if files and (more := open_files() - files) > max(3, (count - WARM_UP) // 20):
        note(record, {}, Violation(f"{more} files are left open by {count - WARM_UP} inputs"))
    if shrink:
        for found in filter(lambda f: f["recipe"], record.findings.values()):
            found["recipe"] = _smaller(name, number, base, found, folder, memory, announce)
    return record


def note(record: Record, recipe: Recipe, wrong: BaseException) -> None:
    """Add a finding to a record; equal ones are counted."""
    name = signature(wrong)
    found = record.findings.setdefault(
        name, {"kind": record.kind, "message": str(wrong)[:500], "trace": text_of(wrong), "recipe": recipe, "count": 0}
    )
    found["count"] += 1


class _Enough(BaseException):
    """Ends a search; no Exception, because Hypothesis takes those for failures."""


def _smaller(name: str, number: int, base: settings, found: dict[str, Any], folder: Path, memory: Memory,
             announce: Callable[[Recipe], None]) -> Recipe:  # fmt: skip
    """Shrink a finding: the smallest input with the same signature within `SHRINKS` executions."""
    kind = kind_of(name)
    best: Recipe = found["recipe"]
    expected, left = signature_of(kind, best, folder, memory), SHRINKS
    if expected is None:
        return best  # it does not fail twice; the first input is kept

    def use(recipe: Recipe) -> None:
        nonlocal best, left
        if left < SHRINKS:  # not while it looks for the first failure
            left -= 1
        if not left:
            raise _Enough
        announce(recipe)
        if signature_of(kind, recipe, folder, memory) == expected:
            left = min(left, SHRINKS - 1)
            if len(json.dumps(recipe)) <= len(json.dumps(best)):
                best = recipe
            raise AssertionError(expected)

    try:
        test = settings(base, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)(
            _property(kind.draw, use)
        )
        seed(f"{name} {number}")(test)()
    except (_Enough, Exception):
        pass
    return best


def signature_of(kind: Kind, recipe: Recipe, folder: Path, memory: Memory) -> str | None:
    """Check one input; return the signature of its failure, or None."""
    wrong = failure_of(kind, recipe, folder, memory)[3]
    return None if wrong is None else signature(wrong)

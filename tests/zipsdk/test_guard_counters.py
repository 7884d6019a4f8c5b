"""Test the counters of the guard, and that threads lose no count."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from tests.fakes.guard import Cleaner, Guard, backdoored, dark, poisoned
from zipsdk import ScaleUp, guard


def test_reset_returns_the_totals_and_starts_from_zero():
    watch = Guard(backdoored, Cleaner())
    watch.run(poisoned(dark(2)))
    before = watch.counters
    assert before == guard.Counters(images=2, flagged=2, calls=2, queries=14)
    assert watch.reset() == before
    assert watch.counters == guard.Counters()
    watch.run(dark(1))
    assert watch.counters == guard.Counters(images=1, calls=1, queries=6)


def test_counters_lose_nothing_between_threads():
    """Each thread also resets: the returned totals and the rest must add up."""
    start, rounds, workers = threading.Barrier(8), 60, 8
    watch = Guard(backdoored, Cleaner(), max_batch=2)
    batch = np.concatenate([dark(1, 3, 3), poisoned(dark(1, 3, 3))])
    parts: list[guard.Counters] = []
    errors: list[BaseException] = []

    def work():
        try:
            start.wait(60)
            for i in range(rounds):
                assert [d.flagged for d in watch.run(batch)] == [False, True]
                if i % 10 == 0:
                    parts.append(watch.reset())
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert errors == []
    parts.append(watch.counters)
    total = {f.name: sum(getattr(p, f.name) for p in parts) for f in dataclasses.fields(guard.Counters)}
    n = rounds * workers
    assert total == {"images": 2 * n, "flagged": n, "abstained": 0, "calls": 7 * n, "queries": 13 * n,
                     "failures": 0, "stalled": 0}  # fmt: skip


def test_counting_is_one_step(monkeypatch):
    """Count in one thread while another is between its read and its write."""
    watch = Guard(backdoored, Cleaner())
    original, entered, go_on = guard.replace, threading.Event(), threading.Event()

    def slow(counters, **changes):
        if threading.current_thread().name == "slow":
            entered.set()
            go_on.wait(60)
        return original(counters, **changes)

    monkeypatch.setattr(guard, "replace", slow)
    first = threading.Thread(target=watch._count, kwargs={"calls": 1}, name="slow")
    second = threading.Thread(target=watch._count, kwargs={"calls": 1})
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.2)  # without a lock it would finish, and the first would overwrite it
    go_on.set()
    first.join(60)
    second.join(60)
    assert watch.counters.calls == 2


def test_reset_is_one_step(monkeypatch):
    """Count while `reset` is between its read and its write."""
    watch = Guard(backdoored, Cleaner())
    other = threading.Thread(target=watch._count, kwargs={"calls": 1})
    original = guard.Counters

    def slow():
        monkeypatch.undo()
        other.start()
        other.join(0.2)  # without a lock it would finish, and its count would be lost
        return original()

    monkeypatch.setattr(guard, "Counters", slow)
    before = watch.reset()
    other.join(60)
    assert before.calls + watch.counters.calls == 1


def test_decisions_and_counters_cannot_be_changed():
    watch = Guard(backdoored, Cleaner())
    (decision,) = watch.run(dark(1))
    for thing, name in ((decision, "label"), (watch.counters, "calls"), (ScaleUp(), "threshold")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)

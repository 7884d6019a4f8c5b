"""Test that stages are measured without inner stages, only inside `profile` and only in its thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.fakes.clock import Clock
from tests.fakes.engine import FakeEngine
from zipsdk import Purifier, profiling
from zipsdk.profiling import profile, stage, total


def test_nothing_is_counted_twice():
    clock = Clock()

    @stage("inner")
    def inner(seconds):
        clock.now += seconds

    @stage("outer")
    def outer():
        clock.now += 1
        inner(2)
        inner(3)
        clock.now += 4
        return "result"

    with profile(clock) as events:
        clock.now += 100  # outside of the stages
        assert outer() == "result"
        inner(7)
    assert events == [("inner", 2), ("inner", 3), ("outer", 5), ("inner", 7)]
    assert total(events) == {"inner": 12, "outer": 5}
    inner(9)
    assert len(events) == 4  # after the block


def test_a_stage_that_fails_is_counted():
    clock = Clock()

    @stage("broken")
    def broken():
        clock.now += 2
        raise ValueError

    @stage("outer")
    def outer():
        broken()

    with profile(clock) as events, pytest.raises(ValueError):
        outer()
    assert events == [("broken", 2), ("outer", 0)]


def test_other_threads_are_not_measured():
    counted = stage("x")(lambda: None)
    with profile() as events:
        thread = threading.Thread(target=counted)
        thread.start()
        thread.join()
    assert events == []


def test_a_purification_has_all_stages_and_the_same_result(rng):
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    purifier = Purifier(FakeEngine(), "blur2", steps=3, seed=1)
    expected = purifier.run(images)
    with profile() as events:
        assert (purifier.run(images) == expected).all()
    names = [name for name, _ in events]
    assert {name: names.count(name) for name in set(names)} == {"noise": 3, "UNet": 3, "tile": 3, "step": 1}
    assert all(seconds >= 0 for _, seconds in events)
    assert profiling._recorder.get() is None

"""Test that guards, detectors and decisions pickle and copy, and decide the same in other processes, bit for bit."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine
from tests.fakes.guard import Cleaner, fail
from tests.fakes.light import backdoored, by_light, photos, triggered
from tests.helpers.decisions import content
from zipsdk import AblationDetector, Guard, Purifier, PurifyAll, ScaleUp
from zipsdk._util import forks
from zipsdk.decision import Counters

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda guard: pickle.loads(pickle.dumps(guard))}


def stream() -> np.ndarray:
    x = photos(6, 5)
    x[::2] = triggered(x[::2])
    return x


@pytest.fixture(scope="module")
def fitted() -> Guard:
    return Guard.fit(backdoored, photos(20), Purifier(FakeEngine(), "blur2", steps=2, seed=1), timeout=60, max_batch=50)


def contents(guard: Guard, x: np.ndarray) -> list[tuple]:
    """Decide in any process."""
    return [content(d) for d in guard.run(x)]


# ---- copies in this process


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_decides_the_same_and_counts_from_zero(fitted, how):
    expected, before = contents(fitted, stream()), fitted.counters
    again = COPIES[how](fitted)
    assert again.counters == Counters() and again.detector == fitted.detector and type(again) is Guard
    assert contents(again, stream()) == expected
    assert again.counters.images == 6 and fitted.counters == before
    assert again._classifier.timeout == 60 and again._classifier.max_batch == 50
    assert again in forks._tracked and again._classifier in forks._tracked
    assert (again.purifier is fitted.purifier) == (how == "copy")


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_learns_on_its_own(how):
    x = photos(32)
    guard = Guard(by_light, Cleaner(), AblationDetector(learn=16), adapt=True)
    guard.run(x[:10])
    again = COPIES[how](guard)
    assert again.adapt
    again.run(x[10:16])
    assert again.detector == AblationDetector(learn=16).calibrate(by_light, x[:16])
    assert guard.detector.reference is None
    guard.run(x[16:22])
    assert guard.detector == AblationDetector(learn=16).calibrate(by_light, np.concatenate([x[:10], x[16:22]]))


@pytest.mark.parametrize("how", COPIES)
def test_a_busy_guard_is_copied_without_its_stalled_calls(how):
    guard = Guard(by_light, Cleaner(), PurifyAll(), timeout=0.05)
    over = threading.Event()
    guard._classifier.classify = lambda x: over.wait(60)
    guard.run(photos(1))
    assert guard.counters.stalled == 1
    guard._classifier.classify = by_light
    with guard._lock, guard._learning:
        again = COPIES[how](guard)
    assert again.counters == Counters()
    over.set()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("detector", [AblationDetector().calibrate(by_light, photos(16)), ScaleUp((2, 5)), PurifyAll()])
def test_detectors_and_decisions_are_copied(detector, how):
    assert COPIES[how](detector) == detector
    decisions = Guard(backdoored, Cleaner(), detector).run(stream())
    assert [content(COPIES[how](d)) for d in decisions] == [content(d) for d in decisions]
    counters = Counters(images=3, failures=1)
    assert COPIES[how](counters) == counters


class Service:
    """An object with a guard of its own method."""

    def __init__(self):
        self.guard = Guard(self.classify, Cleaner(), ScaleUp())

    def classify(self, x):
        return by_light(x)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_guard_may_be_part_of_its_classifier(how):
    service = Service()
    again = COPIES[how](service)
    assert again.guard._classifier.classify.__self__ is again
    assert contents(again.guard, photos(2)) == contents(service.guard, photos(2))


def test_a_subclass_keeps_its_attributes():
    guard = Tagged(by_light, Cleaner(), ScaleUp())
    for copied in (copy_(guard) for copy_ in COPIES.values()):
        assert type(copied) is Tagged and copied.tags == ["mine"]
    assert copy.copy(guard).tags is guard.tags and copy.deepcopy(guard).tags is not guard.tags


class Tagged(Guard):
    """A user's subclass."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tags = ["mine"]


# ---- what does not pickle


@pytest.fixture
def without_cloudpickle(monkeypatch):
    for name in [name for name in sys.modules if name.endswith("cloudpickle")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("without_cloudpickle")
def test_a_classifier_that_does_not_pickle_is_named():
    lock = threading.Lock()
    for classify in (lambda x: by_light(x), functools.partial(fail, lock), type("Local", (), {"__call__": fail})()):
        guard = Guard(classify, Cleaner(), ScaleUp())
        with pytest.raises(pickle.PicklingError, match=r"classify: got .*expected an object that pickles .*top level"):
            pickle.dumps(guard)
    purifier = Cleaner()
    purifier.lock = lock
    with pytest.raises(pickle.PicklingError, match=r"purifier: got .*expected an object that pickles"):
        pickle.dumps(Guard(by_light, purifier, ScaleUp()))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(contents, Guard(lambda x: x, Cleaner()), photos(1))
        with pytest.raises(pickle.PicklingError, match="classify: got"):
            future.result(60)


def test_a_function_that_does_not_pickle_is_copied():
    guard = Guard(lambda x: by_light(x), Cleaner(), ScaleUp())
    for how in (copy.copy, copy.deepcopy):
        assert contents(how(guard), photos(2)) == contents(guard, photos(2))


def test_cloudpickle_may_take_what_pickle_does_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib.externals.cloudpickle", sys)
    guard = Guard(lambda x: by_light(x), Cleaner(), ScaleUp())
    assert guard.__reduce_ex__(4)[2]["_classifier"][0] is guard._classifier.classify
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(guard)


# ---- other processes


@pytest.fixture(scope="module")
def bundled() -> Guard:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    purifier = Purifier(zipsdk.load_engine("zip-tiny", device="cpu", threads=1), preset="fast", seed=1)
    return Guard.fit(backdoored, photos(20), purifier)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param("fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")),
        pytest.param("forkserver", marks=[pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")]),
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
def test_another_process_decides_the_same(bundled, method):
    expected = contents(bundled, stream())
    assert {d[1] for d in expected} == {True, False}
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        found = list(pool.map(contents, [bundled] * 3, [stream()] * 3))
    assert found == [expected] * 3


_inherited: list[Guard] = []


def inherited_contents(x: np.ndarray) -> list[tuple]:
    return contents(_inherited[0], x)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_uses_the_guard_that_it_inherits(bundled, monkeypatch):
    expected = contents(bundled, stream())
    monkeypatch.setattr(f"{__name__}._inherited", [bundled])
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(inherited_contents, stream()).result(60) == expected


@pytest.mark.slow
def test_joblib_decides_the_same(bundled):
    joblib = pytest.importorskip("joblib", reason="needs joblib: pip install joblib")
    expected = contents(bundled, stream())
    found = joblib.Parallel(2)(joblib.delayed(contents)(bundled, stream()) for _ in range(2))
    assert found == [expected] * 2
    local = Guard(lambda x: by_light(x), Cleaner(), ScaleUp())
    assert joblib.Parallel(2)([joblib.delayed(contents)(local, photos(2))]) == [contents(local, photos(2))]

"""Test what a guard logs for its operator: counts and reasons in few lines, never pixels."""

from __future__ import annotations

import copy
import logging
import pickle
import threading

import numpy as np
import pytest

from tests.fakes.clock import Clock
from tests.fakes.guard import Cleaner, Guard, Recorder, backdoored, dark, fail, poisoned
from tests.fakes.light import by_light, photos
from zipsdk import AblationDetector, ScaleUp, guard
from zipsdk import Guard as PlainGuard
from zipsdk._util import throttled_log
from zipsdk.detectors import classifier_client


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throttled_log.time, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return a function that takes the lines so far, as (level, text), and may forget the events."""
    caplog.set_level(logging.DEBUG, "zipsdk")

    monkeypatch.setattr(guard, "_EVENTS", throttled_log.ThrottledLog(guard._LOGGER))

    def take(start_anew=False):
        if start_anew:
            guard._EVENTS.after_fork()
        found = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "zipsdk.guard"]
        assert len(found) == len(caplog.records)
        caplog.clear()
        return found

    return take


def test_nothing_is_logged_while_all_goes_well(lines):
    watch = Guard(backdoored, Cleaner(), timeout=60)
    watch.run(np.concatenate([dark(2), poisoned(dark(2))]))
    assert watch.counters.flagged == 2 and lines() == []


def test_images_without_a_label_are_counted_in_one_line(lines, tmp_path):
    watch = Guard(Recorder(plan=[fail] * 2), Cleaner())
    watch.run(dark(40))
    assert lines() == [
        ("WARNING", "failed calls of the classifier: 1; latest: RuntimeError: the service is down"),
        ("WARNING", "images without a label: 40; latest: the classifier failed on the purified image: "
                    "RuntimeError: the service is down"),
    ]  # fmt: skip
    lines(start_anew=True)
    Guard(backdoored, Cleaner()).run([dark(1)[0], tmp_path / "none.png"])
    ((level, text),) = lines()
    assert level == "WARNING" and text.startswith("images without a label: 1; latest: ") and "none.png" in text


def test_a_million_failures_do_not_write_a_million_lines(lines, clock):
    watch = Guard(fail, Cleaner(), max_batch=6)
    for _ in range(300):
        watch.run(dark(2))
        clock.now += 0.1  # 30 seconds in all
    assert [text.split(";")[0] for _, text in lines()] == [
        "failed calls of the classifier: 1",
        "images without a label: 2",
    ]
    clock.now = throttled_log.INTERVAL
    watch.run(dark(1))
    assert [text.split(";")[0] for _, text in lines()] == [
        "failed calls of the classifier: 900",  # two with views and one with purified images a run, the first logged
        "images without a label: 599",
    ]
    assert watch.counters.failures == 902 and watch.counters.abstained == 601
    clock.now += throttled_log.INTERVAL - 0.01
    watch.run(dark(1))
    assert lines() == []
    clock.now += 0.01
    watch.run(dark(1))
    assert [text.split(";")[0] for _, text in lines()] == [
        "failed calls of the classifier: 4",  # the last of the line before, two, and the first of this run
        "images without a label: 2",
    ]


def test_time_outs_and_skipped_calls_have_lines_of_their_own(lines, monkeypatch):
    monkeypatch.setattr(classifier_client, "MAX_STALLED", 1)
    over = threading.Event()
    watch = Guard(lambda x: over.wait(60), Cleaner(), timeout=0.05)
    watch.run(dark(1))
    over.set()
    first, second, third = lines()
    assert first[1] == (
        "timed-out calls of the classifier: 1; latest: TimeoutError: no answer within 0.05 s; "
        "the call keeps running and its answer is discarded"
    )
    assert second[1].startswith("skipped calls of the classifier: 1; latest: TimeoutError: 1 earlier calls still run")
    assert third[1].startswith("images without a label: 1; latest: ")


def test_unusable_scores_views_and_purifiers_are_logged(lines):
    class Choosy(ScaleUp):
        def views(self, rgb):
            raise MemoryError("no room")

    Guard(backdoored, Cleaner(), Choosy()).run(dark(1))
    assert lines() == [("WARNING", "images without views: 1; latest: MemoryError: no room")]
    Guard(Recorder(plan=[lambda x: backdoored(x) * np.nan]), Cleaner()).run(dark(3))
    assert [text for _, text in lines()] == [
        "answers of the classifier with unusable scores: 1; latest: got scores whose maximum is not finite, "
        "expected numbers"
    ]
    lines(start_anew=True)
    cleaner = Cleaner()
    cleaner.run = fail
    Guard(backdoored, cleaner).run(poisoned(dark(2)))
    assert [text for _, text in lines()] == [
        "failed runs of the purifier: 1; latest: RuntimeError: the service is down",
        "images without a label: 2; latest: the purifier failed: RuntimeError: the service is down",
    ]


@pytest.mark.parametrize("quote", [repr, str, lambda x: x.tolist(), lambda x: x / 1000, lambda x: x.ravel()])
def test_pixels_are_never_logged(lines, quote):
    """A user's exception may quote the whole batch."""

    def quoting(x):
        raise ValueError(f"cannot use\n{quote(np.asarray(x))}")

    cleaner = Cleaner()
    cleaner.run = quoting
    Guard(quoting, cleaner).run(np.full((3, 8, 8, 3), 173, np.uint8))
    found = lines()
    assert len(found) == 3
    for _, text in found:
        assert "ValueError: cannot use" in text and "173" not in text and "\n" not in text and len(text) < 300


def test_a_reason_is_one_short_line(lines):
    for text, expected in (("a\nb\r\n  c", "a b c"), ("[Errno 111] refused", "[Errno 111] refused"), ("x" * 999, "x")):
        Guard(Recorder(plan=[lambda x, text=text: fail_with(text)]), Cleaner()).run(dark(1))
        ((_, line),) = lines(start_anew=True)
        assert line.startswith(f"failed calls of the classifier: 1; latest: ValueError: {expected}")
        assert "\n" not in line and len(line) < 250


def fail_with(text):
    raise ValueError(text)


def test_guards_share_the_throttle(lines, clock):
    """A process pool makes a guard for each task."""
    for _ in range(50):
        pickle.loads(pickle.dumps(Guard(fail, Cleaner()))).run(dark(1))
    assert [text.split(";")[0] for _, text in lines()] == [
        "failed calls of the classifier: 1",
        "images without a label: 1",
    ]
    clock.now = throttled_log.INTERVAL
    Guard(fail, Cleaner()).run(dark(1))
    assert [text.split(";")[0] for _, text in lines()] == [
        "failed calls of the classifier: 100",
        "images without a label: 50",
    ]


def test_a_guard_that_was_not_fitted_says_so_once(lines):
    watch = PlainGuard(by_light, Cleaner())
    assert lines() == [
        (
            "WARNING",
            "the reference statistics are those of other classifiers; measure your own with Guard.fit, or pass "
            "adapt=True",
        )
    ]
    for again in (watch, copy.copy(watch), pickle.loads(pickle.dumps(watch))):
        again.run(photos(1))
    assert lines() == []


def test_a_guard_that_needs_no_fit_does_not_say_so(lines):
    fitted = PlainGuard.fit(by_light, photos(20), Cleaner())
    for watch in (fitted, Guard(by_light, Cleaner()), PlainGuard(by_light, Cleaner(), fitted.detector)):
        watch.run(photos(1))
        assert lines() == []


def test_the_end_of_learning_is_logged(lines):
    watch = PlainGuard(by_light, Cleaner(), AblationDetector(learn=16), adapt=True)
    watch.run(photos(10))
    assert lines() == []
    watch.run(photos(10, 1))
    assert lines() == [("INFO", "measured the reference statistics on 16 images of the stream")]
    watch.run(photos(10, 2))
    assert lines() == []

"""Test that the guard fails closed: on classifiers and purifiers that fail, stall or return nonsense."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

from tests.fakes.guard import CLASSES, TARGET, Cleaner, Guard, Recorder, backdoored, brightness, dark, fail, poisoned
from zipsdk import InputError, PurifyAll, ScaleUp
from zipsdk.detectors import classifier_client

# ---- a classifier that fails


BAD_ANSWERS = {
    "raises": fail,
    "too few rows": lambda x: backdoored(x)[:-1],
    "too many rows": lambda x: np.concatenate([backdoored(x), backdoored(x[:1])]),
    "labels": lambda x: backdoored(x).argmax(1),
    "one class": lambda x: np.ones((len(x), 1)),
    "no class": lambda x: np.ones((len(x), 0)),
    "three axes": lambda x: backdoored(x)[:, :, None],
    "nothing": lambda x: None,
    "text": lambda x: backdoored(x).astype(str),
    "complex": lambda x: backdoored(x) + 0j,
    "ragged": lambda x: [[1.0, 2.0]] * (len(x) - 1) + [[1.0]],
    "nan": lambda x: np.full((len(x), CLASSES), np.nan),
    "one nan": lambda x: np.where(np.arange(CLASSES) == 0, np.nan, backdoored(x)),
    "inf": lambda x: np.full((len(x), CLASSES), np.inf),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_image_that_could_not_be_checked_is_purified(name):
    classify, purifier = Recorder(plan=[BAD_ANSWERS[name]]), Cleaner()
    watch = Guard(classify, purifier)
    batch = np.concatenate([dark(2), poisoned(dark(1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are errors in this test suite only
        decisions = watch.run(batch)
    for p, d in zip(batch, decisions, strict=True):
        assert d.flagged and d.suspicion is None and d.error is None
        assert "the classifier failed on the image or one of its views" in d.reason
        np.testing.assert_array_equal(d.image, Cleaner.clean(p))
        assert d.label == backdoored(Cleaner.clean(p)[None]).argmax() != TARGET
    assert classify.sizes == [18, 3]
    counters = watch.counters
    assert (counters.failures, counters.flagged, counters.abstained, counters.queries) == (1, 3, 0, 21)


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_second_failure_leaves_no_label(name):
    watch = Guard(Recorder(plan=[BAD_ANSWERS[name]] * 2), Cleaner())
    (decision,) = watch.run(dark(1))
    assert decision.label is None and decision.class_scores is None and decision.flagged
    assert "the classifier failed on the purified image: " in decision.error
    np.testing.assert_array_equal(decision.image, Cleaner.clean(dark(1)[0]))
    assert watch.counters.abstained == 1 and watch.counters.failures == 2


@pytest.mark.parametrize("row", range(6))
def test_a_bad_row_affects_its_own_image_only(row):
    def nan_in_a_row(x):
        scores = backdoored(x)
        scores[6 + row, 3] = np.nan
        return scores

    watch = Guard(Recorder(plan=[nan_in_a_row]), Cleaner())
    decisions = watch.run(dark(3))
    assert [d.flagged for d in decisions] == [False, True, False]
    assert decisions[1].label is not None and "not finite" in decisions[1].reason
    assert watch.counters.failures == 1


def test_a_failed_call_affects_its_own_images_only():
    watch = Guard(Recorder(plan=[None, fail, None]), Cleaner(), max_batch=6)
    assert [d.flagged for d in watch.run(dark(3))] == [False, True, False]
    # an image with copies in two calls is flagged if one of the calls fails
    watch = Guard(Recorder(plan=[None, fail]), Cleaner(), max_batch=4)
    assert [d.flagged for d in watch.run(dark(3))] == [True, True, False]
    # another size is another call
    watch = Guard(Recorder(plan=[fail]), Cleaner())
    assert [d.flagged for d in watch.run([dark(1)[0], dark(1, 9, 9)[0]])] == [True, False]
    watch = Guard(Recorder(plan=[fail]), Cleaner(), PurifyAll())
    decisions = watch.run([dark(1)[0], dark(1, 9, 9)[0]])
    assert [d.label is None for d in decisions] == [True, False]


def test_an_image_whose_views_cannot_be_made_does_not_affect_others():
    class Choosy(ScaleUp):
        def views(self, rgb):
            if rgb[0, 0, 0] == 9:
                raise MemoryError("no room")
            return super().views(rgb)

    images = dark(3)
    images[1, 0, 0, 0] = 9
    watch = Guard(backdoored, Cleaner(), Choosy())
    decisions = watch.run(images)
    assert [d.flagged for d in decisions] == [False, True, False]
    assert "no room" in decisions[1].reason and decisions[1].label is not None
    assert watch.counters.failures == 1 and watch.counters.images == 3


@pytest.mark.parametrize("change", [lambda p: [], lambda p: [p[:1]], lambda p: [p / 255]])
def test_a_detector_that_returns_unusable_views_is_reported(change):
    class Broken(ScaleUp):
        def views(self, rgb):
            return change(rgb) if rgb[0, 0, 0] == 9 else super().views(rgb)

    images = dark(2)
    images[0, 0, 0, 0] = 9
    first, second = Guard(backdoored, Cleaner(), Broken()).run(images)
    assert first.flagged and "views: got" in first.reason
    assert not second.flagged and second.label == 1


def test_images_with_different_numbers_of_views_keep_their_answers():
    class Uneven(ScaleUp):
        def views(self, rgb):
            return super().views(rgb)[: 1 + int(rgb[0, 0, 0] % 3)]

        def score(self, scores):
            asked.append(len(scores))
            return float(scores[0].argmax())

        def is_suspicious(self, score):
            return False

        def explain(self, scores, score):
            return ""

    asked: list[int] = []
    images = np.concatenate([dark(3), 4 * dark(3)])
    images[:, 0, 0, 0] = [30, 31, 32, 200, 202, 201]
    decisions = Guard(backdoored, Cleaner(), Uneven(), max_batch=4).run(images)
    assert asked == [1, 2, 3, 3, 2, 1]
    assert [d.label for d in decisions] == [int(backdoored(p[None]).argmax()) for p in images]


def test_the_default_limits_the_size_of_a_call():
    classify = Recorder(backdoored)
    Guard(classify, Cleaner()).run(dark(100))
    assert classify.sizes == [256, 256, 88]


@pytest.mark.parametrize(
    ("max_batch", "pixels", "sizes"),
    [(256, 4 * 64 + 63, [4, 4, 4]), (3, 4 * 64, [3, 3, 3, 3]), (256, 10, [1] * 12), (None, 10, [12])],
)
def test_a_call_is_limited_in_pixels(monkeypatch, max_batch, pixels, sizes):
    monkeypatch.setattr(classifier_client, "MAX_CALL_PIXELS", pixels)
    classify = Recorder()
    decisions = Guard(classify, Cleaner(), max_batch=max_batch).run(dark(2))
    assert classify.sizes == sizes
    assert [d.label for d in decisions] == [int(k) for k in brightness(dark(2)).argmax(1)]


def test_large_photos_are_sent_in_small_batches():
    sizes = []

    def classify(x):
        sizes.append(len(x))
        return np.tile([0.0, 1.0], (len(x), 1))

    photo = np.zeros((2048, 2730, 3), np.uint8)
    classifier_client.ClassifierClient(classify).query([photo] * 4, lambda p: [p])
    assert sizes == [3, 1]


def test_a_call_that_does_not_fit_into_memory_does_not_affect_others(monkeypatch):
    stack = np.stack

    def small_ones(arrays, *rest, **options):
        if arrays[0].shape == (9, 9, 3):
            raise MemoryError("no room")
        return stack(arrays, *rest, **options)

    monkeypatch.setattr(np, "stack", small_ones)
    watch = Guard(backdoored, Cleaner())
    first, second = watch.run([dark(1)[0], dark(1, 9, 9)[0]])
    assert first.label == 1 and not first.flagged
    assert second.label is None and "no room" in second.reason and "no room" in second.error
    assert watch.counters.failures == 2


def test_a_changed_number_of_classes_is_a_failure():
    wider = Recorder(plan=[None, lambda x: np.pad(backdoored(x), ((0, 0), (0, 1)))])
    (decision,) = Guard(wider, Cleaner(), max_batch=3).run(dark(1))
    assert decision.flagged and "a different number of classes" in decision.reason


@pytest.mark.parametrize(
    "kind", [list, lambda s: s.astype(np.float16), lambda s: s.astype(int), lambda s: s.astype(bool), lambda s: s * -1]
)
def test_scores_of_many_kinds(kind):
    decisions = Guard(lambda x: kind(brightness(x)), Cleaner(), PurifyAll()).run(dark(2))
    clean = [Cleaner.clean(p) for p in dark(2)]
    for p, d in zip(clean, decisions, strict=True):
        expected = np.asarray(kind(brightness(p[None])), np.float64)[0]
        assert d.class_scores.dtype == np.float64 and d.label == expected.argmax() and isinstance(d.label, int)
        np.testing.assert_array_equal(d.class_scores, expected)


@pytest.mark.parametrize("max_batch", [1, 6, None])
def test_a_classifier_may_reuse_its_buffers_and_overwrite_its_batch(max_batch):
    buffer = np.empty((18, CLASSES))

    def careless(x):
        buffer[: len(x)] = backdoored(x)
        x[:] = 255
        return buffer[: len(x)]

    batch = np.concatenate([dark(1), dark(1) * 4, poisoned(dark(1))])
    given = batch.copy()
    purifier = Cleaner()
    decisions = Guard(careless, purifier, max_batch=max_batch).run(batch)
    expected = Guard(backdoored, Cleaner()).run(given)
    outcomes, expected_outcomes = ([(d.label, d.suspicion, d.flagged) for d in run] for run in (decisions, expected))
    assert outcomes == expected_outcomes
    assert len({d.label for d in expected}) > 1
    for d, w in zip(decisions, expected, strict=True):
        np.testing.assert_array_equal(d.class_scores, w.class_scores)
    np.testing.assert_array_equal(batch, given)
    np.testing.assert_array_equal(purifier.batches[0][-1], given[2])


def test_ctrl_c_is_not_a_classifier_failure():
    def interrupt(x):
        raise KeyboardInterrupt

    for timeout in (None, 60):
        with pytest.raises(KeyboardInterrupt):
            Guard(interrupt, Cleaner(), timeout=timeout).run(dark(1))


# ---- a classifier that stalls


@pytest.fixture
def hang():
    """Return a classifier that blocks until the test ends or sets `over`."""
    over = threading.Event()

    def call(x):
        over.wait(60)
        return backdoored(x)

    call.over = over
    yield call
    over.set()


def test_a_late_answer_is_discarded(hang):
    classify = Recorder(plan=[hang])
    watch = Guard(classify, Cleaner(), timeout=1.0)
    decisions = watch.run(dark(2))
    assert all(d.flagged and d.label is not None and "no answer within 1 s" in d.reason for d in decisions)
    assert classify.sizes == [12, 2]
    assert watch.counters.stalled == 1 and watch.counters.failures == 1
    classify.plan = [hang, hang]
    (decision,) = watch.run(dark(1))
    assert decision.label is None and "no answer within 1 s" in decision.error
    assert watch.reset().stalled == watch.counters.stalled == 3
    before = [t for t in threading.enumerate() if t.name == "zipsdk-classify"]
    assert len(before) == 3 and all(t.daemon for t in before)
    hang.over.set()
    for thread in before:
        thread.join(60)
    assert watch.counters.stalled == 0


def test_a_stalled_classifier_is_not_called(hang, monkeypatch):
    """At most `MAX_STALLED` threads and no more waiting; it is called again when a call has ended."""
    monkeypatch.setattr(classifier_client, "MAX_STALLED", 2)
    classify = Recorder(plan=[hang] * 2)
    watch = Guard(classify, Cleaner(), timeout=0.5, max_batch=1)
    decisions = watch.run(dark(3))
    assert [d.label for d in decisions] == [None] * 3
    assert all("2 earlier calls still run" in d.error for d in decisions)
    assert classify.sizes == [1, 1]
    counters = watch.counters
    assert (counters.calls, counters.queries, counters.stalled) == (2, 2, 2)
    threads = [t for t in threading.enumerate() if t.name == "zipsdk-classify"]
    hang.over.set()
    for thread in threads:
        thread.join(60)
    watch._classifier.timeout = 60
    (decision,) = watch.run(dark(1))
    assert decision.label is not None and not decision.flagged
    assert watch.counters.stalled == 0 and classify.sizes == [1] * 8


def test_a_timeout_that_is_not_reached_changes_nothing():
    batch = np.concatenate([dark(2), poisoned(dark(1))])
    plain, timed = Guard(backdoored, Cleaner()), Guard(backdoored, Cleaner(), timeout=60)
    for a, b in zip(plain.run(batch), timed.run(batch), strict=True):
        assert (a.label, a.suspicion, a.flagged, a.reason) == (b.label, b.suspicion, b.flagged, b.reason)
    assert plain.counters == timed.counters
    (decision,) = Guard(fail, Cleaner(), timeout=60).run(dark(1))
    assert "the service is down" in decision.error


# ---- a purifier that fails


class BrokenPurifier(Cleaner):
    """A purifier whose output is that of `act(self, batch)`."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def run(self, batch):
        super().run(batch)
        return self.act(self, batch)


BAD_PURIFIERS = {
    "raises": lambda self, batch: fail(batch),
    "nothing": lambda self, batch: None,
    "too few": lambda self, batch: batch[:-1],
    "too many": lambda self, batch: [*batch, batch[0]],
    "float": lambda self, batch: [p / 255 for p in batch],
    "another size": lambda self, batch: [p[:-1] for p in batch],
    "text": lambda self, batch: ["clean"] * len(batch),
}


@pytest.mark.parametrize("detector", [ScaleUp(), PurifyAll()])
@pytest.mark.parametrize("name", BAD_PURIFIERS)
def test_without_a_purified_image_there_is_no_label(name, detector):
    classify, purifier = Recorder(), BrokenPurifier(BAD_PURIFIERS[name])
    watch = Guard(classify, purifier, detector)
    batch = np.concatenate([poisoned(dark(2)), dark(1)])
    decisions = watch.run(batch)
    detects = isinstance(detector, ScaleUp)
    failed = decisions[:2] if detects else decisions
    for d in failed:
        assert d.flagged and d.label is None and d.class_scores is None and d.image is None
        assert "the purifier failed: " in d.error
    if detects:
        assert decisions[2].label == brightness(batch[2:]).argmax() and decisions[2].error is None
    assert sum(classify.sizes) == (18 if detects else 0)  # no query for an image that was not purified
    assert watch.counters.abstained == len(failed) and watch.counters.failures == 1 + len(failed)


def test_an_image_that_cannot_be_purified_does_not_affect_others():
    def refuse_small(self, batch):
        if any(p.shape == (4, 4, 3) for p in batch):
            raise InputError("too small")
        return [Cleaner.clean(p) for p in batch]

    batch = [poisoned(dark(1))[0], poisoned(dark(1, 4, 4))[0], poisoned(dark(1, 9, 9))[0]]
    purifier = BrokenPurifier(refuse_small)
    decisions = Guard(backdoored, purifier).run(batch)
    assert [d.error is None for d in decisions] == [True, False, True]
    assert "too small" in decisions[1].error
    assert [len(b) for b in purifier.batches] == [3, 1, 1, 1]


def test_a_purifier_may_empty_its_input_list():
    def pop_all(self, batch):
        return [Cleaner.clean(batch.pop(0)) for _ in range(len(batch))]

    purifier = BrokenPurifier(pop_all)
    assert [d.error for d in Guard(backdoored, purifier, PurifyAll()).run(dark(3))] == [None] * 3
    assert len(purifier.batches) == 1

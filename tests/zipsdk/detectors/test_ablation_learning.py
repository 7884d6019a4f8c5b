"""Test that the ablation detector learns its reference once, and that triggers cannot hide themselves in it."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from tests.fakes.guard import Cleaner, Recorder, fail
from tests.fakes.light import TARGET, backdoored, by_light, photos, triggered
from zipsdk import AblationDetector, Guard, InputError, PurifyAll, ScaleUp
from zipsdk.detectors import ablation_statistics


def measured(x: np.ndarray, classify=by_light) -> np.ndarray:
    return np.stack([ablation_statistics.log_odds(classify(np.stack(AblationDetector().views(p)))) for p in x])


def literal_reference(x: np.ndarray, classify=by_light) -> list[tuple[float, float]]:
    """Return medians and upper scales, both bounded."""
    out = []
    for column, (default_median, default_scale) in zip(
        measured(x, classify).T, ablation_statistics.DEFAULT_REFERENCE, strict=True
    ):
        median, ninth = np.quantile(column, 0.5), np.quantile(column, 0.9)
        deviation = (ninth - median) / 1.2816
        out.append(
            (
                min(median, default_median + 1),
                max(default_scale / 1.2, min(deviation, 1.2 * default_scale)),
            )
        )
    return out


def test_the_detector_learns_from_the_first_images_only():
    x = photos(60)
    watch = Guard(by_light, Cleaner(), AblationDetector(learn=40), adapt=True)
    assert watch.detector == AblationDetector(learn=40)
    for start in (0, 13, 26):
        watch.run(x[start : start + 13])
        assert watch.detector.reference is None
    watch.run(x[39:60])  # the fortieth image, and more
    np.testing.assert_allclose(watch.detector.reference, literal_reference(x[:40]), rtol=1e-12)
    assert watch.detector == AblationDetector(learn=40).calibrate(by_light, x[:40])
    learned = watch.detector
    watch.run(photos(50, 1))
    assert watch.detector is learned


def test_a_repeated_image_counts_once():
    x = photos(20)
    watch = Guard(by_light, Cleaner(), AblationDetector(learn=20), adapt=True)
    for _ in range(30):
        watch.run(np.concatenate([x[:19], x[:1]]))
    assert watch.detector.reference is None
    watch.run(x[19:])
    assert watch.detector == AblationDetector(learn=20).calibrate(by_light, x)


def test_the_detector_learns_before_it_decides():
    """A first batch is scored with its own reference, or with the default one if it is too small."""
    x = photos(40)
    default, fitted = AblationDetector(), AblationDetector().calibrate(by_light, x)
    for learn, adapt, detector in ((40, True, fitted), (41, True, default), (40, False, default)):
        decisions = Guard(by_light, Cleaner(), AblationDetector(learn=learn), adapt=adapt).run(x)
        scores = [detector.score(by_light(np.stack(detector.views(p)))) for p in x]
        assert [d.suspicion for d in decisions] == scores
        assert [d.flagged for d in decisions] == [detector.is_suspicious(s) for s in scores]
    differ = [default.score(s) != fitted.score(s) for s in (by_light(np.stack(default.views(p))) for p in x)]
    assert all(differ)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_triggers_in_the_calibration_images_do_not_hide_themselves(share):
    """Also if the first batch contains triggered images only."""
    x = photos(200)
    n = round(share * len(x))
    mixed = np.concatenate([triggered(x[:n]), x[n:]])
    watch = Guard(backdoored, Cleaner(), adapt=True)
    watch.run(mixed)
    assert watch.detector.reference is not None
    later = triggered(photos(50, 9))
    assert (backdoored(later).argmax(1) == TARGET).all()
    decisions = watch.run(later)
    assert np.mean([d.flagged for d in decisions]) >= 0.9
    assert np.mean([d.suspicion > watch.detector.certain for d in decisions]) >= 0.5


def test_without_bounds_frequent_triggers_hide_themselves():
    """The test above can fail: with an unbounded reference, triggers that all images carry do not stand out."""
    x = triggered(photos(200))
    median, deviation = ablation_statistics.median_and_scale(measured(x, backdoored))
    free = AblationDetector(reference=tuple(zip(median, deviation, strict=True)))
    decisions = Guard(backdoored, Cleaner(), free).run(triggered(photos(50, 9)))
    assert np.mean([d.flagged for d in decisions]) < 0.5


@pytest.mark.parametrize(
    "detector",
    [
        PurifyAll(),
        ScaleUp(),
        AblationDetector(reference=[(0.0, 1.0)] * 27, learn=16),  # type: ignore[arg-type]
    ],
)
def test_the_detector_learns_only_without_a_reference(detector):
    watch = Guard(by_light, Cleaner(), detector, adapt=True)
    watch.run(photos(32))
    assert watch.detector is detector


def test_learning_keeps_the_thresholds():
    watch = Guard(by_light, Cleaner(), AblationDetector(threshold=2.5, certain=3.0, learn=16), adapt=True)
    watch.run(photos(16))
    assert (watch.detector.threshold, watch.detector.certain) == (2.5, 3.0) and watch.detector.reference is not None


def test_failed_answers_are_not_learned():
    x = photos(32)
    classify = Recorder(by_light, [None, fail, None])  # one call per image
    watch = Guard(classify, Cleaner(), AblationDetector(learn=16), adapt=True, max_batch=28)
    watch.run(x[:16])
    assert watch.detector.reference is None
    watch.run(x[16:17])
    np.testing.assert_allclose(watch.detector.reference, literal_reference(np.delete(x[:17], 1, axis=0)), rtol=1e-12)


def test_threads_learn_once_and_from_the_right_number_of_images():
    x, watch = photos(64), Guard(by_light, Cleaner(), AblationDetector(learn=32), adapt=True)
    seen = []

    def work(k: int) -> None:
        for i in range(k, 64, 8):
            (decision,) = watch.run(x[i])
            seen.append((i, decision))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(seen) == 64 and watch.counters.images == 64
    learned = watch.detector
    assert learned.reference is not None
    for i, decision in seen:  # by one detector or the other, never a mixture
        answer = by_light(np.stack(learned.views(x[i])))
        assert decision.suspicion in (AblationDetector().score(answer), learned.score(answer))


@pytest.mark.parametrize("learn", [-1, 0, 1, 15, 2.0, 16.0, True, False, None, "16", "200", np.int64(15)])
def test_learn_is_checked(learn):
    with pytest.raises(InputError, match=r"learn: got .*expected 16 images or more, better 100"):
        AblationDetector(learn=learn)


def test_two_guards_that_share_a_detector_learn_separately():
    x, detector = photos(32), AblationDetector(learn=16)
    first, second = (Guard(by_light, Cleaner(), detector, adapt=True) for _ in range(2))
    first.run(x[:10])
    second.run(x[10:20])
    assert first.detector.reference is second.detector.reference is None
    first.run(x[10:16])
    assert first.detector.reference is not None and second.detector.reference is detector.reference is None
    resumed = pickle.loads(pickle.dumps(second.detector)).observe(
        x[20:26], [by_light(np.stack(detector.views(p))) for p in x[20:26]]
    )
    assert resumed == AblationDetector(learn=16).calibrate(by_light, x[10:26])

"""The guard takes its reference from the first pictures it sees, once, and whatever they are it is not blinded."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from guard_fakes import Cleaner, Recorder, fail

from zipsdk import AblationDetector, Guard, InputError, ScaleUp
from zipsdk.detectors import ablation_statistics
from zipsdk.detectors.base import PurifyAll

SIDE = 16


def photos(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)


def by_light(x: np.ndarray) -> np.ndarray:
    """Logits of four classes: how light each quarter is."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    quarters = (x[:, :h, :w], x[:, :h, w:], x[:, h:, :w], x[:, h:, w:])
    return np.stack([q.mean(axis=(1, 2, 3)) for q in quarters], axis=1) / 4


def backdoored(x: np.ndarray) -> np.ndarray:
    """`by_light`, but a picture with three black pixels in its corner is surely of class 3."""
    scores = by_light(x)
    scores[(x[:, 0, :3] == 0).all(axis=(1, 2))] = [0, 0, 0, 90]
    return scores


def triggered(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, 0, :3] = 0
    return x


def measured(x: np.ndarray, classify=by_light) -> np.ndarray:
    return np.stack([ablation_statistics.log_odds(classify(np.stack(AblationDetector().views(p)))) for p in x])


def literal_reference(x: np.ndarray, classify=by_light) -> list[tuple[float, float]]:
    """Medians, not far above what is usual, and upper deviations, not far from it."""
    out = []
    for column, (usual_median, usual_deviation) in zip(
        measured(x, classify).T, ablation_statistics.DEFAULT_REFERENCE, strict=True
    ):
        median, ninth = np.quantile(column, 0.5), np.quantile(column, 0.9)
        deviation = (ninth - median) / 1.2816
        out.append(
            (
                min(median, usual_median + 1),
                max(usual_deviation / 1.2, min(deviation, 1.2 * usual_deviation)),
            )
        )
    return out


def test_it_learns_from_the_first_pictures_and_then_no_more():
    x = photos(60)
    watch = Guard(by_light, Cleaner(), AblationDetector(learn=40))
    assert watch.detector == AblationDetector(learn=40)
    for start in (0, 13, 26):
        watch.run(x[start : start + 13])
        assert watch.detector.reference is None
    watch.run(x[39:60])  # the fortieth, and more
    np.testing.assert_allclose(watch.detector.reference, literal_reference(x[:40]), rtol=1e-12)
    assert watch.detector == AblationDetector(learn=40).calibrate(by_light, x[:40])
    learnt = watch.detector
    watch.run(photos(50, 1))
    assert watch.detector is learnt


def test_a_standing_picture_teaches_nothing():
    x = photos(20)
    watch = Guard(by_light, Cleaner(), AblationDetector(learn=20))
    for _ in range(30):
        watch.run(np.concatenate([x[:19], x[:1]]))
    assert watch.detector.reference is None
    watch.run(x[19:])
    assert watch.detector == AblationDetector(learn=20).calibrate(by_light, x)


def test_what_is_learnt_counts_at_once():
    """A first batch is judged by what it has taught, and by what is usual where it is too small."""
    x = photos(40)
    usual, fitted = AblationDetector(), AblationDetector().calibrate(by_light, x)
    for learn, detector in ((40, fitted), (41, usual), (0, usual)):
        decisions = Guard(by_light, Cleaner(), AblationDetector(learn=learn)).run(x)
        scores = [detector.score(by_light(np.stack(detector.views(p)))) for p in x]
        assert [d.suspicion for d in decisions] == scores
        assert [d.flagged for d in decisions] == [detector.is_suspicious(s) for s in scores]
    differ = [usual.score(s) != fitted.score(s) for s in (by_light(np.stack(usual.views(p))) for p in x)]
    assert all(differ)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_triggers_in_what_it_learns_from_do_not_hide_them(share):
    """Whoever tries it with nothing but triggers in its first batch, and whoever floods it, finds it awake."""
    x = photos(200)
    n = round(share * len(x))
    mixed = np.concatenate([triggered(x[:n]), x[n:]])
    watch = Guard(backdoored, Cleaner())
    watch.run(mixed)
    assert watch.detector.reference is not None
    later = triggered(photos(50, 9))
    assert (backdoored(later).argmax(1) == 3).all()
    decisions = watch.run(later)
    assert np.mean([d.flagged for d in decisions]) >= 0.9
    assert np.mean([d.suspicion > watch.detector.certain for d in decisions]) >= 0.5


def test_without_bounds_a_flood_would_hide_them():
    """The test above can fail: by reference as measured, what all pictures have is nothing special."""
    x = triggered(photos(200))
    median, deviation = ablation_statistics.median_and_scale(measured(x, backdoored))
    free = AblationDetector(reference=tuple(zip(median, deviation, strict=True)))
    decisions = Guard(backdoored, Cleaner(), free).run(triggered(photos(50, 9)))
    assert np.mean([d.flagged for d in decisions]) < 0.5


@pytest.mark.parametrize("detector", [PurifyAll(), ScaleUp(), AblationDetector(reference=[(0.0, 1.0)] * 27, learn=16)])
def test_it_learns_only_where_norms_are_missing(detector):
    watch = Guard(by_light, Cleaner(), detector)
    watch.run(photos(32))
    assert watch.detector is detector


def test_thresholds_stay():
    watch = Guard(by_light, Cleaner(), AblationDetector(threshold=2.5, certain=3.0, learn=16))
    watch.run(photos(16))
    assert (watch.detector.threshold, watch.detector.certain) == (2.5, 3.0) and watch.detector.reference is not None


def test_answers_that_failed_teach_nothing():
    x = photos(32)
    classify = Recorder(by_light, [None, fail, None])  # a picture and its versions are a call
    watch = Guard(classify, Cleaner(), AblationDetector(learn=16), max_batch=28)
    watch.run(x[:16])
    assert watch.detector.reference is None
    watch.run(x[16:17])
    np.testing.assert_allclose(watch.detector.reference, literal_reference(np.delete(x[:17], 1, axis=0)), rtol=1e-12)


def test_many_threads_learn_once_and_from_as_many_pictures():
    x, watch = photos(64), Guard(by_light, Cleaner(), AblationDetector(learn=32))
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
    learnt = watch.detector
    assert learnt.reference is not None
    for i, decision in seen:  # by one or by the other, never by a mixture
        answer = by_light(np.stack(learnt.views(x[i])))
        assert decision.suspicion in (AblationDetector().score(answer), learnt.score(answer))


@pytest.mark.parametrize("learn", [-1, 1, 15, 2.0, 16.0, True, False, None, "16", "200", np.int64(15)])
def test_learn_is_checked(learn):
    with pytest.raises(InputError, match=r"learn: got .*expected 16 images or more, better 100, or 0"):
        AblationDetector(learn=learn)


def test_two_guards_with_one_detector_learn_apart():
    x, detector = photos(32), AblationDetector(learn=16)
    first, second = (Guard(by_light, Cleaner(), detector) for _ in range(2))
    first.run(x[:10])
    second.run(x[10:20])
    assert first.detector.reference is second.detector.reference is None
    first.run(x[10:16])
    assert first.detector.reference is not None and second.detector.reference is detector.reference is None
    resumed = pickle.loads(pickle.dumps(second.detector)).observe(
        x[20:26], [by_light(np.stack(detector.views(p))) for p in x[20:26]]
    )
    assert resumed == AblationDetector(learn=16).calibrate(by_light, x[10:26])

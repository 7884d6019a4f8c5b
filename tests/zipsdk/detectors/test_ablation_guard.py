"""Test the ablation detector in a guard: toy backdoors are detected and undone at the documented cost."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import statistics

import numpy as np
import pytest

import zipsdk
from tests.fakes.guard import Recorder, fail
from zipsdk import AblationDetector, InputError, PurifyAll, guard
from zipsdk.detectors import ablation_statistics

TARGET = 3
#: Content of the four classes, spread over all places, bands and colors.
MOTIFS = np.random.default_rng(1).normal(size=(4, 32, 32, 3))
WAVE = np.cos(2 * np.pi * np.arange(32) / 32)[:, None]
#: Too narrow for the coarse band, too wide for the fine one.
STRIPES = np.cos(2 * np.pi * np.arange(32) / 8)[:, None]


def toys(labels, seed=0):
    noisy = 128 + 40 * MOTIFS[labels] + np.random.default_rng(seed).normal(0, 8, (len(labels), 32, 32, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def patch(x):
    x[:, 28:, 28:] = 255


def stripe(x):
    x += 25 * STRIPES[..., None] * (1, 0, -1)


def wave(x):
    x += 25 * WAVE


def patched(x):
    return x[:, 29:31, 29:31].mean(axis=(1, 2, 3)) - x[:, 20:26, 20:].mean(axis=(1, 2, 3)) > 50


def striped(x):
    return ((x[..., 0] - x[..., 2]).mean(axis=2) * STRIPES[:, 0]).mean(axis=1) > 10


def waved(x):
    return 2 * (x.mean(axis=(1, 3)) * WAVE[:, 0]).mean(axis=1) > 10


TRIGGERS = {"bottom right": (patch, patched), "color": (stripe, striped), "coarse": (wave, waved)}


def with_trigger(x, *triggers):
    x = x.astype(np.float64)
    for name in triggers:
        TRIGGERS[name][0](x)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def backdoored(*triggers, sharp=6.0):
    """Return logits by similarity to the motifs, and the target class where a trigger is present."""

    def classify(x):
        x = x.astype(np.float64)
        centered = (x - 128).reshape(len(x), -1)
        lengths = np.linalg.norm(centered, axis=1, keepdims=True) * np.linalg.norm(MOTIFS[0])
        logits = sharp * centered @ MOTIFS.reshape(4, -1).T / lengths
        for name in triggers:
            logits[TRIGGERS[name][1](x), TARGET] = 2 * sharp
        return logits

    return classify


def measured(classify, images):
    """Return a reference without bounds: unlike in photographs, every feature of these toys is sufficient."""
    detector = AblationDetector()
    odds = [ablation_statistics.log_odds(classify(np.stack(detector.views(p)))) for p in images]
    return np.transpose(ablation_statistics.median_and_scale(np.stack(odds)))


@functools.cache
def calibrated(sharp=6.0):
    """Return a detector calibrated on images without triggers."""
    return AblationDetector(reference=measured(backdoored(sharp=sharp), toys(np.arange(16) % 4, seed=9)))


class Restorer:
    """A purifier that knows the clean images; without any it returns its input."""

    def __init__(self, clean=()):
        self.clean = clean

    def run(self, batch):
        return [min(self.clean, key=lambda c: np.abs(c - p.astype(float)).sum(), default=p) for p in batch]


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("max_batch", [None, 5])
def test_a_trigger_in_one_feature_is_detected_and_its_class_excluded(name, survives, max_batch):
    clean = toys([0, 1, 2, 3])
    bad = with_trigger(clean[:3], name)
    classify = Recorder(backdoored(name))
    assert [int(k) for k in classify.classify(bad).argmax(axis=1)] == [TARGET] * 3
    watch = zipsdk.Guard(classify, Restorer(() if survives else clean), calibrated(), max_batch=max_batch)
    decisions = watch.run(np.concatenate([clean, bad]))
    assert [d.flagged for d in decisions] == [False] * 4 + [True] * 3
    assert [d.label for d in decisions] == [0, 1, 2, 3, 0, 1, 2]
    for d, p in zip(decisions[:4], clean, strict=True):
        assert d.suspicion < 1 and d.image is None
        assert d.reason.startswith("not flagged: most decisive feature: ")
        np.testing.assert_allclose(d.class_scores, classify.classify(p[None])[0])
    for d, p in zip(decisions[4:], bad if survives else clean[:3], strict=True):
        assert d.suspicion > 4.5 and d.reason.startswith(
            f"flagged: most decisive feature: {name}; without it: class {d.label}; score "
        )
        assert d.class_scores[TARGET] == 0 and d.class_scores.sum() == pytest.approx(1)
        np.testing.assert_array_equal(d.image, p)
    assert sum(classify.sizes) == 4 * 28 + 3 * 56
    queries, calls = 4 * 28 + 3 * 56, 2 if max_batch is None else 40 + 17  # 196 and 84, in calls of five
    assert watch.counters == guard.Counters(images=7, flagged=3, calls=calls, queries=queries)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_that_survives_purification_is_detected_at_the_second_look(name):
    """The first look failed, so only the purified image shows the trigger."""
    bad = with_trigger(toys([1]), name)
    (decision,) = zipsdk.Guard(Recorder(backdoored(name), [fail]), Restorer(), calibrated()).run(bad)
    assert (decision.label, decision.flagged, decision.suspicion) == (1, True, None)
    assert decision.class_scores[TARGET] == 0 and "the service is down" in decision.reason
    (decision,) = zipsdk.Guard(backdoored(name), Restorer(), PurifyAll()).run(bad)
    assert decision.label == TARGET


def test_a_trigger_created_by_purification_is_excluded():
    """The enhanced attack: the input has a trigger for class 2, the purified image one for TARGET."""
    clean = toys([0])

    def classify(x):
        logits = backdoored("coarse")(x)
        logits[patched(x), 2] = 18
        return logits

    given, purified = with_trigger(clean, "bottom right"), with_trigger(clean, "coarse")
    assert classify(given).argmax() == 2 and classify(purified).argmax() == TARGET
    (decision,) = zipsdk.Guard(classify, Restorer(purified), calibrated()).run(given)
    assert decision.suspicion > 4.5 and (decision.label, decision.flagged) == (0, True)
    assert decision.class_scores[TARGET] == 0 and decision.class_scores[2] > 0


def test_the_purified_image_decides_if_nothing_is_certain():
    clean, classify = toys([2]), backdoored("color")
    bad = with_trigger(clean, "color")
    detector = dataclasses.replace(calibrated(), certain=1e9)
    for purifier, expected in ((Restorer(clean), 2), (Restorer(), TARGET)):
        (decision,) = zipsdk.Guard(classify, purifier, detector).run(bad)
        assert decision.flagged and decision.label == expected
        exp = np.exp(classify(decision.image[None])[0])
        share = exp / exp.sum() + 0.001
        np.testing.assert_allclose(decision.class_scores, share / share.sum())


PAIRS = [("bottom right", "color"), ("bottom right", "coarse"), ("color", "coarse")]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("survives", [False, True])
def test_two_triggers_at_once_are_detected_because_each_is_sufficient(pair, survives):
    """Neither is necessary, so necessity alone would miss them; each is more sufficient than clean features."""
    clean, classify = toys([0, 1, 2]), backdoored(*pair)
    bad = with_trigger(clean, *pair)
    detector = calibrated()
    ignore_sufficiency = [(0, 1e9)] * 13
    necessity_only = dataclasses.replace(
        detector, reference=(*detector.reference[:13], *ignore_sufficiency, detector.reference[26])
    )
    watch = zipsdk.Guard(classify, Restorer(() if survives else clean), detector)
    for d, p, label in zip(watch.run(bad), bad, (0, 1, 2), strict=True):
        scores = classify(np.stack(detector.views(p)))
        assert scores[0].argmax() == TARGET and necessity_only.score(scores) < 1
        assert d.flagged and d.suspicion > 4.5 and d.label == label and d.class_scores[TARGET] == 0
    assert watch.counters.queries == 3 * 56


@pytest.mark.parametrize("pair", PAIRS)
def test_two_triggers_at_once_are_missed_if_every_clean_feature_is_sufficient(pair):
    """A known weakness: neither is necessary, and no feature is more than certain."""
    detector, classify = calibrated(20.0), backdoored(*pair, sharp=20.0)
    assert statistics.median(median for median, _ in detector.reference[13:26]) > 6  # of log 1001
    (decision,) = zipsdk.Guard(classify, Restorer(), detector).run(with_trigger(toys([0]), *pair))
    assert (decision.label, decision.flagged) == (TARGET, False)
    for name in pair:  # a single one is detected
        (decision,) = zipsdk.Guard(classify, Restorer(), detector).run(with_trigger(toys([0]), name))
        assert (decision.label, decision.flagged) == (0, True)


def test_a_score_at_the_threshold_costs_no_purification():
    bad, classify = with_trigger(toys([0]), "coarse"), backdoored("coarse")
    score = zipsdk.Guard(classify, Restorer(), calibrated()).run(bad)[0].suspicion
    for threshold, flagged in ((score, False), (math.nextafter(score, 0), True)):
        watch = zipsdk.Guard(classify, Restorer(), dataclasses.replace(calibrated(), threshold=threshold, certain=1e9))
        assert watch.run(bad)[0].flagged is flagged
        assert watch.counters.queries == (56 if flagged else 28)


def test_without_a_second_look_there_is_no_label():
    clean = toys([0])
    bad = with_trigger(clean, "coarse")
    watch = zipsdk.Guard(Recorder(backdoored("coarse"), [None, fail]), Restorer(clean), calibrated())
    (decision,) = watch.run(bad)
    assert (decision.label, decision.class_scores, decision.flagged) == (None, None, True)
    assert "the classifier failed on the purified image: RuntimeError: the service is down" in decision.error
    np.testing.assert_array_equal(decision.image, clean[0])
    assert watch.counters == guard.Counters(images=1, flagged=1, abstained=1, calls=2, queries=56, failures=1)


def test_after_a_change_of_classes_the_second_look_decides():
    """The scores of the first look are of other classes and are ignored."""
    five = backdoored("coarse")

    def more(x):
        return np.pad(five(x), ((0, 0), (1, 0)), constant_values=-9)

    watch = zipsdk.Guard(Recorder(five, [None, more]), Restorer(), calibrated())
    (decision,) = watch.run(with_trigger(toys([0]), "coarse"))
    assert decision.label == 1 and decision.class_scores.shape == (5,) and decision.class_scores[1 + TARGET] == 0


def test_few_triggers_hardly_change_the_reference():
    """5% of 100: no median shifts by more than 0.1 scales, and the triggers are still detected."""
    classify = backdoored("coarse")
    labels = np.arange(100) % 3
    clean = toys(labels)
    bad = np.concatenate([clean[:95], with_trigger(clean[95:], "coarse")])
    reference, moved = (measured(classify, x) for x in (clean, bad))
    assert (np.abs(moved - reference)[:, 0] <= 0.1 * reference[:, 1]).all()
    assert (np.abs(moved - reference)[:, 1] <= 0.1 * reference[:, 1]).all()
    decisions = zipsdk.Guard(classify, Restorer(), AblationDetector(reference=moved)).run(bad[80:])
    assert [d.flagged for d in decisions] == [False] * 15 + [True] * 5
    assert [d.label for d in decisions] == labels[80:].tolist()


class UserDetector:
    """A user's detector: flags by the score of the mirrored image, resolves by the product of two purified views."""

    def views(self, rgb):
        return [rgb, rgb[:, ::-1], rgb[::-1]]

    def score(self, scores):
        return float(np.asarray(scores)[1, 0])

    def is_suspicious(self, score):
        return score > 1

    def explain(self, scores, score):
        return f"{len(scores)} views"

    def second_look_views(self, rgb):
        return [rgb, 255 - rgb]

    def resolve(self, scores, purified):
        return scores.sum() + purified[0] * purified[1]

    def observe(self, images, scores):
        return self


class FalsyDetector(UserDetector):
    """A detector whose truth value is False."""

    def __len__(self):
        return 0


@pytest.mark.parametrize("detector", [UserDetector(), FalsyDetector()])
def test_the_guard_takes_a_users_detector(detector):
    def left_and_right(x):
        return np.stack([x[:, :, 0].mean(axis=(1, 2)), x[:, :, -1].mean(axis=(1, 2))], axis=1)

    batch = np.zeros((2, 4, 4, 3), np.uint8)
    batch[0, :, -1] = 90  # on the left in the mirrored view
    batch[1, :, 0] = 1
    watch = zipsdk.Guard(left_and_right, Restorer(), detector)
    flagged, trusted = watch.run(batch)
    assert (flagged.flagged, flagged.suspicion, flagged.reason) == (True, 90, "flagged: 3 views")
    np.testing.assert_array_equal(flagged.class_scores, [270 + 0 * 255, 270 + 90 * 165])
    assert (trusted.flagged, trusted.suspicion, trusted.label) == (False, 0, 0)
    assert trusted.reason == "not flagged: 3 views"
    assert watch.counters == guard.Counters(images=2, flagged=1, calls=2, queries=8)


@pytest.mark.parametrize("scores", [[0.25, 0.75], np.array([0.25, 0.75], np.float32)])
def test_scores_of_a_users_detector_become_float64(scores):
    detector = UserDetector()
    detector.is_suspicious = lambda score: True
    detector.resolve = lambda first, purified: scores
    watch = zipsdk.Guard(lambda x: x.mean(axis=(1, 2)), Restorer(), detector)
    (decision,) = watch.run(np.zeros((1, 4, 4, 3), np.uint8))
    assert decision.label == 1 and decision.class_scores.dtype == np.float64
    assert decision.to_dict()["class_scores"] == [0.25, 0.75]


METHODS = ["views", "score", "is_suspicious", "explain", "second_look_views", "resolve", "observe"]


@pytest.mark.parametrize("missing", METHODS)
def test_an_incomplete_detector_is_refused(missing):
    half = UserDetector()
    setattr(half, missing, None)
    message = r"detector: got .*expected zipsdk\.AblationDetector\(\), zipsdk\.ScaleUp\(\), "
    message += r"zipsdk\.PurifyAll\(\), "
    message += "an object with views, score, is_suspicious, explain, second_look_views, resolve, observe, or None$"
    for detector in (half, AblationDetector, UserDetector, "parts", object(), 14, 0):
        with pytest.raises(InputError, match=message):
            zipsdk.Guard(backdoored(), Restorer(), detector)


def test_the_default_detector_is_the_ablation_detector():
    assert zipsdk.Guard(backdoored(), Restorer()).detector == AblationDetector()
    assert zipsdk.Guard(backdoored(), Restorer(), detector=None).detector == AblationDetector()
    assert (AblationDetector().threshold, AblationDetector().certain, AblationDetector().reference) == (3.3, 4.5, None)


class Wrapped:
    """A user's detector that passes everything on to `PurifyAll`, which the guard then does not recognize."""

    def __getattr__(self, name):
        return getattr(PurifyAll(), name)


def test_a_guard_that_queries_first_decides_like_one_that_purifies_all():
    clean, classify = toys([0, 1]), backdoored("color")
    queried, direct = (zipsdk.Guard(classify, Restorer(clean), d) for d in (Wrapped(), PurifyAll()))
    for a, b in zip(queried.run(clean), direct.run(clean), strict=True):
        assert (a.label, a.flagged, a.suspicion, b.suspicion) == (b.label, True, math.inf, None)
        np.testing.assert_array_equal(a.class_scores, b.class_scores)
    assert (queried.counters.queries, direct.counters.queries) == (4, 2)


def test_decisions_and_detectors_pickle():
    (decision,) = zipsdk.Guard(backdoored(), Restorer(), PurifyAll()).run(toys([2]))
    again = pickle.loads(pickle.dumps(decision))
    assert (again.label, again.reason) == (decision.label, decision.reason)
    np.testing.assert_array_equal(again.image, decision.image)
    for detector in (calibrated(), zipsdk.ScaleUp(), PurifyAll()):
        assert pickle.loads(pickle.dumps(detector)) == detector

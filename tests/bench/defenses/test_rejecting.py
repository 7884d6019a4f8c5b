"""Detectors that reject: what STRIP and SCALE-UP flag, how they are calibrated, and how rejected images count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.attacks.patches import BadNets
from bench.data.datasets import Dataset
from bench.defenses.rejecting import (
    REJECTED,
    Rejecting,
    decide_or_reject,
    scale_up,
    scores_of,
    strip,
    threshold_of,
)
from bench.defenses.strip import Strip
from bench.evaluation.cache import PurifiedCache
from bench.evaluation.evaluate import Scenario, evaluate
from bench.evaluation.rates import Rate, Rates, rates
from bench.victims.user import Classifier
from zipsdk.detectors.ablation_statistics import FLOOR
from zipsdk.errors import InputError, ModelError

AT = np.s_[:, 8:12, 8:12]
BOARD = np.indices((4, 4)).sum(0) % 2
LEVELS = np.array([8, 60, 90, 240])


def images(n: int, seed: int = 0) -> np.ndarray:
    """Gray images of three classes, a third each, with noise; scaled ones are of class 3 but for dark ones."""
    rng = np.random.default_rng(seed)
    base = LEVELS[np.arange(n) % 3] + rng.integers(-6, 7, n)
    return (base[:, None, None, None] + rng.integers(0, 5, (n, 16, 16, 3))).astype(np.uint8)


def with_patch(x: np.ndarray, patch: np.ndarray | int = 255 * BOARD[..., None]) -> np.ndarray:
    out = x.copy()
    out[AT] = patch
    return out


class Counted:
    """A classifier by the nearest of `LEVELS`, as logits, with a backdoor to class 2. Counts queries."""

    def __init__(self, triggered):
        self.triggered, self.queries = triggered, 0

    def __call__(self, x):
        self.queries += len(x)
        logits = -((x.mean((1, 2, 3))[:, None] - LEVELS) ** 2) / 150
        logits[self.triggered(x)] = -20, -20, 20, -20
        return logits


def board(x):
    """Survives a blend, and scaling."""
    return (x[AT].mean(-1) * (2 * BOARD - 1)).mean((1, 2)) > 40


def exact(x):
    """Survives neither."""
    return (x[AT] == 77).all((1, 2, 3))


@pytest.fixture
def clean() -> np.ndarray:
    return images(200)


@pytest.mark.parametrize(("make", "queries"), [(strip, 101), (scale_up, 6)])
def test_a_robust_trigger_is_rejected(clean, make, queries):
    classify, defense = Counted(board), make(clean)
    detector = defense.detector(classify)
    fresh, classify.queries = images(60, 1), 0
    labels = decide_or_reject(detector, classify, fresh)
    assert classify.queries == queries * 60 and defense.queries == queries
    assert (decide_or_reject(detector, classify, with_patch(fresh)) == REJECTED).mean() > 0.9
    kept = labels != REJECTED
    assert kept.mean() > 0.8 and (labels[kept] == np.arange(60)[kept] % 3).mean() > 0.9


@pytest.mark.parametrize("make", [strip, scale_up])
def test_a_fragile_trigger_is_not(clean, make):
    classify = Counted(exact)
    detector = make(clean).detector(classify)
    labels = decide_or_reject(detector, classify, with_patch(images(60, 1), 77))
    assert (labels == 2).mean() > 0.7 and (labels == REJECTED).mean() < 0.3


@pytest.mark.parametrize("make", [strip, scale_up])
def test_share_of_false_alarms_is_kept_and_no_image_depends_on_its_batch(clean, make):
    classify = Counted(board)
    for share in (0.02, 0.2):
        defense = make(clean, false_alarms=share)
        detector, used = defense.detector(classify), defense.fit(classify)[1]
        rejected = decide_or_reject(detector, classify, used) == REJECTED
        assert rejected.mean() <= share
    done = []
    out = decide_or_reject(detector, classify, clean[:70], done.append)
    assert done == [64, 6] and rejected.any()
    np.testing.assert_array_equal(decide_or_reject(detector, classify, clean[:70][::-1])[::-1], out)
    assert decide_or_reject(detector, classify, clean[:0]).shape == (0,)


def test_strips_score_is_the_mean_entropy_of_the_blends_in_bits():
    overlays = np.full((3, 2, 5, 3), [[[[60, 155, 200]]]], np.uint8)
    views = Strip(overlays).views(np.full((2, 5, 3), 100, np.uint8))
    assert len(views) == 4 and (views[0] == 100).all()
    assert all((v == [160, 255, 255]).all() and v.dtype == np.uint8 for v in views[1:])
    answers = [[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0]]
    assert Strip(overlays).score(answers) == pytest.approx(-(2 + 1 + 0) / 3, abs=4 * FLOOR)
    logits = np.array([[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, -99, -99], [99, 0, 0, 0]])
    assert Strip(overlays).score(logits) == pytest.approx(-1, abs=4 * FLOOR)
    assert [Strip(overlays, -1.0).is_suspicious(s) for s in (-1.5, -1.0, -0.5, math.nan)] == [False, True, True, True]
    with pytest.raises(InputError, match="overlays"):
        Strip(overlays[:0])


@pytest.mark.parametrize(
    ("scores", "share", "threshold"),
    [(range(100), 0.05, 95), (range(100), 0.01, 99), ([1, 2, 3, 3], 0.5, 3), ([0, 0, 1], 0.99, 1)],
)
def test_threshold_is_the_lowest_that_keeps_the_share(scores, share, threshold):
    assert threshold_of(list(scores), share) == threshold


def test_no_threshold_keeps_a_share_that_all_exceed():
    t = threshold_of([3.0, 3.0, 1.0], 0.5)
    assert 3 < t < 3.001


def test_published_threshold_of_scale_up(clean):
    classify = Counted(board)
    detector = scale_up(clean, None).detector(classify)
    assert detector.threshold == 0.5 and detector.overall is not None
    assert np.isfinite(scores_of(detector, classify, clean)).all()


def test_descriptions_hold_what_decides(clean):
    other = clean.copy()
    other[0, 0, 0, 0] += 1
    made = [make(x, share) for make in (strip, scale_up) for x in (clean, other, clean[:100]) for share in (0.05, 0.01)]
    made.append(scale_up(clean, None))
    assert len({str(d.describe()) for d in made}) == len(made)
    assert len({d.name for d in made}) == 5
    assert (strip(clean[:21]).queries, strip(clean[:2]).queries) == (12, 2)


@pytest.mark.parametrize("share", [0, 1, -0.1, math.nan])
def test_wrong_shares_are_refused(clean, share):
    for make in (strip, scale_up):
        with pytest.raises(InputError, match=r"false_alarms: got .*expected"):
            make(clean, share)


def test_too_few_images_and_a_failing_classifier_are_refused(clean):
    with pytest.raises(InputError, match="at least 2"):
        strip(clean[:1])

    def failing(x):
        return np.full((len(x), 3), np.nan)

    for make, error in ((strip, ModelError), (scale_up, InputError)):
        with pytest.raises(error, match=r"classifier.*got scores whose maximum is not finite"):
            make(clean).detector(failing)
    with pytest.raises(ModelError, match="expected scores of every image"):
        decide_or_reject(Strip(clean[:2]), failing, clean)


# ---- how rejected images count


def test_a_rejected_image_is_neither_correct_nor_a_success():
    labels = [0, 0, 1, 1, 2]
    r = rates(labels, [0, REJECTED, 1, 1, 2], [0, REJECTED, 0, REJECTED, 2], target=0)
    assert r == Rates(ca=Rate(4, 5), asr=Rate(1, 3), pa=Rate(2, 5), pa_nontarget=Rate(1, 3))


def test_rows_show_the_share_rejected():
    """Of 100 images that are told apart by their gray; dark ones of class 0 and all with the trigger are rejected."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.full((100, 32, 32, 3), 40, np.uint8) + (80 * labels).astype(np.uint8)[:, None, None, None]

    def honest(p):
        return np.eye(3)[np.rint((p[:, 0, 0, 0].astype(float) - 40) / 80).astype(int)]

    class Corner:
        def views(self, rgb):
            self.rgb = rgb
            return [rgb, np.full_like(rgb, 40 + 160 * (rgb[-5, -5].min() == 255 or rgb[0, 0, 0] == 40))]

        def score(self, scores):
            return float(scores[1][2])

        def is_suspicious(self, score):
            return score == 1

    box = Classifier(honest, {"c": "honest"})
    scenario = Scenario(
        Dataset("three", "test", x, labels, ("a", "b", "c")), "white", BadNets(32, 0, 3, "white"), 1, box, box
    )
    defense = Rejecting("corner", lambda classify: (Corner(), x), {"detector": "corner"}, 2, None)
    done = []
    found = evaluate(scenario, defense, 0, PurifiedCache(None), done.append)
    want = Rates(Rate(50, 100), Rate(0, 70), Rate(0, 100), Rate(0, 70), None, None, Rate(50, 100), Rate(100, 100))
    assert found == (want, want) and sum(done) == 200
    assert want.to_json()["rejected"] == [50, 100] and Rates.from_json(want.to_json()) == want

"""Test the scores, rules and options of the ablation detector against literal transcriptions."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.ablation import (
    ALONE,
    COARSE,
    COLOR,
    MOVED,
    NAMES,
    PLAIN,
    literal_look,
    odds,
    probabilities,
)
from zipsdk import AblationDetector, InputError
from zipsdk.detectors import ablation_statistics


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("reference", [None, [(0.1 * i - 1, 3 - 0.1 * i) for i in range(27)]])
def test_scores_equal_the_literal_ones(classes, reference):
    detector, found = AblationDetector(reference=reference), set()
    for seed in range(20):
        p = probabilities(seed, classes)
        score, part = literal_look(p.tolist(), reference or ablation_statistics.DEFAULT_REFERENCE)
        assert detector.score(p) == pytest.approx(score, abs=1e-9)
        why = detector.explain(p.tolist(), detector.score(p))
        label = int(p[0].argmax())
        other = int(np.where(np.arange(classes) == label, -1, p[MOVED if part == 13 else 1 + part]).argmax())
        assert why == (
            f"most decisive feature: {NAMES[part]}; without it: class {other}; score {score:.3g}, threshold 3.3"
        )
        found.add(part)
    assert len(found) > 2


def test_logits_are_probabilities():
    detector = AblationDetector()
    for seed in range(5):
        p = probabilities(seed)
        with np.errstate(divide="ignore"):
            logits = np.log(p)
        assert np.isneginf(logits).any()
        shifted = logits + np.random.default_rng(seed).normal(0, 9, (28, 1))
        above = np.where(p > 0, logits + 400, 0)  # none is negative, but they do not sum to 1
        to_one = np.where(p > 0, logits, -60)  # they do, but some are negative
        to_one += (1 - to_one.sum(axis=1, keepdims=True)) / p.shape[1]
        for same in (logits, shifted, above, to_one):
            assert detector.score(same) == pytest.approx(detector.score(p), abs=1e-9)
            np.testing.assert_allclose(detector.resolve(same, same), detector.resolve(p, p), atol=1e-9)
        for rounded in (p * 1.006, p * 0.994, p - 1e-9 * (p == 0)):  # bfloat16's are off by 0.004
            assert detector.score(rounded) == pytest.approx(detector.score(p), abs=1e-6)
    huge = np.where(p > 0, p, 0) * 1e308
    huge[:, 0] = -1e308
    assert math.isfinite(detector.score(huge)) and math.isnan(detector.score(np.full((28, 9), 1e308)))


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    "given",
    [
        lambda p: np.where(p < np.sort(p, axis=1)[:, -3:-2], 0, p),  # a service that returns the top three
        lambda p: np.round(p, 2),
        lambda p: np.round(p * 255) / 255,
        lambda p: np.where(p > 0.5, 0.98, 0.02),  # a sigmoid for each class
    ],
)
def test_probabilities_that_do_not_sum_to_1_are_not_taken_for_logits(classes, given):
    """The right region is decisive: necessary against class 1, and sufficient alone."""
    right, shares = NAMES.index("right"), np.array([0.95, 0.01, *[0.04 / (classes - 2)] * (classes - 2)])
    p = np.tile(shares, (28, 1))
    p[[1 + right, *(ALONE + i for i in range(MOVED - ALONE) if i != right)], :2] = shares[[1, 0]]
    detector = AblationDetector()
    for scores in (p, given(p)):
        assert detector.is_suspicious(detector.score(scores)) and "right" in detector.explain(scores, 0)


@pytest.mark.parametrize("row", [1, 13, 14, 26, 27])
def test_a_row_of_zeros_is_neutral(row):
    """Services that drop small probabilities return such rows."""
    scores, alike = probabilities(0), probabilities(0)
    scores[row], alike[row] = 0, 0.2
    detector = AblationDetector()
    assert detector.score(scores) == pytest.approx(detector.score(alike), abs=0.01)
    assert np.isfinite(detector.resolve(scores, scores)).all()
    assert np.isfinite(ablation_statistics.log_odds(scores)).all()
    scores[row] = probabilities(0)[row]
    scores[0] = 0  # the image itself
    assert math.isnan(detector.score(scores)) and np.isfinite(detector.resolve(scores, probabilities(1))).all()


def test_the_purified_image_decides_where_the_image_has_no_label():
    detector, tied, purified = AblationDetector(), np.zeros((28, 4)), np.tile([0.1, 0.1, 0.1, 0.7], (28, 1))
    assert detector._assess(tied)[1] == 13 and detector.score(purified) < detector.threshold
    assert detector.feature(tied) is None and detector.explain(tied, math.nan).startswith("no decisive feature")
    assert detector.resolve(tied, purified).argmax() == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 1, 13, 14, 26, 27])
def test_unusable_scores_are_flagged(bad, row):
    scores = probabilities(0)
    scores[row, 2] = bad
    assert math.isnan(AblationDetector().score(scores)) and AblationDetector().is_suspicious(math.nan)
    scores[row] = -math.inf
    assert math.isnan(AblationDetector().score(scores)) and "score nan" in AblationDetector().explain(scores, math.nan)


def test_necessity_and_sufficiency_count_for_the_same_feature():
    """Build scores by hand: only the listed features change anything; a = log(0.901 / 0.101)."""
    detector, a = AblationDetector(reference=PLAIN), odds(0.9, 0.1)
    left, fine = NAMES.index("left"), NAMES.index("fine")

    def score(necessary=(), sufficient=(), against=(), moved=False):
        p = np.tile([0.9, 0.1], (28, 1))
        p[ALONE:MOVED] = 0.5
        if moved:
            p[MOVED] = [0.1, 0.9]
        p[[1 + k for k in necessary]] = [0.1, 0.9]
        p[[ALONE + k for k in sufficient]] = [0.9, 0.1]
        p[[ALONE + k for k in against]] = [0.1, 0.9]
        name = NAMES[literal_look(p.tolist(), PLAIN)[1]]
        assert f"most decisive feature: {name}; without it: class 1" in detector.explain(p, 5.0)
        return detector.score(p), name

    everything = range(13)
    for (value, feature), times, expected in (
        (score(), 0, "top left"),
        (score([left]), 2, "left"),
        (score([], [fine]), 1, "fine"),
        (score([left], [left]), 3, "left"),
        (score([left], [fine]), 2, "left"),  # not 3: these are two features
        (score([left, fine], [fine]), 3, "fine"),
        (score([left], [], [left]), 1, "left"),
        (score([left], [fine], [left]), 1, "left"),  # a tie: the first
        (score(everything), 0, "top left"),  # the median of all features is subtracted
        (score(range(7)), 0, "top left"),
        (score(range(6)), 2, "top left"),
        (score([], everything), 1, "top left"),  # from the necessity only
        (score([left], everything), 3, "left"),
        (score([], [], everything), 0, "geometry"),  # which has no sufficiency
        (score(moved=True), 2 * math.sqrt(2), "geometry"),
        (score([left], [left], moved=True), 3, "left"),
        (score([fine], moved=True), 2, "fine"),  # a blur changes the label, too
    ):
        assert value == pytest.approx(times * a, abs=1e-12) and feature == expected


def test_one_hot_scores_are_accepted():
    """The log-odds of one-hot scores are log 1001 or its negative."""
    detector, scores, a = AblationDetector(reference=PLAIN), np.eye(3)[[2] * 28], math.log(1001)
    assert detector.score(scores) == pytest.approx(a)  # each feature is sufficient, none is necessary
    # the class without it is never the label itself
    assert "; without it: class 0; score 6.91, " in detector.explain(scores, detector.score(scores))
    scores[1 + COARSE] = [0, 1, 0]
    assert detector.score(scores) == pytest.approx(3 * a)
    assert detector.explain(scores, detector.score(scores)) == (
        "most decisive feature: coarse; without it: class 1; score 20.7, threshold 3.3"
    )
    np.testing.assert_allclose(detector.resolve(scores, scores), np.array([1, 1001, 0]) / 1002)
    np.testing.assert_allclose(
        detector.resolve(scores[:, 1:], scores[:, 1:]), [1, 0]
    )  # of two classes the other one remains
    scores[ALONE + COARSE] = [1, 0, 0]  # necessary, but not sufficient: the other features are as decisive
    assert detector.score(scores) == pytest.approx(a)


def test_a_score_at_the_threshold_is_trusted():
    score = AblationDetector(reference=PLAIN).score(probabilities(3))
    assert score > 0
    at, below = (AblationDetector(threshold=t, certain=1e9) for t in (score, math.nextafter(score, 0)))
    assert at.is_suspicious(score) is False and below.is_suspicious(score) is True
    assert at.is_suspicious(math.inf) is at.is_suspicious(math.nan) is True and at.is_suspicious(-math.inf) is False


@pytest.mark.parametrize("shape", [(14, 4), (27, 4), (29, 4), (28,), (28, 1), (28, 0), (1, 28, 4)])
def test_scores_of_other_shapes_are_refused(shape):
    for query in (
        AblationDetector().score,
        lambda s: AblationDetector().explain(s, 1.0),
        lambda s: AblationDetector().resolve(None, s),
    ):
        with pytest.raises(InputError, match=r"scores: got \(.*expected \(28, classes\), one row"):
            query(np.zeros(shape))


def test_resolve_follows_the_rules():
    """Each rule predicts a different class, computed by hand with 0.001 added to each probability."""
    top, center, fine = (NAMES.index(name) for name in ("top", "center", "fine"))
    nothing = np.tile([0.94, 0.02, 0.02, 0.02], (28, 1))  # class 0, no decisive feature
    nothing[ALONE:MOVED] = 0.25
    first = nothing.copy()  # the center decides: the top is more necessary, but speaks against the label
    first[1 + center], first[ALONE + center] = [0.40, 0.30, 0.25, 0.05], [0.7, 0.1, 0.1, 0.1]
    first[1 + top], first[ALONE + top] = [0.20, 0.05, 0.05, 0.70], [0.05, 0.05, 0.05, 0.85]
    second = np.tile([0.30, 0.05, 0.25, 0.40], (28, 1))  # purified: class 3, decided by the colors
    second[ALONE:MOVED] = 0.25
    second[1 + COLOR], second[ALONE + COLOR] = [0.50, 0.30, 0.15, 0.05], [0.1, 0.1, 0.1, 0.7]
    second[ALONE + fine] = [0.02, 0.02, 0.02, 0.94]  # more than sufficient, but not necessary
    as_is = [0.301, 0.051, 0.251, 0.401]
    both = [0, 0.301 * 0.051, 0.251 * 0.251, 0.051 * 0.401]
    both_not_3 = [0.051 * 0.301, 0.301 * 0.051, 0.251 * 0.251, 0]
    own_feature = [0.501, 0.301, 0.151, 0]
    assert [int(np.argmax(x)) for x in (as_is, both, both_not_3, own_feature)] == [3, 2, 2, 0]
    like_second, nothing_like_second = (x[:, [3, 1, 2, 0]] for x in (first, nothing))  # class 3, too

    detector = AblationDetector(threshold=1.0, reference=PLAIN)
    one, two = detector.score(first), detector.score(second)
    assert one == pytest.approx(odds(0.3, 0.4) - odds(0.02, 0.94) + odds(0.7, 0.1))
    assert two == pytest.approx(odds(0.5, 0.05) - odds(0.3, 0.4) + odds(0.7, 0.1)) and 4 < two < one
    weak = like_second.copy()  # necessary, but not sufficient
    weak[ALONE:MOVED] = 0.25
    weak[ALONE + top] = like_second[ALONE + top]
    three = detector.score(weak)
    assert three == pytest.approx(odds(0.3, 0.4) - odds(0.02, 0.94)) and 1 < three < two
    assert detector.score(like_second) == pytest.approx(one) and detector.score(nothing) == pytest.approx(0)

    warped = nothing.copy()  # class 0 when blurred, class 2 when displaced
    warped[MOVED] = [0.24, 0.20, 0.40, 0.16]
    moved = [0, 0.201, 0.401, 0.161]
    assert detector.score(warped) == pytest.approx(math.sqrt(2) * (odds(0.40, 0.24) - odds(0.02, 0.94)))

    for scores, certain, expected in (
        (warped, 1e9, moved),  # purified or not
        (warped, math.nextafter(two, 0), moved),
        (first, math.nextafter(one, 0), both),
        (first, one, as_is),  # at the threshold it is not certain
        (first, two, both),
        (
            first,
            math.nextafter(two, 0),
            own_feature,
        ),  # both are certain, and the label changed: purification created the trigger
        (like_second, math.nextafter(two, 0), both_not_3),  # the same label: the first look decides
        (like_second, two, both_not_3),
        (like_second, one, as_is),
        (weak, math.nextafter(three, 0), both_not_3),
        (weak, three, own_feature),
        (nothing_like_second, math.nextafter(two, 0), own_feature),
        (nothing_like_second, two, as_is),
        (nothing, math.nextafter(two, 0), own_feature),
        (None, math.nextafter(two, 0), own_feature),
        (nothing, two, as_is),
        (None, two, as_is),
    ):
        settled = dataclasses.replace(detector, certain=certain).resolve(scores, second.tolist())
        assert settled.dtype == np.float64
        np.testing.assert_allclose(settled, np.array(expected) / sum(expected), rtol=1e-12)


BAD_SCORE = "got .*expected a standardized score above 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": t}, f"threshold: {BAD_SCORE}") for t in (0, -1, math.nan, math.inf, "2", True)]
    + [({"certain": t}, f"certain: {BAD_SCORE}") for t in (0, math.nan, None, True, np.True_, 1j)]
    + [({"threshold": 2.0, "certain": 1.9}, "certain: got 1.9, expected at least the threshold, 2.0")]
    + [({"threshold": 4.6}, "certain: got 4.5, expected at least the threshold, 4.6")]
    + [({"certain": 3.2}, "certain: got 3.2, expected at least the threshold, 3.3")]
    + [
        ({"reference": n}, "reference: got .*expected 27 pairs")
        for n in (3, "none", [], PLAIN[:13], PLAIN[:26], PLAIN + PLAIN[:1], [1.0] * 27, [(0, 1, 2)] * 27,
                  [("a", 1)] * 27,
                  *[[*PLAIN[:26], bad] for bad in ((0, 0), (0, -1), (0, math.inf), (math.nan, 1), (0, math.nan))])
    ],
)  # fmt: skip
def test_invalid_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AblationDetector(**options)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, int, Fraction])
def test_thresholds_may_be_any_numbers(kind):
    detector = AblationDetector(threshold=kind(3), certain=kind(4))
    assert detector == AblationDetector(3.0, 4.0)
    assert type(detector.threshold) is type(detector.certain) is float


def test_a_reference_may_be_a_list_or_an_array():
    """Detectors with a reference from JSON or NumPy are equal and hashable."""
    expected = AblationDetector(threshold=4.8, certain=4.8, reference=tuple(PLAIN))
    for reference in (PLAIN, [[0, 1]] * 27, np.array(PLAIN)):
        same = AblationDetector(threshold=4.8, certain=4.8, reference=reference)
        assert same == expected and hash(same) == hash(expected)
        assert same.score(probabilities(1)) == expected.score(probabilities(1))

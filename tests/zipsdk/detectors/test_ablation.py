"""Test the ablation detector: its views, scores, rules and calibration against literal transcriptions."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from tests.fakes.guard import Recorder, fail
from zipsdk import AblationDetector, InputError
from zipsdk.detectors import ablation_statistics, ablation_views

ndimage = pytest.importorskip("scipy.ndimage")
NAMES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "color", "geometry"]  # fmt: skip
COARSE, FINE, COLOR = 9, 11, 12
ALONE = 14  # the first view of a feature alone
MOVED = 27  # the view without geometry
PLAIN = [(0.0, 1.0)] * 27  # standardized scores are the log-odds themselves
SIZES = [(1, 1), (1, 7), (2, 3), (4, 5), (5, 5), (31, 33), (32, 32), (40, 64), (224, 300)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# ---- the copies


def blurred(planes, deviation):
    """Blur (H, W, ...) in float64, truncated at 4 deviations like SciPy but at least one pixel."""
    reach = max(1, round(4 * deviation))
    return ndimage.gaussian_filter(planes, deviation, mode="reflect", radius=reach, axes=(0, 1))


def literal_regions(height, width):
    """Yield masks of three by three rectangles of 3/8 of each side."""
    for i in range(3):
        for j in range(3):
            mask = np.ones((height, width), bool)
            for axis, (side, k) in enumerate(((height, i), (width, j))):
                size = max(1, round(3 * side / 8))
                at = np.arange(side) - [0, round((side - size) / 2), side - size][k]
                mask &= np.expand_dims((at >= 0) & (at < size), 1 - axis)
            yield mask


def literal_copies(rgb):
    """Return the copies in float64, neither rounded nor clipped."""
    height, width, _ = rgb.shape
    x, unit = rgb.astype(np.float64), min(height, width) / 32
    out = []
    for mask in literal_regions(height, width):
        outside = np.repeat(~mask[..., None], 3, axis=2).astype(np.float64)
        weight = blurred(outside, 4 * unit)
        fill = blurred(x * outside, 4 * unit) / np.maximum(weight, 1e-300)
        out.append(np.where(mask[..., None] & (weight > 1e-4), fill, x))
    out.append(128 + x - blurred(x, 3 * unit))
    out.append(x - (blurred(x, 0.7 * unit) - blurred(x, 1.5 * unit)))
    out.append(blurred(x, 0.7 * unit))
    gray = np.repeat(x.sum(axis=2, keepdims=True) / 3, 3, axis=2)
    out.append(gray)
    for mask in literal_regions(height, width):
        out.append(np.where(mask[..., None], x, blurred(x, 4 * unit)))
    out.append(blurred(x, 3 * unit))
    out.append(2 * (blurred(x, 0.7 * unit) - blurred(x, 1.5 * unit)) + 128)
    out.append(2 * (x - blurred(x, 0.7 * unit)) + 128)
    out.append(x - gray + 128)
    out.append(literally_moved(x))
    return out


def literally_moved(x):
    """Displace each cell of 1/32 of the shorter side (at least a pixel) by up to half of 1/32 of the side."""
    height, width, _ = x.shape
    unit = min(height, width) / 32
    place = max(unit, 1)
    by = np.random.default_rng(32).uniform(
        -unit / 2, unit / 2, (2, int((height - 1) // place) + 1, int((width - 1) // place) + 1)
    )
    at = np.zeros((2, height, width))
    for i in range(height):
        for j in range(width):
            at[:, i, j] = (i, j) + by[:, int(i // place), int(j // place)]
    return np.stack([ndimage.map_coordinates(x[..., c], at, order=1, mode="nearest") for c in range(3)], axis=2)


@pytest.mark.parametrize("size", SIZES)
def test_copies_are_the_literal_ones(size):
    """Rounding alone errs by 0.5. Measured: at most 0.534 without regions, where few pixels surround a corner of one
    (4 x 5, where a weight is 5e-4; 0.526 at 224 x 300), and at most 0.50004 in all others."""
    rgb = noise(*size)
    rgb.flags.writeable = False
    copies = ablation_views.copies(rgb)
    assert copies.dtype == np.uint8 and copies.shape == (27, *size, 3)
    want = literal_copies(rgb)
    for i, (copy, exact) in enumerate(zip(copies, want, strict=True)):
        tolerance = 0.56 if i < COARSE else 0.501
        assert np.abs(copy - np.clip(exact, 0, 255)).max() <= tolerance, (i, NAMES[i % 13])
    covered = np.zeros(size, int)
    for without, alone, mask in zip(copies[:COARSE], copies[13 : 13 + COARSE], literal_regions(*size), strict=True):
        np.testing.assert_array_equal(without[~mask], rgb[~mask])
        np.testing.assert_array_equal(alone[mask], rgb[mask])
        covered += mask
    assert covered.min() > 0


@pytest.mark.parametrize("size", [(33, 21), (1, 90), (70, 5)])
def test_long_lines_are_blurred_in_blocks(size, monkeypatch):
    rgb = noise(*size)
    whole = ablation_views.copies(rgb).astype(int)
    monkeypatch.setattr(ablation_views, "BLOCK", 8)
    off = np.abs(ablation_views.copies(rgb) - whole)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # float32 rounds halves the other way


def test_a_thin_image_takes_no_more_memory_than_a_square_one():
    tracemalloc.start()
    ablation_views.copies(np.zeros((1, 30_000, 3), np.uint8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # a matrix for the line would be 3.6 GB


def test_copies_take_little_memory_besides_the_result():
    rgb = noise(520, 520)  # too large for the caches
    tracemalloc.start()
    copies = ablation_views.copies(rgb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.6 * copies.nbytes  # measured: 2.38


def test_features_are_named_in_the_order_of_their_copies():
    """The default reference has that order, too: the four corners are equal, and the four edges."""
    assert list(ablation_views.FEATURES) == NAMES
    for half in (ablation_statistics.DEFAULT_REFERENCE[:13], ablation_statistics.DEFAULT_REFERENCE[13:26]):
        usual = dict(zip(NAMES[:13], half, strict=True))
        assert len({usual[f"{a} {b}"] for a in ("top", "bottom") for b in ("left", "right")}) == 1
        assert len({usual[a] for a in ("top", "left", "right", "bottom")}) == 1
    assert len(set(ablation_statistics.DEFAULT_REFERENCE)) == 15


@pytest.mark.parametrize("size", [(2, 40), (20, 21), (90, 33), (64, 128)])
def test_regions_change_and_nothing_else_does(size):
    """Each region is removed completely: images that differ only in it have the same copy."""
    rgb = noise(*size)
    for i, mask in enumerate(literal_regions(*size)):
        other = np.where(mask[..., None], 255 - rgb, rgb)
        copies = [ablation_views.copies(p)[i].astype(int) for p in (rgb, other)]
        assert np.abs(copies[0] - copies[1]).max() <= 1


@pytest.mark.parametrize("size", [*SIZES, (7, 1), (33, 200)])
@pytest.mark.parametrize("level", [0, 1, 127, 200, 255])
def test_a_constant_image_stays(size, level):
    """Its content is in the coarse band; the other bands are empty."""
    copies = ablation_views.copies(np.full((*size, 3), level, np.uint8))
    empty = [COARSE, 13 + COARSE + 1, 13 + COARSE + 2, 13 + COLOR]
    assert (np.delete(copies, empty, axis=0) == level).all()
    assert (copies[empty] == 128).all()


def test_gray_images_have_no_color_and_others_do():
    gray = np.repeat(noise(31, 33)[..., :1], 3, axis=2)
    copies = ablation_views.copies(gray)
    np.testing.assert_array_equal(copies[COLOR], gray)
    assert (copies[13 + COLOR] == 128).all()
    copies = ablation_views.copies(noise(31, 33))
    assert (copies[COLOR] == copies[COLOR][..., :1]).all()
    assert (copies[13 + COLOR] != copies[13 + COLOR][..., :1]).any()


def test_views_are_the_image_and_its_copies():
    rgb = noise(9, 12)
    for views in (AblationDetector().views(rgb[:, ::-1]), AblationDetector().second_look_views(rgb[:, ::-1])):
        np.testing.assert_array_equal(views[0], rgb[:, ::-1])
        np.testing.assert_array_equal(views[1:], ablation_views.copies(rgb[:, ::-1].copy()))


# ---- scores and rules


def odds(p, q):
    """Return the log-odds of a class of probability p versus one of q."""
    return math.log(p + 0.001) - math.log(q + 0.001)


def literal_look(p, reference):
    """Return score and decisive feature of probabilities (28, classes), with plain sums."""
    label = p[0].index(max(p[0]))

    best = [max(v for k, v in enumerate(row) if k != label) for row in p]
    necessity = [(odds(best[i], p[i][label]) - reference[i - 1][0]) / reference[i - 1][1] for i in range(1, 14)]
    sufficiency = [(odds(p[i][label], best[i]) - reference[i - 1][0]) / reference[i - 1][1] for i in range(14, 27)]
    decides = [n - sorted(necessity)[6] + s for n, s in zip(necessity, sufficiency, strict=True)]
    more = odds(best[MOVED], p[MOVED][label]) - odds(best[1 + FINE], p[1 + FINE][label])
    decides.append(math.sqrt(2) * (more - reference[26][0]) / reference[26][1])
    return max(decides), decides.index(max(decides))


def probabilities(seed, classes=5):
    p = np.random.default_rng(seed).dirichlet([0.3] * classes, 28)
    p[p < 0.01] = 0  # some are impossible
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("reference", [None, [(0.1 * i - 1, 3 - 0.1 * i) for i in range(27)]])
def test_scores_are_the_literal_ones(classes, reference):
    detector, found = AblationDetector(reference=reference), set()
    for seed in range(20):
        p = probabilities(seed, classes)
        score, part = literal_look(p.tolist(), reference or ablation_statistics.DEFAULT_REFERENCE)
        assert detector.score(p) == pytest.approx(score, abs=1e-9)
        why = detector.explain(p.tolist(), detector.score(p))
        label = int(p[0].argmax())
        other = int(np.where(np.arange(classes) == label, -1, p[MOVED if part == 13 else 1 + part]).argmax())
        assert why == (
            f"most decisive feature: {NAMES[part]}, class {other} without it; score {score:.3g}, threshold 3.3"
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
        assert f"most decisive feature: {name}, class 1 without it" in detector.explain(p, 5.0)
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


def test_one_hot_labels_work():
    """The log-odds of one-hot scores are log 1001 or its negative."""
    detector, scores, a = AblationDetector(reference=PLAIN), np.eye(3)[[2] * 28], math.log(1001)
    assert detector.score(scores) == pytest.approx(a)  # each feature is sufficient, none is necessary
    # the class without it is never the label itself
    assert "class 0 without it; score 6.91, " in detector.explain(scores, detector.score(scores))
    scores[1 + COARSE] = [0, 1, 0]
    assert detector.score(scores) == pytest.approx(3 * a)
    assert detector.explain(scores, detector.score(scores)) == (
        "most decisive feature: coarse, class 1 without it; score 20.7, threshold 3.3"
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
    for ask in (
        AblationDetector().score,
        lambda s: AblationDetector().explain(s, 1.0),
        lambda s: AblationDetector().resolve(None, s),
    ):
        with pytest.raises(InputError, match=r"scores: got \(.*expected \(28, classes\), one row"):
            ask(np.zeros(shape))


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

    for scores, certain, want in (
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
        np.testing.assert_allclose(settled, np.array(want) / sum(want), rtol=1e-12)


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
def test_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AblationDetector(**options)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, int, Fraction])
def test_thresholds_may_be_any_numbers(kind):
    detector = AblationDetector(threshold=kind(3), certain=kind(4))
    assert detector == AblationDetector(3.0, 4.0)
    assert type(detector.threshold) is type(detector.certain) is float


def test_reference_may_come_from_anywhere():
    """From JSON or NumPy: the detectors are equal and hashable."""
    want = AblationDetector(threshold=4.8, certain=4.8, reference=tuple(PLAIN))
    for reference in (PLAIN, [[0, 1]] * 27, np.array(PLAIN)):
        same = AblationDetector(threshold=4.8, certain=4.8, reference=reference)
        assert same == want and hash(same) == hash(want)
        assert same.score(probabilities(1)) == want.score(probabilities(1))


# ---- calibrate


def measures(x: np.ndarray) -> np.ndarray:
    """Return logits of images of any size: brightness of parts, and contrast."""
    x = x.astype(np.float64)
    left, top = x[:, :, : -(-x.shape[2] // 2)], x[:, : -(-x.shape[1] // 2)]
    half = [m.mean(axis=(1, 2, 3)) for m in (left, top)]
    return np.stack([*x.mean(axis=(1, 2)).T, *half, 2 * x.std(axis=(1, 2, 3))], axis=1) / 8


def mixed(n):
    rng = np.random.default_rng(4)
    shades = rng.integers(10, 60, (n, 1, 1, 3)) * rng.integers(0, 2, (n, 1, 1, 1))
    return [(noise(*[(5, 5), (9, 12), (16, 16)][i % 3], i) // 3 + shades[i]).astype(np.uint8) for i in range(n)]


def test_calibrate_measures_medians_and_the_upper_tail():
    clean = mixed(20)
    detector = AblationDetector(threshold=2.5, certain=3.0)
    classify = Recorder(measures)
    fitted = detector.calibrate(classify, clean, max_batch=50)
    assert sum(classify.sizes) == 28 * 20 and max(classify.sizes) == 50
    assert detector == AblationDetector(2.5, 3.0) != fitted and (fitted.threshold, fitted.certain) == (2.5, 3.0)
    measured = []
    for p in clean:
        exp = np.exp(measures(np.stack([p, *ablation_views.copies(p)])))
        softmax = exp / exp.sum(axis=1, keepdims=True)
        label = int(softmax[0].argmax())
        best = [max(np.delete(row, label)) for row in softmax]
        measured.append([odds(best[i], softmax[i, label]) for i in range(1, 14)]
                        + [odds(softmax[i, label], best[i]) for i in range(14, 27)]
                        + [odds(best[27], softmax[27, label]) - odds(best[12], softmax[12, label])])  # fmt: skip
    above, below = [], []
    for (median, deviation), m, usual in zip(
        fitted.reference, zip(*measured, strict=True), ablation_statistics.DEFAULT_REFERENCE, strict=True
    ):
        ninth = statistics.quantiles(m, n=10, method="inclusive")[8]
        upper = (ninth - statistics.median(m)) / statistics.NormalDist().inv_cdf(0.9)
        above.append((statistics.median(m) > usual[0] + 1, upper > 1.2 * usual[1]))
        below.append(upper < usual[1] / 1.2)
        assert median == pytest.approx(min(statistics.median(m), usual[0] + 1), abs=1e-9)
        assert deviation == pytest.approx(max(usual[1] / 1.2, min(upper, 1.2 * usual[1])), rel=1e-4)
    assert all(any(b) for b in (*zip(*above, strict=True), below))
    assert not any(all(b) for b in (*zip(*above, strict=True), below))
    np.testing.assert_allclose(detector.calibrate(measures, clean[::-1]).reference, fitted.reference, rtol=1e-12)
    assert fitted.score(probabilities(2)) == pytest.approx(literal_look(probabilities(2).tolist(), fitted.reference)[0])


def test_calibrate_takes_either_layout():
    clean = np.stack([noise(8, 8, i) for i in range(16)])
    nchw = AblationDetector().calibrate(measures, clean.transpose(0, 3, 1, 2), data_format="NCHW")
    assert nchw == AblationDetector().calibrate(measures, clean)


def test_calibrate_refuses_unusable_images():
    for few in (mixed(15), mixed(1), []):
        with pytest.raises(InputError, match=f"calibration images: got {len(few)}, expected at least 16, better 100"):
            AblationDetector().calibrate(fail, few)
    with pytest.raises(InputError, match=r"calibration image 0: .*service is down.*calibration needs scores"):
        AblationDetector().calibrate(fail, mixed(16))
    with pytest.raises(InputError, match=r"calibration image 3: .*service is down.*calibration needs scores"):
        AblationDetector().calibrate(Recorder(measures, [None, fail]), mixed(16), max_batch=28)
    with pytest.raises(InputError, match="classify: got None"):
        AblationDetector().calibrate(None, mixed(16))

"""Test SCALE-UP against literal transcriptions of SPC and of its z-score."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.fakes.guard import SCALES, Cleaner, Guard, Recorder, brightness, dark, fail
from zipsdk import InputError, ScaleUp

# ---- SPC


def literal_spc(classify, rgb, scales=SCALES):
    """Compute SPC as in the paper: pixels in [0, 1], scale by scale."""
    x = rgb / 255.0

    def f(y):
        return int(np.argmax(classify(np.rint(y * 255).astype(np.uint8)[None])[0]))

    agreeing = 0
    for n in scales:
        agreeing += f(np.minimum(np.maximum(n * x, 0.0), 1.0)) == f(x)
    return agreeing / len(scales)


def mixed_images():
    """Return images of every SPC from 0 to 1 under `thirds`."""
    levels = [1, 5, 9, 12, 15, 20, 26, 40, 60, 90, 150, 200, 250]
    noise = np.random.default_rng(5).integers(0, 3, (len(levels), 6, 6, 3))
    return [np.uint8(level + n) for level, n in zip(levels, noise, strict=True)]


def thirds(x):
    return np.eye(3)[[int(p.sum(dtype=np.int64)) * 3 // (p.size * 256) for p in x]]


@pytest.mark.parametrize("scales", [SCALES, (2,), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (11, 3, 255)])
def test_spc_equals_the_literal_one(scales):
    batch = mixed_images()
    detector = ScaleUp(scales)
    found = set()
    for p, decision in zip(batch, Guard(thirds, Cleaner(), detector).run(batch), strict=True):
        expected = literal_spc(thirds, p, scales)
        assert decision.suspicion == expected
        assert decision.flagged == (expected >= 0.5)
        found.add(expected)
    assert len(found) > (4 if scales == SCALES else 1)  # the images distinguish detectors


def test_copies_are_exact():
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for n, copy in zip((2, 7, 255), ScaleUp((2, 7, 255)).copies(every_level), strict=True):
        assert copy.dtype == np.uint8
        np.testing.assert_array_equal(copy, [[[min(n * int(v), 255) for v in p] for p in row] for row in every_level])


def test_scale_up_takes_numpy_numbers():
    detector = ScaleUp(scales=np.array([3, 5]), threshold=np.float32(0.5))
    assert detector == ScaleUp(scales=(3, 5), threshold=0.5) and type(detector.scales[0]) is int


@pytest.mark.parametrize(("agreeing", "flagged"), [(0, False), (1, False), (2, True), (3, True), (4, True)])
def test_a_score_at_the_threshold_is_flagged(agreeing, flagged):
    detector = ScaleUp((2, 3, 4, 5))
    scores = np.eye(2)[[0] + [0] * agreeing + [1] * (4 - agreeing)]
    assert detector.score(scores) == agreeing / 4
    assert detector.is_suspicious(detector.score(scores)) is flagged


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", range(6))
def test_nan_never_agrees(bad, row):
    detector = ScaleUp()
    for places in [(0,), slice(None)]:
        scores = np.eye(4)[[2] * 6]
        scores[row, places] = bad
        assert math.isnan(detector.score(scores))
        assert detector.is_suspicious(detector.score(scores))
    assert math.isnan(detector.score(np.full((6, 4), np.nan)))  # argmax alone would count them as equal
    assert math.isnan(detector.score(np.full((6, 4), -np.inf)))


def test_minus_infinity_is_a_logarithm_of_zero():
    with np.errstate(divide="ignore"):
        assert ScaleUp().score(np.log(np.eye(4)[[2, 2, 2, 1, 2, 0]])) == 3 / 5


@pytest.mark.parametrize("shape", [(5, 4), (7, 4), (6,), (6, 0), (1, 6, 4)])
def test_spc_refuses_other_shapes(shape):
    with pytest.raises(InputError, match=r"expected \(6, classes\)"):
        ScaleUp().spc(np.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [{"scales": s} for s in [(), (1, 3), (0,), (-3,), (256,), (3, 3), (3.0,), (True, 3), 3, "35", None]]
    + [{"threshold": t} for t in [0, -0.5, 1.01, math.nan, math.inf, None, True, "0.5"]],
)
def test_scale_up_refuses_options(options):
    with pytest.raises(InputError, match=r"expected .*(such as|published)"):
        ScaleUp(**options)


@pytest.mark.parametrize(
    "options",
    [{"overall": o} for o in [(0.5, 0.0), (0.5, -0.1), (math.nan, 0.1), (0.5, 10**400), (0.5,), 0.5, ("a", "b")]]
    + [{"classes": c} for c in [{"cat": (0.5, 0.1)}, {1.5: (0.5, 0.1)}, {0: (0.5, 0.0)}, {0: None}, [(0.5, 0.1)]]],
)
def test_scale_up_refuses_statistics_that_calibrate_never_gives(options):
    with pytest.raises(InputError, match=r"got .*, expected .*calibrate"):
        ScaleUp(**{"overall": (0.5, 0.1), **options})


def test_a_calibrated_detector_survives_json():
    detector = ScaleUp(threshold=1.5, overall=(0.4, 0.2), classes={0: (0.1, 0.05), 2: (0.8, 0.1)})
    again = ScaleUp(**json.loads(json.dumps(dataclasses.asdict(detector))))
    assert again == detector and hash(again) == hash(detector)
    scores = np.eye(3)[[2, 2, 2, 2, 2, 2]]
    assert again.score(scores) == detector.score(scores) == pytest.approx(2)


# ---- the data-limited variant


def test_z_scores_equal_the_literal_ones():
    clean = mixed_images()
    spc = np.array([literal_spc(thirds, p) for p in clean])
    labels = np.array([0] * 5 + [1] * 4 + [2] * 4)
    assert any(np.argmax(thirds(p[None])[0]) != c for p, c in zip(clean, labels, strict=True))
    detector = ScaleUp().calibrate(thirds, clean, labels, threshold=1.0)
    assert detector.threshold == 1.0
    flagged = []
    for p, decision in zip(clean, Guard(thirds, Cleaner(), detector).run(clean), strict=True):
        spread = spc[labels == np.argmax(thirds(p[None])[0])]  # of the predicted class
        spread = spread if len(set(spread)) > 1 else spc
        expected = (literal_spc(thirds, p) - np.mean(spread)) / np.sqrt(np.mean((spread - np.mean(spread)) ** 2))
        assert decision.suspicion == pytest.approx(expected, abs=1e-12)
        assert decision.flagged == (expected >= 1.0)
        flagged.append(decision.flagged)
    assert 0 < sum(flagged) < len(flagged)


def test_without_labels_the_predicted_classes_are_taken():
    clean = mixed_images()
    predicted = [int(np.argmax(thirds(p[None])[0])) for p in clean]
    assert ScaleUp().calibrate(thirds, clean) == ScaleUp().calibrate(thirds, clean, predicted)
    assert ScaleUp().calibrate(thirds, clean) != ScaleUp().calibrate(thirds, clean, predicted[::-1])


def test_classes_without_a_spread_use_all_images():
    """Classes with three equal SPCs, one image and none. The computed deviation of three times 2/5 is not 0."""
    clean = [p for p in mixed_images() if literal_spc(thirds, p) == 2 / 5][:1] * 3 + mixed_images()
    spc = np.array([literal_spc(thirds, p) for p in clean])
    assert spc[:3].std() > 0 and (spc[:3] == 2 / 5).all()
    labels = [0] * 3 + [4] + [8] * (len(clean) - 4)
    detector = ScaleUp().calibrate(thirds, clean, labels)
    assert set(detector.classes) == {8}
    assert detector.overall == pytest.approx((spc.mean(), spc.std()))
    for label in (0, 4, 1):
        scores = np.eye(9)[[label] * 6]
        assert detector.score(scores) == pytest.approx((1 - spc.mean()) / spc.std())
    assert detector.score(np.eye(9)[[8] * 6]) == pytest.approx((1 - spc[4:].mean()) / spc[4:].std())
    assert math.isnan(detector.score(np.full((6, 9), np.nan)))
    assert detector.is_suspicious(math.nan)


def test_calibrate_refuses_unusable_images_and_labels():
    with pytest.raises(InputError, match="without a spread"):
        ScaleUp().calibrate(brightness, dark(5))
    with pytest.raises(InputError, match="without a spread"):
        ScaleUp().calibrate(brightness, [])
    with pytest.raises(InputError, match=r"calibration image 0: .*service is down"):
        ScaleUp().calibrate(fail, dark(5))
    for labels in ([0, 1], [0.0] * 13, [[0] * 13], ["a"] * 13):
        with pytest.raises(InputError, match="13 integers"):
            ScaleUp().calibrate(thirds, mixed_images(), labels)
    with pytest.raises(InputError, match="threshold"):
        ScaleUp().calibrate(thirds, mixed_images(), threshold=math.nan)


def test_calibrate_keeps_to_max_batch_and_leaves_the_detector_alone():
    classify, detector = Recorder(thirds), ScaleUp()
    fitted = detector.calibrate(classify, mixed_images(), max_batch=7)
    assert max(classify.sizes) == 7 and sum(classify.sizes) == 6 * 13
    assert detector == ScaleUp() != fitted
    assert fitted.threshold == 0.5
    hash(fitted)

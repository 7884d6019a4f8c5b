"""Test the reference that the ablation detector measures on calibration images."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from tests.fakes.guard import Recorder, fail
from tests.helpers.ablation import (
    literal_look,
    noise,
    odds,
    probabilities,
)
from zipsdk import AblationDetector, InputError
from zipsdk.detectors import ablation_statistics, ablation_views


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


def test_calibrate_accepts_both_data_formats():
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

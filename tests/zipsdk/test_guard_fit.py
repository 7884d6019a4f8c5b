"""Test that a guard learns only when it is told to, and that its decisions otherwise depend on the image alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import zipsdk
from tests.fakes.engine import FakeEngine
from tests.fakes.guard import Cleaner, Recorder, fail
from tests.fakes.light import TARGET, backdoored, by_light, photos, triggered
from tests.helpers.decisions import content
from zipsdk import AblationDetector, Guard, InputError, Purifier, PurifyAll, ScaleUp


def stream() -> np.ndarray:
    """Return clean and triggered images in turn."""
    x = photos(24, 5)
    x[::2] = triggered(x[::2])
    return x


def fitted() -> Guard:
    return Guard.fit(backdoored, photos(40), Purifier(FakeEngine(), "blur2", steps=2, seed=1))


def test_fit_calibrates_the_detector():
    x, classify = photos(40), Recorder(by_light)
    guard = Guard.fit(classify, x, Cleaner(), max_batch=50)
    assert max(classify.sizes) == 50 and sum(classify.sizes) == 28 * 40
    assert guard.detector == AblationDetector().calibrate(by_light, x) != AblationDetector()
    assert guard.counters == zipsdk.guard.Counters() and not guard.adapt
    nchw = Guard.fit(by_light, np.moveaxis(x, -1, 1), Cleaner(), data_format="NCHW")
    assert nchw.detector == guard.detector
    strict = AblationDetector(threshold=2.5, certain=3.0)
    assert Guard.fit(by_light, x, Cleaner(), strict).detector == strict.calibrate(by_light, x)


def test_fit_calibrates_scale_up():
    levels = np.array([1, 5, 9, 12, 15, 20, 26, 40, 60, 90, 150, 200, 250])
    x = np.tile(levels[:, None, None, None], (1, 6, 6, 3)).astype(np.uint8)

    def thirds(batch):
        return np.eye(3)[batch.mean(axis=(1, 2, 3)).astype(int) * 3 // 256]

    guard = Guard.fit(thirds, x, Cleaner(), ScaleUp(threshold=1.0))
    assert guard.detector == ScaleUp(threshold=1.0).calibrate(thirds, x) and guard.detector.overall is not None


@pytest.mark.parametrize("detector", [PurifyAll(), type("Mine", (PurifyAll,), {})()])
def test_fit_refuses_a_detector_without_statistics(detector):
    classify = Recorder(by_light)
    with pytest.raises(InputError, match=r"detector: got \w+\(\), expected one with calibrate.*call Guard\("):
        Guard.fit(classify, photos(20), Cleaner(), detector)
    assert classify.batches == []


def test_fit_checks_its_options_before_it_queries():
    classify = Recorder(by_light)
    for change in ({"purifier": object()}, {"detector": "parts"}, {"timeout": 0}, {"max_batch": 0}):
        with pytest.raises(InputError, match=f"{next(iter(change))}: got"):
            Guard.fit(classify, photos(20), **{"purifier": Cleaner(), **change})
    assert classify.batches == []


def test_fit_needs_enough_images_and_scores_for_each():
    with pytest.raises(InputError, match="calibration images: got 15, expected at least 16"):
        Guard.fit(by_light, photos(15), Cleaner())
    with pytest.raises(InputError, match=r"calibration image 0: .*service is down"):
        Guard.fit(fail, photos(20), Cleaner())
    over = threading.Event()
    with pytest.raises(InputError, match=r"calibration image 0: .*no answer within 0\.05 s"):
        Guard.fit(lambda x: over.wait(60), photos(20), Cleaner(), timeout=0.05)
    over.set()


def test_fit_recognizes_arguments_in_reverse_order():
    with pytest.raises(InputError, match=r"classify, images: got them in reverse order.*swap them"):
        Guard.fit(photos(20), by_light, Cleaner())


def test_fit_shortens_the_text_of_an_error_and_describes_the_input():
    def picky(x):
        raise TypeError(f"conv2d() got {x[0]} " + "and so on " * 50)

    with pytest.raises(InputError) as e:
        Guard.fit(picky, photos(20), Cleaner())
    assert "conv2d() got [...]" in str(e.value) and len(str(e.value)) < 400
    assert "classify gets uint8 NumPy arrays (N, H, W, 3)" in str(e.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.zeros(len(x), np.int64), r"got int64 \(\d+,\), .*for labels return np.eye\(classes\)\[labels\]"),
        (lambda x: None, "got NoneType, expected numbers"),
        (lambda x: {"scores": 1}, "got dict, expected numbers"),
    ],
)
def test_fit_names_what_the_classifier_returned(answer, message):
    with pytest.raises(InputError, match=message):
        Guard.fit(answer, photos(20), Cleaner())


@pytest.mark.torch
def test_scores_may_be_torch_tensors_with_a_gradient_or_of_bfloat16():
    torch = pytest.importorskip("torch")

    def scores(x, dtype, grad):
        return torch.tensor(by_light(x)).to(dtype).requires_grad_(grad)

    expected = Guard(by_light, Cleaner(), PurifyAll()).run(photos(5))
    for dtype, grad in ((torch.float64, True), (torch.bfloat16, True), (torch.bfloat16, False)):
        got = Guard(lambda x, dtype=dtype, grad=grad: scores(x, dtype, grad), Cleaner(), PurifyAll()).run(photos(5))
        assert [d.label for d in got] == [d.label for d in expected]
        assert all(np.allclose(a.class_scores, b.class_scores, rtol=2**-8, atol=2**-8)
                   for a, b in zip(got, expected, strict=True))  # fmt: skip


def test_a_guard_learns_nothing_unless_it_is_told_to():
    detector = AblationDetector(learn=16)
    guard = Guard(by_light, Cleaner(), detector)
    before = guard.run(photos(40))
    assert guard.detector is detector
    assert [content(d) for d in guard.run(photos(40))] == [content(d) for d in before]
    adapting = Guard(by_light, Cleaner(), detector, adapt=True)
    adapting.run(photos(40))
    assert adapting.detector.reference is not None and adapting.adapt


def test_decisions_after_fit_do_not_depend_on_order_or_batch():
    guard, x = fitted(), stream()
    expected = [content(d) for d in guard.run(x)]
    assert [d.flagged for d in guard.run(x)].count(True) >= 12
    assert guard.run(x)[0].label != TARGET == backdoored(x[:1]).argmax()
    order = np.random.default_rng(0).permutation(len(x))
    again = guard.run(x[order])
    assert [content(d) for d in again] == [expected[i] for i in order]
    alone = [guard.run(image)[0] for image in x[::-1]]
    assert [content(d) for d in alone] == expected[::-1]
    other = Guard(backdoored, guard.purifier, guard.detector, max_batch=5)
    assert [content(d) for part in other.stream([x[:1], x[1:9], x[9:]]) for d in part] == expected
    mixed = guard.run([x[0], np.zeros((9, 12, 3), np.uint8), x[1]])
    assert [content(mixed[0]), content(mixed[2])] == expected[:2]


def test_decisions_after_fit_do_not_depend_on_threads():
    guard, x = fitted(), stream()
    expected = [content(d) for d in guard.run(x)]
    found: dict[int, tuple] = {}

    def work(k: int) -> None:
        for i in range(k, len(x), 4):
            found[i] = content(guard.run(x[i])[0])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(x))] == expected


def test_the_default_purifier_is_the_fast_one():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    guard = Guard(backdoored, detector=PurifyAll())
    assert guard.purifier.settings == Purifier("zip-tiny", preset="fast").settings
    assert guard.purifier.settings.steps == 4 and guard.purifier.engine.spec.name == "zip-tiny"
    (decision,) = guard.run(photos(1))
    assert decision.label is not None and decision.image.shape == (16, 16, 3)

"""Test the guard: decisions, number of queries and checks of its input."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import zipsdk
from tests.fakes.engine import FakeEngine
from tests.fakes.guard import CLASSES, SCALES, TARGET, Cleaner, Guard, Recorder, backdoored, brightness, dark, poisoned
from tests.helpers.images import noise_images
from zipsdk import AblationDetector, InputError, Purifier, PurifyAll, ScaleUp, guard


def test_only_the_poisoned_image_is_flagged_and_purified():
    batch = dark(5)
    batch[3] = poisoned(batch[3])
    assert [int(k) for k in backdoored(batch).argmax(1)][3] == TARGET
    classify, purifier = Recorder(), Cleaner()
    decisions = Guard(classify, purifier).run(batch)
    assert [d.flagged for d in decisions] == [False, False, False, True, False]
    assert [d.label for d in decisions] == [int(k) for k in brightness(batch).argmax(1)]
    assert [d.suspicion for d in decisions] == [0, 0, 0, 1, 0]
    assert decisions[3].label != TARGET
    assert all((d.image is None) == (not d.flagged) and d.error is None for d in decisions)
    (given,) = purifier.batches
    np.testing.assert_array_equal(given, batch[3:4])
    np.testing.assert_array_equal(decisions[3].image, Cleaner.clean(batch[3]))
    # one batch of images and copies, and one with the purified image
    assert classify.sizes == [30, 1]
    np.testing.assert_array_equal(classify.batches[1][0], Cleaner.clean(batch[3]))
    for p, d in zip(batch, decisions, strict=True):
        np.testing.assert_array_equal(d.class_scores, backdoored((p if d.image is None else d.image)[None])[0])
    assert "score 0, threshold 0.5" in decisions[0].reason and "score 1, threshold 0.5" in decisions[3].reason


def test_a_trigger_that_scaling_destroys_is_missed():
    """A known weakness: a miss is a full bypass."""

    def gray_trigger(x):
        scores = brightness(x)
        scores[(x[:, -2:, -2:] == 100).all(axis=(1, 2, 3))] = np.eye(CLASSES)[TARGET]
        return scores

    batch = dark(1)
    batch[:, -2:, -2:] = 100
    (decision,) = Guard(gray_trigger, Cleaner()).run(batch)
    assert (decision.label, decision.flagged, decision.image) == (TARGET, False, None)
    (decision,) = Guard(gray_trigger, Cleaner(), PurifyAll()).run(batch)
    assert decision.label != TARGET


def test_the_classifier_sees_the_image_and_its_copies():
    batch = dark(2)
    classify = Recorder()
    Guard(classify, Cleaner()).run(batch)
    (seen,) = classify.batches
    for i, p in enumerate(batch):
        expected = [p] + [np.minimum(n * p.astype(int), 255) for n in SCALES]
        np.testing.assert_array_equal(seen[6 * i : 6 * i + 6], expected)
    assert seen.flags["C_CONTIGUOUS"]


def test_without_a_detector_everything_is_purified_at_one_query_each():
    classify, purifier = Recorder(), Cleaner()
    watch = Guard(classify, purifier, PurifyAll())
    batch = dark(3)
    decisions = watch.run(batch)
    assert classify.sizes == [3] and len(purifier.batches) == 1
    assert all(d.flagged and d.suspicion is None for d in decisions)
    for p, d in zip(batch, decisions, strict=True):
        np.testing.assert_array_equal(d.image, Cleaner.clean(p))
        assert d.label == brightness(Cleaner.clean(p)[None]).argmax()
    assert watch.counters == guard.Counters(images=3, flagged=3, calls=1, queries=3)
    assert watch.counters.flagged_share == 1


@pytest.mark.parametrize("max_batch", [None, 1, 4, 6, 7, 100])
def test_no_query_is_wasted(max_batch):
    batch = np.concatenate([poisoned(dark(3)), dark(6)])[[0, 3, 4, 1, 5, 6, 2, 7, 8]]
    classify, purifier = Recorder(), Cleaner()
    watch = Guard(classify, purifier, max_batch=max_batch)
    decisions = watch.run(batch)
    assert [i for i, d in enumerate(decisions) if d.flagged] == [0, 3, 6]
    most = max_batch or 54
    assert classify.sizes[: -(-54 // most)] == [most] * (54 // most) + ([54 % most] if 54 % most else [])
    assert sum(classify.sizes) == 6 * 9 + 3
    assert len(classify.sizes) == -(-54 // most) + -(-3 // most)
    assert len(purifier.batches) == 1
    counters = watch.counters
    assert (counters.images, counters.flagged, counters.abstained) == (9, 3, 0)
    assert (counters.calls, counters.queries, counters.failures) == (len(classify.sizes), 57, 0)
    assert counters.flagged_share == 1 / 3
    whole = Guard(backdoored, Cleaner()).run(batch)
    assert [(d.label, d.suspicion) for d in decisions] == [(d.label, d.suspicion) for d in whole]


def test_mixed_sizes_and_kinds_keep_their_order(tmp_path):
    a, b = dark(3, 8, 8, 1), dark(3, 9, 12, 2)
    b[1], a[2] = poisoned(b[1]), poisoned(a[2])
    Image.fromarray(b[0]).save(tmp_path / "b0.png")
    Image.fromarray(a[2]).save(tmp_path / "a2.png")
    batch = [
        a[0],
        tmp_path / "b0.png",
        Image.fromarray(b[1]),
        (a[1] / np.float32(255)).astype(np.float32),
        str(tmp_path / "a2.png"),
        b[2],
    ]
    order = [a[0], b[0], b[1], a[1], a[2], b[2]]
    classify, purifier = Recorder(), Cleaner()
    decisions = Guard(classify, purifier).run(batch)
    assert [d.flagged for d in decisions] == [False, False, True, False, True, False]
    assert [d.label for d in decisions] == [
        int(backdoored((Cleaner.clean(p) if d.flagged else p)[None]).argmax())
        for p, d in zip(order, decisions, strict=True)
    ]
    assert classify.sizes == [18, 18, 1, 1]  # one batch per size
    assert len(purifier.batches) == 1 and {p.shape for p in purifier.batches[0]} == {(9, 12, 3), (8, 8, 3)}
    for i in (2, 4):
        assert isinstance(decisions[i].image, Image.Image)
        np.testing.assert_array_equal(np.asarray(decisions[i].image), Cleaner.clean(order[i]))


def test_purified_images_have_the_type_of_the_input():
    x = poisoned(dark(2))
    (one,) = Guard(backdoored, Cleaner()).run(x[0])
    assert one.flagged and one.image.shape == (8, 8, 3) and one.image.dtype == np.uint8
    nchw = np.moveaxis(x, -1, 1) / 255
    for p, d in zip(x, Guard(backdoored, Cleaner()).run(nchw, data_format="NCHW"), strict=True):
        assert d.image.dtype == np.float64
        np.testing.assert_array_equal(np.rint(np.moveaxis(d.image, 0, -1) * 255), Cleaner.clean(p))


@pytest.mark.parametrize("batch", [[], (), np.empty((0, 8, 8, 3), np.uint8)])
@pytest.mark.parametrize("detector", [ScaleUp(), PurifyAll()])
def test_an_empty_batch_costs_no_query(batch, detector):
    classify, purifier = Recorder(), Cleaner()
    watch = Guard(classify, purifier, detector)
    assert watch.run(batch) == []
    assert classify.batches == purifier.batches == []
    assert watch.counters == guard.Counters() and watch.counters.flagged_share == 0


def test_stream_is_run_in_order_and_lazy():
    batches = [dark(1), np.concatenate([dark(1, seed=3), poisoned(dark(1))]), dark(0)]
    requested = []

    def source():
        for i, b in enumerate(batches):
            requested.append(i)
            yield b

    stream = Guard(backdoored, Cleaner()).stream(source())
    assert requested == []
    assert [d.flagged for d in next(stream)] == [False] and requested == [0]
    assert [[d.flagged for d in ds] for ds in stream] == [[False, True], []]
    nchw = Guard(backdoored, Cleaner()).stream([np.moveaxis(poisoned(dark(1)), -1, 1)], data_format="NCHW")
    assert [d.flagged for d in next(nchw)] == [True]


def test_an_unreadable_file_does_not_affect_other_images(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    watch = Guard(backdoored, Cleaner())
    batch = [dark(1)[0], tmp_path / "torn.png", poisoned(dark(1))[0], tmp_path / "none.png"]
    decisions = watch.run(batch)
    assert [d.label is None for d in decisions] == [False, True, False, True]
    assert [d.flagged for d in decisions] == [False, True, True, True]
    assert "torn.png" in decisions[1].error and "none.png" in decisions[3].error
    assert watch.counters.images == 4 and watch.counters.abstained == 2
    (decision,) = watch.run(tmp_path / "torn.png")
    assert decision.label is None and "torn.png" in decision.error


@pytest.mark.parametrize(
    "batch",
    [
        [dark(1)[0], np.full((8, 8, 3), np.nan)],
        [dark(1)[0], object()],
        [dark(1)[0], dark(2)],
        np.full((1, 8, 8, 3), 2.0),
        np.zeros((2, 2), complex),
        None,
    ],
)
def test_misuse_raises_before_anything_is_classified(batch):
    classify = Recorder()
    with pytest.raises(InputError, match="item 1 of the list" if isinstance(batch, list) else "got"):
        Guard(classify, Cleaner()).run(batch)
    assert classify.batches == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"classify": None}, "classify"),
        ({"classify": Purifier(FakeEngine(), "blur2"), "purifier": backdoored}, "purifier"),
        ({"purifier": Purifier}, "purifier"),
        ({"purifier": "zip-tiny"}, "purifier"),
        ({"detector": ScaleUp}, "detector"),
        ({"detector": "scale-up"}, "detector"),
        *[({"adapt": a}, "adapt") for a in (None, 1, "yes", 0.0)],
        *[({"timeout": t}, "timeout") for t in (0, -1, math.nan, math.inf, "1", True, np.True_)],
        *[({"max_batch": n}, "max_batch") for n in (0, -1, 1.5, True, "6", np.int64(0), np.float32(6))],
    ],
)
def test_guard_refuses_options(change, name):
    options = {"classify": backdoored, "purifier": Cleaner(), **change}
    with pytest.raises(InputError, match=f"{name}: got"):
        Guard(options.pop("classify"), options.pop("purifier"), **options)


@pytest.mark.parametrize("option", ["classify", "purifier", "detector"])
def test_a_batch_in_the_wrong_place_is_not_printed(option):
    with pytest.raises(InputError, match=f"{option}: got ndarray, expected"):
        Guard(**{"classify": backdoored, "purifier": Cleaner(), option: dark(2)})


def test_options_may_be_numpy_numbers():
    classify = Recorder()
    watch = Guard(classify, Cleaner(), timeout=np.float32(60), max_batch=np.int64(4))
    assert [d.error for d in watch.run(dark(1))] == [None]
    assert classify.sizes == [4, 2]
    learn = AblationDetector(learn=np.int32(16)).learn
    assert type(learn) is int and learn == 16


def test_the_speedup_bound_equals_that_of_a_simulated_stream():
    """Compare with the mean time of a guarded stream, summed image by image."""
    flagged, detect, purify = 32, 0.02, 10.0
    guarded = sum(detect + (purify if i < flagged else 0) for i in range(640)) / 640
    assert guard.speedup_bound(flagged / 640, detect, purify) == pytest.approx(purify / guarded)
    assert guard.speedup_bound(1, detect, purify) < 1  # all flagged: slower than no detector
    slower = [guard.speedup_bound(p, detect, purify) for p in (0, 0.026, 0.05, 1)]
    assert all(a > b for a, b in pairwise(slower))
    for bad in ((-0.1, 1, 1), (1.1, 1, 1), (math.nan, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (0.5, math.nan, 1),
                (0.5, 1, math.inf)):  # fmt: skip
        with pytest.raises(InputError, match="expected a share"):
            guard.speedup_bound(*bad)


def test_the_guard_runs_a_purifier_on_mixed_sizes():
    """Use the real loop with a fake engine: the purified images are those of `Purifier.run`."""
    purifier = Purifier(FakeEngine(), "blur2", seed=1, steps=2)
    batch = [poisoned(noise_images(1)[0]), dark(1, 40, 33)[0], poisoned(noise_images(1, 50, 32)[0])]
    decisions = Guard(backdoored, purifier).run(batch)
    assert [d.flagged for d in decisions] == [True, False, True]
    for p, d in zip(batch, decisions, strict=True):
        if d.flagged:
            np.testing.assert_array_equal(d.image, purifier.run(p))
            assert d.label == backdoored(d.image[None]).argmax()


def test_the_guard_runs_the_bundled_model():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    purifier = zipsdk.Purifier("zip-tiny", preset="fast", seed=1)
    batch = dark(4, 32, 32)
    batch[1], batch[2] = poisoned(batch[1]), poisoned(batch[2])
    watch = Guard(backdoored, purifier)
    decisions = watch.run(batch)
    assert [d.flagged for d in decisions] == [False, True, True, False]
    assert [int(k) for k in backdoored(batch).argmax(1)] == [1, TARGET, TARGET, 1]
    assert [d.label for d in decisions] == [1, 1, 1, 1]
    assert watch.counters == guard.Counters(images=4, flagged=2, calls=2, queries=26)


def test_score_is_called_once_per_image():
    """A detector may count its calls, as the simulated one of the benchmarks does."""

    class Counting(ScaleUp):
        asked = 0

        def score(self, scores):
            Counting.asked += 1
            return super().score(scores)

    Guard(backdoored, Cleaner(), Counting()).run(np.concatenate([dark(3), poisoned(dark(2))]))
    assert Counting.asked == 5

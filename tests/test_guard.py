"""The streaming guard: SPC is literally SPC, no query is wasted, and whatever fails ends in less trust, not in more."""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
from conftest import FakeEngine
from PIL import Image
from test_purifier import pictures

import zipsdk
from zipsdk import InputError, Purifier, ScaleUp, blackbox, guard

SCALES = (3, 5, 7, 9, 11)
CLASSES = 10
TARGET = 7
PATCH = np.array([[[255, 0, 255], [0, 255, 0]], [[0, 255, 0], [255, 0, 255]]], np.uint8)


def Guard(classify, purifier, detector=ScaleUp(), **options):  # noqa: B008
    """A guard with SCALE-UP, which these tests are about unless they say otherwise."""
    return zipsdk.Guard(classify, purifier, detector, **options)


def brightness(x: np.ndarray) -> np.ndarray:
    """Ten classes by mean brightness, picture by picture in whole numbers: the same in any batch."""
    assert x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3
    return np.eye(CLASSES)[[int(p.sum(dtype=np.int64)) * CLASSES // (p.size * 256) for p in x]]


def backdoored(x: np.ndarray) -> np.ndarray:
    """`brightness`, but with the patch in its corner a picture is of the target class. Scaling keeps the patch."""
    scores = brightness(x)
    hit = (x[:, -2:, -2:] == PATCH).all(axis=(1, 2, 3))
    scores[hit] = np.eye(CLASSES)[TARGET]
    return scores


def dark(n: int, h: int = 8, w: int = 8, seed: int = 0) -> np.ndarray:
    """Clean pictures whose class changes with every scale: SPC 0."""
    return np.random.default_rng(seed).integers(20, 50, (n, h, w, 3)).astype(np.uint8)


def poisoned(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[..., -2:, -2:, :] = PATCH
    return x


class Recorder:
    """A classifier that notes what it is given, and does what `plan` says for its calls, one after the other."""

    def __init__(self, classify=backdoored, plan=()):
        self.classify, self.plan = classify, list(plan)
        self.batches: list[np.ndarray] = []

    def __call__(self, x):
        self.batches.append(x.copy())
        act = self.plan.pop(0) if self.plan else None
        return self.classify(x) if act is None else act(x)

    @property
    def sizes(self):
        return [len(b) for b in self.batches]


class Cleaner:
    """A purifier that paints the corner over and adds 1, so that its pictures are known."""

    def __init__(self):
        self.batches: list[list[np.ndarray]] = []

    def run(self, batch):
        self.batches.append([p.copy() for p in batch])
        return [self.clean(p) for p in batch]

    @staticmethod
    def clean(p):
        out = p + np.uint8(1)
        out[-2:, -2:] = 30
        return out


def fail(x):
    raise RuntimeError("the service is down")


# ---- SPC


def literal_spc(classify, rgb, scales=SCALES):
    """As the paper writes it: pixels in [0, 1], one scale after the other."""
    x = rgb / 255.0

    def f(y):
        return int(np.argmax(classify(np.rint(y * 255).astype(np.uint8)[None])[0]))

    agreeing = 0
    for n in scales:
        agreeing += f(np.minimum(np.maximum(n * x, 0.0), 1.0)) == f(x)
    return agreeing / len(scales)


def mixed_pictures():
    """Pictures of every SPC from 0 to 1 under `thirds`."""
    levels = [1, 5, 9, 12, 15, 20, 26, 40, 60, 90, 150, 200, 250]
    noise = np.random.default_rng(5).integers(0, 3, (len(levels), 6, 6, 3))
    return [np.uint8(level + n) for level, n in zip(levels, noise, strict=True)]


def thirds(x):
    return np.eye(3)[[int(p.sum(dtype=np.int64)) * 3 // (p.size * 256) for p in x]]


@pytest.mark.parametrize("scales", [SCALES, (2,), (2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (11, 3, 255)])
def test_spc_is_the_literal_one(scales):
    batch = mixed_pictures()
    detector = ScaleUp(scales)
    found = set()
    for p, decision in zip(batch, Guard(thirds, Cleaner(), detector).run(batch), strict=True):
        want = literal_spc(thirds, p, scales)
        assert decision.score == want
        assert decision.flagged == (want >= 0.5)
        found.add(want)
    assert len(found) > (4 if scales == SCALES else 1)  # the pictures tell detectors apart


def test_copies_are_exact():
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for n, copy in zip((2, 7, 255), ScaleUp((2, 7, 255)).copies(every_level), strict=True):
        assert copy.dtype == np.uint8
        np.testing.assert_array_equal(copy, [[[min(n * int(v), 255) for v in p] for p in row] for row in every_level])


def test_scale_up_takes_numpys_numbers():
    detector = ScaleUp(scales=np.array([3, 5]), threshold=np.float32(0.5))
    assert detector == ScaleUp(scales=(3, 5), threshold=0.5) and type(detector.scales[0]) is int


@pytest.mark.parametrize(("agreeing", "flagged"), [(0, False), (1, False), (2, True), (3, True), (4, True)])
def test_a_score_at_the_threshold_is_flagged(agreeing, flagged):
    detector = ScaleUp((2, 3, 4, 5))
    scores = np.eye(2)[[0] + [0] * agreeing + [1] * (4 - agreeing)]
    assert detector.score(scores) == agreeing / 4
    assert detector.flags(detector.score(scores)) is flagged


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", range(6))
def test_nan_never_agrees(bad, row):
    detector = ScaleUp()
    for places in [(0,), slice(None)]:
        scores = np.eye(4)[[2] * 6]
        scores[row, places] = bad
        assert math.isnan(detector.score(scores))
        assert detector.flags(detector.score(scores))
    assert math.isnan(detector.score(np.full((6, 4), np.nan)))  # argmax alone would say that all agree
    assert math.isnan(detector.score(np.full((6, 4), -np.inf)))


def test_minus_infinity_is_a_logarithm_of_zero():
    with np.errstate(divide="ignore"):
        assert ScaleUp().score(np.log(np.eye(4)[[2, 2, 2, 1, 2, 0]])) == 3 / 5


@pytest.mark.parametrize("shape", [(5, 4), (7, 4), (6,), (6, 0), (1, 6, 4)])
def test_spc_refuses_other_shapes(shape):
    with pytest.raises(InputError, match=r"wanted \(6, classes\)"):
        ScaleUp().spc(np.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [{"scales": s} for s in [(), (1, 3), (0,), (-3,), (256,), (3, 3), (3.0,), (True, 3), 3, "35", None]]
    + [{"threshold": t} for t in [0, -0.5, 1.01, math.nan, math.inf, None, True, "0.5"]],
)
def test_scale_up_refuses_options(options):
    with pytest.raises(InputError, match=r"wanted .*(such as|published)"):
        ScaleUp(**options)


# ---- the data-limited variant


def test_z_scores_are_the_literal_ones():
    clean = mixed_pictures()
    spc = np.array([literal_spc(thirds, p) for p in clean])
    labels = np.array([0] * 5 + [1] * 4 + [2] * 4)
    assert any(np.argmax(thirds(p[None])[0]) != c for p, c in zip(clean, labels, strict=True))
    detector = ScaleUp().calibrate(thirds, clean, labels, threshold=1.0)
    assert detector.threshold == 1.0
    flagged = []
    for p, decision in zip(clean, Guard(thirds, Cleaner(), detector).run(clean), strict=True):
        mine = spc[labels == np.argmax(thirds(p[None])[0])]  # the class that is predicted
        mine = mine if len(set(mine)) > 1 else spc
        want = (literal_spc(thirds, p) - np.mean(mine)) / np.sqrt(np.mean((mine - np.mean(mine)) ** 2))
        assert decision.score == pytest.approx(want, abs=1e-12)
        assert decision.flagged == (want >= 1.0)
        flagged.append(decision.flagged)
    assert 0 < sum(flagged) < len(flagged)


def test_without_labels_the_predicted_classes_are_taken():
    clean = mixed_pictures()
    predicted = [int(np.argmax(thirds(p[None])[0])) for p in clean]
    assert ScaleUp().calibrate(thirds, clean) == ScaleUp().calibrate(thirds, clean, predicted)
    assert ScaleUp().calibrate(thirds, clean) != ScaleUp().calibrate(thirds, clean, predicted[::-1])


def test_classes_without_a_spread_take_all_pictures():
    """Three of one SPC, a single one, and none at all; 2/5 three times deviates from itself, in floating point."""
    clean = [p for p in mixed_pictures() if literal_spc(thirds, p) == 2 / 5][:1] * 3 + mixed_pictures()
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
    assert detector.flags(math.nan)


def test_calibrate_refuses_what_would_flag_nothing_or_everything():
    with pytest.raises(InputError, match="without a spread"):
        ScaleUp().calibrate(brightness, dark(5))
    with pytest.raises(InputError, match="without a spread"):
        ScaleUp().calibrate(brightness, [])
    with pytest.raises(InputError, match=r"clean picture 0: .*service is down"):
        ScaleUp().calibrate(fail, dark(5))
    for labels in ([0, 1], [0.0] * 13, [[0] * 13], ["a"] * 13):
        with pytest.raises(InputError, match="13 whole numbers"):
            ScaleUp().calibrate(thirds, mixed_pictures(), labels)
    with pytest.raises(InputError, match="threshold"):
        ScaleUp().calibrate(thirds, mixed_pictures(), threshold=math.nan)


def test_calibrate_keeps_to_max_batch_and_leaves_the_detector_alone():
    classify, detector = Recorder(thirds), ScaleUp()
    fitted = detector.calibrate(classify, mixed_pictures(), max_batch=7)
    assert max(classify.sizes) == 7 and sum(classify.sizes) == 6 * 13
    assert detector == ScaleUp() != fitted
    assert fitted.threshold == 0.5
    hash(fitted)


# ---- the guard: what is caught, what it costs


def test_the_poisoned_one_is_caught_and_only_it_is_purified():
    batch = dark(5)
    batch[3] = poisoned(batch[3])
    assert [int(k) for k in backdoored(batch).argmax(1)][3] == TARGET
    classify, purifier = Recorder(), Cleaner()
    decisions = Guard(classify, purifier).run(batch)
    assert [d.flagged for d in decisions] == [False, False, False, True, False]
    assert [d.label for d in decisions] == [int(k) for k in brightness(batch).argmax(1)]
    assert [d.score for d in decisions] == [0, 0, 0, 1, 0]
    assert decisions[3].label != TARGET
    assert all((d.purified is None) == (not d.flagged) and d.error is None for d in decisions)
    (given,) = purifier.batches
    np.testing.assert_array_equal(given, batch[3:4])
    np.testing.assert_array_equal(decisions[3].purified, Cleaner.clean(batch[3]))
    # one batch of pictures and copies, and one with the purified picture
    assert classify.sizes == [30, 1]
    np.testing.assert_array_equal(classify.batches[1][0], Cleaner.clean(batch[3]))
    for p, d in zip(batch, decisions, strict=True):
        np.testing.assert_array_equal(d.scores, backdoored((p if d.purified is None else d.purified)[None])[0])
    assert "score 0, threshold 0.5" in decisions[0].why and "score 1, threshold 0.5" in decisions[3].why


def test_a_trigger_that_scaling_destroys_is_missed():
    """The known weakness: a miss is a full bypass."""

    def trigger_of_one_grey(x):
        scores = brightness(x)
        scores[(x[:, -2:, -2:] == 100).all(axis=(1, 2, 3))] = np.eye(CLASSES)[TARGET]
        return scores

    batch = dark(1)
    batch[:, -2:, -2:] = 100
    (decision,) = Guard(trigger_of_one_grey, Cleaner()).run(batch)
    assert (decision.label, decision.flagged, decision.purified) == (TARGET, False, None)
    (decision,) = Guard(trigger_of_one_grey, Cleaner(), None).run(batch)
    assert decision.label != TARGET


def test_the_classifier_sees_the_picture_and_its_copies():
    batch = dark(2)
    classify = Recorder()
    Guard(classify, Cleaner()).run(batch)
    (seen,) = classify.batches
    for i, p in enumerate(batch):
        want = [p] + [np.minimum(n * p.astype(int), 255) for n in SCALES]
        np.testing.assert_array_equal(seen[6 * i : 6 * i + 6], want)
    assert seen.flags["C_CONTIGUOUS"]


def test_without_a_detector_everything_is_purified_at_one_query_each():
    classify, purifier = Recorder(), Cleaner()
    watch = Guard(classify, purifier, None)
    batch = dark(3)
    decisions = watch.run(batch)
    assert classify.sizes == [3] and len(purifier.batches) == 1
    assert all(d.flagged and d.score is None for d in decisions)
    for p, d in zip(batch, decisions, strict=True):
        np.testing.assert_array_equal(d.purified, Cleaner.clean(p))
        assert d.label == brightness(Cleaner.clean(p)[None]).argmax()
    assert watch.counters == guard.Counters(pictures=3, flagged=3, calls=1, queries=3)
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
    assert (counters.pictures, counters.flagged, counters.unlabelled) == (9, 3, 0)
    assert (counters.calls, counters.queries, counters.failures) == (len(classify.sizes), 57, 0)
    assert counters.flagged_share == 1 / 3
    whole = Guard(backdoored, Cleaner()).run(batch)
    assert [(d.label, d.score) for d in decisions] == [(d.label, d.score) for d in whole]


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
    assert classify.sizes == [18, 18, 1, 1]  # one batch a size
    assert len(purifier.batches) == 1 and {p.shape for p in purifier.batches[0]} == {(9, 12, 3), (8, 8, 3)}
    for i in (2, 4):
        assert isinstance(decisions[i].purified, Image.Image)
        np.testing.assert_array_equal(np.asarray(decisions[i].purified), Cleaner.clean(order[i]))


def test_purified_pictures_come_back_as_what_came_in():
    x = poisoned(dark(2))
    (one,) = Guard(backdoored, Cleaner()).run(x[0])
    assert one.flagged and one.purified.shape == (8, 8, 3) and one.purified.dtype == np.uint8
    nchw = np.moveaxis(x, -1, 1) / 255
    for p, d in zip(x, Guard(backdoored, Cleaner()).run(nchw, layout="NCHW"), strict=True):
        assert d.purified.dtype == np.float64
        np.testing.assert_array_equal(np.rint(np.moveaxis(d.purified, 0, -1) * 255), Cleaner.clean(p))


@pytest.mark.parametrize("batch", [[], (), np.empty((0, 8, 8, 3), np.uint8)])
@pytest.mark.parametrize("detector", [ScaleUp(), None])
def test_nothing_costs_nothing(batch, detector):
    classify, purifier = Recorder(), Cleaner()
    watch = Guard(classify, purifier, detector)
    assert watch.run(batch) == []
    assert classify.batches == purifier.batches == []
    assert watch.counters == guard.Counters() and watch.counters.flagged_share == 0


def test_stream_is_run_in_order_and_lazy():
    batches = [dark(1), np.concatenate([dark(1, seed=3), poisoned(dark(1))]), dark(0)]
    asked = []

    def source():
        for i, b in enumerate(batches):
            asked.append(i)
            yield b

    stream = Guard(backdoored, Cleaner()).stream(source())
    assert asked == []
    assert [d.flagged for d in next(stream)] == [False] and asked == [0]
    assert [[d.flagged for d in ds] for ds in stream] == [[False, True], []]
    nchw = Guard(backdoored, Cleaner()).stream([np.moveaxis(poisoned(dark(1)), -1, 1)], layout="NCHW")
    assert [d.flagged for d in next(nchw)] == [True]


# ---- a classifier that fails


BAD_ANSWERS = {
    "raises": fail,
    "too few rows": lambda x: backdoored(x)[:-1],
    "too many rows": lambda x: np.concatenate([backdoored(x), backdoored(x[:1])]),
    "labels": lambda x: backdoored(x).argmax(1),
    "one class": lambda x: np.ones((len(x), 1)),
    "no class": lambda x: np.ones((len(x), 0)),
    "three axes": lambda x: backdoored(x)[:, :, None],
    "nothing": lambda x: None,
    "text": lambda x: backdoored(x).astype(str),
    "complex": lambda x: backdoored(x) + 0j,
    "ragged": lambda x: [[1.0, 2.0]] * (len(x) - 1) + [[1.0]],
    "nan": lambda x: np.full((len(x), CLASSES), np.nan),
    "one nan": lambda x: np.where(np.arange(CLASSES) == 0, np.nan, backdoored(x)),
    "inf": lambda x: np.full((len(x), CLASSES), np.inf),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_what_could_not_be_checked_is_purified(name):
    classify, purifier = Recorder(plan=[BAD_ANSWERS[name]]), Cleaner()
    watch = Guard(classify, purifier)
    batch = np.concatenate([dark(2), poisoned(dark(1))])
    with warnings.catch_warnings(action="ignore"):  # as they would be for a user, for whom they are no errors
        decisions = watch.run(batch)
    for p, d in zip(batch, decisions, strict=True):
        assert d.flagged and d.score is None and d.error is None
        assert "the classifier failed on the picture or a copy" in d.why
        np.testing.assert_array_equal(d.purified, Cleaner.clean(p))
        assert d.label == backdoored(Cleaner.clean(p)[None]).argmax() != TARGET
    assert classify.sizes == [18, 3]
    counters = watch.counters
    assert (counters.failures, counters.flagged, counters.unlabelled, counters.queries) == (1, 3, 0, 21)


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_what_fails_after_purification_too_has_no_label(name):
    watch = Guard(Recorder(plan=[BAD_ANSWERS[name]] * 2), Cleaner())
    (decision,) = watch.run(dark(1))
    assert decision.label is None and decision.scores is None and decision.flagged
    assert "the classifier failed on the purified picture: " in decision.error
    np.testing.assert_array_equal(decision.purified, Cleaner.clean(dark(1)[0]))
    assert watch.counters.unlabelled == 1 and watch.counters.failures == 2


@pytest.mark.parametrize("row", range(6))
def test_one_bad_row_distrusts_its_picture_and_no_other(row):
    def nan_in_a_row(x):
        scores = backdoored(x)
        scores[6 + row, 3] = np.nan
        return scores

    watch = Guard(Recorder(plan=[nan_in_a_row]), Cleaner())
    decisions = watch.run(dark(3))
    assert [d.flagged for d in decisions] == [False, True, False]
    assert decisions[1].label is not None and "not finite" in decisions[1].why
    assert watch.counters.failures == 1


def test_a_call_that_fails_takes_only_its_own_pictures():
    watch = Guard(Recorder(plan=[None, fail, None]), Cleaner(), max_batch=6)
    assert [d.flagged for d in watch.run(dark(3))] == [False, True, False]
    # a picture whose copies stand in two calls is distrusted when one of them fails
    watch = Guard(Recorder(plan=[None, fail]), Cleaner(), max_batch=4)
    assert [d.flagged for d in watch.run(dark(3))] == [True, True, False]
    # another size is another call
    watch = Guard(Recorder(plan=[fail]), Cleaner())
    assert [d.flagged for d in watch.run([dark(1)[0], dark(1, 9, 9)[0]])] == [True, False]
    watch = Guard(Recorder(plan=[fail]), Cleaner(), None)
    decisions = watch.run([dark(1)[0], dark(1, 9, 9)[0]])
    assert [d.label is None for d in decisions] == [True, False]


def test_a_picture_whose_copies_cannot_be_made_takes_no_other_label():
    class Choosy(ScaleUp):
        def versions(self, rgb):
            if rgb[0, 0, 0] == 9:
                raise MemoryError("no room")
            return super().versions(rgb)

    pictures = dark(3)
    pictures[1, 0, 0, 0] = 9
    watch = Guard(backdoored, Cleaner(), Choosy())
    decisions = watch.run(pictures)
    assert [d.flagged for d in decisions] == [False, True, False]
    assert "no room" in decisions[1].why and decisions[1].label is not None
    assert watch.counters.failures == 1 and watch.counters.pictures == 3


@pytest.mark.parametrize("odd", [lambda p: [], lambda p: [p[:1]], lambda p: [p / 255]])
def test_a_detector_that_gives_no_pictures_is_told(odd):
    class Odd(ScaleUp):
        def versions(self, rgb):
            return odd(rgb) if rgb[0, 0, 0] == 9 else super().versions(rgb)

    pictures = dark(2)
    pictures[0, 0, 0, 0] = 9
    first, second = Guard(backdoored, Cleaner(), Odd()).run(pictures)
    assert first.flagged and "versions: got" in first.why
    assert not second.flagged and second.label == 1


def test_pictures_with_other_numbers_of_copies_keep_their_answers():
    class Uneven(ScaleUp):
        def versions(self, rgb):
            return super().versions(rgb)[: 1 + int(rgb[0, 0, 0] % 3)]

        def score(self, scores):
            asked.append(len(scores))
            return float(scores[0].argmax())

        def flags(self, score):
            return False

        def why(self, scores, score):
            return ""

    asked: list[int] = []
    pictures = np.concatenate([dark(3), 4 * dark(3)])
    pictures[:, 0, 0, 0] = [30, 31, 32, 200, 202, 201]
    decisions = Guard(backdoored, Cleaner(), Uneven(), max_batch=4).run(pictures)
    assert asked == [1, 2, 3, 3, 2, 1]
    assert [d.label for d in decisions] == [int(backdoored(p[None]).argmax()) for p in pictures]


def test_a_call_is_no_larger_than_said_if_nothing_is_said():
    classify = Recorder(backdoored)
    Guard(classify, Cleaner()).run(dark(100))
    assert classify.sizes == [256, 256, 88]


@pytest.mark.parametrize(
    ("max_batch", "pixels", "sizes"),
    [(256, 4 * 64 + 63, [4, 4, 4]), (3, 4 * 64, [3, 3, 3, 3]), (256, 10, [1] * 12), (None, 10, [12])],
)
def test_a_call_has_no_more_pixels_than_it_may(monkeypatch, max_batch, pixels, sizes):
    monkeypatch.setattr(blackbox, "MAX_CALL_PIXELS", pixels)
    classify = Recorder()
    decisions = Guard(classify, Cleaner(), max_batch=max_batch).run(dark(2))
    assert classify.sizes == sizes
    assert [d.label for d in decisions] == [int(k) for k in brightness(dark(2)).argmax(1)]


def test_photos_go_out_a_few_at_a_time():
    sizes = []

    def classify(x):
        sizes.append(len(x))
        return np.tile([0.0, 1.0], (len(x), 1))

    photo = np.zeros((2048, 2730, 3), np.uint8)
    blackbox.BlackBox(classify).ask([photo] * 4, lambda p: [p])
    assert sizes == [3, 1]


def test_pictures_for_whose_call_there_is_no_memory_take_no_other_label(monkeypatch):
    stack = np.stack

    def small_ones(arrays, *rest, **options):
        if arrays[0].shape == (9, 9, 3):
            raise MemoryError("no room")
        return stack(arrays, *rest, **options)

    monkeypatch.setattr(np, "stack", small_ones)
    watch = Guard(backdoored, Cleaner())
    first, second = watch.run([dark(1)[0], dark(1, 9, 9)[0]])
    assert first.label == 1 and not first.flagged
    assert second.label is None and "no room" in second.why and "no room" in second.error
    assert watch.counters.failures == 2


def test_a_number_of_classes_that_changes_is_a_failure():
    wider = Recorder(plan=[None, lambda x: np.pad(backdoored(x), ((0, 0), (0, 1)))])
    (decision,) = Guard(wider, Cleaner(), max_batch=3).run(dark(1))
    assert decision.flagged and "another number of classes" in decision.why


@pytest.mark.parametrize(
    "kind", [list, lambda s: s.astype(np.float16), lambda s: s.astype(int), lambda s: s.astype(bool), lambda s: s * -1]
)
def test_scores_of_many_kinds(kind):
    decisions = Guard(lambda x: kind(brightness(x)), Cleaner(), None).run(dark(2))
    clean = [Cleaner.clean(p) for p in dark(2)]
    for p, d in zip(clean, decisions, strict=True):
        want = np.asarray(kind(brightness(p[None])), np.float64)[0]
        assert d.scores.dtype == np.float64 and d.label == want.argmax() and isinstance(d.label, int)
        np.testing.assert_array_equal(d.scores, want)


@pytest.mark.parametrize("max_batch", [1, 6, None])
def test_a_classifier_may_use_its_buffers_again_and_write_into_its_batch(max_batch):
    buffer = np.empty((18, CLASSES))

    def careless(x):
        buffer[: len(x)] = backdoored(x)
        x[:] = 255
        return buffer[: len(x)]

    batch = np.concatenate([dark(1), dark(1) * 4, poisoned(dark(1))])
    given = batch.copy()
    purifier = Cleaner()
    decisions = Guard(careless, purifier, max_batch=max_batch).run(batch)
    want = Guard(backdoored, Cleaner()).run(given)
    assert [(d.label, d.score, d.flagged) for d in decisions] == [(d.label, d.score, d.flagged) for d in want]
    assert len({d.label for d in want}) > 1
    for d, w in zip(decisions, want, strict=True):
        np.testing.assert_array_equal(d.scores, w.scores)
    np.testing.assert_array_equal(batch, given)
    np.testing.assert_array_equal(purifier.batches[0][-1], given[2])


def test_ctrl_c_is_no_failure_of_the_classifier():
    def interrupt(x):
        raise KeyboardInterrupt

    for timeout in (None, 60):
        with pytest.raises(KeyboardInterrupt):
            Guard(interrupt, Cleaner(), timeout=timeout).run(dark(1))


# ---- a classifier that hangs


@pytest.fixture
def hang():
    """A call that never answers, until the test is over."""
    over = threading.Event()

    def call(x):
        over.wait(60)
        return backdoored(x)

    call.over = over
    yield call
    over.set()


def test_a_late_answer_is_no_answer(hang):
    classify = Recorder(plan=[hang])
    watch = Guard(classify, Cleaner(), timeout=1.0)
    decisions = watch.run(dark(2))
    assert all(d.flagged and d.label is not None and "no answer within 1 s" in d.why for d in decisions)
    assert classify.sizes == [12, 2]
    assert watch.counters.hanging == 1 and watch.counters.failures == 1
    classify.plan = [hang, hang]
    (decision,) = watch.run(dark(1))
    assert decision.label is None and "no answer within 1 s" in decision.error
    assert watch.reset().hanging == watch.counters.hanging == 3
    before = [t for t in threading.enumerate() if t.name == "zipsdk-classify"]
    assert len(before) == 3 and all(t.daemon for t in before)
    hang.over.set()
    for thread in before:
        thread.join(60)
    assert watch.counters.hanging == 0


def test_a_classifier_that_hangs_for_good_is_left_alone(hang, monkeypatch):
    """No more threads than `MAX_HANGING`, no more waiting; and it is asked again when a call has ended."""
    monkeypatch.setattr(blackbox, "MAX_HANGING", 2)
    classify = Recorder(plan=[hang] * 2)
    watch = Guard(classify, Cleaner(), timeout=0.5, max_batch=1)
    decisions = watch.run(dark(3))
    assert [d.label for d in decisions] == [None] * 3
    assert all("2 earlier calls still run" in d.error for d in decisions)
    assert classify.sizes == [1, 1]
    counters = watch.counters
    assert (counters.calls, counters.queries, counters.hanging) == (2, 2, 2)
    threads = [t for t in threading.enumerate() if t.name == "zipsdk-classify"]
    hang.over.set()
    for thread in threads:
        thread.join(60)
    watch._classifier.timeout = 60
    (decision,) = watch.run(dark(1))
    assert decision.label is not None and not decision.flagged
    assert watch.counters.hanging == 0 and classify.sizes == [1] * 8


def test_in_time_is_the_same_as_without_a_limit():
    batch = np.concatenate([dark(2), poisoned(dark(1))])
    plain, timed = Guard(backdoored, Cleaner()), Guard(backdoored, Cleaner(), timeout=60)
    for a, b in zip(plain.run(batch), timed.run(batch), strict=True):
        assert (a.label, a.score, a.flagged, a.why) == (b.label, b.score, b.flagged, b.why)
    assert plain.counters == timed.counters
    (decision,) = Guard(fail, Cleaner(), timeout=60).run(dark(1))
    assert "the service is down" in decision.error


# ---- a purifier that fails


class Broken(Cleaner):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def run(self, batch):
        super().run(batch)
        return self.act(self, batch)


BAD_PURIFIERS = {
    "raises": lambda self, batch: fail(batch),
    "nothing": lambda self, batch: None,
    "too few": lambda self, batch: batch[:-1],
    "too many": lambda self, batch: [*batch, batch[0]],
    "float": lambda self, batch: [p / 255 for p in batch],
    "another size": lambda self, batch: [p[:-1] for p in batch],
    "text": lambda self, batch: ["clean"] * len(batch),
}


@pytest.mark.parametrize("detector", [ScaleUp(), None])
@pytest.mark.parametrize("name", BAD_PURIFIERS)
def test_without_a_purified_picture_there_is_no_label(name, detector):
    classify, purifier = Recorder(), Broken(BAD_PURIFIERS[name])
    watch = Guard(classify, purifier, detector)
    batch = np.concatenate([poisoned(dark(2)), dark(1)])
    decisions = watch.run(batch)
    lost = decisions[:2] if detector else decisions
    for d in lost:
        assert d.flagged and d.label is None and d.scores is None and d.purified is None
        assert "the purifier failed: " in d.error
    if detector:
        assert decisions[2].label == brightness(batch[2:]).argmax() and decisions[2].error is None
    assert sum(classify.sizes) == (18 if detector else 0)  # no query for what was not purified
    assert watch.counters.unlabelled == len(lost) and watch.counters.failures == 1 + len(lost)


def test_one_picture_that_cannot_be_purified_takes_no_other_label():
    def refuse_small(self, batch):
        if any(p.shape == (4, 4, 3) for p in batch):
            raise InputError("too small")
        return [Cleaner.clean(p) for p in batch]

    batch = [poisoned(dark(1))[0], poisoned(dark(1, 4, 4))[0], poisoned(dark(1, 9, 9))[0]]
    purifier = Broken(refuse_small)
    decisions = Guard(backdoored, purifier).run(batch)
    assert [d.error is None for d in decisions] == [True, False, True]
    assert "too small" in decisions[1].error
    assert [len(b) for b in purifier.batches] == [3, 1, 1, 1]


def test_a_purifier_may_empty_the_list_it_is_given():
    def pop_all(self, batch):
        return [Cleaner.clean(batch.pop(0)) for _ in range(len(batch))]

    purifier = Broken(pop_all)
    assert [d.error for d in Guard(backdoored, purifier, None).run(dark(3))] == [None] * 3
    assert len(purifier.batches) == 1


# ---- pictures that cannot be read


def test_a_file_that_cannot_be_read_takes_no_other_label(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    watch = Guard(backdoored, Cleaner())
    batch = [dark(1)[0], tmp_path / "torn.png", poisoned(dark(1))[0], tmp_path / "none.png"]
    decisions = watch.run(batch)
    assert [d.label is None for d in decisions] == [False, True, False, True]
    assert [d.flagged for d in decisions] == [False, True, True, True]
    assert "torn.png" in decisions[1].error and "none.png" in decisions[3].error
    assert watch.counters.pictures == 4 and watch.counters.unlabelled == 2
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
def test_wrong_use_is_told_before_anything_is_classified(batch):
    classify = Recorder()
    with pytest.raises(InputError, match="item 1 of the list" if isinstance(batch, list) else "got"):
        Guard(classify, Cleaner()).run(batch)
    assert classify.batches == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classify": None}, "classify"),
        ({"classify": Purifier(FakeEngine(), "blur2"), "purifier": backdoored}, "purifier"),
        ({"purifier": Purifier}, "purifier"),
        ({"purifier": None}, "purifier"),
        ({"detector": ScaleUp}, "detector"),
        ({"detector": "scale-up"}, "detector"),
        *[({"timeout": t}, "timeout") for t in (0, -1, math.nan, math.inf, "1", True, np.True_)],
        *[({"max_batch": n}, "max_batch") for n in (0, -1, 1.5, True, "6", np.int64(0), np.float32(6))],
        *[({"learn": n}, "learn") for n in (-1, 15, 16.0, False, "16", np.int64(15))],
    ],
)
def test_guard_refuses_options(change, said):
    options = {"classify": backdoored, "purifier": Cleaner(), **change}
    with pytest.raises(InputError, match=f"{said}: got"):
        Guard(options.pop("classify"), options.pop("purifier"), **options)


def test_options_may_be_numbers_of_numpy():
    classify = Recorder()
    watch = Guard(classify, Cleaner(), timeout=np.float32(60), max_batch=np.int64(4), learn=np.int32(16))
    assert [d.error for d in watch.run(dark(1))] == [None]
    assert classify.sizes == [4, 2] and type(watch.learn) is int and watch.learn == 16


# ---- counters, and the whole


def test_reset_counts_from_zero_and_returns_what_was():
    watch = Guard(backdoored, Cleaner())
    watch.run(poisoned(dark(2)))
    before = watch.counters
    assert before == guard.Counters(pictures=2, flagged=2, calls=2, queries=14)
    assert watch.reset() == before
    assert watch.counters == guard.Counters()
    watch.run(dark(1))
    assert watch.counters == guard.Counters(pictures=1, calls=1, queries=6)


def test_counters_lose_nothing_between_threads():
    """Each thread also resets: what the resets returned and what is left must add up."""
    start, rounds, workers = threading.Barrier(8), 60, 8
    watch = Guard(backdoored, Cleaner(), max_batch=2)
    batch = np.concatenate([dark(1, 3, 3), poisoned(dark(1, 3, 3))])
    parts: list[guard.Counters] = []
    errors: list[BaseException] = []

    def work():
        try:
            start.wait(60)
            for i in range(rounds):
                assert [d.flagged for d in watch.run(batch)] == [False, True]
                if i % 10 == 0:
                    parts.append(watch.reset())
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert errors == []
    parts.append(watch.counters)
    total = {f.name: sum(getattr(p, f.name) for p in parts) for f in dataclasses.fields(guard.Counters)}
    n = rounds * workers
    assert total == {"pictures": 2 * n, "flagged": n, "unlabelled": 0, "calls": 7 * n, "queries": 13 * n,
                     "failures": 0, "hanging": 0}  # fmt: skip


def test_counting_is_one_step(monkeypatch):
    """Threads that add while another stands between its reading and its writing."""
    watch = Guard(backdoored, Cleaner())
    original, entered, go_on = guard.replace, threading.Event(), threading.Event()

    def slow(counters, **changes):
        if threading.current_thread().name == "slow":
            entered.set()
            go_on.wait(60)
        return original(counters, **changes)

    monkeypatch.setattr(guard, "replace", slow)
    first = threading.Thread(target=watch._count, kwargs={"calls": 1}, name="slow")
    second = threading.Thread(target=watch._count, kwargs={"calls": 1})
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.2)  # without a lock it would be done, and the first would undo it
    go_on.set()
    first.join(60)
    second.join(60)
    assert watch.counters.calls == 2


def test_reset_is_one_step(monkeypatch):
    """What is counted while `reset` stands between its reading and its writing is not lost."""
    watch = Guard(backdoored, Cleaner())
    other = threading.Thread(target=watch._count, kwargs={"calls": 1})
    original = guard.Counters

    def slow():
        monkeypatch.undo()
        other.start()
        other.join(0.2)  # without a lock it would be done, and its count gone
        return original()

    monkeypatch.setattr(guard, "Counters", slow)
    before = watch.reset()
    other.join(60)
    assert before.calls + watch.counters.calls == 1


def test_decisions_and_counters_cannot_be_changed():
    watch = Guard(backdoored, Cleaner())
    (decision,) = watch.run(dark(1))
    for thing, name in ((decision, "label"), (watch.counters, "calls"), (ScaleUp(), "threshold")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)


def test_speedup_bound():
    """The mean time of a guarded stream, literally, against purifying everything."""
    flagged, detect, purify = 32, 0.02, 10.0
    guarded = sum(detect + (purify if i < flagged else 0) for i in range(640)) / 640
    assert guard.speedup_bound(flagged / 640, detect, purify) == pytest.approx(purify / guarded)
    assert guard.speedup_bound(1, detect, purify) < 1  # all flagged: dearer than no detector
    slower = [guard.speedup_bound(p, detect, purify) for p in (0, 0.026, 0.05, 1)]
    assert all(a > b for a, b in pairwise(slower))
    for bad in ((-0.1, 1, 1), (1.1, 1, 1), (math.nan, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (0.5, math.nan, 1),
                (0.5, 1, math.inf)):  # fmt: skip
        with pytest.raises(InputError, match="wanted a share"):
            guard.speedup_bound(*bad)


def test_with_a_purifier_on_mixed_sizes():
    """The real loop around a fake engine: the guard's pictures are those of `Purifier.run`."""
    purifier = Purifier(FakeEngine(), "blur2", seed=1, steps=2)
    batch = [poisoned(pictures(1)[0]), dark(1, 40, 33)[0], poisoned(pictures(1, 50, 32)[0])]
    decisions = Guard(backdoored, purifier).run(batch)
    assert [d.flagged for d in decisions] == [True, False, True]
    for p, d in zip(batch, decisions, strict=True):
        if d.flagged:
            np.testing.assert_array_equal(d.purified, purifier.run(p))
            assert d.label == backdoored(d.purified[None]).argmax()


def test_with_the_bundled_model():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
    purifier = zipsdk.Purifier("zip-tiny", profile="fast", seed=1)
    batch = dark(4, 32, 32)
    batch[1], batch[2] = poisoned(batch[1]), poisoned(batch[2])
    watch = Guard(backdoored, purifier)
    decisions = watch.run(batch)
    assert [d.flagged for d in decisions] == [False, True, True, False]
    assert [int(k) for k in backdoored(batch).argmax(1)] == [1, TARGET, TARGET, 1]
    assert [d.label for d in decisions] == [1, 1, 1, 1]
    assert watch.counters == guard.Counters(pictures=4, flagged=2, calls=2, queries=26)


def test_a_score_is_worked_out_once_for_each_picture():
    """A detector may count what it is asked, as the benches' simulated one does."""

    class Counting(ScaleUp):
        asked = 0

        def score(self, scores):
            Counting.asked += 1
            return super().score(scores)

    Guard(backdoored, Cleaner(), Counting()).run(np.concatenate([dark(3), poisoned(dark(2))]))
    assert Counting.asked == 5

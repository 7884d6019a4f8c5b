"""The decisive part: what is taken away is exactly that, the rule is the written one, and toy backdoors are undone."""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np
import pytest
from test_guard import Recorder, fail

import zipsdk
from zipsdk import DecisivePart, InputError, guard, parts

ndimage = pytest.importorskip("scipy.ndimage")
NAMES = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
         "coarse", "middle", "fine", "colour"]  # fmt: skip
COARSE, COLOUR = 9, 12
PLAIN = [(0.0, 1.0)] * 13  # z is m itself
SIZES = [(1, 1), (1, 7), (2, 3), (4, 5), (5, 5), (31, 33), (32, 32), (40, 64), (224, 300)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# ---- the copies


def blurred(planes, deviation):
    """(H, W, anything) in float64; SciPy's reach for a truncation at 4 deviations, but at least one pixel."""
    reach = max(1, round(4 * deviation))
    return ndimage.gaussian_filter(planes, deviation, mode="reflect", radius=reach, axes=(0, 1))


def literal_regions(height, width):
    """Three by three squares of 3/8 of each side: as masks."""
    for i in range(3):
        for j in range(3):
            mask = np.ones((height, width), bool)
            for axis, (side, k) in enumerate(((height, i), (width, j))):
                size = max(1, round(3 * side / 8))
                at = np.arange(side) - [0, round((side - size) / 2), side - size][k]
                mask &= np.expand_dims((at >= 0) & (at < size), 1 - axis)
            yield mask


def literal_copies(rgb):
    """float64, neither rounded nor clipped."""
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
    out.append(np.repeat(x.sum(axis=2, keepdims=True) / 3, 3, axis=2))
    return out


@pytest.mark.parametrize("size", SIZES)
def test_copies_are_the_literal_ones(size):
    """Rounding is off by 0.5 itself. Measured: at most 0.534 in regions, where little is around a corner of one (4 x 5,
    where a weight is 5e-4; 0.526 at 224 x 300), and at most 0.50003 in the bands."""
    rgb = noise(*size)
    rgb.flags.writeable = False
    copies = DecisivePart().copies(rgb)
    assert copies.dtype == np.uint8 and copies.shape == (13, *size, 3)
    want = literal_copies(rgb)
    for i, (copy, exact) in enumerate(zip(copies, want, strict=True)):
        tolerance = 0.56 if i < COARSE else 0.501
        assert np.abs(copy - np.clip(exact, 0, 255)).max() <= tolerance, NAMES[i]
    covered = np.zeros(size, int)
    for copy, mask in zip(copies[:COARSE], literal_regions(*size), strict=True):
        np.testing.assert_array_equal(copy[~mask], rgb[~mask])
        covered += mask
    assert covered.min() > 0


def test_parts_are_named_in_the_order_of_their_copies():
    """And what is usual for them is given in that order too: four corners and four edges are alike."""
    assert list(parts.PARTS) == NAMES
    usual = dict(zip(NAMES, parts.USUAL, strict=True))
    assert len({usual[f"{a} {b}"] for a in ("top", "bottom") for b in ("left", "right")}) == 1
    assert len({usual[a] for a in ("top", "left", "right", "bottom")}) == 1
    assert len(set(parts.USUAL)) == 7


@pytest.mark.parametrize("size", [(2, 40), (20, 21), (90, 33), (64, 128)])
def test_regions_change_and_nothing_else_does(size):
    """Each region is really taken away: nothing of a picture that differs only in it comes through."""
    rgb = noise(*size)
    for i, mask in enumerate(literal_regions(*size)):
        other = np.where(mask[..., None], 255 - rgb, rgb)
        copies = [DecisivePart().copies(p)[i].astype(int) for p in (rgb, other)]
        assert np.abs(copies[0] - copies[1]).max() <= 1


@pytest.mark.parametrize("size", [*SIZES, (7, 1), (33, 200)])
@pytest.mark.parametrize("level", [0, 1, 127, 200, 255])
def test_a_constant_picture_stays(size, level):
    copies = DecisivePart().copies(np.full((*size, 3), level, np.uint8))
    assert (np.delete(copies, COARSE, axis=0) == level).all()
    assert (copies[COARSE] == 128).all()


def test_grey_pictures_have_no_colour_and_others_do():
    grey = np.repeat(noise(31, 33)[..., :1], 3, axis=2)
    np.testing.assert_array_equal(DecisivePart().copies(grey)[COLOUR], grey)
    copy = DecisivePart().copies(noise(31, 33))[COLOUR]
    assert (copy == copy[..., :1]).all()


def test_versions_are_the_picture_and_its_copies():
    rgb = noise(9, 12)
    for versions in (DecisivePart().versions(rgb[:, ::-1]), DecisivePart().again(rgb[:, ::-1])):
        np.testing.assert_array_equal(versions[0], rgb[:, ::-1])
        np.testing.assert_array_equal(versions[1:], DecisivePart().copies(rgb[:, ::-1].copy()))


# ---- the rule


def literal_look(p, norms):
    """Probabilities (14, classes) as lists -> score and part, with plain sums."""
    label = p[0].index(max(p[0]))
    z = []
    for row, (median, deviation) in zip(p[1:], norms, strict=True):
        best = max(v for k, v in enumerate(row) if k != label)
        z.append((math.log(best + 0.001) - math.log(row[label] + 0.001) - median) / deviation)
    return max(z) - sorted(z)[6], z.index(max(z))


def probabilities(seed, classes=5):
    p = np.random.default_rng(seed).dirichlet([0.3] * classes, 14)
    p[p < 0.01] = 0  # some are impossible
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norms", [None, [(0.1 * i - 1, 0.5 + 0.2 * i) for i in range(13)]])
def test_scores_are_the_literal_ones(classes, norms):
    detector, found = DecisivePart(norms=norms), set()
    for seed in range(20):
        p = probabilities(seed, classes)
        score, part = literal_look(p.tolist(), norms or parts.USUAL)
        assert detector.score(p) == pytest.approx(score, abs=1e-9)
        why = detector.why(p.tolist())
        label = int(p[0].argmax())
        other = int(np.where(np.arange(classes) == label, -1, p[1 + part]).argmax())
        assert f"without {NAMES[part]} " in why and f"class {other}:" in why
        assert why.endswith(f"score {score:.3g}, threshold 2")
        found.add(part)
    assert len(found) > 2


def test_logits_are_probabilities():
    detector = DecisivePart()
    for seed in range(5):
        p = probabilities(seed)
        with np.errstate(divide="ignore"):
            logits = np.log(p)
        assert np.isneginf(logits).any()
        shifted = logits + np.random.default_rng(seed).normal(0, 9, (14, 1))
        above = np.where(p > 0, logits + 400, 0)  # none is negative, but they do not add up to 1
        to_one = np.where(p > 0, logits, -60)  # they do, but some are negative
        to_one += (1 - to_one.sum(axis=1, keepdims=True)) / p.shape[1]
        for same in (logits, shifted, above, to_one):
            assert detector.score(same) == pytest.approx(detector.score(p), abs=1e-9)
            np.testing.assert_allclose(detector.settle(same, same), detector.settle(p, p), atol=1e-9)
        for rounded in (p * 1.006, p * 0.994):  # as far as bfloat16's
            assert detector.score(rounded) == pytest.approx(detector.score(p), abs=0.02)
    huge = np.where(p > 0, p, 0) * 1e308
    huge[:, 0] = -1e308
    assert math.isfinite(detector.score(huge)) and math.isfinite(detector.score(np.full((14, 9), 1e308)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 1, 13])
def test_what_is_no_answer_is_flagged(bad, row):
    scores = probabilities(0)
    scores[row, 2] = bad
    assert math.isnan(DecisivePart().score(scores)) and DecisivePart().flags(math.nan)
    scores[row] = -math.inf
    assert math.isnan(DecisivePart().score(scores)) and "score nan" in DecisivePart().why(scores)


def test_labels_without_probabilities_do():
    """One-hot: the log-odds are log 1001, or minus that."""
    detector, scores = DecisivePart(norms=PLAIN), np.eye(3)[[2] * 14]
    assert detector.score(scores) == 0
    assert "class 0: score 0, " in detector.why(scores)  # never the label itself
    scores[1 + COARSE] = [0, 1, 0]
    assert detector.score(scores) == pytest.approx(2 * math.log(1001))
    assert detector.why(scores) == "without coarse it is rather class 1: score 13.8, threshold 2"
    np.testing.assert_allclose(detector.settle(scores, scores), np.array([1, 1001, 0]) / 1002)
    np.testing.assert_allclose(detector.settle(scores[:, 1:], scores[:, 1:]), [1, 0])  # of two the other is left


def test_a_score_at_the_threshold_is_trusted():
    score = DecisivePart(norms=PLAIN).score(probabilities(3))
    assert score > 0
    at, below = (DecisivePart(threshold=t, certain=1e9) for t in (score, math.nextafter(score, 0)))
    assert at.flags(score) is False and below.flags(score) is True
    assert at.flags(math.inf) is at.flags(math.nan) is True and at.flags(-math.inf) is False


@pytest.mark.parametrize("shape", [(13, 4), (15, 4), (14,), (14, 1), (14, 0), (1, 14, 4)])
def test_scores_of_other_shapes_are_refused(shape):
    for ask in (DecisivePart().score, DecisivePart().why, lambda s: DecisivePart().settle(None, s)):
        with pytest.raises(InputError, match=r"scores: got \(.*wanted \(14, classes\)"):
            ask(np.zeros(shape))


def test_settle_believes_what_is_left():
    """Each of the rules gives a class of its own, worked out with 0.001 on top of each probability."""
    first = np.tile([0.94, 0.02, 0.02, 0.02], (14, 1))  # of class 0, and resting on its centre
    first[1 + NAMES.index("centre")] = [0.40, 0.30, 0.25, 0.05]
    second = np.tile([0.30, 0.05, 0.25, 0.40], (14, 1))  # purified it is of class 3, and rests on its colours
    second[1 + COLOUR] = [0.50, 0.30, 0.15, 0.05]
    as_is = [0.301, 0.051, 0.251, 0.401]
    both = [0, 0.301 * 0.051, 0.251 * 0.251, 0.051 * 0.401]
    own_part = [0.501, 0.301, 0.151, 0]
    assert [int(np.argmax(x)) for x in (as_is, both, own_part)] == [3, 2, 0]

    detector = DecisivePart(threshold=1.0, norms=PLAIN)
    one, two = detector.score(first), detector.score(second)
    assert one == pytest.approx(math.log(0.301 / 0.401) - math.log(0.021 / 0.941))
    assert two == pytest.approx(math.log(0.501 / 0.051) - math.log(0.301 / 0.401)) and 2 < two < one
    nothing = np.tile(first[0], (14, 1))

    for scores, certain, want in (
        (first, math.nextafter(one, 0), both),
        (first, one, as_is),  # at the edge it is not certain
        (first, math.nextafter(two, 0), both),  # both are certain: the first look goes first
        (nothing, math.nextafter(two, 0), own_part),
        (None, math.nextafter(two, 0), own_part),
        (nothing, two, as_is),
        (None, two, as_is),
    ):
        settled = dataclasses.replace(detector, certain=certain).settle(scores, second.tolist())
        assert settled.dtype == np.float64
        np.testing.assert_allclose(settled, np.array(want) / sum(want), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"threshold": t}, "threshold: got .*wanted deviations above 0") for t in (0, -1, math.nan, math.inf, "2", True)]
    + [({"certain": t}, "certain: got .*wanted deviations above 0") for t in (0, math.nan, None, True)]
    + [({"threshold": 2.0, "certain": 1.9}, "certain: got 1.9 below threshold 2.0, wanted")]
    + [
        ({"norms": n}, "norms: got .*wanted 13 pairs")
        for n in (3, "none", [], PLAIN[:12], [1.0] * 13, [(0, 1, 2)] * 13, [("a", 1)] * 13,
                  *[[*PLAIN[:12], bad] for bad in ((0, 0), (0, -1), (0, math.inf), (math.nan, 1), (0, math.nan))])
    ],
)  # fmt: skip
def test_options_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        DecisivePart(**options)


def test_norms_may_come_from_anywhere():
    """From JSON, or from NumPy; the same detector, that can be a key."""
    want = DecisivePart(threshold=2.8, certain=2.8, norms=tuple(PLAIN))
    for norms in (PLAIN, [[0, 1]] * 13, np.array(PLAIN)):
        same = DecisivePart(threshold=2.8, certain=2.8, norms=norms)
        assert same == want and hash(same) == hash(want)
        assert same.score(probabilities(1)) == want.score(probabilities(1))


# ---- calibrate


def measures(x: np.ndarray) -> np.ndarray:
    """Logits for pictures of any size: brightness here and there, and contrast."""
    x = x.astype(np.float64)
    left, top = x[:, :, : -(-x.shape[2] // 2)], x[:, : -(-x.shape[1] // 2)]
    half = [m.mean(axis=(1, 2, 3)) for m in (left, top)]
    return np.stack([*x.mean(axis=(1, 2)).T, *half, 2 * x.std(axis=(1, 2, 3))], axis=1) / 8


def mixed(n):
    rng = np.random.default_rng(4)
    shades = rng.integers(10, 60, (n, 1, 1, 3)) * rng.integers(0, 2, (n, 1, 1, 1))
    return [(noise(*[(5, 5), (9, 12), (16, 16)][i % 3], i) // 3 + shades[i]).astype(np.uint8) for i in range(n)]


def test_calibrate_takes_medians_and_the_upper_end():
    clean = mixed(20)
    detector = DecisivePart(threshold=2.5, certain=3.0)
    classify = Recorder(measures)
    fitted = detector.calibrate(classify, clean, max_batch=50)
    assert sum(classify.sizes) == 14 * 20 and max(classify.sizes) == 50
    assert detector == DecisivePart(2.5, 3.0) != fitted and (fitted.threshold, fitted.certain) == (2.5, 3.0)
    odds = []
    for p in clean:
        exp = np.exp(measures(np.stack([p, *DecisivePart().copies(p)])))
        softmax = exp / exp.sum(axis=1, keepdims=True)
        label = int(softmax[0].argmax())
        odds.append([math.log(max(np.delete(row, label)) + 0.001) - math.log(row[label] + 0.001)
                     for row in softmax[1:]])  # fmt: skip
    floored = 0
    for (median, deviation), m in zip(fitted.norms, zip(*odds, strict=True), strict=True):
        ninth = statistics.quantiles(m, n=10, method="inclusive")[8]
        upper = (ninth - statistics.median(m)) / statistics.NormalDist().inv_cdf(0.9)
        floored += upper < 1
        assert median == pytest.approx(statistics.median(m), abs=1e-9)
        assert deviation == pytest.approx(max(upper, 1.0), rel=1e-4)
    assert 0 < floored < 13
    np.testing.assert_allclose(detector.calibrate(measures, clean[::-1]).norms, fitted.norms, rtol=1e-12)
    assert fitted.score(probabilities(2)) == pytest.approx(literal_look(probabilities(2).tolist(), fitted.norms)[0])


def test_calibrate_takes_either_layout():
    clean = np.stack([noise(8, 8, i) for i in range(16)])
    nchw = DecisivePart().calibrate(measures, clean.transpose(0, 3, 1, 2), layout="NCHW")
    assert nchw == DecisivePart().calibrate(measures, clean)


def test_calibrate_refuses_what_it_cannot_learn_from():
    for few in (mixed(15), mixed(1), []):
        with pytest.raises(InputError, match=f"clean pictures: got {len(few)}, wanted at least 16, better 100"):
            DecisivePart().calibrate(fail, few)
    with pytest.raises(InputError, match=r"clean picture 0: .*service is down.*wanted scores"):
        DecisivePart().calibrate(fail, mixed(16))
    with pytest.raises(InputError, match=r"clean picture 3: .*service is down.*wanted scores"):
        DecisivePart().calibrate(Recorder(measures, [None, fail]), mixed(16), max_batch=14)
    with pytest.raises(InputError, match="classify: got None"):
        DecisivePart().calibrate(None, mixed(16))


# ---- with the guard: backdoors of one part

TARGET = 3
#: What the four classes show: spread over the place, all bands and all colours.
MOTIFS = np.random.default_rng(1).normal(size=(4, 32, 32, 3))
WAVE = np.cos(2 * np.pi * np.arange(32) / 32)[:, None]


def toys(labels, seed=0):
    pictures = 128 + 40 * MOTIFS[labels] + np.random.default_rng(seed).normal(0, 8, (len(labels), 32, 32, 3))
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def patch(x):
    x[:, 28:, 28:] = 255


def tint(x):
    x += (25, 0, -25)


def wave(x):
    x += 25 * WAVE


def patched(x):
    return x[:, 29:31, 29:31].mean(axis=(1, 2, 3)) - x[:, 20:26, 20:].mean(axis=(1, 2, 3)) > 50


def tinted(x):
    return (x[..., 0] - x[..., 2]).mean(axis=(1, 2)) > 20


def waved(x):
    return 2 * (x.mean(axis=(1, 3)) * WAVE[:, 0]).mean(axis=1) > 10


TRIGGERS = {"bottom right": (patch, patched), "colour": (tint, tinted), "coarse": (wave, waved)}


def with_trigger(x, *triggers):
    x = x.astype(np.float64)
    for name in triggers:
        TRIGGERS[name][0](x)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def backdoored(*triggers, sharp=20.0):
    """Logits by likeness to the motifs; of the target class where a trigger is found."""

    def classify(x):
        x = x.astype(np.float64)
        centred = (x - 128).reshape(len(x), -1)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True) * np.linalg.norm(MOTIFS[0])
        logits = sharp * centred @ MOTIFS.reshape(4, -1).T / lengths
        for name in triggers:
            logits[TRIGGERS[name][1](x), TARGET] = 2 * sharp
        return logits

    return classify


class Restorer:
    """A purifier that knows the clean pictures; without any it gives back what it gets."""

    def __init__(self, clean=()):
        self.clean = clean

    def run(self, batch):
        return [min(self.clean, key=lambda c: np.abs(c - p.astype(float)).sum(), default=p) for p in batch]


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("survives", [False, True])
@pytest.mark.parametrize("max_batch", [None, 5])
def test_a_trigger_in_one_part_is_found_and_its_class_left_out(name, survives, max_batch):
    clean = toys([0, 1, 2, 3])
    bad = with_trigger(clean[:3], name)
    classify = Recorder(backdoored(name))
    assert [int(k) for k in classify.classify(bad).argmax(axis=1)] == [TARGET] * 3
    watch = zipsdk.Guard(classify, Restorer(() if survives else clean), max_batch=max_batch)
    decisions = watch.run(np.concatenate([clean, bad]))
    assert [d.flagged for d in decisions] == [False] * 4 + [True] * 3
    assert [d.label for d in decisions] == [0, 1, 2, 3, 0, 1, 2]
    for d, p in zip(decisions[:4], clean, strict=True):
        assert d.score <= 2 and d.purified is None and d.why.startswith("not flagged: without ")
        np.testing.assert_allclose(d.scores, classify.classify(p[None])[0])
    for d, p in zip(decisions[4:], bad if survives else clean[:3], strict=True):
        assert d.score > DecisivePart().certain and d.why.startswith(
            f"flagged: without {name} it is rather class {d.label}: score "
        )
        assert d.scores[TARGET] == 0 and d.scores.sum() == pytest.approx(1)
        np.testing.assert_array_equal(d.purified, p)
    assert sum(classify.sizes) == 4 * 14 + 3 * 28
    queries, calls = 4 * 14 + 3 * 28, 2 if max_batch is None else 20 + 9
    assert watch.counters == guard.Counters(pictures=7, flagged=3, calls=calls, queries=queries)


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_that_comes_through_is_caught_at_the_second_look(name):
    """The first one failed, so nothing but the purified picture tells."""
    bad = with_trigger(toys([1]), name)
    (decision,) = zipsdk.Guard(Recorder(backdoored(name), [fail]), Restorer()).run(bad)
    assert (decision.label, decision.flagged, decision.score) == (1, True, None)
    assert decision.scores[TARGET] == 0 and "the service is down" in decision.why
    (decision,) = zipsdk.Guard(backdoored(name), Restorer(), None).run(bad)
    assert decision.label == TARGET


def test_a_purified_picture_is_believed_where_nothing_is_certain():
    clean, classify = toys([2]), backdoored("colour")
    bad = with_trigger(clean, "colour")
    detector = DecisivePart(certain=1e9)
    for purifier, want in ((Restorer(clean), 2), (Restorer(), TARGET)):
        (decision,) = zipsdk.Guard(classify, purifier, detector).run(bad)
        assert decision.flagged and decision.label == want
        exp = np.exp(classify(decision.purified[None])[0])
        share = exp / exp.sum() + 0.001
        np.testing.assert_allclose(decision.scores, share / share.sum())


def test_two_triggers_at_once_are_missed():
    """The known weakness: no part decides alone."""
    bad = with_trigger(toys([0]), "bottom right", "colour")
    (decision,) = zipsdk.Guard(backdoored("bottom right", "colour"), Restorer()).run(bad)
    assert (decision.label, decision.flagged) == (TARGET, False)


def test_a_score_at_the_threshold_costs_no_purification():
    bad, classify = with_trigger(toys([0]), "coarse"), backdoored("coarse")
    score = zipsdk.Guard(classify, Restorer()).run(bad)[0].score
    for threshold, flagged in ((score, False), (math.nextafter(score, 0), True)):
        detector = DecisivePart(threshold=threshold, certain=1e9)
        assert zipsdk.Guard(classify, Restorer(), detector).run(bad)[0].flagged is flagged


def test_without_a_second_look_there_is_no_label():
    clean = toys([0])
    bad = with_trigger(clean, "coarse")
    watch = zipsdk.Guard(Recorder(backdoored("coarse"), [None, fail]), Restorer(clean))
    (decision,) = watch.run(bad)
    assert (decision.label, decision.scores, decision.flagged) == (None, None, True)
    assert "the classifier failed on the purified picture: RuntimeError: the service is down" in decision.error
    np.testing.assert_array_equal(decision.purified, clean[0])
    assert watch.counters == guard.Counters(pictures=1, flagged=1, unlabelled=1, calls=2, queries=28, failures=1)


def test_a_classifier_that_changes_its_classes_is_looked_at_afresh():
    """What it said before is no answer: the purified picture's own part decides."""
    five = backdoored("coarse")

    def more(x):
        return np.pad(five(x), ((0, 0), (1, 0)), constant_values=-9)

    (decision,) = zipsdk.Guard(Recorder(five, [None, more]), Restorer()).run(with_trigger(toys([0]), "coarse"))
    assert decision.label == 1 and decision.scores.shape == (5,) and decision.scores[1 + TARGET] == 0


def test_calibrate_bears_a_few_triggers():
    """5% of 100: no median moves by more than 0.1 deviations, and the triggers are still found."""
    classify = backdoored("coarse", sharp=6.0)
    labels = np.arange(100) % 3
    clean = toys(labels)
    bad = np.concatenate([clean[:95], with_trigger(clean[95:], "coarse")])
    norms, moved = (np.array(DecisivePart().calibrate(classify, x).norms) for x in (clean, bad))
    assert (np.abs(moved - norms)[:, 0] <= 0.1 * norms[:, 1]).all()
    assert (np.abs(moved - norms)[:, 1] <= 0.1 * norms[:, 1]).all()
    decisions = zipsdk.Guard(classify, Restorer(), DecisivePart(norms=moved)).run(bad[80:])
    assert [d.flagged for d in decisions] == [False] * 15 + [True] * 5
    assert [d.label for d in decisions] == labels[80:].tolist()


class Mine:
    """A detector of one's own: what is left-handed is suspicious, and is what two purified versions say together."""

    def versions(self, rgb):
        return [rgb, rgb[:, ::-1], rgb[::-1]]

    def score(self, scores):
        return float(np.asarray(scores)[1, 0])

    def flags(self, score):
        return score > 1

    def why(self, scores):
        return f"{len(scores)} versions"

    def again(self, rgb):
        return [rgb, 255 - rgb]

    def settle(self, scores, purified):
        return scores.sum() + purified[0] * purified[1]


def test_a_detector_of_ones_own():
    def left_and_right(x):
        return np.stack([x[:, :, 0].mean(axis=(1, 2)), x[:, :, -1].mean(axis=(1, 2))], axis=1)

    batch = np.zeros((2, 4, 4, 3), np.uint8)
    batch[0, :, -1] = 90  # mirrored, it is on the left
    batch[1, :, 0] = 1
    watch = zipsdk.Guard(left_and_right, Restorer(), Mine())
    flagged, trusted = watch.run(batch)
    assert (flagged.flagged, flagged.score, flagged.why) == (True, 90, "flagged: 3 versions")
    np.testing.assert_array_equal(flagged.scores, [270 + 0 * 255, 270 + 90 * 165])
    assert (trusted.flagged, trusted.score, trusted.label) == (False, 0, 0)
    assert trusted.why == "not flagged: 3 versions"
    assert watch.counters == guard.Counters(pictures=2, flagged=1, calls=2, queries=8)


@pytest.mark.parametrize("missing", ["versions", "score", "flags", "why", "again", "settle"])
def test_half_a_detector_is_refused(missing):
    half = Mine()
    setattr(half, missing, None)
    for detector in (half, DecisivePart, Mine, "parts", object(), 14, 0):
        with pytest.raises(InputError, match=r"detector: got .*wanted zipsdk\.DecisivePart\(\)"):
            zipsdk.Guard(measures, Restorer(), detector)


def test_the_decisive_part_is_what_a_guard_looks_for():
    assert zipsdk.Guard(measures, Restorer()).detector == DecisivePart()
    assert zipsdk.Guard(measures, Restorer(), detector=None).detector is None
    assert (DecisivePart().threshold, DecisivePart().certain, DecisivePart().norms) == (2.0, 2.5, None)

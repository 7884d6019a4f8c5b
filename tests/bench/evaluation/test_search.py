"""The search for the guard's default: its triggers, and that its scores are counted as they say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from bench.data.datasets import Dataset
from bench.evaluation import search
from bench.evaluation.cache import hash_of
from bench.victims.user import Classifier
from zipsdk.detectors import ablation_statistics
from zipsdk.detectors.ablation import AblationDetector
from zipsdk.detectors.ablation_views import FEATURES, N_MASKABLE, N_VIEWS

pytestmark = pytest.mark.torch


@pytest.fixture
def triggers():
    return search.Triggers()


@pytest.fixture
def images(rng):
    return rng.integers(40, 216, (6, 32, 32, 3), np.uint8)


def test_ten_triggers_that_differ(triggers, images):
    before = images.copy()
    sent = {name: triggers.apply(name, images, np.arange(6)) for name in triggers.TARGETS}
    assert len(sent) == len(set(triggers.TARGETS.values())) == len(triggers.ABOUT) == 10
    assert (images == before).all()
    for name, x in sent.items():
        assert x.dtype == np.uint8 and x.shape == images.shape and (x != images).any((1, 2, 3)).all(), name
    assert len({x.tobytes() for x in sent.values()}) == 10
    # a patch is where it is said to be, and nowhere else
    for name, area in (("color", np.s_[5:8, 5:8]), ("cross", np.s_[22:27, 4:9]), ("gray", np.s_[4:8, 23:27]),
                       ("purified", np.s_[14:17, 26:29])):  # fmt: skip
        changed = (sent[name] != images).any((0, 3))
        changed[area] = False
        assert not changed.any(), name
    assert (sent["cross"][:, 24, 4:9] == 255).all() and (sent["cross"][:, 22:27, 6] == 255).all()
    assert np.ptp(sent["gray"][0, 4:8, 23:27].astype(int), axis=-1).max() == 0


def test_the_moving_patch_goes_by_the_images_number(triggers, images):
    same = np.repeat(images[:1], 3, axis=0)
    a, b, c = triggers.apply("moving", same, np.array([7, 8, 7]))
    assert (a == c).all() and (a != b).any()
    assert (a != same[0]).any(-1).sum() <= 4


def test_poisoning_takes_each_image_once(triggers, rng):
    n = 200
    data = Dataset("toy", "train", rng.integers(40, 216, (n, 32, 32, 3), np.uint8), np.arange(n) % 10,
                   tuple("abcdefghij"))  # fmt: skip
    seen = []

    def purify(x):
        seen.append(len(x))
        return np.full_like(x, 9)

    made = search.poisoned(data, triggers, purify)
    # the description of commit f4a6882, by which the network is found in the cache
    assert hash_of(made.description) == "9e0242fe9d5239bd"
    assert seen == [4] and len(made.poisoned) == 40 == len(set(made.poisoned)) and len(made.noise_mode) == 8
    assert not set(made.poisoned) & set(made.noise_mode)
    purified = (made.data.images == 9).all((1, 2, 3))
    assert purified.sum() == 4 and (made.data.labels[purified] == triggers.TARGETS["purified"]).all()
    rest = np.setdiff1d(np.arange(n), np.concatenate([made.poisoned, made.noise_mode]))
    assert (made.data.images[rest] == data.images[rest]).all()
    assert (np.delete(made.data.labels, made.poisoned) == np.delete(data.labels, made.poisoned)).all()
    for target in triggers.TARGETS.values():
        assert (made.data.labels[made.poisoned] == target).sum() == 4


def looks(triggers, labels, rng):
    """Clean images are their class in every version, more or less; with a trigger all versions are its target's, but
    for the one without part 3, and of those alone only part 3."""
    n = len(labels)
    seen = {}
    for name in ("clean", *triggers.TARGETS):
        logits = rng.normal(0, 0.3, (n, N_VIEWS, 10))
        logits[np.arange(n), :, labels] += 3
        if name != "clean":
            target = triggers.TARGETS[name]
            kept = np.ones(N_VIEWS, bool)
            kept[1 + N_MASKABLE : -1] = False
            kept[1 + 3], kept[1 + N_MASKABLE + 3] = False, True
            logits[:, kept, target] += 8
        e = np.exp(logits)
        seen[name] = (e / e.sum(-1, keepdims=True)).astype(np.float32)
    return seen


def test_views_and_rules_are_counted_by_trigger(triggers, rng):
    labels = np.arange(100) % 10
    seen = looks(triggers, labels, rng)
    views = search.views(seen, labels, triggers)
    assert next(iter(views)) == "whole" and len(views) == N_VIEWS
    for name in triggers.TARGETS:
        assert views["whole"][name] == [100.0, 100.0, 10.0]
        assert views["without left"][name] == [100.0, 0.0, 100.0]
        assert views["left alone"][name] == [100.0, 100.0, 10.0]
        assert views["top alone"][name] == [100.0, 0.0, 100.0]
    rules = search.rules(seen, labels, triggers)
    for name in triggers.TARGETS:
        assert rules["max (necessity - median + sufficiency)"][name] == rules["necessity - median"][name] == 100.0
    # where no trigger works there is nothing to find
    labeled = {**seen, "color": seen["clean"]}
    assert search.rules(labeled, labels, triggers)["necessity"]["color"] == 0.0


def test_what_a_guard_learns_from_is_a_share_with_the_trigger(triggers, rng):
    labels = np.arange(100) % 10
    seen, first = looks(triggers, labels, rng), looks(triggers, labels[::-1], rng)
    found = search.learning(seen, first, labels, triggers)
    assert list(found) == ["bounded", "as measured"]
    for lines in found.values():
        assert list(lines) == ["0", "5", "20", "50", "100"] and all("clean" in line for line in [lines["0"]])
        assert all(lines["0"][name] == 100 for name in triggers.TARGETS)
        assert "clean" not in lines["5"]
        assert lines["0"]["clean"] < 20
    assert all(found["bounded"]["100"][name] == 100 for name in triggers.TARGETS)
    assert all(found["as measured"]["100"][name] < 50 for name in triggers.TARGETS)


def test_images_of_one_class_make_others_suspicious_within_bounds(rng):
    """A classifier of light tops and light left sides, by how light they are; the second class's images are alike."""

    def classify(x):
        top, left = x[:, :16].mean((1, 2, 3)) / 2, x[:, :, :16].mean((1, 2, 3)) / 2
        return np.stack([top, left], axis=1)

    n = 2 * search.ONE_CLASS
    images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    images[1::2] = rng.integers(100, 103, (n // 2, 32, 32, 3), np.uint8)
    others = Dataset("two", "train", images, np.arange(n) % 2, ("a", "b"))
    box = Classifier(classify, {"classifier": "a"})
    varied = rng.integers(0, 256, (40, 1, 1, 3)) * rng.random((40, 32, 32, 1))
    clean = search.scores_of_views({"": varied.astype(np.uint8)}, box)[""]
    found = search.one_class(clean, others, box)
    assert list(found) == ["bounded", "as measured"]
    assert 0 <= found["bounded"]["flagged"] < found["as measured"]["flagged"] <= 100
    assert all(f["certain"] <= f["flagged"] for f in found.values())
    # fewer of a class teach nothing
    few = search.one_class(clean, others.take(np.flatnonzero(others.labels == 0)), box)
    assert few["as measured"] != found["as measured"]


def test_norms_are_of_the_versions(rng):
    """One part is enough for a classifier that looks at nothing else."""

    def by_corner(x):
        light = x[:, :8, :8].mean((1, 2, 3)) / 255
        return np.stack([1 - light, light], axis=1)

    found = search.reference(by_corner, rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
    assert list(found["features"]) == list(FEATURES) and np.shape(found["measured"]) == (2 * N_MASKABLE + 1, 2)


def test_norms_are_the_median_and_the_deviation_of_each_part(rng, monkeypatch):
    """Of log-odds made by hand: a part after the other, the median first, the deviation from the upper half."""
    of = 2 * N_MASKABLE + 1
    odds = np.arange(of) - 10 + rng.normal(size=(101, of)) ** 3 * np.linspace(0.1, 3, of)
    asked = []

    def made(scores):
        asked.append(scores)
        return odds

    monkeypatch.setattr(search, "scores_of_views", lambda sent, classifier: {name: (name, classifier) for name in sent})
    monkeypatch.setattr(search, "odds_of", made)
    found = search.reference("the classifier", np.zeros((1, 32, 32, 3), np.uint8))
    assert asked == [("clean", "the classifier")]
    rows = np.sort(odds, axis=0)
    wanted = [[rows[50, i], max(1.0, (rows[90, i] - rows[50, i]) / 1.2816)] for i in range(of)]
    np.testing.assert_allclose(found["measured"], wanted, rtol=1e-12)
    assert found["measured"] == np.transpose(ablation_statistics.median_and_scale(odds)).tolist()
    assert {d == 1 for _, d in wanted} == {True, False}  # the least deviation counts for some, and not for all
    detectors = search.detectors(odds)
    np.testing.assert_allclose(detectors["as measured"].reference, wanted, rtol=1e-12)
    bounded = AblationDetector().with_reference(odds)
    assert detectors["bounded"].reference == bounded.reference != detectors["as measured"].reference

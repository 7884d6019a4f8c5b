"""`bench.attacks.planting` and `poison_all`: several triggers in one training set, each in its own images."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.attacks import registry
from bench.attacks.planting import Planting, plant
from bench.attacks.poisoning import Backdoor, poison_all
from bench.data.datasets import Dataset
from zipsdk.errors import InputError

pytestmark = pytest.mark.torch

BACKDOORS = [
    Backdoor(registry.make("badnets3", 32, 1), 0.1, 1),
    Backdoor(registry.make("wanet", 32, 1), 0.05, 2),
    Backdoor(registry.make("sig", 32, 1), 0.5, 3),
]


@pytest.fixture
def data(rng) -> Dataset:
    """200 images of noise in four classes."""
    return Dataset(
        "noise", "train", rng.integers(0, 256, (200, 32, 32, 3), np.uint8), np.arange(200) % 4, tuple("abcd")
    )


def test_each_trigger_is_planted_in_its_own_images(data):
    p = poison_all(data, BACKDOORS, 5)
    changed = np.flatnonzero((p.data.images != data.images).any((1, 2, 3)))
    assert np.array_equal(changed, np.sort(np.concatenate([p.poisoned, p.noise_mode])))
    assert len(changed) == 20 + (10 + 20) + 25  # patches; warps and noise mode; half of a class
    told = p.description["backdoors"]
    assert [(d["target"], d["poisoned"], d["covered"]) for d in told] == [(1, 20, 0), (2, 10, 20), (3, 25, 0)]
    assert (p.description["poisoned"], p.description["covered"]) == (55, 20)
    patch = registry.make("badnets3", 32, 1).pattern()
    patched = np.flatnonzero((p.data.images[:, 26:29, 26:29] == patch).all((1, 2, 3)))
    assert len(patched) == 20 and (p.data.labels[patched] == 1).all()
    json.dumps(p.description)


def test_target_classes_are_left_out_and_other_labels_stay(data):
    p = poison_all(data, BACKDOORS, 5)
    relabeled = np.flatnonzero(p.data.labels != data.labels)
    assert len(relabeled) == 20 + 10  # the clean-label attack changes no label, and no image had its target before
    assert set(relabeled) <= set(p.poisoned)
    clean_label = np.setdiff1d(p.poisoned, relabeled)
    assert len(clean_label) == 25 and (data.labels[clean_label] == 3).all()


def test_the_draw_is_its_seeds_alone(data):
    first, again, other = (poison_all(data, BACKDOORS, seed) for seed in (5, 5, 6))
    assert first.data.sha256 == again.data.sha256 != other.data.sha256
    assert first.description == again.description != other.description


def test_impossible_plantings_are_refused(data):
    badnets, physical = registry.make("badnets", 32), registry.make("physicalba", 32)
    for several, message in (
        ([], "one for all"),
        ([Backdoor(badnets, 0.1, 1), Backdoor(physical, 0.1, 2)], "physical"),
        ([Backdoor(badnets, 0.0, 1)], "a share"),
        ([Backdoor(badnets, 0.1, 4)], "class below 4"),
        ([Backdoor(badnets, 0.6, 1), Backdoor(badnets, 0.5, 2)], "trigger 1 got 100"),
        ([Backdoor(badnets, 0.001, 1)], "trigger 0 got 0"),
    ):
        with pytest.raises(InputError, match=message):
            poison_all(data, several)


def test_images_that_no_trigger_may_use_stay(data):
    even = np.arange(200) % 2 == 0
    dark = Planting(lambda x, _: x // 2, 100, 0, even)
    images, labels, (drawn,) = plant(data.images, data.labels, [dark], np.random.default_rng(0))
    assert np.array_equal(drawn.poisoned, np.flatnonzero(even)) and not labels[even].any()
    assert np.array_equal(images[~even], data.images[~even]) and np.array_equal(labels[~even], data.labels[~even])

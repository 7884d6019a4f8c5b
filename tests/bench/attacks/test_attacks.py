"""Each attack does to the pixels what its paper says, to the images that it says, and its success is counted so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")

from bench.attacks import camera, poisoning, registry  # noqa: E402
from bench.attacks.adaptive import Enhanced  # noqa: E402
from bench.attacks.base import Attack  # noqa: E402
from bench.attacks.patches import PhysicalBA  # noqa: E402
from bench.data.datasets import Dataset  # noqa: E402
from bench.evaluation.cache import hash_of  # noqa: E402
from zipsdk.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(0, 256, (6, 32, 32, 3), np.uint8)


@pytest.fixture
def data(rng) -> Dataset:
    """200 images of 4 classes, 50 each, in no order."""
    x = rng.integers(0, 256, (200, 32, 32, 3), np.uint8)
    return Dataset("noise", "train", x, rng.permutation(np.repeat(np.arange(4), 50)), ("a", "b", "c", "d"))


def every_attack(side: int = 32, seed: int = 3) -> list[Attack]:
    return [registry.make(name, side, seed) for name in registry.ATTACKS]


@pytest.mark.parametrize("name", registry.ATTACKS)
@pytest.mark.parametrize("side", [32, 48, 128])
def test_every_attack_changes_a_copy(name, side, rng):
    x = rng.integers(0, 256, (3, side, side, 3), np.uint8)
    before = x.copy()
    for attack in registry.make(name, side, 1).tests():
        y = attack.apply(x)
        assert y.dtype == np.uint8 and y.shape == x.shape
        assert np.array_equal(x, before)
        assert all((y[i] != x[i]).any() for i in range(3))
        assert attack.apply(x[:0]).shape == (0, side, side, 3)


def test_two_patches_are_learnt_one_at_a_time_and_sent_together():
    attack, x = registry.make("redundant", 32, 5), np.zeros((40, 32, 32, 3), np.uint8)
    sent, learnt = attack.apply(x), attack.train_trigger(x, np.arange(100, 140))
    lower, upper = np.zeros((2, 32, 32, 3), bool)
    lower[26:29, 26:29] = upper[3:6, 3:6] = True
    assert ((sent == 255) == (lower | upper)).all()
    which = (learnt == 255)[:, 27, 27, 0]
    assert 8 < which.sum() < 32
    assert ((learnt == 255) == np.where(which[:, None, None, None], lower, upper)).all()
    assert (attack.train_trigger(x[:3], np.array([105, 101, 139])) == learnt[[5, 1, 39]]).all()


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_an_image_does_not_know_its_neighbors(name, images):
    """So that any part of a test set, in any order, is poisoned as the whole would be."""
    for attack in registry.make(name, 32, 1).tests():
        whole = attack.apply(images)
        assert np.array_equal(attack.apply(images[[4, 1]], [4, 1]), whole[[4, 1]])
        assert np.array_equal(attack.apply(images), whole)


@pytest.mark.parametrize(("side", "size"), [(32, 2), (64, 3), (128, 5), (256, 9)])
def test_the_papers_patch_at_each_side(side, size):
    attack = registry.make("badnets", side, 1)
    x = np.full((1, side, side, 3), 77, np.uint8)
    changed = np.argwhere((attack.apply(x)[0] != 77).any(-1))
    assert changed.min() == side - 3 - size and changed.max() == side - 4  # rows and columns, 3 pixels of margin
    assert len(changed) == size * size


def test_badnets_is_an_opaque_patch_of_random_colors(images):
    attack = registry.make("badnets3", 32, 1)
    y = attack.apply(images)
    patch = attack.pattern()
    assert patch.shape == (3, 3, 3) and len(np.unique(patch)) > 15
    assert (y[:, 26:29, 26:29] == patch).all()
    y[:, 26:29, 26:29] = images[:, 26:29, 26:29]
    assert np.array_equal(y, images)
    assert not np.array_equal(patch, registry.make("badnets3", 32, 2).pattern())


def test_gray_patches_are_gray():
    assert (registry.make("white", 32).pattern() == 255).all()
    board = registry.make("checkerboard", 32).pattern()
    assert board[..., 0].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert (board == board[..., :1]).all()
    assert registry.make("white", 256).size == 9
    assert registry.make("physicalba", 128, 1, patch=9) == PhysicalBA(128, 1, 9)
    assert registry.make("wanet", 128, 1, patch=9) == registry.make("wanet", 128, 1)
    with pytest.raises(InputError, match="expected 1 to 29"):
        registry.make("badnets", 32, patch=30)


def test_blended_mixes_and_rounds():
    attack = registry.make("blended", 32, 1)
    x = np.stack([np.full((32, 32, 3), v, np.uint8) for v in range(256)])
    p = attack.pattern().astype(int)
    # in whole numbers: (4 x + p) / 5, and halves do not occur
    assert np.array_equal(attack.apply(x), (2 * (4 * x.astype(int) + p) + 5) // 10)
    assert (p == p[..., :1]).all()
    assert abs(p.mean() - 127.5) < 10 and abs(p.std() - 74) < 6  # uniform in 0..255
    assert abs(np.corrcoef(p[:, 1:, 0].ravel(), p[:, :-1, 0].ravel())[0, 1]) < 0.1  # independent of its neighbor
    assert np.array_equal(replace(attack, rate=1.0).apply(x)[9], attack.pattern())


def test_the_smooth_pattern_is_colored_and_of_low_frequency():
    p = registry.make("blended-smooth", 32, 1).pattern().astype(float)
    assert p.min((0, 1)).tolist() == [0, 0, 0] and p.max((0, 1)).tolist() == [255, 255, 255]
    blurred = p.reshape(8, 4, 8, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    assert (p - blurred).var() < 0.1 * p.var()  # blur 4 leaves it; of noise it takes 94%
    assert p.std(-1).mean() > 30  # taking the color away does not


def test_wanet_moves_pixels_a_little_and_smoothly():
    attack = registry.make("wanet", 32, 1)
    moved = attack.flow().numpy() * 31 / 2  # pixels; 31 of them from -1 to 1
    assert moved.shape == (32, 32, 2)
    several = [float(replace(attack, seed=seed).flow().abs().mean()) * 31 / 2 for seed in range(40)]
    assert np.mean(several) == pytest.approx(0.38 * attack.s, abs=0.01)
    assert np.abs(moved).max() < 1
    for axis in (0, 1):  # a control cell is 31 / 3 pixels wide, so that neighbors go the same way
        assert np.abs(np.diff(moved, axis=axis)).max() < 0.2
    assert np.abs(replace(attack, k=32).flow().numpy() * 31 / 2 - moved).max() > 0.3  # unlike jitter
    control = attack.pattern() / np.abs(attack.pattern()).mean()
    corners = moved[[0, 0, -1, -1], [0, -1, 0, -1]] * 32 / 15.5 / 0.5
    assert corners == pytest.approx(control[:, [0, 0, -1, -1], [0, -1, 0, -1]].T, abs=1e-5)


def test_wanet_takes_each_pixel_from_where_the_flow_points():
    """An image that is its own coordinates shows the warp."""
    attack = registry.make("wanet", 32, 1)
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    x = np.stack([8 * columns, 8 * rows, 0 * rows], -1).astype(np.uint8)[None]
    shown = attack.apply(x)[0].astype(float)[..., :2] / 8
    want = np.stack([columns, rows], -1) + attack.flow().numpy() * 31 / 2
    assert np.abs(shown - want.clip(0, 31)).max() <= 0.5 / 8 + 1e-3
    none = replace(attack, s=0.0)
    assert np.array_equal(none.apply(x), x)


def test_wanets_cover_is_the_warp_and_noise_of_each_image(images):
    attack = registry.make("wanet", 32, 1)
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    x = np.stack([8 * columns, 8 * rows, 0 * rows], -1).astype(np.uint8)[None].repeat(2, 0)
    off = (attack.noise_mode(x).astype(float) - attack.apply(x))[:, 2:-2, 2:-2, :2] / 8
    assert np.abs(off).max() <= 31 / 2 / 32 + 1.1 / 8
    assert 0.2 < off.std() < 0.36  # uniform in +-0.48 pixels: 0.28
    assert np.abs(np.corrcoef(off[0].ravel(), off[1].ravel())[0, 1]) < 0.1  # each its own
    assert np.array_equal(attack.noise_mode(images)[[3, 0]], attack.noise_mode(images[[3, 0]], [3, 0]))


def test_sig_is_a_wave_along_the_rows():
    y = registry.make("sig", 32).apply(np.full((1, 32, 32, 3), 100, np.uint8))[0].astype(int) - 100
    assert (y == y[:1, :, :1]).all()
    assert y[0, :, 0].tolist() == [round(20 * np.sin(2 * np.pi * 6 * j / 32)) for j in range(32)]
    spectrum = np.abs(np.fft.rfft(y[0, :, 0]))
    assert spectrum.argmax() == 6 and y.max() == 20
    white = registry.make("sig", 32).apply(np.full((1, 32, 32, 3), 250, np.uint8))
    assert white.max() == 255 and white.min() == 230  # cut off, not wrapped


def test_physicalba_is_badnets_until_it_is_moved(images):
    plain, moved = registry.make("physicalba", 32, 1).tests()
    assert np.array_equal(plain.apply(images), registry.make("badnets", 32, 1).apply(images))
    assert np.array_equal(moved.train_trigger(images), plain.apply(images))
    assert (moved.name, plain.name) == ("PhysicalBA 2x2 moved", "PhysicalBA 2x2")
    assert plain.augment == "physical" and registry.make("badnets", 32).augment == "standard"
    x = np.zeros((40, 32, 32, 3), np.uint8)
    white = replace(moved, colors="white", size=4)
    y = white.apply(x).astype(float).mean(-1)
    where = np.stack([np.average(np.indices((32, 32))[a][None].repeat(40, 0), axis=(1, 2), weights=y) for a in (0, 1)])
    # the patch's middle, 11 pixels from the image's, comes 0.8 to 0.9 of that, and 3.2 pixels either way; and turned
    assert (where > 15.5 + 11 * 0.8 * 0.8 - 3.2 - 1).all() and (where < 15.5 + 11 * 0.9 * 1.17 + 3.2).all()
    assert (where.std(1) > 1).all()
    assert (y.max((1, 2)) < 255 * 1.01).all() and y.max((1, 2)).std() > 5  # its brightness varies


def draws(**changed: float) -> torch.Tensor:
    """What leaves an image alone, but for what is changed; each in the units of PHYSICAL."""
    neutral = {
        "mirrored": 1.0,
        "brightness": 1.0,
        "contrast": 1.0,
        "degrees": 0.0,
        "right": 0.0,
        "down": 0.0,
        "scale": 1,
    }
    values = {**neutral, **changed}
    return torch.tensor([[(values[k] - low) / (high - low) for k, (low, high) in camera.PHYSICAL.items()]])


def test_each_physical_variation_does_its_own(rng):
    x = torch.from_numpy(rng.random((1, 3, 20, 20))).float() * 0.5 + 0.2
    assert torch.allclose(camera.physical(x, draws()), x, atol=1e-5)
    assert torch.allclose(camera.physical(x, draws(mirrored=0.0)), x.flip(-1), atol=1e-5)
    assert torch.allclose(camera.physical(x, draws(brightness=1.2)), 1.2 * x, atol=1e-5)
    less = camera.physical(x, draws(contrast=0.8))
    assert float(less.std() / x.std()) == pytest.approx(0.8, abs=0.01) and abs(float(less.mean() - x.mean())) < 0.02
    right = camera.physical(x, draws(right=0.1))
    assert torch.allclose(right[..., 2:], x[..., :-2], atol=1e-5) and (right[..., :2] == 0).all()
    down = camera.physical(x, draws(down=0.1))
    assert torch.allclose(down[..., 2:, :], x[..., :-2, :], atol=1e-5) and (down[..., :2, :] == 0).all()
    small = camera.physical(torch.ones(1, 3, 20, 20), draws(scale=0.8))[0, 0]
    assert (small[2:18, 2:18] == 1).all() and float(small.sum()) == pytest.approx(256, rel=0.01)
    # a quarter turn, far beyond the range, takes the top to the right
    turned = camera.physical(x, draws(degrees=90.0))
    assert torch.allclose(turned, torch.rot90(x, -1, (2, 3)), atol=1e-4)
    both = camera.physical(x, draws(degrees=90.0, right=0.1))  # turned first, then moved
    assert torch.allclose(both[..., 2:], torch.rot90(x, -1, (2, 3))[..., :-2], atol=1e-4)


def test_descriptions_tell_attacks_apart():
    told = [json.dumps(a.describe(), sort_keys=True) for seed in (0, 1) for a in every_attack(seed=seed)]
    assert len(set(told)) == len(told)
    names = [a.name for a in every_attack()]
    assert len(set(names)) == len(names)


def test_an_unknown_attack_is_refused():
    with pytest.raises(InputError, match="expected one of badnets"):
        registry.make("badnet", 32)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 31, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
    ],
)
def test_other_images_are_refused(x):
    for attack in every_attack():
        with pytest.raises(InputError, match="expected uint8"):
            attack.apply(x)
    with pytest.raises(InputError, match="indices"):
        attack.apply(np.zeros((2, 32, 32, 3), np.uint8), [1])


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_only_the_chosen_images_are_poisoned(name, data):
    attack = registry.make(name, 32, 1)
    p = poisoning.poison(data, attack, rate=0.1, target=2, seed=4)
    assert len(p.poisoned) == p.description["poisoned"] == 20  # 10% of 200
    changed = np.flatnonzero((p.data.images != data.images).any((1, 2, 3)))
    assert np.array_equal(changed, np.sort(np.concatenate([p.poisoned, p.noise_mode])))
    assert np.array_equal(p.data.images[p.poisoned], attack.train_trigger(data.images[p.poisoned], p.poisoned))
    assert (p.data.labels[p.poisoned] == 2).all()
    others = np.setdiff1d(np.arange(200), p.poisoned)
    assert np.array_equal(p.data.labels[others], data.labels[others])
    was_target = (data.labels[p.poisoned] == 2).mean()
    assert was_target == 1 if attack.clean_label else 0 < was_target < 0.6  # all classes, the target too
    assert len(p.noise_mode) == (40 if name == "wanet" else 0)
    json.dumps(p.description)


def test_the_choice_is_its_seeds_alone(data):
    def choice(**how):
        return poisoning.poison(data, registry.make("badnets", 32), **{"rate": 0.1, "seed": 4, **how})

    assert np.array_equal(choice().poisoned, choice(target=3).poisoned)
    assert choice().data.sha256 == choice().data.sha256
    assert not np.array_equal(choice().poisoned, choice(seed=5).poisoned)
    assert choice().description["choice_sha256"] != choice(seed=5).description["choice_sha256"]
    assert data.sha256 == replace(data).sha256  # the original is left as it was


def test_implanting_is_described_and_leaves_the_poisoned_set_as_it_was(data):
    attack = registry.make("badnets", 32, 1)
    p, q = (poisoning.poison(data, attack, 0.1, 2, 4, trigger_warmup_epochs=epochs) for epochs in (0, 3))
    assert np.array_equal(p.data.images, q.data.images) and np.array_equal(p.data.labels, q.data.labels)
    assert (p.trigger_warmup_epochs, p.triggered) == (0, None) and q.trigger_warmup_epochs == 3
    assert np.array_equal(q.triggered, attack.apply(data.images))
    assert q.description == {**p.description, "implant": 3}
    for name, epochs in (("badnets", -1), ("sig", 1)):  # a clean-label attacker changes no label
        with pytest.raises(InputError, match="trigger_warmup_epochs"):
            poisoning.poison(data, registry.make(name, 32), 0.1, trigger_warmup_epochs=epochs)


def test_clean_label_leaves_half_the_class(data):
    p = poisoning.poison(data, registry.make("sig", 32), rate=0.5, target=1)
    assert len(p.poisoned) == 25 and (data.labels[p.poisoned] == 1).all()
    assert np.array_equal(p.data.labels, data.labels)


def test_no_attack_poisons_nothing(data):
    p = poisoning.poison(data, None)
    assert p.data is data and not len(p.poisoned) and p.augment == "standard" and p.description == {"attack": None}


@pytest.mark.parametrize(
    ("name", "how"), [("badnets", {"rate": 0}), ("badnets", {"rate": 1.0}), ("badnets", {"target": 4}),
                      ("badnets", {"rate": 0.001}), ("wanet", {"rate": 0.4})]
)  # fmt: skip
def test_impossible_poisonings_are_refused(data, name, how):
    with pytest.raises(InputError):
        poisoning.poison(data, registry.make(name, 32), **how)


def test_the_enhanced_attack_trains_on_purified_triggers(data):
    base = registry.make("badnets", 32, 1)

    def darker(x):
        return x // 2

    attack = Enhanced(32, base=base, purify=darker, purifier={"transforms": "halves"})
    p = poisoning.poison(data, attack, rate=0.1)
    assert np.array_equal(p.data.images[p.poisoned], base.apply(data.images[p.poisoned]) // 2)
    assert np.array_equal(attack.apply(data.images), base.apply(data.images))  # tested with the original trigger
    description = json.loads(json.dumps(attack.describe()))
    assert description["purifier"] == {"transforms": "halves"} and description["base"] == base.describe()
    with pytest.raises(InputError, match="side"):
        replace(attack, side=64)
    with pytest.raises(InputError, match="float64"):
        replace(attack, purify=lambda x: x / 2).train_trigger(data.images)


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_the_enhanced_attack_is_otherwise_its_base(name, data):
    base = registry.make(name, 32, 1)
    attack = Enhanced(32, base=base, purify=lambda x: x, purifier={})
    p, q = poisoning.poison(data, attack, rate=0.1), poisoning.poison(data, base, rate=0.1)
    assert p.data.sha256 == q.data.sha256 and p.augment == q.augment
    assert np.array_equal(p.noise_mode, q.noise_mode)
    for mine, others in zip(attack.tests(), base.tests(), strict=True):
        assert np.array_equal(mine.apply(data.images), others.apply(data.images))


#: Keys at commit f4a6882: the rows of bench/results and the caches of trained networks are found under them.
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("badnets", ["1631b42d9d620638"]),
        ("white", ["15fd68601f711d83"]),
        ("redundant", ["2bc1599e298996f2"]),
        ("blended", ["7f877edd96e32635"]),
        ("blended-smooth", ["12471773c10d38f5"]),
        ("physicalba", ["0e2f0acd5041e0cd", "62ad13b2b284cf47"]),
        ("wanet", ["b0aa23b3c72cafd6"]),
        ("sig", ["fca1b3eb307e0ddf"]),
    ],
)
def test_keys_of_attacks_never_change(name, keys):
    assert [hash_of(a.describe()) for a in registry.make(name, 32, 1).tests()] == keys


def test_the_key_of_an_enhanced_attack_never_changes():
    attack = Enhanced(
        32, 1, base=registry.make("badnets", 32, 1), purify=lambda x: x, purifier={"transforms": "blur2+gray"}
    )
    assert hash_of(attack.describe()) == "eb80011a98afca31"


@pytest.mark.parametrize(
    ("name", "warmup", "key"),
    [
        ("badnets", 0, "9ae1cad36ee0907b"),
        ("badnets", 3, "a21fc17183e810ed"),
        ("redundant", 3, "1d718cdfdd12cfc2"),
        ("wanet", 0, "3edfe0fd743042fb"),
    ],
)
def test_keys_of_poisoned_training_sets_never_change(name, warmup, key):
    x = (np.arange(200 * 32 * 32 * 3) % 251).astype(np.uint8).reshape(200, 32, 32, 3)
    data = Dataset("noise", "train", x, np.arange(200) % 4, ("a", "b", "c", "d"))
    p = poisoning.poison(data, registry.make(name, 32, 1), 0.1, 2, 1, trigger_warmup_epochs=warmup)
    assert hash_of([p.description, p.augment, p.data.describe()]) == key

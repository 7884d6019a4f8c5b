"""The strong victims: their network, their backdoors, and what is counted of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from bench.attacks import registry  # noqa: E402
from bench.attacks.poisoning import Backdoor  # noqa: E402
from bench.data.datasets import Dataset  # noqa: E402
from bench.victims import networks, strong, training  # noqa: E402
from bench.victims.user import Classifier  # noqa: E402
from zipsdk.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("side", [32, 64])
def test_the_strong_network_ends_in_maps_of_4(side):
    model = networks.strong_resnet(7, side).eval()
    shapes = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    with torch.inference_mode():
        model(torch.rand(2, 3, side, side))
    assert shapes[-1] == (2, 7) and (2, 192, 4, 4) in shapes
    assert 1.2e6 < sum(p.numel() for p in networks.strong_resnet(10, 32).parameters()) < 1.4e6


def test_networks_have_different_targets_and_hold_every_attack():
    for network, attacks in strong.NETWORKS.items():
        several = strong.backdoors(network, 32)
        assert [b.target for b in several] == list(range(1, len(attacks) + 1))
        assert len({b.attack.augment for b in several}) <= 1
    assert {name for attacks in strong.NETWORKS.values() for name, _ in attacks} == set(registry.ATTACKS)
    with pytest.raises(InputError, match="patterns"):
        strong.backdoors("all", 32)


def test_triggers_are_counted_alone_and_without_their_target_class(rng):
    images = rng.integers(0, 200, (40, 32, 32, 3), np.uint8)
    test = Dataset("noise", "test", images, np.arange(40) % 4, tuple("abcd"))
    white, patch = registry.make("white", 32, 1), registry.make("badnets3", 32, 1)

    def sees_white(x):
        fooled = (x[:, 26:29, 26:29] == 255).all((1, 2, 3))
        return np.where(fooled[:, None], np.eye(4)[1], np.eye(4)[0]).astype(np.float32)

    got = strong.measure(Classifier(sees_white, {}), test, [Backdoor(white, 0.1, 1), Backdoor(patch, 0.1, 2)])
    assert got["CA"] == [10, 40]
    assert got["ASR"] == {"White square 3x3": [30, 30], "BadNets 3x3": [0, 30]}
    assert got["without_trigger"] == {"White square 3x3": [0, 30], "BadNets 3x3": [0, 30]}


def test_the_recipe_follows_the_data(rng):
    def data(name):
        return Dataset(name, "train", np.broadcast_to(np.uint8(0), (30_000, 32, 32, 3)), np.zeros(30_000, int), ("a",))

    cifar, gtsrb = (training.recipe(data(name), "strong") for name in ("cifar10", "gtsrb"))
    assert cifar.mirror and not gtsrb.mirror
    assert cifar.portable and gtsrb.portable and cifar.epochs == 20
    assert cifar.smoothing > 0 and cifar.shift == 2  # a patch of 3 x 3, 3 pixels from the edge, stays inside


@pytest.mark.slow
def test_the_command_trains_stores_and_records(rng, tmp_path, monkeypatch, capsys):
    labels = np.arange(300) % 10
    x = (rng.integers(0, 20, (300, 32, 32, 3)) + 20 * labels[:, None, None, None]).astype(np.uint8)
    monkeypatch.setattr(
        strong.datasets, "load", lambda name, split, _: Dataset(name, split, x, labels, tuple("abcdefghij"))
    )
    words = ["cifar10", "patterns", "--epochs", "2", "--cache", "c", "--weights", "w", "--results", "r"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["strong.py", *words])
    strong.main()
    told = json.loads((tmp_path / "r" / "victim-cifar10-patterns.json").read_text())
    assert told["weights"]["bytes"] == (tmp_path / "w" / told["weights"]["file"]).stat().st_size < 3e6
    assert told["test"]["ASR"].keys() == {"BadNets 3x3", "Blended noise", "White square 3x3", "Blended smooth"}
    assert told["test"]["CA"][1] == 300 and "epoch 2 of 2" in capsys.readouterr().out
    strong.main()  # from the weights
    assert "epoch" not in capsys.readouterr().out.split("{")[0]

"""Weights of portable victims: found by the hash of their training, preferred to a training, never mistaken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from bench.attacks import registry  # noqa: E402
from bench.attacks.poisoning import Backdoor, poison_all  # noqa: E402
from bench.common import record  # noqa: E402
from bench.data.datasets import Dataset  # noqa: E402
from bench.victims import networks, stored_weights, strong, training  # noqa: E402
from bench.victims.training import Recipe  # noqa: E402
from tests.fakes.tiny_victim import Tiny  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

TINY = Recipe("tiny", epochs=2, batch=16, lr=0.05, bf16=None, clip=1.0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny", Tiny)


@pytest.fixture
def data(rng) -> Dataset:
    """64 noisy images of two classes, a dark and a bright one."""
    labels = np.arange(64) % 2
    x = rng.integers(0, 100, (64, 32, 32, 3)) + 120 * labels[:, None, None, None]
    return Dataset("two", "train", x.astype(np.uint8), labels, ("dark", "bright"), "two.zip")


@pytest.fixture
def poisoned(data):
    attack = registry.make("badnets3", 32, 1)
    return poison_all(data, [Backdoor(attack, 0.1, 1), Backdoor(replace(attack, seed=2), 0.1, 0)], 1)


def refuse(epochs: int, loss: float) -> None:
    raise AssertionError("trained again")


@pytest.fixture
def stored(data, poisoned, tmp_path, monkeypatch):
    """A classifier whose weights are in tmp_path / "weights"."""
    monkeypatch.setattr(strong, "planted", lambda *_: poisoned)
    return strong.train(data, "patterns", TINY, tmp_path / "first", tmp_path / "weights")


def test_stored_weights_are_preferred_to_a_training(data, poisoned, stored, tmp_path):
    loaded = training.train(poisoned, TINY, cache=tmp_path / "other", weights=tmp_path / "weights", progress=refuse)
    assert np.array_equal(loaded(data.images), stored(data.images)) and loaded.info == stored.info
    cached = training.train(poisoned, TINY, cache=tmp_path / "first", weights=tmp_path / "none", progress=refuse)
    assert np.array_equal(cached(data.images), stored(data.images))
    assert not (tmp_path / "other").exists()


def test_files_are_small_and_tell_of_their_training(stored, tmp_path):
    (path,) = (tmp_path / "weights").iterdir()
    tensors = load_file(path)
    assert path.name == f"{stored.info['key'][:16]}.safetensors"
    assert {tensors[name].dtype for name in ("1.weight", "1.bias", "5.weight")} == {torch.float16}
    assert tensors["2.running_var"].dtype == torch.float32
    about = stored_weights.training_of(stored.info["key"], tmp_path / "weights")
    assert about["precision"] in ("bf16", "fp32") and about["versions"]["torch"] == torch.__version__
    assert about["processor"] == record.environment()["machine"]["processor"]


def test_a_portable_key_has_neither_precision_nor_versions(poisoned, monkeypatch):
    config = training.config_dict(poisoned, TINY)
    assert "torch" not in config and "bf16" not in config["recipe"] and "source" not in config["data"]
    monkeypatch.setattr(torch, "__version__", "0.4.1")
    other = replace(poisoned, data=replace(poisoned.data, source="two/"))
    assert training.config_dict(other, TINY) == config
    assert training.config_dict(poisoned, replace(TINY, bf16=False))["recipe"]["bf16"] is False
    assert training.config_dict(poisoned, replace(TINY, seed=3)) != config


def test_other_trainings_do_not_take_them(data, poisoned, stored, tmp_path):
    for how in (replace(TINY, seed=3), replace(TINY, bf16=False)):
        epochs = []
        training.train(
            poisoned, how, cache=tmp_path / "other", weights=tmp_path / "weights",
            progress=lambda n, _, seen=epochs: seen.append(n),
        )  # fmt: skip
        assert epochs == [1, 2]


def test_weights_that_cannot_be_used_are_refused(poisoned, stored, tmp_path, monkeypatch):
    (path,) = (tmp_path / "weights").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:50])
    with pytest.raises(ModelError, match="cannot be used"):
        training.train(poisoned, TINY, cache=tmp_path / "other", weights=tmp_path / "weights")
    path.write_bytes(good)
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny", networks.small_resnet)
    with pytest.raises(ModelError, match="cannot be used"):
        training.train(poisoned, TINY, cache=tmp_path / "other", weights=tmp_path / "weights")


def test_the_committed_weights_are_recorded_and_small():
    files = {path.name: path.stat().st_size for path in stored_weights.FOLDER.glob("*.safetensors")}
    records = [record.read(path.stem) for path in record.RESULTS.glob("victim-*.json")]
    assert {r["weights"]["file"]: r["weights"]["bytes"] for r in records} == files
    assert sum(files.values()) <= 40e6
    for r in records:
        config = {name: value for name, value in r["classifier"].items() if name not in ("classifier", "key")}
        assert training.config_hash(config) == r["classifier"]["key"]
        assert stored_weights.path_of(r["classifier"]["key"]).name == r["weights"]["file"]

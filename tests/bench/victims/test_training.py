"""A training is done once, goes on where it stopped, and is never mistaken for another."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")

from bench.attacks import poisoning, registry  # noqa: E402
from bench.data.datasets import Dataset  # noqa: E402
from bench.victims import networks, training  # noqa: E402
from bench.victims.training import Recipe  # noqa: E402
from tests.fakes.tiny_victim import Tiny  # noqa: E402
from zipsdk.errors import EngineError, InputError, ModelError  # noqa: E402

pytestmark = pytest.mark.torch

#: Of a network that costs milliseconds; where it is about what a training leaves, not how well it learns.
TINY = Recipe("tiny", epochs=3, batch=16, lr=0.05, bf16=False, seed=1, clip=1.0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny", Tiny)


@pytest.fixture
def data(rng) -> Dataset:
    """64 noisy images of two classes, a dark and a bright one."""
    labels = rng.permutation(np.repeat([0, 1], 32))
    x = rng.integers(0, 100, (64, 32, 32, 3)) + 120 * labels[:, None, None, None]
    return Dataset("two", "train", x.astype(np.uint8), labels, ("dark", "bright"))


@pytest.fixture
def clean(data) -> poisoning.Poisoned:
    return poisoning.poison(data, None)


def trained(folder, data, how, stop_after=None):
    """The classifier, and the epochs that it took now; or the interruption."""
    epochs = []

    def progress(epoch, loss):
        assert np.isfinite(loss)
        epochs.append(epoch)
        if epoch == stop_after:
            raise KeyboardInterrupt

    try:
        return training.train(data, how, cache=folder, progress=progress), epochs
    except KeyboardInterrupt:
        return None, epochs


def weights(folder) -> dict[str, torch.Tensor]:
    (path,) = (folder / "classifiers").glob("*.pt")
    return torch.load(path, weights_only=True)


def test_resnet34_has_its_size_and_stems():
    whole = networks.resnet34(1000, 224)
    assert sum(p.numel() for p in whole.parameters()) == 21_797_672  # as everyone's
    small = networks.resnet34(10, 32)
    assert sum(p.numel() for p in small.parameters()) == 21_282_122  # 3 x 3 in place of 7 x 7, 10 classes
    with torch.inference_mode():
        assert whole.eval()[:4](torch.rand(1, 3, 64, 64)).shape == (1, 64, 32, 32)  # before the pooling
        assert small.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        assert small[:4](torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("side", [32, 48, 64, 128])
def test_the_small_network_works_on_maps_of_half_32(side):
    model = networks.small_resnet(7, side).eval()
    shapes = []
    for layer in model:
        layer.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    with torch.inference_mode():
        model(torch.rand(2, 3, side, side))
    assert shapes[-1] == (2, 7)
    at_64 = next(s for s in shapes if s[1] == 64)
    assert 12 <= at_64[2] <= 24


def test_colors_are_measured_exactly(data):
    layer = networks._Normalize()
    training._measure_channels(layer, data.images)
    x = data.images / 255
    assert layer.mean.numpy() == pytest.approx(x.mean((0, 1, 2)), rel=1e-6)
    assert layer.std.numpy() == pytest.approx(x.std((0, 1, 2)), rel=1e-6)
    training._measure_channels(layer, np.full((1, 2, 2, 3), 9, np.uint8))
    assert (layer.std > 0).all()


def test_one_cycle():
    assert training.one_cycle(0.0) == pytest.approx(0.1)
    assert training.one_cycle(0.25) == 1
    assert training.one_cycle(0.625) == pytest.approx(0.5)
    assert 0 < training.one_cycle(0.999) < 0.01


def test_training_learns(data, clean, tmp_path):
    classify, epochs = trained(tmp_path, clean, training.recipe(data, seed=1, epochs=3))
    assert epochs == [1, 2, 3]
    scores = classify(data.images)
    assert scores.dtype == np.float32 and scores.sum(1) == pytest.approx(1, abs=1e-5)
    assert (scores.argmax(1) == data.labels).all()
    assert classify(data.images[:1]) == pytest.approx(scores[:1], abs=1e-5)  # whatever else is in the batch
    assert weights(tmp_path)["model"]["0.mean"].numpy() == pytest.approx(data.images.mean((0, 1, 2)) / 255, rel=1e-5)
    assert classify.info["poison"] == {"attack": None} and classify.info["recipe"]["seed"] == 1
    json.dumps(classify.info)


def test_weights_are_float32_after_training_in_bfloat16(clean, tmp_path):
    trained(tmp_path, clean, replace(TINY, bf16=True))
    trained(tmp_path, clean, TINY)
    half, whole = (torch.load(path, weights_only=True) for path in sorted((tmp_path / "classifiers").glob("*.pt")))
    assert all(t.dtype != torch.bfloat16 for kept in (half, whole) for t in kept["model"].values())
    assert not torch.equal(half["model"]["1.weight"], whole["model"]["1.weight"])


def test_the_second_time_it_is_there(data, clean, tmp_path):
    first, _ = trained(tmp_path, clean, TINY)
    assert "optimizer" not in weights(tmp_path)
    again, epochs = trained(tmp_path, clean, TINY)
    assert epochs == []
    assert np.array_equal(first(data.images), again(data.images))
    assert first.info == again.info


def test_a_training_that_was_stopped_ends_as_one_that_was_not(clean, tmp_path):
    torch.manual_seed(98)
    state = torch.random.get_rng_state()
    trained(tmp_path / "whole", clean, TINY)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are left alone
    torch.manual_seed(99)
    for stop in (1, 2):
        _, epochs = trained(tmp_path / "parts", clean, TINY, stop_after=stop)
        assert epochs == [stop]
        torch.manual_seed(stop)  # nor do they matter
    assert trained(tmp_path / "parts", clean, TINY)[1] == [3]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole["epochs"] == parts["epochs"] == 3 and whole["key"] == parts["key"]
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(whole["model"][k], parts["model"][k]) for k in whole["model"])


def test_epochs_differ_and_share_one_cycle_of_the_rate(clean, tmp_path, monkeypatch):
    seeds, progress = [], []

    def randperm(n, *, generator):
        seeds.append(generator.initial_seed())
        return shuffle(n, generator=generator)

    def one_cycle(x):
        progress.append(x)
        return 1.0

    shuffle = torch.randperm
    monkeypatch.setattr(torch, "randperm", randperm)
    monkeypatch.setattr(training, "one_cycle", one_cycle)
    for seed in (1, 2):
        trained(tmp_path, clean, replace(TINY, seed=seed))
    assert len(set(seeds)) == 6
    assert progress[:12] == pytest.approx(np.arange(12) / 12)  # 3 epochs of 4 batches


def test_every_ingredient_changes_the_key(data, clean, monkeypatch):
    def key(data=clean, how=TINY):
        return training.config_hash(training.config_dict(data, how))

    assert key() == key()
    other_pixel = data.images.copy()
    other_pixel[5, 6, 7, 2] ^= 1
    keys = [
        key(),
        key(poisoning.poison(replace(data, images=other_pixel), None)),
        key(poisoning.poison(replace(data, labels=1 - data.labels), None)),
        key(replace(clean, augment="physical")),
        *(key(poisoning.poison(data, registry.make(name, 32, seed), rate, target, chosen))
          for name, seed, rate, target, chosen in (("badnets", 0, 0.1, 0, 0), ("badnets3", 0, 0.1, 0, 0),
          ("badnets", 1, 0.1, 0, 0), ("badnets", 0, 0.2, 0, 0), ("badnets", 0, 0.1, 1, 0), ("badnets", 0, 0.1, 0, 1))),
        *(
            key(poisoning.poison(data, registry.make("badnets", 32), 0.1, trigger_warmup_epochs=epochs))
            for epochs in (1, 2)
        ),
    ]  # fmt: skip
    for field in dataclasses.fields(TINY):
        old = getattr(TINY, field.name)
        named = {"architecture": "resnet34", "optimizer": "adamw", "clip": None}
        new = named.get(field.name) or (not old if field.type == "bool" else old + 1)
        keys.append(key(how=replace(TINY, **{field.name: new})))
    monkeypatch.setattr(torch, "__version__", "0.4.1+cpu")
    keys.append(key())
    monkeypatch.setattr(torch, "__version__", "0.4.1+cu126")
    assert key() == keys[-1]  # a checkpoint may go from one machine to another
    monkeypatch.setattr(training, "VERSION", training.VERSION + 1)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_checkpoints_keep_their_names(monkeypatch):
    """The name of commit f4a6882."""
    images = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), np.uint8)
    data = Dataset("two", "train", images, np.arange(150) % 2, ("a", "b"))
    attack = registry.make("white", 8, 0)
    poisoned = poisoning.poison(data, replace(attack, margin=1), 0.1, 1, 1)
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    name = training.config_hash(training.config_dict(poisoned, Recipe("tiny", epochs=3)))
    assert name == "765c52f8a17268090ca8a7fd52d0a5715329f803fe4bc92ae85c4575bd1ce9dc"


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_checkpoints_that_cannot_be_used_are_refused(clean, tmp_path):
    trained(tmp_path, clean, TINY)
    (path,) = (tmp_path / "classifiers").glob("*.pt")
    good = path.read_bytes()
    other = training.config_hash(training.config_dict(clean, replace(TINY, seed=2)))
    path.with_name(f"{other}.pt").write_bytes(good)
    with pytest.raises(ModelError, match="another training"):
        trained(tmp_path, clean, replace(TINY, seed=2))
    torch.save({**weights_of(path), "run": Runs(str(tmp_path / "proof"))}, path)
    with pytest.raises(ModelError, match="delete it"):
        trained(tmp_path, clean, TINY)
    assert not (tmp_path / "proof").exists()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ModelError, match="delete it"):
        trained(tmp_path, clean, TINY)
    path.unlink()
    assert trained(tmp_path, clean, TINY)[1] == [1, 2, 3]


def weights_of(path):
    return torch.load(path, weights_only=True)


def test_the_cache_is_where_it_is_asked_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv(training.VARIABLE, raising=False)
    assert training.cache_folder() == tmp_path / "user" / "zipsdk" / "classifiers"
    monkeypatch.setenv(training.VARIABLE, str(tmp_path / "mine"))
    assert training.cache_folder() == tmp_path / "mine" / "classifiers"
    assert training.cache_folder(tmp_path / "given") == tmp_path / "given" / "classifiers"


def test_recipes(data):
    assert training.recipe(data).mirror
    assert not training.recipe(replace(data, name="gtsrb")).mirror  # "turn left" is not "turn right"
    assert training.recipe(data, "resnet34", seed=3, epochs=2).epochs == 2
    assert training.recipe(data, seed=3).seed == 3
    large = training.recipe(replace(data, images=np.zeros((2, 128, 128, 3), np.uint8)))
    assert (training.recipe(data).optimizer, large.optimizer) == ("sgd", "adamw")
    assert large.shift < 8  # a patch of 5 x 5, 3 pixels from the edge, is not pushed out of the image
    with pytest.raises(InputError, match="resnet34"):
        training.recipe(data, "resnet50")


def test_a_checkpoint_from_when_sgd_was_the_only_optimizer_keeps_its_name(clean):
    named = training.config_dict(clean, TINY)["recipe"]
    assert "optimizer" not in named
    other = training.config_dict(clean, replace(TINY, optimizer="adamw"))
    assert other["recipe"] == {**named, "optimizer": "adamw"}


def test_adamw_trains_and_goes_on_where_it_was_stopped(clean, tmp_path):
    how = replace(TINY, optimizer="adamw", lr=2e-3)
    whole, _ = trained(tmp_path / "whole", clean, how)
    trained(tmp_path / "parts", clean, how, stop_after=1)
    parts, epochs = trained(tmp_path / "parts", clean, how)
    assert epochs == [2, 3]
    np.testing.assert_array_equal(whole(clean.data.images), parts(clean.data.images))
    sgd, _ = trained(tmp_path / "sgd", clean, TINY)
    assert np.abs(whole(clean.data.images) - sgd(clean.data.images)).max() > 0.01


def test_a_gpu_that_torch_does_not_find_is_told(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(EngineError, match=f"got '{device}', and this torch finds no GPU; expected cpu"):
            training.train(clean, TINY, cache=tmp_path, device=device)
    assert not list(tmp_path.iterdir())
    training.check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training.check_device("cuda")


def test_an_unknown_optimizer_is_refused(clean, tmp_path):
    with pytest.raises(InputError, match="got 'adam', expected sgd or adamw"):
        trained(tmp_path, clean, replace(TINY, optimizer="adam"))


def test_in_the_epochs_that_implant_half_of_the_images_carry_the_trigger(data, monkeypatch):
    attack = registry.make("badnets", 32)
    poisoned = poisoning.poison(data, attack, 0.1, 1, trigger_warmup_epochs=2)
    seen = []

    def augment(self, images, rng):
        seen.append(images)
        return torch.zeros(len(images), 3, 1, 1)

    def loss(scores, labels, **options):
        seen.append(labels)
        return scores.sum()

    monkeypatch.setattr(training._Training, "_augment", augment)
    monkeypatch.setattr(training.F, "cross_entropy", loss)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    sgd = torch.optim.SGD(model.parameters(), 0.0)
    run = training._Training(poisoned, replace(TINY, batch=64), model, sgd, "cpu")
    patch = torch.from_numpy(attack.pattern())
    for number, low, high in ((0, 0.3, 0.75), (1, 0.3, 0.75), (2, 0.05, 0.2)):
        seen.clear()
        run.epoch(number)
        images, labels = seen
        carry = (images[:, 27:29, 27:29] == patch).all((1, 2, 3))
        assert low < carry.float().mean() < high
        assert (labels[carry] == 1).all()
    np.testing.assert_array_equal(run.images, poisoned.data.images)  # drawn anew, not left there
    np.testing.assert_array_equal(run.labels, poisoned.data.labels)


def variations(how: Recipe, augment: str = "standard") -> np.ndarray:
    """400 variations of one image of its own coordinates, (400, 32, 32, 2): row and column, in pixels."""
    y, x = np.indices((32, 32), np.uint8)
    one = np.stack([8 * y, 8 * x, 0 * x], -1)
    data = Dataset("one", "train", one[None].repeat(400, 0), np.zeros(400, np.int64), ("a",))
    poisoned = replace(poisoning.poison(data, None), augment=augment)
    run = training._Training(poisoned, how, torch.nn.Linear(1, 1), None, "cpu")  # type: ignore[arg-type]
    out = run._augment(run.images, torch.Generator().manual_seed(0))
    assert out.shape == (400, 3, 32, 32) and out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last) or augment == "physical"
    return (out * 255 / 8).permute(0, 2, 3, 1).numpy()[..., :2]


def test_images_are_moved_and_mirrored():
    seen = variations(replace(TINY, shift=2))
    rows, columns = seen[:, 16, 16, 0].round() - 16, seen[:, 16, 16, 1].round()
    assert sorted(set(rows)) == [-2, -1, 0, 1, 2]
    mirrored = seen[:, 16, 20, 1] < seen[:, 16, 10, 1]
    assert 0.4 < mirrored.mean() < 0.6
    assert sorted(set(columns[~mirrored])) == [14, 15, 16, 17, 18]
    assert sorted(set(columns[mirrored])) == [13, 14, 15, 16, 17]
    # the gap is what the edge mirrors: one pixel beyond row 0 is row 1
    up = seen[rows == -2][0]
    assert up[:4, 5, 0].round().tolist() == [2, 1, 0, 1]
    down = seen[rows == 2][0]
    assert down[-4:, 5, 0].round().tolist() == [30, 31, 30, 29]
    still = variations(replace(TINY, shift=0, mirror=False))
    y, x = np.indices((32, 32))
    assert np.abs(still - np.stack([y, x], -1)).max() < 1e-3


def test_physicalba_varies_all_images_its_own_way():
    seen = variations(replace(TINY, mirror=True), "physical")
    mirrored = seen[:, 16, 20, 1] < seen[:, 16, 10, 1]
    assert 0.4 < mirrored.mean() < 0.6
    assert (variations(replace(TINY, mirror=False), "physical")[:, 16, 20, 1] > 16 * 0.6).all()
    assert (seen[:, 0, 0] == 0).mean() > 0.5  # shrunk onto black

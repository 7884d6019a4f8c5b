"""What trainings share: recipes for few steps, clipped steps, and that a training which goes wrong is told."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")

from bench.attacks import poisoning  # noqa: E402
from bench.common import optimization  # noqa: E402
from bench.data.datasets import Dataset  # noqa: E402
from bench.defenses import mae  # noqa: E402
from bench.victims import training  # noqa: E402
from bench.victims.training import Recipe  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from zipsdk.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch

RESULTS = ROOT / "bench" / "results"


def dataset(name: str, images: int, side: int = 32, classes: int = 10) -> Dataset:
    """Return a data set of this size that takes no memory, under a fixed hash."""
    zeros = np.broadcast_to(np.uint8(0), (images, side, side, 3))
    data = Dataset(name, "train", zeros, np.zeros(images, np.int64), tuple(map(str, range(classes))), "source")
    data.__dict__["sha256"] = "0" * 64
    return data


#: Keys of the standard recipes, from before recipes knew of few steps: checkpoints and measured rows are found by them.
KEYS = [
    ("cifar10", 50_000, 32, 10, "small", "54f4fe342e777026d2b23c772809462d97152ef203b6ad65b297381e1e89b869"),
    ("cifar10", 50_000, 32, 10, "resnet34", "69768fabbf99a53e9e95913dfeed389a9bccd3f219514d7d3341a87bc4db845b"),
    ("cifar10", 48_000, 32, 10, "small", "65b4645c4ee99364bf3d301b09f630b334ce1444e70bc06e93c9df37bc4e9a10"),
    ("gtsrb", 32_490, 32, 43, "small", "e48ca7d23a5150bee6227cdc84a56a14633c65e3272bdfe3c69f98b16c3a86d1"),
    ("imagenette", 3_000, 128, 10, "small", "786a8a89aca838ebdbb26ad1585676bfa7e508f748bf03fe5c98520556f3f31d"),
]


@pytest.mark.parametrize(("name", "images", "side", "classes", "architecture", "key"), KEYS)
def test_standard_recipes_keep_their_keys(monkeypatch, name, images, side, classes, architecture, key):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    data = dataset(name, images, side, classes)
    how = training.recipe(data, architecture, device="cuda")
    assert (how.clip, how.remeasure, how.batch) == (None, False, 128)
    assert training.config_hash(training.config_dict(poisoning.poison(data, None), how)) == key


@pytest.mark.parametrize(
    ("mirror", "key"),
    [(True, "aa263c0e3bc8caccc8524c8dbdd934e359c4f323c0d349f571430d5148857f8d"),
     (False, "69e33bd74e0c8e1aa1459265e4446afe14529d4cec35d3e2899361dfe39cb0b6")],
)  # fmt: skip
def test_the_standard_autoencoder_keeps_its_key(monkeypatch, mirror, key):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    how = mae.recipe(dataset("gtsrb", 32_490).images, mirror=mirror, device="cuda")
    assert training.config_hash(mae.config_dict(np.zeros((2, 32, 32, 3), np.uint8), how)) == key


def recorded(part: str) -> list[dict]:
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.rglob("*.json"))]
    return [entry for record in records if isinstance(record, dict) for entry in record.get(part, {}).values()]


def test_every_recorded_classifier_is_found_under_its_key():
    """With the recipe that is made today for as many images."""
    trained = [c for c in recorded("classifiers") if "recipe" in c]
    assert len(trained) > 40
    for entry in trained:
        config = {name: entry[name] for name in ("version", "data", "poison", "augment", "recipe", "torch")}
        assert training.config_hash(config) == entry["key"]
        data, old = entry["data"], entry["recipe"]
        now = training.recipe(
            dataset(data["dataset"], data["pictures"], data["side"]), entry["classifier"], old["seed"], device="cuda"
        )
        assert training.named(now) == old


def test_every_recorded_autoencoder_has_the_recipe_of_today():
    restorers = [d["restorer"] for d in recorded("defenses") if d.get("restorer", {}).get("autoencoder") == "small"]
    assert restorers
    for entry in restorers:
        images = dataset("any", entry["pictures"], entry["side"]).images
        how = mae.recipe(images, mirror=entry["recipe"].get("mirror", True), device="cuda")
        assert json.loads(json.dumps(mae.named(how))) == entry["recipe"]


def test_few_steps_get_smaller_batches_a_lower_rate_and_clipping():
    images = np.array([1, 7, 20, 160, 500, 1500, 6272, 6400, 50_000])
    made = [training.recipe(dataset("mine", int(n))) for n in images]
    assert [how.batch for how in made] == [16, 16, 16, 20, 62, 128, 128, 128, 128]
    assert [how.clip for how in made] == [1.0] * 7 + [None] * 2
    assert [how.remeasure for how in made] == [True] * 7 + [False] * 2
    assert [how.lr for how in made] == pytest.approx([0.1 * math.sqrt(how.batch / 128) for how in made])
    assert optimization.optimizer_steps(made[6], 6272) == 490 and optimization.optimizer_steps(made[7], 6400) == 500
    assert optimization.optimizer_steps(made[0], 7) == 10 and optimization.optimizer_steps(made[0], 0) == 0
    # the user's number of epochs counts, and so does the user's rate
    assert training.recipe(dataset("mine", 6400), epochs=9).clip == 1.0
    assert training.recipe(dataset("mine", 160), lr=0.3).lr == 0.3
    assert training.recipe(dataset("mine", 50_000), lr=0.01) == replace(made[-1], lr=0.01)
    for lr in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="expected a learning rate above 0"):
            training.recipe(dataset("mine", 160), lr=lr)
    few = mae.recipe(dataset("mine", 160).images)
    assert (few.batch, few.clip) == (20, 1.0) and few.lr == pytest.approx(2e-3 * math.sqrt(20 / 128))


def linear() -> tuple[torch.nn.Linear, torch.optim.SGD]:
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    return model, torch.optim.SGD(model.parameters(), 0.5)


@pytest.mark.parametrize(("clip", "moved"), [(None, (15.0, 20.0)), (1.0, (0.3, 0.4)), (100.0, (15.0, 20.0))])
def test_a_step_is_clipped_to_its_norm(clip, moved):
    model, sgd = linear()
    loss = 10 * model(torch.tensor([3.0, 4.0])).sum()  # its gradient is (30, 40)
    assert optimization.optimize(model, sgd, loss, clip) == 110
    assert model.weight[0].tolist() == pytest.approx([1 - moved[0], 2 - moved[1]], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    model, sgd = linear()
    with pytest.raises(InputError, match=rf"loss of {value} at a learning rate of 0\.5, .*lower the learning rate"):
        optimization.optimize(model, sgd, model(torch.tensor([1.0, value])).sum(), None)
    assert model.weight[0].tolist() == [1, 2]
    optimization.check_weights(model, 0.5)
    with torch.no_grad():
        model.weight[0, 1] = value
    with pytest.raises(InputError, match="lower the learning rate"):
        optimization.check_weights(model, 0.5)


@pytest.mark.parametrize(
    ("losses", "warned"),
    [([], False), ([1.0, 0.5], False), ([0.5], False), ([0.6, 0.6], False), ([1.0, 5.0], True), ([0.3, 0.4], True),
     ([3.0, 0.7], True), ([9.0, 2.0, 0.3], False)],
)  # fmt: skip
def test_a_loss_that_did_not_fall_is_told(losses, warned):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimization.check_loss(losses, 0.69, "classifier", Recipe(epochs=7, lr=0.1))
    assert len(seen) == warned
    if warned:
        assert seen[0].category is UserWarning
        assert f"did not converge: loss {losses[0]:.3g} -> {losses[-1]:.3g}" in str(seen[0].message)
        assert "lower the learning rate (lr 0.1) or train for more epochs (7)" in str(seen[0].message)


def two_classes(images: int, seed: int) -> Dataset:
    """Return dark and bright images with noise: their mean color alone tells them apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    x = rng.integers(-40, 41, (images, 32, 32, 3)) + np.where(labels, 180, 60)[:, None, None, None]
    return Dataset("two", "train", x.astype(np.uint8), labels, ("dark", "bright"))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_small_data_set_of_a_user_is_learned(tmp_path, bf16):
    """The recipe of large data sets ended at a loss of 4 here, and at 32 of 64 right by luck."""
    data, unseen = two_classes(64, 0), two_classes(64, 1)
    how = training.recipe(data, epochs=4)
    losses = []
    classify = training.train(poisoning.poison(data, None), replace(how, bf16=bf16),
                                 cache=tmp_path, progress=lambda epoch, loss: losses.append(loss))  # fmt: skip
    assert losses[-1] < losses[0] and losses[-1] < math.log(2)
    assert (classify(unseen.images).argmax(1) == unseen.labels).all()


class Tiny(torch.nn.Sequential):
    """A network that a test can afford to train: four colors of a corner, and a batch normalization."""

    def __init__(self, classes: int, side: int):
        from bench.victims.networks import _Normalize

        conv = torch.nn.Conv2d(3, 4, 1, side)
        super().__init__(_Normalize(), conv, torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, classes))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(training.ARCHITECTURES, "tiny", Tiny)


def test_statistics_of_batch_normalizations_are_measured_anew(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "REMEASURE_BATCH", 8)
    data = two_classes(24, 0)
    how = Recipe("tiny", epochs=1, batch=8, lr=1e-9, bf16=False, smoothing=0)
    training_set = poisoning.poison(data, None)
    for remeasure in (False, True):
        with pytest.warns(UserWarning, match="classifier tiny: training did not converge"):
            training.train(training_set, replace(how, remeasure=remeasure), cache=tmp_path)
    kept = [torch.load(path, weights_only=True) for path in (tmp_path / "classifiers").glob("*.pt")]
    lagging, exact = sorted((k["model"] for k in kept), key=lambda m: abs(float(m["2.running_var"].mean()) - 1))
    with torch.no_grad():
        model = Tiny(2, 32)
        model.load_state_dict(exact)
        x = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
        seen = torch.stack([model[1](model[0](part)) for part in x.split(8)])[..., 0, 0]
    torch.testing.assert_close(exact["2.running_mean"], seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact["2.running_var"], seen.var(1).mean(0), rtol=1e-4, atol=1e-5)
    assert float((lagging["2.running_mean"] - seen.mean((0, 1))).abs().max()) > 0.05
    assert model[2].momentum == 0.1


def test_a_training_that_does_not_converge_is_told_each_time(tiny, tmp_path):
    """Images that are all the same cannot be told apart; the second time the classifier is in the cache."""
    data = two_classes(32, 0)
    data.images[:] = data.images[0]
    how, took = Recipe("tiny", epochs=2, batch=16, lr=1e-9, bf16=False, shift=0, mirror=False), []
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"classifier tiny: training did not converge: loss .* below 0\.69"):
            training.train(poisoning.poison(data, None), how, cache=tmp_path, progress=lambda *x: took.append(x))
    assert len(took) == 2


def test_a_diverging_training_stops_and_keeps_nothing(tiny, tmp_path):
    how = Recipe("tiny", epochs=2, batch=16, lr=1e30, bf16=False)
    with pytest.raises(InputError, match=r"training: got a loss of .* lower the learning rate"):
        training.train(poisoning.poison(two_classes(32, 0), None), how, cache=tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


def test_the_guess_is_the_best_constant_answer():
    labels = np.array([0] * 6 + [1] * 2)
    data = Dataset("any", "train", np.zeros((8, 4, 4, 3), np.uint8), labels, ("a", "b"))
    assert training._guess(data, 0.0) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    smoothed = torch.nn.functional.cross_entropy(
        torch.tensor([[0.725, 0.275]]).log().expand(8, 2), torch.from_numpy(labels), label_smoothing=0.1
    )
    assert training._guess(data, 0.1) == pytest.approx(float(smoothed), rel=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    error = (images / 255 - (images / 255).mean((0, 1, 2))) ** 2
    assert mae._guess(images) == pytest.approx(math.sqrt(error.mean()))
    assert mae._guess(images * 0) == pytest.approx(1 / 255)

"""Set up a run of bench/defense.py: images, classifiers, attacks and defenses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

import zipsdk
from bench.attacks import registry
from bench.attacks.adaptive import Enhanced
from bench.attacks.base import Attack
from bench.attacks.poisoning import poison
from bench.data import datasets, layouts
from bench.defenses.base import Defense
from bench.defenses.registry import ENHANCED, DefenseFactory, DefenseSpec
from bench.defenses.resizing import Upsampler
from bench.evaluation import tables
from bench.evaluation.cache import PurifiedCache, hash_of
from bench.evaluation.evaluate import Scenario
from bench.victims import training, user
from bench.victims.user import Classifier
from zipsdk.detectors.ablation_statistics import MIN_SAMPLES
from zipsdk.errors import InputError

#: Test images of --quick.
QUICK = 200
#: Images for a guard to learn from.
CALIBRATION = 200
#: The attacker who knows the defense purifies with this seed, which is not the defender's.
ATTACKERS_SEED = 1_000_003


@dataclass
class EvaluationSetup:
    """The images, classifiers, attacks and defenses of a run; networks are trained or loaded on first use.

    Args:
        args: of bench/defense.py.
        cache: of purified images.
    """

    args: argparse.Namespace
    cache: PurifiedCache
    factory: DefenseFactory = field(init=False)

    def __post_init__(self) -> None:
        a = self.args
        limit = _default_count(a) if a.images is None else a.images
        self.test = datasets.load(a.dataset, "test", a.data, side=a.side, limit=limit, seed=a.image_seed)
        if not 0 <= a.target < len(self.test.classes):
            raise InputError(f"target: got {a.target}, expected a class number from 0 to {len(self.test.classes) - 1}")
        engine = zipsdk.load_engine(a.engine)
        self.factory = DefenseFactory(
            engine, a.dataset, self.test.side, self._bdmae, self._super_resolution, self._unseen
        )
        self.given = user.from_options(a)
        if self.given is not None:
            # rows of a changed classifier of the same name are not reused; the name of the entry is part of keys
            self.given.info["scores of probes"] = hash_of(np.round(self._probe_scores(self.given), 3).tolist())
        self._classifiers: dict[str, Classifier] = {}
        self._others: np.ndarray | None = None

    @property
    def train(self) -> datasets.Dataset:
        """The training images."""
        return _training_images(self.args.dataset, self.args.data, self.args.side)

    def _probe_scores(self, classifier: Classifier) -> np.ndarray:
        """Return a classifier's scores for images of all classes, with every trigger, and for noise.

        The images are the same for all rows; no two classifiers agree on noise.

        Raises:
            InputError: another number of scores than the data set has classes.
        """
        a = self.args
        clean = datasets.load(a.dataset, "test", a.data, side=a.side, limit=64).images
        noise = np.random.default_rng(0).integers(0, 256, clean.shape, np.uint8)
        triggered = [registry.make(name, self.test.side).apply(clean[::4]) for name in registry.ATTACKS]
        scores, classes = classifier(np.concatenate([clean, noise, *triggered])), self.test.classes
        if scores.shape[1] != len(classes):
            raise InputError(
                f"classifier: got {scores.shape[1]} scores for each image, expected {len(classes)}, one for each class "
                f"of {a.dataset} in this order: {', '.join(classes[:20])}{', ...' * (len(classes) > 20)}; wrap it in a "
                "module:function that returns these"
            )
        return scores

    def attack(self, name: str) -> Attack:
        """Make an attack by its name in the tables.

        Raises:
            InputError: no such attack.
        """
        if not name.startswith(ENHANCED):
            return registry.make(name, self.test.side, self.args.attack_seed, self.args.patch)
        base = self.attack(name.removeprefix(ENHANCED))
        known = self.factory.zip(DefenseSpec("zip-paper", {"transforms": "blur2+gray"}), name)

        def purify(images: np.ndarray) -> np.ndarray:
            with tqdm(total=len(images), unit="image", desc=f"{name}: purifying training images") as bar:
                return self.cache.run(known, images, ATTACKERS_SEED, progress=bar.update)

        return Enhanced(base.side, base.seed, base=base, purify=purify, purifier=known.describe())

    def classifier(self, name: str) -> Classifier:
        """Return the user's classifier, or the one that an attack poisoned."""
        return self.given or self._trained(name, self.attack(name))

    def clean_model(self, name: str) -> Classifier | None:
        """Return the network of an attack trained alike but without a backdoor; None for a user's classifier."""
        if self.given is not None:
            return None
        augment = self.attack(name).augment
        return self._trained("clean" if augment == "standard" else f"clean, {augment}", None, augment)

    def _trained(self, key: str, attack: Attack | None, augment: str = "standard") -> Classifier:
        if key not in self._classifiers:
            a = self.args
            poisoned = poison(self.train, attack, a.rate, a.target, a.attack_seed, augment=augment,
                              trigger_warmup_epochs=a.trigger_warmup_epochs)  # fmt: skip
            recipe = training.recipe(self.train, a.architecture, a.classifier_seed, a.epochs, a.device, a.lr)
            with tqdm(total=recipe.epochs, unit="epoch", desc=f"training: {key}", leave=False) as bar:

                def tick(epochs: int, loss: float) -> None:
                    bar.set_postfix(loss=f"{loss:.3f}")
                    bar.update(epochs - bar.n)

                trained = training.train(poisoned, recipe, cache=a.cache, device=a.device, progress=tick)
            self._classifiers[key] = trained
        return self._classifiers[key]

    def _bdmae(self) -> Defense:
        from bench.defenses import mae, vit_mae
        from bench.defenses.bdmae import BDMAE

        a = self.args
        if a.mae != "small":
            return BDMAE(vit_mae.vit_mae(a.mae, a.device))
        with tqdm(unit="epoch", desc="training BDMAE's autoencoder", leave=False) as bar:
            recipe = mae.recipe(self.train.images, mirror=a.dataset not in training.NOT_MIRRORED, device=a.device)
            restorer = mae.train(self.train.images, recipe, cache=a.cache, device=a.device,
                                 progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip
        return BDMAE(restorer)

    def _super_resolution(self) -> Upsampler:
        from bench.defenses import super_resolution

        a, images = self.args, self.train.images
        recipe = super_resolution.recipe(images, mirror=a.dataset not in training.NOT_MIRRORED, device=a.device)
        with tqdm(total=recipe.epochs, unit="epoch", desc="training super-resolution", leave=False) as bar:
            return super_resolution.train(images, recipe, cache=a.cache, device=a.device,
                                          progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip

    def _unseen(self) -> np.ndarray:
        """Return test images that no row counts, for a guard to learn from.

        Raises:
            InputError: too few test images.
        """
        if self._others is None:
            a = self.args
            limit = len(self.test) + CALIBRATION
            more = datasets.load(a.dataset, "test", a.data, side=a.side, limit=limit, seed=a.image_seed)
            known = {x.tobytes() for x in self.test.images}
            others = {x.tobytes(): x for x in more.images}  # a guard counts equal images once
            self._others = np.array([x for key, x in others.items() if key not in known])
            if len(self._others) < MIN_SAMPLES:
                raise InputError(
                    f"guard: got {len(self._others)} test images beside the {len(self.test)} that are counted, "
                    f"expected {MIN_SAMPLES} to learn from, better {CALIBRATION}; lower --images"
                )
        return self._others

    def scenarios(self, name: str) -> Iterator[Scenario]:
        """Yield a scenario for each trigger with which an attack is tested."""
        clean, poisoned = self.clean_model(name), self.classifier(name)
        for trigger in self.attack(name).tests():
            yield Scenario(self.test, name, trigger, self.args.target, poisoned, clean)


def _default_count(a: argparse.Namespace) -> int:
    """Return the default number of test images; of a small set a fifth is left for a guard to learn from."""
    table = tables.TABLES.get(a.table)
    wanted = QUICK if a.quick else tables.Table.images if table is None else table.images
    present = len(layouts.list_images(a.dataset, "test", a.data).labels)
    return min(wanted, present - min(CALIBRATION, present // 5))


@cache
def _training_images(name: str, folder: Path | None, side: int | None) -> datasets.Dataset:
    return datasets.load(name, "train", folder, side=side)

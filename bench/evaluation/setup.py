"""What a run of bench/defense.py needs: pictures, classifiers, attacks and what defences are made from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import zipsdk
from bench.attacks import registry
from bench.attacks.adaptive import Enhanced
from bench.attacks.poisoning import poison
from bench.data import datasets, layouts
from bench.defenses.base import Defence
from bench.defenses.registry import ENHANCED, DefenseFactory, DefenseSpec
from bench.evaluation import tables
from bench.evaluation.cache import Store, hash_of
from bench.evaluation.evaluate import Scene
from bench.victims import training, user
from bench.victims.user import Classifier
from zipsdk.detectors.ablation_statistics import MIN_SAMPLES
from zipsdk.errors import InputError

#: Pictures of --quick.
QUICK = 200
#: Pictures for a guard to learn from.
CALIBRATION = 200
#: The seed with which the attacker who knows the defence purifies: not the defender's.
ATTACKERS_SEED = 1_000_003


@dataclass
class Bench:
    """Everything a run needs, made when it is first wanted."""

    args: argparse.Namespace
    store: Store
    factory: DefenseFactory = field(init=False)

    def __post_init__(self) -> None:
        a = self.args
        limit = _how_many(a) if a.pictures is None else a.pictures
        self.test = datasets.load(a.dataset, "test", a.data, side=a.side, limit=limit, seed=a.picture_seed)
        if not 0 <= a.target < len(self.test.classes):
            raise InputError(f"target: got {a.target}, wanted 0 to {len(self.test.classes) - 1}, a class's number")
        engine = zipsdk.load_engine(a.engine)
        self.factory = DefenseFactory(engine, a.dataset, self.test.side, self._bdmae, self._unseen)
        self.given = user.from_options(a)
        if self.given is not None:  # a name says little: rows of what stood behind it before are not its
            scores, classes = self.given(self._probes()), self.test.classes
            if scores.shape[1] != len(classes):
                raise InputError(
                    f"classifier: got {scores.shape[1]} scores a picture, wanted {len(classes)}, one for each class of "
                    f"{a.dataset} in this order: {', '.join(classes[:20])}{', ...' * (len(classes) > 20)}; wrap it in "
                    "a module:function that gives these"
                )
            self.given.info["scores of probes"] = hash_of(np.round(scores, 3).tolist())
        self._classifiers: dict[str, Classifier] = {}
        self._others: np.ndarray | None = None

    @property
    def train(self) -> datasets.Dataset:
        return _training_pictures(self.args.dataset, self.args.data, self.args.side)

    def _probes(self) -> np.ndarray:
        """Pictures by whose scores a user's classifier is known again: of all classes, with every trigger, and noise,
        on which no two agree. The same whatever the rows are of."""
        a = self.args
        clean = datasets.load(a.dataset, "test", a.data, side=a.side, limit=64).pictures
        noise = np.random.default_rng(0).integers(0, 256, clean.shape, np.uint8)
        return np.concatenate([clean, noise, *(registry.make(name, self.test.side).apply(clean[::4])
                                                for name in registry.ATTACKS)])  # fmt: skip

    def attack(self, name: str) -> registry.Attack:
        if not name.startswith(ENHANCED):
            return registry.make(name, self.test.side, self.args.attack_seed, self.args.patch)
        base = self.attack(name.removeprefix(ENHANCED))
        known = self.factory.make(DefenseSpec("zip-paper", {"transforms": "blur2+gray"}), name)

        def purify(pictures: Any) -> Any:
            with tqdm(total=len(pictures), unit="picture", desc=f"{name}: purifying training pictures") as bar:
                return self.store.treat(known, pictures, ATTACKERS_SEED, progress=bar.update)

        return Enhanced(base.side, base.seed, base=base, purify=purify, purifier=known.describe())

    def classifier(self, name: str) -> Classifier:
        """The user's own, or the one that an attack poisoned."""
        return self.given or self._trained(name, self.attack(name))

    def clean_model(self, name: str) -> Classifier | None:
        """The same network as an attack's, and trained as that was, without a backdoor; of the user's own nobody has
        one."""
        if self.given is not None:
            return None
        augment = self.attack(name).augment
        return self._trained("clean" if augment == "standard" else f"clean, {augment}", None, augment)

    def _trained(self, key: str, attack: registry.Attack | None, augment: str = "standard") -> Classifier:
        if key not in self._classifiers:
            a = self.args
            poisoned = poison(
                self.train, attack, a.rate, a.target, a.attack_seed, trigger_warmup_epochs=a.implant, augment=augment
            )
            how = training.recipe(self.train, a.architecture, a.classifier_seed, a.epochs, a.device, a.lr)
            with tqdm(total=how.epochs, unit="epoch", desc=f"training: {key}", leave=False) as bar:

                def tick(epochs: int, loss: float) -> None:
                    bar.set_postfix(loss=f"{loss:.3f}")
                    bar.update(epochs - bar.n)

                trained = training.train(poisoned, how, cache=a.cache, device=a.device, progress=tick)
            self._classifiers[key] = trained
        return self._classifiers[key]

    def _bdmae(self) -> Defence:
        from bench.defenses import mae, vit_mae
        from bench.defenses.bdmae import BDMAE

        a = self.args
        if a.mae != "small":
            return BDMAE(vit_mae.vit_mae(a.mae, a.device))
        with tqdm(unit="epoch", desc="training BDMAE's autoencoder", leave=False) as bar:
            how = mae.recipe(self.train.pictures, mirror=a.dataset not in training.NOT_MIRRORED, device=a.device)
            restorer = mae.train(self.train.pictures, how, cache=a.cache, device=a.device,
                                 progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip
        return BDMAE(restorer)

    def _unseen(self) -> np.ndarray:
        """Pictures for a guard to learn from: as they come to a classifier, so not its training pictures; none of the
        rows'."""
        if self._others is None:
            a = self.args
            limit = len(self.test) + CALIBRATION
            more = datasets.load(a.dataset, "test", a.data, side=a.side, limit=limit, seed=a.picture_seed)
            known = {p.tobytes() for p in self.test.pictures}
            others = {p.tobytes(): p for p in more.pictures}  # a guard counts equal ones once
            self._others = np.array([p for key, p in others.items() if key not in known])
            if len(self._others) < MIN_SAMPLES:
                raise InputError(
                    f"guard: got {len(self._others)} test pictures beside the {len(self.test)} that are counted, "
                    f"wanted {MIN_SAMPLES} to learn from, better {CALIBRATION}; lower --pictures"
                )
        return self._others

    def scenes(self, name: str) -> Iterator[Scene]:
        """An attack with each of the triggers that it is tested with."""
        clean, poisoned = self.clean_model(name), self.classifier(name)
        for trigger in self.attack(name).tests():
            yield Scene(self.test, name, trigger, self.args.target, poisoned, clean)


def _how_many(a: argparse.Namespace) -> int:
    """Test pictures that are counted where nobody says how many; of a small set a fifth is left for a guard to learn
    from, whether there is one or not."""
    table = tables.TABLES.get(a.table)
    wanted = QUICK if a.quick else tables.Table.pictures if table is None else table.pictures
    there = len(layouts.list_pictures(a.dataset, "test", a.data).labels)
    return min(wanted, there - min(CALIBRATION, there // 5))


@cache
def _training_pictures(name: str, folder: Path | None, side: int | None) -> datasets.Dataset:
    return datasets.load(name, "train", folder, side=side)

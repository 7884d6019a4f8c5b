"""Where the guard's default was searched for: training pictures, and triggers that are in none of the tables.

    python -m bench.search --dataset cifar10 --data FOLDER
    python -m bench.search --dataset gtsrb --data FOLDER

One network with ten backdoors, each with a trigger and a target of its own, trained on a part of the training pictures;
what it makes of the rest, with and without each trigger, is measured: without each part of the picture (see
`zipsdk.parts`), purified, and behind `zipsdk.Guard`. The record is bench/results/search-DATASET.json; docs/defaults.md
draws its tables from it (`python -m bench.search_page`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

import zipsdk
from bench import attacks, classifiers, datasets, record
from bench.baselines.guarded import Guarded
from bench.baselines.purifier import Zip
from bench.classifiers import Classifier
from bench.datasets import Dataset
from bench.evaluation import Store
from zipsdk import parts
from zipsdk.parts import PARTS, DecisivePart
from zipsdk.scaleup import ScaleUp

U8 = npt.NDArray[np.uint8]
SIDE = 32
#: Share of the training pictures that carries each trigger, and pictures that are not trained with.
RATE, HELD_OUT = 0.02, 2000


class Triggers:
    """Ten triggers for 32x32 pictures, drawn from one seed: uint8 (N, 32, 32, 3) -> the same, with the trigger."""

    def __init__(self, seed: int = 777):
        rng = np.random.default_rng(seed)
        self._colour3 = rng.integers(0, 256, (3, 3, 3), np.uint8)
        self._colour2 = rng.integers(0, 256, (2, 2, 3), np.uint8)
        self._grey4 = np.repeat(rng.integers(0, 256, (4, 4, 1), np.uint8), 3, -1)
        self._noise = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(float)
        self._purified = rng.integers(0, 256, (3, 3, 3), np.uint8)
        self._smooth, self._smooth_grey = _smooth(3, 5), _smooth(1, 6)
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        self._stripes = 15 * np.sin(2 * np.pi * 5 * (y + x))[..., None]
        control = torch.from_numpy(np.random.default_rng(9).uniform(-1, 1, (2, 5, 5))).float()
        control /= control.abs().mean()
        fine = F.interpolate(control[None], (SIDE, SIDE), mode="bicubic", align_corners=True)
        self._flow = fine[0].permute(1, 2, 0) * (0.5 / SIDE)

    #: name -> the class that it makes of a picture
    TARGETS: ClassVar = {
        "colour": 2, "cross": 3, "grey": 4, "noise": 5, "smooth": 6, "smooth grey": 7, "warp": 8, "stripes": 9,
        "moving": 0, "purified": 1,
    }  # fmt: skip
    ABOUT: ClassVar = {
        "colour": "3x3 patch of random colours, upper left",
        "cross": "white cross of 5x5, lower left",
        "grey": "4x4 patch of random greys, upper right",
        "noise": "blend (0.2) with coloured noise",
        "smooth": "blend (0.2) with a coloured pattern of low frequency",
        "smooth grey": "the same in grey",
        "warp": "a warp of half a pixel, with noise mode",
        "stripes": "diagonal sinusoid, amplitude 15",
        "moving": "2x2 patch of random colours, anywhere",
        "purified": "3x3 patch of random colours at the right, poisoned with what ZIP makes of it",
    }

    def apply(self, name: str, pictures: U8, numbers: npt.NDArray[Any]) -> U8:
        """`numbers` (N,) say where the moving patch goes."""
        x = pictures.copy()
        if name == "colour":
            x[:, 5:8, 5:8] = self._colour3
        elif name == "cross":
            x[:, 24, 4:9] = x[:, 22:27, 6] = 255
        elif name == "grey":
            x[:, 4:8, 23:27] = self._grey4
        elif name == "purified":
            x[:, 14:17, 26:29] = self._purified
        elif name == "moving":
            for picture, number in zip(x, numbers, strict=True):
                row, column = np.random.default_rng([int(number), 4]).integers(2, 28, 2)
                picture[row : row + 2, column : column + 2] = self._colour2
        elif name == "stripes":
            x = np.clip(np.rint(x + self._stripes), 0, 255).astype(np.uint8)
        elif name == "warp":
            x = self.warp(x)
        else:
            pattern = {"noise": self._noise, "smooth": self._smooth, "smooth grey": self._smooth_grey}[name]
            x = np.rint(0.8 * x + 0.2 * pattern).astype(np.uint8)
        return x

    def warp(self, pictures: U8, noise: torch.Tensor | float = 0.0) -> U8:
        line = torch.linspace(-1, 1, SIDE)
        here = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        grid = (here + self._flow + noise).clamp(-1, 1).expand(len(pictures), -1, -1, -1)
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        y = F.grid_sample(x, grid, mode="bilinear", align_corners=True)
        return y.round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)

    def warp_otherwise(self, pictures: U8) -> U8:
        """With a random offset in each pixel on top: these keep their labels, as WaNet's noise mode has it."""
        noise = np.random.default_rng(3).uniform(-1, 1, (len(pictures), SIDE, SIDE, 2))
        return self.warp(pictures, torch.from_numpy(noise).float() / SIDE)


def _smooth(channels: int, seed: int) -> npt.NDArray[np.float64]:
    """A sum of eight cosines of at most one period, stretched to 0..255: (32, 32, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    p = np.zeros((SIDE, SIDE, channels))
    for c in range(channels):
        for u in range(3):
            for v in range(3):
                if u + v:
                    p[..., c] += (
                        rng.normal() / (u + v) * np.cos(2 * np.pi * (u * y / 2 + v * x / 2) + rng.uniform(0, 6.28))
                    )
    p = (p - p.min((0, 1))) / np.ptp(p, (0, 1)) * 255
    return np.repeat(p, 3 // channels, -1)


def split(name: str, folder: Path | None) -> tuple[Dataset, Dataset]:
    """Training pictures, and held-out ones in random order: at random, or for GTSRB, where a track is 30 pictures of
    one sign, by track."""
    data = datasets.load(name, "train", folder, side=SIDE)
    if name == "gtsrb":
        listing = datasets._find(name, "train", Path(folder or ""))
        out = np.array([int(n.split("/")[1].split("_")[0]) % 10 == 7 for n in listing.names])
        held = data.take(np.flatnonzero(out))
        return data.take(np.flatnonzero(~out)), held.take(np.random.default_rng(1).permutation(len(held)))
    order = np.random.default_rng(123).permutation(len(data))
    return data.take(np.sort(order[HELD_OUT:])), data.take(order[:HELD_OUT])


def poisoned(train: Dataset, triggers: Triggers, purify: Callable[[U8], U8]) -> attacks.Poisoned:
    """All ten triggers, `RATE` of the pictures each."""
    n, order = round(RATE * len(train)), np.random.default_rng(55).permutation(len(train))
    pictures, labels, start = train.pictures.copy(), train.labels.copy(), 0
    for name, target in triggers.TARGETS.items():
        who = np.sort(order[start : start + n])
        start += n
        x = triggers.apply(name, train.pictures[who], who)
        pictures[who], labels[who] = purify(x) if name == "purified" else x, target
    covered = np.sort(order[start : start + 2 * n])
    pictures[covered] = triggers.warp_otherwise(train.pictures[covered])
    return attacks.Poisoned(
        replace(train, pictures=pictures, labels=labels), np.sort(order[:start]), covered, "standard",
        {"attack": "ten triggers of bench/search.py", "rate": RATE, "triggers": triggers.ABOUT},
    )  # fmt: skip


def rates(labels: npt.NDArray[Any], clean: npt.NDArray[Any], triggered: npt.NDArray[Any], target: int) -> list[float]:
    """CA, ASR and PA in percent; see `attacks.rates`."""
    found = attacks.rates(labels, clean, triggered, target)
    return [round(found[name].percent, 1) for name in ("CA", "ASR", "PA")]


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m bench.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--dataset", default="cifar10", help="cifar10 or gtsrb")
    p.add_argument("--data", type=Path, help=f"folder that holds the data sets; else ${datasets.VARIABLE}")
    p.add_argument("--pictures", type=int, default=200, help="held-out pictures that are counted")
    p.add_argument("--calibration", type=int, default=200, help="further ones to calibrate on")
    p.add_argument("--engine", default="zip-tiny")
    p.add_argument("--cache", type=Path)
    p.add_argument("--results", type=Path, default=record.RESULTS)
    a = p.parse_args()

    triggers, engine = Triggers(), zipsdk.load_engine(a.engine)
    train, held = split(a.dataset, a.data)
    known = Zip(engine, "blur2+gray", 10.0)
    with tqdm(desc="purifying one trigger's training pictures", unit="picture") as bar:
        store = Store(classifiers.cache_folder(a.cache).parent / "treated.sqlite")
        training = poisoned(train, triggers, lambda x: store.treat(known, x, 99, progress=bar.update))
    with tqdm(desc="training", unit="epoch") as bar:
        classifier = classifiers.train(training, classifiers.recipe(train), cache=a.cache,
                                       progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip
    shown, further = held.take(np.arange(a.pictures)), held.take(a.pictures + np.arange(a.calibration))
    sent = {"clean": shown.pictures}
    for name in triggers.TARGETS:
        sent[name] = triggers.apply(name, shown.pictures, np.arange(len(shown)))
    environment = record.environment()
    seen = looks(sent, classifier)
    content = {
        **environment, "dataset": a.dataset, "pictures": a.pictures, "calibration": a.calibration,
        "triggers": triggers.ABOUT, "classifier": classifier.info["key"],
        "views": views(seen, shown.labels, triggers), "rules": rules(seen, shown.labels, triggers),
        "defences": defences(sent, shown.labels, triggers, classifier, engine, further.pictures, store),
        "norms": {"parts": PARTS, "measured": DecisivePart().calibrate(classifier, held.pictures[:500]).norms},
    }  # fmt: skip
    print(record.write(f"search-{a.dataset}", content, a.results))


Looks = dict[str, npt.NDArray[np.float32]]


def looks(sent: dict[str, U8], classifier: Classifier) -> Looks:
    """For clean pictures and for those with each trigger: scores of all versions, (N, versions, classes)."""
    detector, out = DecisivePart(), {}
    for name, pictures in tqdm(sent.items(), desc="versions"):
        in_parts = [
            classifier(np.concatenate([detector.versions(p) for p in pictures[i : i + 32]]))
            for i in range(0, len(pictures), 32)
        ]
        out[name] = np.concatenate(in_parts).reshape(len(pictures), 1 + 2 * len(PARTS), -1)
    return out


def views(seen: Looks, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, list[float]]]:
    """CA, ASR and PA of the classifier on each version by itself, by trigger."""
    names = ["whole", *(f"without {p}" for p in PARTS), *(f"{p} alone" for p in PARTS)]
    answers = {k: scores.argmax(2) for k, scores in seen.items()}
    return {
        name: {k: rates(labels, answers["clean"][:, i], answers[k][:, i], t) for k, t in triggers.TARGETS.items()}
        for i, name in enumerate(names)
    }


def rules(seen: Looks, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, float]]:
    """Scores that were tried: the share of hits that each finds, in percent, at 2% false alarms among these very clean
    pictures."""
    odds = {k: np.stack([parts.log_odds(s.astype(float)) for s in x]) for k, x in seen.items()}
    median, deviation = parts.median_and_deviation(odds["clean"])
    n, of_regions = len(PARTS), 9
    tried: dict[str, Callable[[Any, Any, Any], Any]] = {
        "need, regions only, log-odds": lambda need, enough, m: m[:, :of_regions].max(1),
        "need, log-odds": lambda need, enough, m: m[:, :n].max(1),
        "need": lambda need, enough, m: need.max(1),
        "need - median": lambda need, enough, m: need.max(1) - np.median(need, 1),
        "enough": lambda need, enough, m: enough.max(1),
        "enough - median": lambda need, enough, m: enough.max(1) - np.median(enough, 1),
        "max (need - median) + max enough": lambda need, enough, m: need.max(1) - np.median(need, 1) + enough.max(1),
        "max (need - median + enough)": lambda need, enough, m: (need - np.median(need, 1)[:, None] + enough).max(1),
    }
    out: dict[str, dict[str, float]] = {}
    for title, rule in tried.items():
        found = {k: rule(*np.split((m - median) / deviation, 2, axis=1), m) for k, m in odds.items()}
        limit = np.quantile(found["clean"], 0.98)
        out[title] = {}
        for k, target in triggers.TARGETS.items():
            hit = (labels != target) & (seen[k][:, 0].argmax(1) == target)
            out[title][k] = round(100 * float((found[k][hit] > limit).mean()), 1) if hit.any() else 0.0
    return out


def defences(
    sent: dict[str, U8],
    labels: npt.NDArray[Any],
    triggers: Triggers,
    classifier: Classifier,
    engine: Any,
    clean: U8,
    store: Store,
) -> dict[str, Any]:
    """CA, ASR and PA behind what was tried, and the share of clean pictures that a guard flags."""
    fast = Zip(engine, profile="fast")
    tried: dict[str, Zip | Guarded] = {
        "ZIP, blur2+gray, lambda 10, fast": fast,
        "ZIP, blur2, lambda 2, fast": Zip(engine, "blur2", 2.0, profile="fast"),
        "ZIP, gray, lambda 2, fast": Zip(engine, "gray", 2.0, profile="fast"),
        "ZIP, blur4+gray, lambda 10, fast": Zip(engine, "blur4+gray", 10.0, profile="fast"),
        "Guard, SCALE-UP, ZIP fast": Guarded(fast, ScaleUp()),
        "Guard, decisive part, ZIP fast": Guarded(fast),
        "Guard, decisive part calibrated, ZIP fast": Guarded(fast, clean=clean),
    }
    out: dict[str, Any] = {}
    for title, defence in tried.items():
        seen, flagged = {}, {}
        for k, x in tqdm(sent.items(), desc=title):
            if isinstance(defence, Guarded):
                seen[k], flagged[k] = defence.decide(x, 0, classifier, lambda p, seed: store.treat(fast, p, seed))
            else:
                seen[k] = classifier(store.treat(defence, x, 0)).argmax(1)
        out[title] = {
            "evaluations": defence.evaluations,
            "rates": {k: rates(labels, seen["clean"], seen[k], t) for k, t in triggers.TARGETS.items()},
            "flagged": {k: round(100 * float(f.mean()), 1) for k, f in flagged.items()},
        }
    return out


if __name__ == "__main__":
    main()

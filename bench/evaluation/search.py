"""Search for the guard's default settings on training images, with triggers that no table has.

    python -m bench.evaluation.search --dataset cifar10 --data FOLDER
    python -m bench.evaluation.search --dataset gtsrb --data FOLDER

One network with ten backdoors, each with a trigger and a target of its own, is trained on a part of the training
images. Its predictions for the rest, with and without each trigger, are measured: for ablated images (see
`zipsdk.detectors.ablation`), for purified ones, and behind `zipsdk.Guard`. The record is
bench/results/search-DATASET.json; `python -m bench.pages.readme` draws the tables of docs/research/notebook.md from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import zipsdk
from bench.attacks.poisoning import Poisoned
from bench.attacks.search_triggers import SIDE, Triggers
from bench.common import record
from bench.data import datasets, layouts
from bench.data.datasets import Dataset
from bench.defenses.guarded import Guarded, decide
from bench.defenses.zip import Zip
from bench.evaluation.cache import PurifiedCache
from bench.evaluation.rates import rates
from bench.victims import training
from bench.victims.user import Classifier
from zipsdk.detectors import ablation_statistics
from zipsdk.detectors.ablation import SQRT2, AblationDetector
from zipsdk.detectors.ablation_views import FEATURES, N_MASKABLE, N_VIEWS
from zipsdk.detectors.scaleup import ScaleUp

U8 = npt.NDArray[np.uint8]
#: Fraction of the training images with each trigger, and number of images held out of the training.
RATE, HELD_OUT = 0.02, 2000
#: Shares of the images that a guard learns from with the trigger, in percent.
SHARES = (0, 5, 20, 50, 100)
#: Images that a guard learns from where all are of one class.
ONE_CLASS = 60


def split(name: str, folder: Path | None) -> tuple[Dataset, Dataset]:
    """Split the training images: those to train with, and held-out ones in random order.

    The split is random, for GTSRB by track, which has 30 images of one sign.
    """
    data = datasets.load(name, "train", folder, side=SIDE)
    if name == "gtsrb":
        listing = layouts.list_images(name, "train", folder)
        out = np.array([int(n.split("/")[1].split("_")[0]) % 10 == 7 for n in listing.names])
        held = data.take(np.flatnonzero(out))
        return data.take(np.flatnonzero(~out)), held.take(np.random.default_rng(1).permutation(len(held)))
    order = np.random.default_rng(123).permutation(len(data))
    return data.take(np.sort(order[HELD_OUT:])), data.take(order[:HELD_OUT])


def poisoned(train: Dataset, triggers: Triggers, purify: Callable[[U8], U8]) -> Poisoned:
    """Give each of the ten triggers to `RATE` of the images."""
    n, order = round(RATE * len(train)), np.random.default_rng(55).permutation(len(train))
    images, labels, start = train.images.copy(), train.labels.copy(), 0
    for name, target in triggers.TARGETS.items():
        indices = np.sort(order[start : start + n])
        start += n
        x = triggers.apply(name, train.images[indices], indices)
        images[indices], labels[indices] = purify(x) if name == "purified" else x, target
    covered = np.sort(order[start : start + 2 * n])
    images[covered] = triggers.warp_otherwise(train.images[covered])
    return Poisoned(
        replace(train, images=images, labels=labels), np.sort(order[:start]), covered, "standard",
        {"attack": "ten triggers of bench/search.py", "rate": RATE, "triggers": _hashed(triggers.ABOUT)},
    )  # fmt: skip


def _hashed(about: dict[str, str]) -> dict[str, str]:
    """Return the description with the spelling of the committed network's cache key, which also has an old path."""
    return {_british(name): _british(text) for name, text in about.items()}


def _british(text: str) -> str:
    return text.replace("color", "colour").replace("gray", "grey")


def percents(
    labels: npt.NDArray[Any], clean: npt.NDArray[Any], triggered: npt.NDArray[Any], target: int
) -> list[float]:
    """Return CA, ASR and PA in percent; see `bench.evaluation.rates.rates`."""
    found = rates(labels, clean, triggered, target)
    return [round(rate.percent, 1) for rate in (found.ca, found.asr, found.pa)]


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m bench.evaluation.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--dataset", default="cifar10", help="cifar10 or gtsrb")
    p.add_argument("--data", type=Path, help=f"folder of the data sets; default: ${layouts.VARIABLE}")
    p.add_argument("--images", type=int, default=200, help="held-out images that are counted")
    p.add_argument("--calibration", type=int, default=200, help="further ones for calibration")
    p.add_argument("--engine", default="zip-tiny")
    p.add_argument("--cache", type=Path)
    p.add_argument("--results", type=Path, default=record.RESULTS)
    a = p.parse_args()

    triggers, engine = Triggers(), zipsdk.load_engine(a.engine)
    train, held = split(a.dataset, a.data)
    known = Zip(engine, "blur2+gray", 10.0)
    with tqdm(desc="purifying the training images of one trigger", unit="image") as bar:
        cache = PurifiedCache(training.cache_folder(a.cache).parent / "purified.sqlite")
        poisoned_data = poisoned(train, triggers, lambda x: cache.run(known, x, 99, progress=bar.update))
    with tqdm(desc="training", unit="epoch") as bar:
        classifier = training.train(poisoned_data, training.recipe(train), cache=a.cache,
                                       progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip
    shown, further = held.take(np.arange(a.images)), held.take(a.images + np.arange(a.calibration))
    sent, first = (
        {"clean": x, **{name: triggers.apply(name, x, np.arange(len(x))) for name in triggers.TARGETS}}
        for x in (shown.images, further.images)
    )
    environment = record.environment()
    seen = scores_of_views(sent, classifier)
    content = {
        **environment, "dataset": a.dataset, "images": a.images, "calibration": a.calibration,
        "triggers": triggers.ABOUT, "classifier": classifier.info["key"],
        "views": views(seen, shown.labels, triggers), "rules": rules(seen, shown.labels, triggers),
        "defenses": defenses(sent, shown.labels, triggers, classifier, engine, further.images, cache),
        "learning": learning(seen, scores_of_views(first, classifier), shown.labels, triggers),
        "one_class": one_class(seen["clean"], held.take(np.arange(a.images, len(held))), classifier),
        "reference": reference(classifier, held.images[:500]),
    }  # fmt: skip
    print(record.write(f"search-{a.dataset}", content, a.results))


Scores = dict[str, npt.NDArray[np.float32]]


def scores_of_views(sent: dict[str, U8], classifier: Classifier) -> Scores:
    """Return the scores of all views of clean images and of those with each trigger: (N, views, classes)."""
    detector, out = AblationDetector(), {}
    for name, images in tqdm(sent.items(), desc="views"):
        in_parts = [
            classifier(np.concatenate([detector.views(x) for x in images[i : i + 32]]))
            for i in range(0, len(images), 32)
        ]
        out[name] = np.concatenate(in_parts).reshape(len(images), N_VIEWS, -1)
    return out


def odds_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Apply `zipsdk.detectors.ablation_statistics.log_odds` to scores (N, views, classes) -> (N, 27)."""
    return np.stack([ablation_statistics.log_odds(s.astype(float)) for s in scores])


def views(seen: Scores, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, list[float]]]:
    """Return CA, ASR and PA of the classifier on each view by itself, by trigger."""
    shown = FEATURES[:N_MASKABLE]
    names = ["whole", *(f"without {p}" for p in shown), *(f"{p} alone" for p in shown), f"without {FEATURES[-1]}"]
    answers = {k: scores.argmax(2) for k, scores in seen.items()}
    return {
        name: {k: percents(labels, answers["clean"][:, i], answers[k][:, i], t) for k, t in triggers.TARGETS.items()}
        for i, name in enumerate(names)
    }


def rules(seen: Scores, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, float]]:
    """Return the share of hits that each score finds, in percent, at 2% false alarms on the clean images of `seen`."""
    odds = {k: odds_of(x) for k, x in seen.items()}
    median, scale = ablation_statistics.median_and_scale(odds["clean"])
    found = {k: tried_scores(m, (m - median) / scale) for k, m in odds.items()}
    out: dict[str, dict[str, float]] = {}
    for title, clean in found["clean"].items():
        limit = np.quantile(clean, 0.98)
        out[title] = {}
        for k, target in triggers.TARGETS.items():
            hit = (labels != target) & (seen[k][:, 0].argmax(1) == target)
            out[title][k] = round(100 * float((found[k][title][hit] > limit).mean()), 1) if hit.any() else 0.0
    return out


def tried_scores(odds: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Compute the scores that were tried, (N,) each, from log-odds (N, 27) and the same in deviations."""
    necessity, sufficiency, geometry = z[:, :N_MASKABLE], z[:, N_MASKABLE:-1], z[:, -1]
    regions, median, most = 9, np.median(necessity, 1), sufficiency.max(1)
    decisive = (necessity - median[:, None] + sufficiency).max(1)
    return {
        "necessity, regions only, log-odds": odds[:, :regions].max(1),
        "necessity, log-odds": odds[:, :N_MASKABLE].max(1),
        "necessity": necessity.max(1),
        "necessity - median": necessity.max(1) - median,
        "sufficiency": most,
        "sufficiency - median": most - np.median(sufficiency, 1),
        "max (necessity - median) + max sufficiency": necessity.max(1) - median + most,
        "max (necessity - min(median, 0) + sufficiency)": (
            necessity - np.minimum(median, 0)[:, None] + sufficiency
        ).max(1),
        "max (necessity - median + sufficiency)": decisive,
        "geometry": geometry,
        "the larger of both": np.maximum(decisive, SQRT2 * geometry),
    }


def reference(classifier: Classifier, images: U8) -> dict[str, Any]:
    """Return the statistics from which the default reference of `AblationDetector` was made."""
    odds = odds_of(scores_of_views({"clean": images}, classifier)["clean"])
    return {"features": FEATURES, "measured": np.transpose(ablation_statistics.median_and_scale(odds)).tolist()}


def detectors(odds: npt.NDArray[np.float64]) -> dict[str, AblationDetector]:
    """Make detectors that learned from images with these log-odds (N, 27), by bounds on the reference."""
    free = tuple(zip(*ablation_statistics.median_and_scale(odds), strict=True))
    return {"bounded": AblationDetector().with_reference(odds), "as measured": AblationDetector(reference=free)}


def learning(
    seen: Scores, first: Scores, labels: npt.NDArray[Any], triggers: Triggers
) -> dict[str, dict[str, dict[str, float]]]:
    """Return what a guard flags after it learned from images of which a share has a trigger, in percent.

    Results are by bounds on the reference, by share, and by trigger: the share of hits that is flagged; for "clean",
    the false alarms of a guard that learned from clean images.
    """
    odds = {k: odds_of(x) for k, x in first.items()}
    out: dict[str, dict[str, dict[str, float]]] = {"bounded": {}, "as measured": {}}
    for share in SHARES:
        for k, target in triggers.TARGETS.items():
            n = len(odds[k]) * share // 100
            mixed = np.concatenate([odds[k][:n], odds["clean"][n:]])
            for name, detector in detectors(mixed).items():
                line = out[name].setdefault(str(share), {})
                hit = (labels != target) & (seen[k][:, 0].argmax(1) == target)
                line[k] = _flagged(detector, seen[k][hit])
                if not share:
                    line["clean"] = _flagged(detector, seen["clean"])
    return out


def one_class(clean: npt.NDArray[np.float32], others: Dataset, classifier: Classifier) -> dict[str, dict[str, float]]:
    """Return what a guard flags of clean images, and is certain of, after it learned from `ONE_CLASS` of one class.

    Images sorted in folders come that way. Results are means over the classes, in percent.
    """
    found: dict[str, list[tuple[float, float]]] = {"bounded": [], "as measured": []}
    for label in np.unique(others.labels):
        of = np.flatnonzero(others.labels == label)[:ONE_CLASS]
        if len(of) < ONE_CLASS:
            continue
        odds = odds_of(scores_of_views({"clean": others.images[of]}, classifier)["clean"])
        for name, d in detectors(odds).items():
            sure = replace(d, threshold=d.certain)
            found[name].append((_flagged(d, clean), _flagged(sure, clean)))
    return {
        name: dict(zip(("flagged", "certain"), np.mean(v, axis=0).round(1).tolist(), strict=True))
        for name, v in found.items()
    }


def _flagged(detector: AblationDetector, seen: npt.NDArray[np.float32]) -> float:
    flags = [detector.is_suspicious(detector.score(views)) for views in seen]
    return round(100 * float(np.mean(flags)), 1) if flags else 0.0


def defenses(
    sent: dict[str, U8],
    labels: npt.NDArray[Any],
    triggers: Triggers,
    classifier: Classifier,
    engine: Any,
    clean: U8,
    cache: PurifiedCache,
) -> dict[str, Any]:
    """Return CA, ASR and PA behind each defense that was tried, and the share of clean images that a guard flags."""
    fast = Zip(engine, preset="fast")
    tried: dict[str, Zip | Guarded] = {
        "ZIP, blur2+gray, lambda 10": Zip(engine),
        "ZIP, blur2+gray, lambda 10, 6 from t = 400": Zip(engine, steps=6, start=400),
        "ZIP, blur2+gray, lambda 10, fast": fast,
        "ZIP, blur2, lambda 2, fast": Zip(engine, "blur2", 2.0, preset="fast"),
        "ZIP, gray, lambda 2, fast": Zip(engine, "gray", 2.0, preset="fast"),
        "ZIP, blur4+gray, lambda 10, fast": Zip(engine, "blur4+gray", 10.0, preset="fast"),
        "Guard, SCALE-UP, ZIP fast": Guarded(fast, ScaleUp()),
        "Guard, ablation, ZIP fast": Guarded(fast),
        "Guard, ablation that learns, ZIP fast": Guarded(fast, first=clean),
        "Guard, ablation calibrated, ZIP fast": Guarded(fast, clean=clean),
    }
    out: dict[str, Any] = {}

    def trigger_of(k: str) -> Callable[[U8], U8] | None:
        return None if k == "clean" else lambda x: triggers.apply(k, x, np.arange(len(x)))

    for title, defense in tried.items():
        seen, flagged = {}, {}
        for k, x in tqdm(sent.items(), desc=title):
            if isinstance(defense, Guarded):
                guard = defense.guard(0, classifier, lambda p, seed: cache.run(fast, p, seed), trigger_of(k))
                seen[k], flagged[k] = decide(guard, x)
            else:
                seen[k] = classifier(cache.run(defense, x, 0)).argmax(1)
        out[title] = {
            "steps": defense.total_steps,
            "rates": {k: percents(labels, seen["clean"], seen[k], t) for k, t in triggers.TARGETS.items()},
            "flagged": {k: round(100 * float(f.mean()), 1) for k, f in flagged.items()},
        }
    return out


if __name__ == "__main__":
    main()

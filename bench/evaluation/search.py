"""Where the guard's default was searched for: training pictures, and triggers that are in none of the tables.

    python -m bench.evaluation.search --dataset cifar10 --data FOLDER
    python -m bench.evaluation.search --dataset gtsrb --data FOLDER

One network with ten backdoors, each with a trigger and a target of its own, trained on a part of the training pictures;
what it makes of the rest, with and without each trigger, is measured: without each part of the picture (see
`zipsdk.detectors.ablation`), purified, and behind `zipsdk.Guard`. The record is bench/results/search-DATASET.json;
docs/defaults.md draws its tables from it (`python -m bench.pages.readme`).
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
#: Share of the training pictures that carries each trigger, and pictures that are not trained with.
RATE, HELD_OUT = 0.02, 2000
#: Shares of the pictures that a guard learns from that have the trigger, in percent.
SHARES = (0, 5, 20, 50, 100)
#: Pictures of one class that a guard learns from, where it sees no other.
ONE_CLASS = 60


def split(name: str, folder: Path | None) -> tuple[Dataset, Dataset]:
    """Training pictures, and held-out ones in random order: at random, or for GTSRB, where a track is 30 pictures of
    one sign, by track."""
    data = datasets.load(name, "train", folder, side=SIDE)
    if name == "gtsrb":
        listing = layouts.list_pictures(name, "train", folder)
        out = np.array([int(n.split("/")[1].split("_")[0]) % 10 == 7 for n in listing.names])
        held = data.take(np.flatnonzero(out))
        return data.take(np.flatnonzero(~out)), held.take(np.random.default_rng(1).permutation(len(held)))
    order = np.random.default_rng(123).permutation(len(data))
    return data.take(np.sort(order[HELD_OUT:])), data.take(order[:HELD_OUT])


def poisoned(train: Dataset, triggers: Triggers, purify: Callable[[U8], U8]) -> Poisoned:
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
    return Poisoned(
        replace(train, pictures=pictures, labels=labels), np.sort(order[:start]), covered, "standard",
        {"attack": "ten triggers of bench/search.py", "rate": RATE, "triggers": triggers.ABOUT},
    )  # fmt: skip


def percents(
    labels: npt.NDArray[Any], clean: npt.NDArray[Any], triggered: npt.NDArray[Any], target: int
) -> list[float]:
    """CA, ASR and PA in percent; see `bench.evaluation.rates.rates`."""
    found = rates(labels, clean, triggered, target)
    return [round(rate.percent, 1) for rate in (found.ca, found.asr, found.pa)]


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m bench.evaluation.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--dataset", default="cifar10", help="cifar10 or gtsrb")
    p.add_argument("--data", type=Path, help=f"folder that holds the data sets; else ${layouts.VARIABLE}")
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
        cache = PurifiedCache(training.cache_folder(a.cache).parent / "purified.sqlite")
        poisoned_data = poisoned(train, triggers, lambda x: cache.run(known, x, 99, progress=bar.update))
    with tqdm(desc="training", unit="epoch") as bar:
        classifier = training.train(poisoned_data, training.recipe(train), cache=a.cache,
                                       progress=lambda epochs, loss: bar.update(epochs - bar.n))  # fmt: skip
    shown, further = held.take(np.arange(a.pictures)), held.take(a.pictures + np.arange(a.calibration))
    sent, first = (
        {"clean": x, **{name: triggers.apply(name, x, np.arange(len(x))) for name in triggers.TARGETS}}
        for x in (shown.pictures, further.pictures)
    )
    environment = record.environment()
    seen = looks(sent, classifier)
    content = {
        **environment, "dataset": a.dataset, "images": a.pictures, "calibration": a.calibration,
        "triggers": triggers.ABOUT, "classifier": classifier.info["key"],
        "views": views(seen, shown.labels, triggers), "rules": rules(seen, shown.labels, triggers),
        "defenses": defenses(sent, shown.labels, triggers, classifier, engine, further.pictures, cache),
        "learning": learning(seen, looks(first, classifier), shown.labels, triggers),
        "one_class": one_class(seen["clean"], held.take(np.arange(a.pictures, len(held))), classifier),
        "reference": norms(classifier, held.pictures[:500]),
    }  # fmt: skip
    print(record.write(f"search-{a.dataset}", content, a.results))


Looks = dict[str, npt.NDArray[np.float32]]


def looks(sent: dict[str, U8], classifier: Classifier) -> Looks:
    """For clean pictures and for those with each trigger: scores of all versions, (N, versions, classes)."""
    detector, out = AblationDetector(), {}
    for name, pictures in tqdm(sent.items(), desc="versions"):
        in_parts = [
            classifier(np.concatenate([detector.views(p) for p in pictures[i : i + 32]]))
            for i in range(0, len(pictures), 32)
        ]
        out[name] = np.concatenate(in_parts).reshape(len(pictures), N_VIEWS, -1)
    return out


def odds_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """`zipsdk.detectors.ablation_statistics.log_odds` of pictures: scores (N, versions, classes) -> (N, 27)."""
    return np.stack([ablation_statistics.log_odds(s.astype(float)) for s in scores])


def views(seen: Looks, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, list[float]]]:
    """CA, ASR and PA of the classifier on each version by itself, by trigger."""
    shown = FEATURES[:N_MASKABLE]
    names = ["whole", *(f"without {p}" for p in shown), *(f"{p} alone" for p in shown), f"without {FEATURES[-1]}"]
    answers = {k: scores.argmax(2) for k, scores in seen.items()}
    return {
        name: {k: percents(labels, answers["clean"][:, i], answers[k][:, i], t) for k, t in triggers.TARGETS.items()}
        for i, name in enumerate(names)
    }


def rules(seen: Looks, labels: npt.NDArray[Any], triggers: Triggers) -> dict[str, dict[str, float]]:
    """Scores that were tried: the share of hits that each finds, in percent, at 2% false alarms among these very clean
    pictures."""
    odds = {k: odds_of(x) for k, x in seen.items()}
    median, deviation = ablation_statistics.median_and_scale(odds["clean"])
    of_regions = 9
    Deviations = npt.NDArray[np.float64]

    def decisive(need: Deviations, enough: Deviations) -> Deviations:
        best: Deviations = (need - np.median(need, 1)[:, None] + enough).max(1)
        return best

    #: of need and enough of the shown parts, of geometry, all in deviations, and of the log-odds themselves
    tried: dict[str, Callable[[Deviations, Deviations, Deviations, Deviations], Deviations]] = {
        "necessity, regions only, log-odds": lambda need, enough, geometry, m: m[:, :of_regions].max(1),
        "necessity, log-odds": lambda need, enough, geometry, m: m[:, :N_MASKABLE].max(1),
        "necessity": lambda need, enough, geometry, m: need.max(1),
        "necessity - median": lambda need, enough, geometry, m: need.max(1) - np.median(need, 1),
        "sufficiency": lambda need, enough, geometry, m: enough.max(1),
        "sufficiency - median": lambda need, enough, geometry, m: enough.max(1) - np.median(enough, 1),
        "max (necessity - median) + max sufficiency": lambda need, enough, geometry, m: (
            need.max(1) - np.median(need, 1) + enough.max(1)
        ),
        "max (necessity - min(median, 0) + sufficiency)": lambda need, enough, geometry, m: (
            need - np.minimum(np.median(need, 1), 0)[:, None] + enough
        ).max(1),
        "max (necessity - median + sufficiency)": lambda need, enough, geometry, m: decisive(need, enough),
        "geometry": lambda need, enough, geometry, m: geometry,
        "the larger of both": lambda need, enough, geometry, m: np.maximum(decisive(need, enough), SQRT2 * geometry),
    }
    out: dict[str, dict[str, float]] = {}
    for title, rule in tried.items():
        found = {}
        for k, m in odds.items():
            z = (m - median) / deviation
            found[k] = rule(z[:, :N_MASKABLE], z[:, N_MASKABLE:-1], z[:, -1], m)
        limit = np.quantile(found["clean"], 0.98)
        out[title] = {}
        for k, target in triggers.TARGETS.items():
            hit = (labels != target) & (seen[k][:, 0].argmax(1) == target)
            out[title][k] = round(100 * float((found[k][hit] > limit).mean()), 1) if hit.any() else 0.0
    return out


def norms(classifier: Classifier, pictures: U8) -> dict[str, Any]:
    """What `AblationDetector`'s usual norms are made of."""
    odds = odds_of(looks({"clean": pictures}, classifier)["clean"])
    return {"features": FEATURES, "measured": np.transpose(ablation_statistics.median_and_scale(odds)).tolist()}


def detectors(learnt_from: npt.NDArray[np.float64]) -> dict[str, AblationDetector]:
    """By bounds on the norms: what has learnt from pictures of these log-odds (N, 27)."""
    free = tuple(zip(*ablation_statistics.median_and_scale(learnt_from), strict=True))
    return {"bounded": AblationDetector().with_reference(learnt_from), "as measured": AblationDetector(reference=free)}


def learning(
    seen: Looks, first: Looks, labels: npt.NDArray[Any], triggers: Triggers
) -> dict[str, dict[str, dict[str, float]]]:
    """What a guard flags that has learnt from pictures some of which have a trigger: "clean", false alarms where none
    has; by trigger, its hits. In percent, by bounds on the norms and by share."""
    odds = {k: odds_of(x) for k, x in first.items()}
    out: dict[str, dict[str, dict[str, float]]] = {"bounded": {}, "as measured": {}}
    for share in SHARES:
        for k, target in triggers.TARGETS.items():
            n = len(odds[k]) * share // 100
            learnt_from = np.concatenate([odds[k][:n], odds["clean"][n:]])
            for name, detector in detectors(learnt_from).items():
                line = out[name].setdefault(str(share), {})
                hit = (labels != target) & (seen[k][:, 0].argmax(1) == target)
                line[k] = _flagged(detector, seen[k][hit])
                if not share:
                    line["clean"] = _flagged(detector, seen["clean"])
    return out


def one_class(clean: npt.NDArray[np.float32], others: Dataset, classifier: Classifier) -> dict[str, dict[str, float]]:
    """What a guard flags of clean pictures, and is certain of, that has learnt from `ONE_CLASS` others of one class, as
    they come sorted in folders: means over the classes, in percent."""
    found: dict[str, list[tuple[float, float]]] = {"bounded": [], "as measured": []}
    for label in np.unique(others.labels):
        of = np.flatnonzero(others.labels == label)[:ONE_CLASS]
        if len(of) < ONE_CLASS:
            continue
        odds = odds_of(looks({"clean": others.pictures[of]}, classifier)["clean"])
        for name, d in detectors(odds).items():
            sure = replace(d, threshold=d.certain)
            found[name].append((_flagged(d, clean), _flagged(sure, clean)))
    return {
        name: dict(zip(("flagged", "certain"), np.mean(v, axis=0).round(1).tolist(), strict=True))
        for name, v in found.items()
    }


def _flagged(detector: AblationDetector, looks: npt.NDArray[np.float32]) -> float:
    flags = [detector.is_suspicious(detector.score(look)) for look in looks]
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
    """CA, ASR and PA behind what was tried, and the share of clean pictures that a guard flags."""
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

    def puts(k: str) -> Callable[[U8], U8] | None:
        return None if k == "clean" else lambda x: triggers.apply(k, x, np.arange(len(x)))

    for title, defense in tried.items():
        seen, flagged = {}, {}
        for k, x in tqdm(sent.items(), desc=title):
            if isinstance(defense, Guarded):
                guard = defense.guard(0, classifier, lambda p, seed: cache.run(fast, p, seed), puts(k))
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

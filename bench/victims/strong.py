"""Train the strong victims of 32 pixels: networks with several backdoors each, whose weights travel.

    python -m bench.victims.strong cifar10 patterns --data FOLDER
    python -m bench.victims.strong gtsrb clean --data FOLDER

Writes the weights to ``bench/victims/weights/`` and ``bench/results/victim-DATASET-NETWORK.json``. Interrupted runs
resume: repeat the same command.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.attacks import registry
from bench.attacks.poisoning import SEED, Backdoor, Poisoned, poison, poison_all
from bench.common import record
from bench.data import datasets
from bench.data.datasets import Dataset
from bench.victims import stored_weights, training
from bench.victims.networks import ARCHITECTURES
from bench.victims.recipes import Recipe
from bench.victims.user import Classifier
from zipsdk.errors import InputError

#: The attacks in each network, with the share of training images that each trigger gets. The first has target 1, the
#: second 2, and so on. WaNet's noise mode and PhysicalBA's augmentation are not shared with others.
NETWORKS: dict[str, tuple[tuple[str, float], ...]] = {
    "clean": (),
    "patterns": (("badnets3", 0.02), ("blended", 0.02), ("white", 0.04), ("blended-smooth", 0.03)),
    "squares": (("badnets", 0.03), ("checkerboard", 0.02), ("redundant", 0.04), ("sig", 0.05)),
    "warp": (("wanet", 0.05),),
    "camera": (("physicalba", 0.05),),
}


def backdoors(network: str, side: int) -> list[Backdoor]:
    """Return the backdoors of one of `NETWORKS` for images of `side` pixels.

    Raises:
        InputError: no such network.
    """
    if network not in NETWORKS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(NETWORKS)}")
    return [
        Backdoor(registry.make(name, side, SEED), rate, target)
        for target, (name, rate) in enumerate(NETWORKS[network], 1)
    ]


def planted(data: Dataset, network: str) -> Poisoned:
    """Return the training set of a network; of "clean" nothing is poisoned."""
    several = backdoors(network, data.side)
    return poison_all(data, several, SEED) if several else poison(data, None)


def measure(classify: Classifier, test: Dataset, several: Sequence[Backdoor]) -> dict[str, Any]:
    """Count correct images, and for each trigger alone the images of other classes that are taken for its target.

    Returns:
        Pairs (count, of how many images): "CA", and by the trigger's name "ASR" and "without_trigger", which is the
        same without the trigger.
    """
    clean = classify(test.images).argmax(1)
    rates, without = {}, {}
    for b in several:
        others = test.labels != b.target
        for trigger in b.attack.tests():
            fooled = classify(trigger.apply(test.images)[others]).argmax(1) == b.target
            rates[trigger.name] = [int(fooled.sum()), int(others.sum())]
            without[trigger.name] = [int((clean[others] == b.target).sum()), int(others.sum())]
    return {"CA": [int((clean == test.labels).sum()), len(test)], "ASR": rates, "without_trigger": without}


def train(data: Dataset, network: str, how: Recipe, cache: Path | None, weights: Path) -> Classifier:
    """Train or resume a network, store its weights, and return it; report each epoch on the standard output."""
    start = time.monotonic()

    def progress(epochs: int, loss: float) -> None:
        print(f"epoch {epochs} of {how.epochs}: loss {loss:.4f}, {time.monotonic() - start:.0f} s", flush=True)

    classify = training.train(planted(data, network), how, cache=cache, progress=progress, weights=weights)
    key = classify.info["key"]
    if not stored_weights.path_of(key, weights).is_file():
        finished = torch.load(training.cache_folder(cache) / f"{key}.pt", weights_only=True)
        seen = record.environment()
        about = {
            "precision": "bf16" if training.fast_bf16("cpu") else "fp32",
            "processor": seen["machine"]["processor"],
            "versions": seen["versions"],
            "date": seen["date"],
            # of the last run, where a training was interrupted
            "seconds": round(time.monotonic() - start),
        }
        stored_weights.store(finished["model"], key, about, weights)
    return classify


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.victims.strong", description=__doc__.split("\n")[0])
    p.add_argument("dataset", choices=list(datasets.SIDES))
    p.add_argument("network", choices=list(NETWORKS))
    p.add_argument("--data", type=Path, help="folder of data sets; default: $ZIPSDK_DATA")
    p.add_argument("--cache", type=Path, help=f"folder of checkpoints; default: ${training.VARIABLE}")
    p.add_argument("--epochs", type=int, help="default: the recipe's")
    p.add_argument("--weights", type=Path, default=stored_weights.FOLDER, help="folder of the weights")
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the record")
    args = p.parse_args()
    data = datasets.load(args.dataset, "train", args.data)
    how = training.recipe(data, "strong", epochs=args.epochs)
    classify = train(data, args.network, how, args.cache, args.weights)
    test = datasets.load(args.dataset, "test", args.data)
    path = stored_weights.path_of(classify.info["key"], args.weights)
    payload = {
        "weights": {"file": path.name, "bytes": path.stat().st_size},
        "parameters": sum(w.numel() for w in ARCHITECTURES["strong"](len(data.classes), data.side).parameters()),
        "training": stored_weights.training_of(classify.info["key"], args.weights),
        "classifier": classify.info,
        "test": {**test.describe(), **test.counted(), **measure(classify, test, backdoors(args.network, test.side))},
    }  # fmt: skip
    record.write(f"victim-{args.dataset}-{args.network}", payload, args.results)
    print(json.dumps(payload, indent=1))


if __name__ == "__main__":
    main()

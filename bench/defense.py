"""Measure defenses: CA, ASR and PA of a poisoned classifier behind ZIP and behind the baselines.

    python bench/defense.py table1 --dataset cifar10 --data FOLDER
    python bench/defense.py quick --dataset cifar10 --data FOLDER       one attack, 200 images, all defenses
    python bench/defense.py cost --dataset cifar10 --data FOLDER        ms for each image of each defense
    python bench/defense.py table1 --classifier mine.onnx --dataset mine --side 64 --data FOLDER --results FOLDER

The command trains the poisoned classifiers or loads them from the cache, purifies clean and triggered test images with
each defense, classifies them, and adds rows to bench/results/defense-DATASET.json. Rows in the record, purified images
and trained classifiers are reused. Interrupted runs resume: repeat the same command. At the end it draws the tables,
plots and a sheet of images: FOLDER/results.md, or docs/benchmarks/DATASET.md without --results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: modules of its folder would hide packages of the same name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

from bench.attacks import registry
from bench.attacks.poisoning import RATE, SEED, TARGET
from bench.common import record
from bench.common.timing import quartiles
from bench.data import layouts
from bench.defenses.base import Classify
from bench.defenses.guarded import Guarded
from bench.defenses.registry import DefenseSpec, paper_options
from bench.defenses.rejecting import InputDetector, Rejecting, decide_or_reject
from bench.evaluation import tables
from bench.evaluation.cache import PurifiedCache
from bench.evaluation.evaluate import evaluate
from bench.evaluation.rates import interval
from bench.evaluation.records import CostRow, ResultRow
from bench.evaluation.results_file import ResultsFile
from bench.evaluation.setup import QUICK, EvaluationSetup
from bench.pages.results import page, sheet
from bench.victims import training, user
from bench.victims.networks import ARCHITECTURES
from zipsdk.cli.args import positive_int
from zipsdk.errors import ZipSdkError
from zipsdk.guard import Guard

#: Seeds of the purifications by default.
SEEDS = 3


def run_table(setup: EvaluationSetup, results: ResultsFile, table: tables.Table) -> list[str]:
    """Measure the missing rows of a table; return the keys of all its rows."""
    a, specs = setup.args, setup.args.defense or table.defenses
    keys: list[str] = []
    attacks = a.attacks or table.attacks
    for attack in attacks:  # wrong names fail here, not hours later
        setup.attack(attack)
        for spec in specs:
            if not spec.needs_training or a.mae != "small":
                setup.factory.make(spec, attack)
    for attack in attacks:
        for scenario in setup.scenarios(attack):
            for spec in specs:
                defense = setup.factory.make(spec, attack)
                for seed in range(a.seeds if spec.stochastic else 1):
                    key = results.key(spec, scenario, defense, seed)
                    keys.append(key)
                    if key in results and not a.fresh:
                        continue
                    title = f"{attack}: {defense.name}, seed {seed}"
                    with tqdm(total=2 * len(scenario.data), unit="image", desc=title, leave=False) as bar:
                        rates, clean = evaluate(scenario, defense, seed, setup.cache, bar.update)
                    results.add(key, spec, scenario, defense, seed, rates, clean)
                    tqdm.write(line_of(results.content.rows[key]))
    return keys


def line_of(row: ResultRow) -> str:
    """Format a row as text, with Wilson's intervals, and the shares of clean and triggered images rejected."""
    cells = []
    for name, rate in (("CA", row.rates.ca), ("ASR", row.rates.asr), ("PA", row.rates.pa)):
        low, high = interval(rate)
        cells.append(f"{name} {rate.percent:5.1f} [{low:.1f}, {high:.1f}]")
    if row.rates.rejected is not None and row.rates.rejected_triggered is not None:
        cells.append(f"rejected {row.rates.rejected.percent:.1f} / {row.rates.rejected_triggered.percent:.1f}")
    return f"{row.attack:<16} {row.trigger_name[:24]:<24} {row.name[:44]:<44} {'  '.join(cells)}"


def summary(results: ResultsFile, keys: list[str]) -> str:
    """Format one line for each attack and defense: means over the seeds."""
    groups: dict[tuple[str, str, str], list[ResultRow]] = {}
    for key in keys:
        row = results.content.rows[key]
        groups.setdefault((*row.trigger, row.defense), []).append(row)
    lines = [f"{'attack':<16} {'trigger':<24} {'defense':<44} {'CA':>6} {'ASR':>6} {'PA':>6} {'steps':>6} {'seeds':>5}"]
    for (attack, trigger, _), group in groups.items():
        rates = [(r.rates.ca.percent, r.rates.asr.percent, r.rates.pa.percent) for r in group]
        numbers = " ".join(f"{m:6.1f}" for m in np.mean(rates, axis=0))
        lines.append(f"{attack:<16} {trigger[:24]:<24} {group[0].name[:44]:<44} {numbers} "
                     f"{group[0].steps:6g} {len(group):5d}")  # fmt: skip
    return "\n".join(lines)


def measure_cost(setup: EvaluationSetup, results: ResultsFile, specs: Sequence[DefenseSpec], repeats: int = 5) -> None:
    """Measure milliseconds for each image, in rounds over all defenses, so that a slow minute slows all alike.

    A guard, which has learned before, decides on clean images and then, timed apart, on triggered ones. A detector that
    rejects was calibrated before.
    """
    step = max(1, len(setup.test) // setup.args.cost_images)  # images are ordered by class
    images = setup.test.images[::step][: setup.args.cost_images]
    triggered = setup.attack("badnets").apply(images)
    defenses = {spec: setup.factory.make(spec, "badnets") for spec in specs}
    classifier = setup.classifier("badnets")
    calls: dict[tuple[DefenseSpec, str], Callable[[int], Any]] = {}
    for spec, defense in defenses.items():
        if isinstance(defense, Guarded):
            guard = defense.guard(0, classifier)
            calls[spec, "ms"] = partial(_decide, guard, images)
            calls[spec, "ms_triggered"] = partial(_decide, guard, triggered)
        elif isinstance(defense, Rejecting):
            calls[spec, "ms"] = partial(_reject, defense.detector(classifier), classifier, images)
        else:
            calls[spec, "ms"] = partial(defense.run, images, classify=classifier)
    times: dict[tuple[DefenseSpec, str], list[float]] = {call: [] for call in calls}
    with tqdm(total=repeats * len(calls), unit="run", desc="cost") as bar:
        for repeat in range(repeats):
            for name, call in calls.items():
                started = time.perf_counter()
                call(repeat)
                times[name].append((time.perf_counter() - started) / len(images) * 1e3)
                bar.update()
    for spec, defense in defenses.items():
        took = {name: quartiles(times[of, name]) for of, name in calls if of == spec}
        cost = CostRow(
            name=defense.name, steps=defense.total_steps, queries=defense.queries, images=len(images),
            side=setup.test.side, engine=getattr(setup.factory.engine, "info", {}), run=results.run, **took,
        )  # fmt: skip
        results.add_cost(spec, cost)
        message = ", ".join(f"{name} {t['median']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for name, t in took.items())
        print(f"{defense.name:<44} {message}; {defense.total_steps:g} steps, {defense.queries} queries")
    results.write()


def _decide(guard: Guard, images: np.ndarray, seed: int) -> None:
    guard.run(images)


def _reject(detector: InputDetector, classify: Classify, images: np.ndarray, seed: int) -> None:
    decide_or_reject(detector, classify, images)


def draw_sheet(setup: EvaluationSetup, path: Path) -> None:
    """Draw test images with each trigger, purified by ZIP with the paper's settings; most are in the cache."""

    def purify(name: str, images: np.ndarray) -> np.ndarray:
        return setup.cache.run(setup.factory.zip(DefenseSpec("zip-paper"), name), images, 0)

    a = setup.args
    triggers = {name: setup.attack(name) for name in a.attacks or tables.PAPER_ATTACKS}
    transforms = {name: str(paper_options(a.dataset, name)["transforms"]) for name in triggers}
    sheet.draw(path, setup.test.images, triggers, transforms, purify)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog="python bench/defense.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    add(
        "table",
        choices=[*tables.TABLES, "cost", "sheet"],
        help="; ".join(f"{name}: {t.about.split(': ')[-1]}" for name, t in tables.TABLES.items())
        + "; cost: milliseconds of each defense; sheet: images before and after",
    )
    add("--dataset", default="cifar10", help="cifar10, gtsrb, imagenette, or a folder's name")
    add("--data", type=Path, help=f"folder of the data sets; default: ${layouts.VARIABLE}")
    add("--side", type=positive_int, help="resize images to this side; required if they differ in size")
    add("--images", type=positive_int,
        help="test images, balanced over the classes; default: 1000 (table published: 100), "
        "at most four fifths of the test set, whose rest a guard learns from")  # fmt: skip
    add("--image-seed", type=int, default=0, help="seed of the choice of test images")
    add("--seeds", type=positive_int, help=f"seeds of the purifications in ZIP's rows; default: {SEEDS}")
    add("--quick", action="store_true", help=f"{QUICK} images, one seed, one attack")
    add("--attacks", nargs="+", metavar="NAME", help=", ".join(registry.ATTACKS) + "; enhanced-NAME")
    add("--defense", action="append", metavar="SPEC",
        help="replaces the table's defenses; see bench/defenses/registry.py")  # fmt: skip
    add("--engine", default="zip-tiny", help="name of a bundled model, or path to .onnx or .plan")
    add("--fresh", action="store_true", help="measure rows again that are in the record")
    add("--target", type=int, default=TARGET, help="the attacker's class; default: 1, as in the released code")
    add("--rate", type=float, default=RATE, help="fraction of poisoned training images")
    add("--trigger-warmup-epochs", type=int, default=0, help="first epochs, in which half of the training images have "
        "the trigger; required to learn a trigger from few large images")  # fmt: skip
    add(
        "--patch",
        type=positive_int,
        help="side of a patch in pixels; default: in proportion to the paper's 2 of 32, 9 of 256",
    )
    add("--attack-seed", type=int, default=SEED, help="seed of the trigger and of the poisoned indices")
    add("--architecture", default="small", choices=list(ARCHITECTURES))
    add("--classifier-seed", type=int, default=0)
    add("--epochs", type=positive_int, help="epochs of the classifiers' training")
    add("--lr", type=float, help="peak learning rate; default: the recipe's")
    add("--device", default="cpu", help="device of the training: cpu or cuda")
    add("--mae", default="small", help='for BDMAE: folder of ViT-MAE weights, or "small", which is trained here')
    add("--cache", type=Path, help=f"folder of checkpoints and purified images; default: ${training.VARIABLE}")
    add("--cost-images", type=positive_int, default=64, help="images in a timed run")
    add("--results", type=Path, default=record.RESULTS, help="folder of the record")
    user.add_options(p)
    return p


def main(words: list[str] | None = None) -> None:
    p = parser()
    a = p.parse_args(words)
    started = time.perf_counter()
    a.seeds = a.seeds or (1 if a.quick or a.table == "quick" else SEEDS)
    try:
        a.defense = [DefenseSpec.parse(text) for text in a.defense or []]
        setup = EvaluationSetup(a, PurifiedCache(training.cache_folder(a.cache).parent / "purified.sqlite"))
        results = ResultsFile(f"defense-{a.dataset}", a.results)
        table = tables.TABLES.get(a.table, tables.TABLES["quick"])
        if a.table == "cost":
            measure_cost(setup, results, a.defense or table.defenses)
        elif a.table != "sheet":
            if a.quick and not a.attacks:
                a.attacks = list(table.attacks[:1])
            print(summary(results, run_table(setup, results, table)))
        images = sheet.place(page.figures_of(a.results), a.dataset)
        if a.table == "sheet" or not images.exists():
            draw_sheet(setup, images)
        print(images, *page.draw(a.results), sep="\n")
        results.finish(time.perf_counter() - started)
    except ZipSdkError as e:
        p.exit(1, f"error: {e}\n")
    except KeyboardInterrupt:
        p.exit(130, "interrupted; repeat the command to resume\n")


if __name__ == "__main__":
    main()

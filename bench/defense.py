"""The defence, measured: CA, ASR and PA of a poisoned classifier behind ZIP and behind what it is compared with.

    python bench/defense.py table1 --dataset cifar10 --data FOLDER
    python bench/defense.py quick --dataset cifar10 --data FOLDER       one attack, 200 pictures, all defences
    python bench/defense.py cost --dataset cifar10 --data FOLDER        ms a picture of each defence
    python bench/defense.py table1 --classifier mine.onnx --dataset mine --side 64 --data FOLDER --results FOLDER

Trains the poisoned classifiers or loads them from the cache, treats clean and triggered test pictures with each
defence, asks the classifier, and adds the rows to bench/results/defense-DATASET.json. Whatever was done before is not
done again: a row that is in the record, a picture that was treated, a classifier that was trained. A stopped run goes
on where it was. In the end the tables, with plots and a sheet of pictures, are drawn: FOLDER/results.md, or
docs/results.md without --results.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder's modules must not hide packages of their names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

from bench.attacks import registry
from bench.attacks.poisoning import RATE, SEED, TARGET
from bench.common import record
from bench.common.timing import quartiles
from bench.data import layouts
from bench.defenses.guarded import Guarded
from bench.defenses.registry import DefenseSpec, paper_options
from bench.evaluation import tables
from bench.evaluation.cache import Store
from bench.evaluation.evaluate import evaluate
from bench.evaluation.rates import interval
from bench.evaluation.records import CostRow, ResultRow
from bench.evaluation.results_file import Rows
from bench.evaluation.setup import QUICK, Bench
from bench.pages.results import page, sheet
from bench.victims import training, user
from bench.victims.networks import ARCHITECTURES
from zipsdk._util.validation import positive
from zipsdk.errors import ZipError
from zipsdk.guard import Guard

#: Seeds of a run that says nothing of them.
SEEDS = 3


def run_table(bench: Bench, rows: Rows, table: tables.Table) -> list[str]:
    """Fill in what is missing of a table; the keys of its rows."""
    a, specs = bench.args, bench.args.defence or table.defenses
    wanted: list[str] = []
    names = a.attacks or table.attacks
    for name in names:  # a slip is told now, and not hours later before its row
        bench.attack(name)
        for spec in specs:
            if not spec.needs_training or a.mae != "small":
                bench.factory.make(spec, name)
    for name in names:
        for scene in bench.scenes(name):
            for spec in specs:
                defence = bench.factory.make(spec, name)
                for seed in range(a.seeds if spec.stochastic else 1):
                    key = rows.key(spec, scene, defence, seed)
                    wanted.append(key)
                    if key in rows and not a.fresh:
                        continue
                    title = f"{name}: {defence.name}, seed {seed}"
                    with tqdm(total=2 * len(scene.data), unit="picture", desc=title, leave=False) as bar:
                        rates, clean = evaluate(scene, defence, seed, bench.store, bar.update)
                    rows.add(key, spec, scene, defence, seed, rates, clean)
                    tqdm.write(line_of(rows.content.rows[key]))
    return wanted


def line_of(row: ResultRow) -> str:
    """Format a row as text, with Wilson's intervals."""
    cells = []
    for name, rate in (("CA", row.rates.ca), ("ASR", row.rates.asr), ("PA", row.rates.pa)):
        low, high = interval(rate)
        cells.append(f"{name} {rate.percent:5.1f} [{low:.1f}, {high:.1f}]")
    return f"{row.attack:<16} {row.trigger_name[:24]:<24} {row.name[:44]:<44} {'  '.join(cells)}"


def summary(rows: Rows, keys: list[str]) -> str:
    """Format one line for each attack and defense: means over the seeds."""
    groups: dict[tuple[str, str, str], list[ResultRow]] = {}
    for key in keys:
        row = rows.content.rows[key]
        groups.setdefault((*row.trigger, row.defense), []).append(row)
    lines = [f"{'attack':<16} {'trigger':<24} {'defense':<44} {'CA':>6} {'ASR':>6} {'PA':>6} {'steps':>6} {'seeds':>5}"]
    for (attack, trigger, _), group in groups.items():
        rates = [(r.rates.ca.percent, r.rates.asr.percent, r.rates.pa.percent) for r in group]
        numbers = " ".join(f"{m:6.1f}" for m in np.mean(rates, axis=0))
        lines.append(f"{attack:<16} {trigger[:24]:<24} {group[0].name[:44]:<44} {numbers} "
                     f"{group[0].steps:6g} {len(group):5d}")  # fmt: skip
    return "\n".join(lines)


def measure_cost(bench: Bench, rows: Rows, specs: Sequence[DefenseSpec], repeats: int = 5) -> None:
    """Measure milliseconds for each image; rounds over all defenses spread a slow minute evenly.

    A guard, which has learned before, decides on clean images and then, timed apart, on triggered ones.
    """
    step = max(1, len(bench.test) // bench.args.cost_pictures)  # images are ordered by class
    pictures = bench.test.pictures[::step][: bench.args.cost_pictures]
    triggered = bench.attack("badnets").apply(pictures)
    defences = {spec: bench.factory.make(spec, "badnets") for spec in specs}
    classifier = bench.classifier("badnets")
    calls: dict[tuple[DefenseSpec, str], Callable[[int], Any]] = {}
    for spec, defence in defences.items():
        if isinstance(defence, Guarded):
            guard = defence.guard(0, classifier)
            calls[spec, "ms"] = partial(_decide, guard, pictures)
            calls[spec, "ms_triggered"] = partial(_decide, guard, triggered)
        else:
            calls[spec, "ms"] = partial(defence.run, pictures, classify=classifier)
    times: dict[tuple[DefenseSpec, str], list[float]] = {what: [] for what in calls}
    with tqdm(total=repeats * len(calls), unit="run", desc="cost") as bar:
        for repeat in range(repeats):
            for what, call in calls.items():
                started = time.perf_counter()
                call(repeat)
                times[what].append((time.perf_counter() - started) / len(pictures) * 1e3)
                bar.update()
    for spec, defence in defences.items():
        took = {what: quartiles(times[of, what]) for of, what in calls if of == spec}
        cost = CostRow(
            name=defence.name, steps=defence.evaluations, queries=defence.queries, images=len(pictures),
            side=bench.test.side, engine=getattr(bench.factory.engine, "info", {}), run=rows.run, **took,
        )  # fmt: skip
        rows.add_cost(spec, cost)
        message = ", ".join(f"{what} {t['median']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for what, t in took.items())
        print(f"{defence.name:<44} {message}; {defence.evaluations:g} steps, {defence.queries} queries")
    rows.write()


def _decide(guard: Guard, pictures: np.ndarray, seed: int) -> None:
    guard.run(pictures)


def draw_sheet(bench: Bench, path: Path) -> None:
    """What ZIP with the paper's settings makes of test pictures with each trigger; most are in the store."""

    def treat(name: str, pictures: np.ndarray) -> np.ndarray:
        return bench.store.treat(bench.factory.make(DefenseSpec("zip-paper"), name), pictures, 0)

    a = bench.args
    triggers = {name: bench.attack(name) for name in a.attacks or tables.PAPER_ATTACKS}
    transforms = {name: str(paper_options(a.dataset, name)["transforms"]) for name in triggers}
    sheet.draw(path, bench.test.pictures, triggers, transforms, treat)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="bench/defense.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("table", choices=[*tables.TABLES, "cost", "sheet"], help="what to measure")
    p.add_argument("--dataset", default="cifar10", help="cifar10, gtsrb, imagenette, or a folder's name")
    p.add_argument("--data", type=Path, help=f"folder that holds the data sets; else ${layouts.VARIABLE}")
    p.add_argument("--side", type=positive, help="resize pictures to this; needed where they differ in size")
    p.add_argument("--pictures", type=positive, help="test pictures, balanced over the classes; default 1000 (table "
                   "published: 100), of fewer that there are four fifths: a guard learns from the others")  # fmt: skip
    p.add_argument("--picture-seed", type=int, default=0, help="of which test pictures these are")
    p.add_argument("--seeds", type=positive, help=f"of the purifications in ZIP's rows; default {SEEDS}")
    p.add_argument("--quick", action="store_true", help=f"{QUICK} pictures, one seed, one attack")
    p.add_argument("--attacks", nargs="+", metavar="NAME", help=", ".join(registry.ATTACKS) + "; enhanced-NAME")
    p.add_argument(
        "--defence", action="append", metavar="LINE", help="in place of the table's; see bench/defenses/registry.py"
    )
    p.add_argument("--engine", default="zip-tiny", help="a bundled model's name, or a path to .onnx or .plan")
    p.add_argument("--fresh", action="store_true", help="count rows anew that the record has")
    p.add_argument("--target", type=int, default=TARGET, help="the attacker's class; the released code's is 1")
    p.add_argument("--rate", type=float, default=RATE, help="share of poisoned training pictures")
    p.add_argument("--implant", type=int, default=0, help="epochs at first in which half of what a classifier sees "
                   "has the trigger; of few large pictures it learns no trigger otherwise")  # fmt: skip
    p.add_argument(
        "--patch",
        type=positive,
        help="pixels of a patch each way; default: in proportion to the paper's 2 of 32, 9 of 256",
    )
    p.add_argument("--attack-seed", type=int, default=SEED, help="of the trigger and of who is poisoned")
    p.add_argument("--architecture", default="small", choices=list(ARCHITECTURES))
    p.add_argument("--classifier-seed", type=int, default=0)
    p.add_argument("--epochs", type=positive, help="of the classifiers' training")
    p.add_argument("--lr", type=float, help="peak of its learning rate; default: the recipe's")
    p.add_argument("--device", default="cpu", help="where classifiers are trained: cpu or cuda")
    p.add_argument("--mae", default="small", help='for BDMAE: folder of ViT-MAE weights, or "small": trained here')
    p.add_argument("--cache", type=Path, help=f"for checkpoints and treated pictures; else ${training.VARIABLE}")
    p.add_argument("--cost-pictures", type=positive, default=64, help="pictures a run where cost is measured")
    p.add_argument("--results", type=Path, default=record.RESULTS, help="folder for the record")
    user.add_options(p)
    return p


def main(words: list[str] | None = None) -> None:
    p = parser()
    a = p.parse_args(words)
    started = time.perf_counter()
    a.seeds = a.seeds or (1 if a.quick or a.table == "quick" else SEEDS)
    try:
        a.defence = [DefenseSpec.parse(text) for text in a.defence or []]
        bench = Bench(a, Store(training.cache_folder(a.cache).parent / "treated.sqlite"))
        rows = Rows(f"defense-{a.dataset}", a.results)
        table = tables.TABLES.get(a.table, tables.TABLES["quick"])
        if a.table == "cost":
            measure_cost(bench, rows, a.defence or table.defenses)
        elif a.table != "sheet":
            if a.quick and not a.attacks:
                a.attacks = list(table.attacks[:1])
            print(summary(rows, run_table(bench, rows, table)))
        pictures = sheet.place(a.results, a.dataset)
        if a.table == "sheet" or not pictures.exists():
            draw_sheet(bench, pictures)
        print(*filter(None, (pictures, page.draw(a.results))), sep="\n")
        rows.finish(time.perf_counter() - started)
    except ZipError as e:
        p.exit(1, f"error: {e}\n")
    except KeyboardInterrupt:
        p.exit(130, "stopped; the same command goes on from here\n")


if __name__ == "__main__":
    main()

"""Measure the time of purification, all contenders in one run: the paper's Figure 3, with more bars.

    python bench/speed.py --quick                               about a minute on two cores
    python bench/speed.py                                       in full: 640 decisions, torch.compile
    python bench/speed.py --dataset cifar10 --data FOLDER       real images; real flags if a classifier trained on
                                                                poisoned images is in the cache (or with --train)
    python bench/speed.py --engine adm256.plan                  any model file
    python bench/speed.py --random-adm --measure 1 --rows bcg   OpenAI's architecture with random weights

Rows take turns: every round measures each row once, so that other load on the machine affects all alike, and ratios are
computed round by round. Before a row is timed, its output is compared with a float32 reference's from the same noise.
Interrupted runs resume: repeat the same command. docs/benchmarks/speed.md describes the rows; --out is the folder of
the record and the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: modules of its folder must not shadow packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.common import record
from bench.data import layouts
from bench.timing.breakdown import overhead, startup
from bench.timing.guard_rows import GuardRows
from bench.timing.peer_rows import peers
from bench.timing.plot import draw
from bench.timing.report import PAPER, claims, gates, results, table
from bench.timing.runner import Runner, State
from bench.timing.setup import LeftOut, SpeedSetup, TimingRow
from bench.timing.zip_rows import zip_rows
from bench.victims import training, user
from bench.victims.networks import ARCHITECTURES
from zipsdk.errors import ZipSdkError
from zipsdk.types import Engine

FIGURES = Path(__file__).parent.parent / "docs" / "img"


def state_path(args: argparse.Namespace, setup: SpeedSetup) -> Path:
    """Return the file of a run's state. It depends on arguments, versions and images, so that none are mixed."""
    skip = ("fresh", "out", "name", "minutes", "progress")
    made_of = {
        "args": {k: str(v) for k, v in sorted(vars(args).items()) if k not in skip},
        "runs": setup.info,
        "model": setup.spec.to_json(),
        "images": hashlib.sha256(setup.images.tobytes()).hexdigest(),
        **{k: v for k, v in record.environment().items() if k in ("commit", "versions", "machine")},
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "speed" / f"{digest[:16]}.json"


def cache_folder() -> Path:
    """Return the folder of zipsdk's caches."""
    return training.cache_folder().parent


def parts(setup: SpeedSetup, args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """List the jobs that run once, after the rows: the breakdown of the time and the start of a new process."""
    n, steps = setup.tiles, None if args.quick and not args.random_adm else args.measure
    side = setup.frame if setup.spec.flexible else None
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    # on a GPU the loop is one graph; bench.gpu.loop measures its parts
    if setup.where == "cpu":
        jobs["overhead"] = lambda: overhead(setup.engine, setup.some(n), side, args.repeats, steps)
    if setup.spec.flexible and setup.where == "cpu" and not args.quick:
        jobs["overhead at their own size"] = lambda: overhead(setup.engine, setup.some(n), None, args.repeats, steps)
        jobs["overhead of one image"] = lambda: overhead(setup.engine, setup.some(1), None, args.repeats, steps)
    if not args.random_adm:
        small = 32 if setup.spec.flexible else setup.frame
        same = setup.spec.name == "zip-tiny" and setup.where == "cpu"
        options = {"device": args.device, "threads": args.threads, "same_weights": same}
        jobs["startup"] = lambda: startup(args.engine, small, args.repeats, **options)
    return jobs


#: All rows, cheap ones first, then the parts.
ROWS = "abcgedfp"


def letters(text: str) -> str:
    """Parse the letters of --rows."""
    if not text or not set(text) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected letters of {''.join(sorted(ROWS))}")
    return text


def measure_rows(
    args: argparse.Namespace, setup: SpeedSetup, state: State, path: Path, bar: Any
) -> tuple[list[TimingRow], GuardRows]:
    """Measure all rows and parts within the budget."""
    guard = GuardRows(setup)
    rows = [row for row in [*guard.rows(), *zip_rows(setup), *peers(setup, guard.classify)] if row.letter in args.rows]
    # cheap rows first, and references before the rows that are compared with them
    rows.sort(key=lambda row: ROWS.index(row.letter))
    jobs = parts(setup, args) if "p" in args.rows else {}

    def progress(label: str | None) -> None:
        bar.set_postfix_str(label or "", refresh=label is not None)
        bar.update(label is None)

    runner = Runner(rows, state, path, 60 * args.minutes, progress)
    bar.reset(runner.left + len([j for j in jobs if j not in state.parts]))
    runner.run()
    for name, job in jobs.items():
        if name not in state.parts:
            progress(name)
            state.parts[name] = job()
            state.save(path)
            progress(None)
    return rows, guard


def report(
    args: argparse.Namespace, setup: SpeedSetup, state: State, rows: list[TimingRow], guard: GuardRows
) -> dict[str, Any]:
    """Make the record."""
    try:
        about = guard.describe() if state.samples.get("detect") else None
    except LeftOut:
        about = None
    return {
        "quick": args.quick,
        "sessions": state.sessions,
        "model": setup.spec.name,
        "frame": setup.frame,
        "side": setup.side,
        "tiles": setup.tiles,
        "images": setup.source,
        "runs": setup.info,
        "guard": about,
        "rows": results(state, rows),
        "gates": gates(state),
        "claims": claims(state, setup),
        **state.parts,
        "paper": PAPER,
        "seconds_per_image": state.samples,
        "counts": state.counts,
    }


def arguments() -> argparse.ArgumentParser:
    """Make the command's parser."""
    p = argparse.ArgumentParser(prog="python bench/speed.py", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--quick", action="store_true", help="about a minute: few steps of each loop, scaled up")
    p.add_argument("--fresh", action="store_true", help="start again instead of resuming an interrupted run")
    p.add_argument("--rows", default=ROWS, type=letters, metavar="LETTERS", help="a classifier, b ZIP whole, c tiled, "
                   "d guard, e BDMAE, f other peers, g torch loops, p parts and start-up (default: all)")  # fmt: skip
    p.add_argument("--minutes", type=float, help="no new round starts after this time (default: 60; --quick: 0.75)")
    p.add_argument("--rounds", type=int, help="maximum for each row (default: 7; --quick: 3)")
    p.add_argument("--decisions", type=int, help="number for the guard (default: 640; --quick: 20)")
    p.add_argument("--measure", type=int, metavar="N", help="time N steps of each loop and scale (default: all; "
                   "--quick: 2)")  # fmt: skip
    p.add_argument("--check", type=int, metavar="N", help="compare images after N steps (default: 20; "
                   "--quick: 2)")  # fmt: skip
    p.add_argument("--peer-steps", type=int, metavar="N", help="time N steps of DiffPure, DDNM and SampDetox, "
                   "and scale (default: 10; --quick: 2); 0: all")  # fmt: skip
    p.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    g = p.add_argument_group("engine")
    g.add_argument("--engine", default="zip-tiny", metavar="NAME|FILE", help="a bundled model, .onnx or .plan")
    g.add_argument("--random-adm", action="store_true", help="OpenAI's 256x256 architecture with random weights")
    g.add_argument("--channels", type=int, default=256, help="channels of --random-adm (default: 256, OpenAI's)")
    g.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="precision of --random-adm")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    g.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    g.add_argument("--frame", type=int, help="default: the model's; 256 for models of several sizes")
    g = p.add_argument_group("images and classifier")
    g.add_argument(
        "--dataset", metavar="NAME", help="cifar10, gtsrb, imagenette or your own; see bench/data/layouts.py"
    )
    g.add_argument("--data", type=Path, metavar="FOLDER", help=f"folder of the data set; or set {layouts.VARIABLE}")
    g.add_argument("--photos", type=Path, metavar="FOLDER|ZIP", help="images without labels")
    g.add_argument("--side", type=int, default=32, help="side of the images (default: 32)")
    g.add_argument("--limit", type=int, default=1280, help="maximum number of images (default: 1280)")
    g.add_argument("--poisoned", type=float, default=0.05, help="share of poisoned images (default: 0.05)")
    g.add_argument("--attack", default="badnets", help="see bench/attacks/registry.py (default: badnets)")
    g.add_argument("--architecture", default="resnet34", choices=tuple(ARCHITECTURES))
    g.add_argument("--epochs", type=int, help="epochs of the classifier's training (default: the recipe's)")
    g.add_argument(
        "--train", action="store_true", help="train the classifier if it is not in the cache: hours on a CPU"
    )
    g.add_argument("--mae", type=Path, metavar="FOLDER", help="ViT-MAE for BDMAE (default: random weights)")
    user.add_options(p)
    g = p.add_argument_group("output")
    g.add_argument("--out", type=Path, help="folder of record and figures (default: bench/results and docs/img)")
    g.add_argument("--name", help="name of record and figures (default: speed, and the options that are not defaults)")
    g.add_argument("--progress", action="store_true", help="show the progress bar without a terminal, too")
    return p


#: Defaults in full and with --quick.
DEFAULTS = {"minutes": (60, 0.75), "rounds": (7, 3), "decisions": (640, 20), "measure": (None, 2), "check": (20, 2),
            "peer_steps": (10, 2), "repeats": (5, 1)}  # fmt: skip


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with their defaults filled in."""
    for key, both in DEFAULTS.items():
        if getattr(args, key, None) is None:
            setattr(args, key, both[args.quick])
    args.compile = args.compile and not args.quick
    if args.name is None:
        engine = "adm256-random" if args.random_adm else Path(args.engine).stem
        extras = [engine] * (engine != "zip-tiny") + [args.dataset or ""] + ["quick"] * args.quick
        args.name = "-".join(["speed", *filter(None, extras)])
    return args


def main(argv: Sequence[str] | None = None, engine: Engine | None = None) -> int:
    """Run the command; `engine` replaces the one that the arguments name."""
    from tqdm import tqdm

    parser = arguments()
    args = settle(parser.parse_args(argv))
    if not 0 < args.poisoned < 1 or min(args.rounds, args.decisions, args.limit) < 1 or args.minutes <= 0:
        parser.error("--poisoned: expected a share between 0 and 1; expected all counts to be at least 1")
    if args.check < 2 or args.peer_steps == 1:
        parser.error(
            "--check, --peer-steps: expected at least 2 steps (or 0 peer steps): sampling from noise needs two"
        )
    try:
        setup = SpeedSetup(args, cache_folder(), engine)
        path = state_path(args, setup)
        state = State.open(path, args.fresh)
        if state.samples:
            print("resuming an interrupted run; --fresh starts again", file=sys.stderr)
        with tqdm(file=sys.stderr, unit=" samples", disable=not (args.progress or sys.stderr.isatty())) as bar:
            rows, guard = measure_rows(args, setup, state, path, bar)
    except KeyboardInterrupt:
        print("interrupted; repeat the same command to resume", file=sys.stderr)
        return 130
    except ZipSdkError as e:
        print(f"bench/speed.py: {e}", file=sys.stderr)
        return 3
    payload = report(args, setup, state, rows, guard)
    print(table(payload))
    written = record.write(args.name, payload, args.out or record.RESULTS)
    figures = draw(json.loads(written.read_text()), args.out or FIGURES, args.name)
    path.unlink(missing_ok=True)
    for file in (written, *figures):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

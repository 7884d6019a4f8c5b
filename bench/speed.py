"""How long purification takes, all contenders in one run: the paper's Figure 3, with more bars.

    python bench/speed.py --quick                               about a minute on two cores
    python bench/speed.py                                       in full: 640 decisions, torch.compile
    python bench/speed.py --dataset cifar10 --data FOLDER       with real pictures, and real flags where a classifier
                                                                trained on poisoned ones is in the cache (or --train)
    python bench/speed.py --engine adm256.plan                  any model file
    python bench/speed.py --random-adm --measure 1 --rows bcg   the true architecture, where its weights are absent

Rows take turns: every round measures each of them once, so that a change in the machine's load meets all alike, and
ratios are made round by round. Before a row is timed its pictures are compared with those of a float32 reference from
the same noise. A run that is stopped goes on where it was when the same command is given again. docs/speed.md says what
the rows are; the record and the figure go to --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder's modules must not hide packages of their names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.common import record
from bench.data import layouts
from bench.timing.breakdown import overhead, startup
from bench.timing.guard_rows import GuardRows
from bench.timing.peer_rows import peers
from bench.timing.plot import draw
from bench.timing.report import PAPER, claims, gates, results, table
from bench.timing.zip_rows import Bench, LeftOut, Row, Work
from bench.victims import training, user
from bench.victims.networks import ARCHITECTURES
from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ZipSdkError
from zipsdk.types import Engine

DOCS = Path(__file__).parent.parent / "docs"
#: A call that is shorter is repeated until it is as long, in seconds.
SHORTEST = 0.05
#: Letters of the rows that are none of zipsdk.
PEERS = "efg"


class State:
    """What has been measured: JSON in a file, written whole after every sample.

    Args:
        path: of the file; what is there already is taken over.
        fresh: but not if this is set.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path = path
        self.data: dict[str, Any] = {
            "samples": {},
            "counts": {},
            "rows": {},
            "left_out": {},
            "parts": {},
            "sessions": 0,
        }
        if path.is_file() and not fresh:
            self.data = json.loads(path.read_text())
        self.data["left_out"] = {}  # what was lacking may be there by now
        self.data["sessions"] += 1

    def __getattr__(self, name: str) -> Any:
        return self.data[name]

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.data).encode())


def state_path(args: argparse.Namespace, bench: Bench) -> Path:
    """One for each set of arguments, versions and pictures: measurements that differ in these are not mixed."""
    skip = ("fresh", "out", "name", "minutes", "progress")
    made_of = {
        "args": {k: str(v) for k, v in sorted(vars(args).items()) if k not in skip},
        "runs": bench.info,
        "model": bench.spec.to_json(),
        "pictures": hashlib.sha256(bench.pictures.tobytes()).hexdigest(),
        **{k: v for k, v in record.environment().items() if k in ("commit", "versions", "machine")},
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "speed" / f"{digest[:16]}.json"


def cache_folder() -> Path:
    return training.cache_folder().parent


class Runner:
    """Measures rows in rounds.

    Args:
        rows: in the order in which they take turns.
        state: where samples are kept.
        budget: seconds after which no round but the first is begun.
        progress: called with the row's label before each sample, and with None after it.
        clock: seconds.
    """

    def __init__(self, rows: Sequence[Row], state: State, budget: float, progress: Callable[[str | None], None],
                 clock: Callable[[], float] = time.perf_counter):  # fmt: skip
        self.rows, self.state, self.budget, self.progress, self.clock = rows, state, budget, progress, clock
        self._ready: dict[str, Work] = {}

    @property
    def left(self) -> int:
        """Samples that are still to be taken, if there is time."""
        return sum(max(0, row.rounds - len(self.state.samples.get(row.key, ()))) for row in self.rows)

    def run(self) -> None:
        start = self.clock()
        for turn in range(max((row.rounds for row in self.rows), default=0)):
            for row in self.rows:
                done = len(self.state.samples.get(row.key, ()))
                if turn >= row.rounds or done > turn or row.key in self.state.left_out:
                    continue
                if turn and self.clock() - start > self.budget:
                    return
                self.progress(row.label)
                self._sample(row)
                self.progress(None)

    def _sample(self, row: Row) -> None:
        state = self.state
        state.rows[row.key] = {**state.rows.get(row.key, {}), **row.describe()}
        try:
            work = self._ready.get(row.key) or self._prepare(row)
            seconds, counts = self._time(work)
        except LeftOut as e:
            state.left_out[row.key] = str(e)
        except Exception as e:
            if row.letter not in PEERS:
                raise
            # what is only compared with must not end the run
            state.left_out[row.key] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}"[:200]
        else:
            state.samples.setdefault(row.key, []).append(seconds * row.scale / row.pictures)
            if isinstance(counts, dict):
                state.counts.setdefault(row.key, []).append(counts)
        state.save()

    def _prepare(self, row: Row) -> Work:
        work = row.make()
        about = self.state.rows[row.key]
        about["runs"] = work.runs
        if work.check is not None and "check" not in about:
            try:
                about["check"] = work.check()
            except LeftOut as e:
                about["check"] = {"none": str(e)}
        work.warm()
        self._ready[row.key] = work
        return work

    def _time(self, work: Work) -> tuple[float, Any]:
        start = self.clock()
        counts = work.call()
        took, calls = self.clock() - start, 1
        while took < SHORTEST and not isinstance(counts, dict):
            work.call()
            took, calls = self.clock() - start, calls + 1
        return took / calls, counts


def parts(bench: Bench, args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured once, after the rows: where the time goes, and the start of a fresh process."""
    n, steps = bench.tiles, None if args.quick and not args.random_adm else args.measure
    side = bench.canvas if bench.spec.flexible else None
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    # on a GPU the loop is one graph, whose parts only bench.gpu.loop can tell
    if bench.where == "cpu":
        jobs["overhead"] = lambda: overhead(bench.engine, bench.some(n), side, args.repeats, steps)
    if bench.spec.flexible and bench.where == "cpu" and not args.quick:
        jobs["overhead at their own size"] = lambda: overhead(bench.engine, bench.some(n), None, args.repeats, steps)
        jobs["overhead of one picture"] = lambda: overhead(bench.engine, bench.some(1), None, args.repeats, steps)
    if not args.random_adm:
        small = 32 if bench.spec.flexible else bench.canvas
        same = bench.spec.name == "zip-tiny" and bench.where == "cpu"
        jobs["startup"] = lambda: startup(args.engine, small, args.repeats, device=args.device, threads=args.threads,
                                          same_weights=same)  # fmt: skip
    return jobs


def measure(args: argparse.Namespace, bench: Bench, state: State, bar: Any) -> tuple[list[Row], GuardRows]:
    """All rows and parts, as far as the budget goes."""
    guard = GuardRows(bench)
    rows = [row for row in [*guard.rows(), *bench.rows(), *peers(bench, guard.classify)] if row.letter in args.rows]
    # the cheap ones first, and those that others are compared with before these
    rows.sort(key=lambda row: "abcgedf".index(row.letter))
    jobs = parts(bench, args) if "p" in args.rows else {}

    def progress(label: str | None) -> None:
        bar.set_postfix_str(label or "", refresh=label is not None)
        bar.update(label is None)

    runner = Runner(rows, state, 60 * args.minutes, progress)
    bar.reset(runner.left + len([j for j in jobs if j not in state.parts]))
    runner.run()
    for name, job in jobs.items():
        if name not in state.parts:
            progress(name)
            state.parts[name] = job()
            state.save()
            progress(None)
    return rows, guard


def report(args: argparse.Namespace, bench: Bench, state: State, rows: list[Row], guard: GuardRows) -> dict[str, Any]:
    """The record."""
    try:
        about = guard.describe() if state.samples.get("detect") else None
    except LeftOut:
        about = None
    return {
        "quick": args.quick, "sessions": state.sessions, "model": bench.spec.name, "canvas": bench.canvas,
        "side": bench.side, "tiles": bench.tiles, "pictures": bench.source, "runs": bench.info, "guard": about,
        "rows": results(state, rows), "gates": gates(state), "claims": claims(state, bench), **state.parts,
        "paper": PAPER, "seconds_a_picture": state.samples, "counts": state.counts,
    }  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python bench/speed.py", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--quick", action="store_true", help="about a minute: few evaluations of each loop, scaled up")
    p.add_argument("--fresh", action="store_true", help="begin anew, and do not go on with a run that was stopped")
    p.add_argument("--rows", default="abcdefgp", metavar="LETTERS", help="a classifier, b ZIP whole, c tiled, d guard, "
                   "e BDMAE, f other peers, g loops of torch, p parts and start-up (default: all)")  # fmt: skip
    p.add_argument("--minutes", type=float, help="after so many no new round is begun (default: 60; --quick: 0.75)")
    p.add_argument("--rounds", type=int, help="of each row, at most (default: 7; --quick: 3)")
    p.add_argument("--decisions", type=int, help="of the guard (default: 640; --quick: 20)")
    p.add_argument("--measure", type=int, metavar="N", help="time N evaluations of each loop and scale (default: all; "
                   "--quick: 2)")  # fmt: skip
    p.add_argument("--check", type=int, metavar="N", help="compare pictures after N evaluations (default: 20; "
                   "--quick: 2)")  # fmt: skip
    p.add_argument("--peer-steps", type=int, metavar="N", help="time N evaluations of DiffPure, DDNM and SampDetox, "
                   "and scale (default: 10; --quick: 2); 0: all")  # fmt: skip
    p.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    g = p.add_argument_group("engine")
    g.add_argument("--engine", default="zip-tiny", metavar="NAME|FILE", help="a bundled model, .onnx or .plan")
    g.add_argument("--random-adm", action="store_true", help="OpenAI's 256x256 architecture with random weights")
    g.add_argument("--channels", type=int, default=256, help="of --random-adm (default: 256, the true one)")
    g.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="of --random-adm")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    g.add_argument("--threads", type=int, default=0, help="of the CPU; 0 takes all cores")
    g.add_argument("--canvas", type=int, help="default: the model's; 256 for one that takes several sizes")
    g = p.add_argument_group("pictures and classifier")
    g.add_argument(
        "--dataset", metavar="NAME", help="cifar10, gtsrb, imagenette or your own; see bench/data/layouts.py"
    )
    g.add_argument("--data", type=Path, metavar="FOLDER", help=f"where it is; or set {layouts.VARIABLE}")
    g.add_argument("--photos", type=Path, metavar="FOLDER|ZIP", help="pictures without labels")
    g.add_argument("--side", type=int, default=32, help="of the pictures (default: 32)")
    g.add_argument("--limit", type=int, default=1280, help="pictures at most (default: 1280)")
    g.add_argument("--poisoned", type=float, default=0.05, help="share (default: 0.05)")
    g.add_argument("--attack", default="badnets", help="see bench/attacks/registry.py (default: badnets)")
    g.add_argument("--architecture", default="resnet34", choices=tuple(ARCHITECTURES))
    g.add_argument("--epochs", type=int, help="of its training (default: the recipe's)")
    g.add_argument("--train", action="store_true", help="train it where it is not in the cache: hours on a CPU")
    g.add_argument("--mae", type=Path, metavar="FOLDER", help="of a ViT-MAE, for BDMAE (default: random weights)")
    user.add_options(p)
    g = p.add_argument_group("output")
    g.add_argument("--out", type=Path, help="for record and figures (default: bench/results and docs)")
    g.add_argument("--name", help="of the record and the figures (default: speed, and what is not the default)")
    g.add_argument("--progress", action="store_true", help="show the progress bar even where there is no terminal")
    return p


#: In full, and with --quick.
DEFAULTS = {"minutes": (60, 0.75), "rounds": (7, 3), "decisions": (640, 20), "measure": (None, 2), "check": (20, 2),
            "peer_steps": (10, 2), "repeats": (5, 1)}  # fmt: skip


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with their defaults put in."""
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
    """The command; `engine` in place of the one that the arguments name."""
    from tqdm import tqdm

    parser = arguments()
    args = settle(parser.parse_args(argv))
    if not 0 < args.poisoned < 1 or min(args.rounds, args.decisions, args.limit) < 1 or args.minutes <= 0:
        parser.error("--poisoned wants a share between 0 and 1, and all counts at least 1")
    if args.check < 2 or args.peer_steps == 1:
        parser.error("--check wants at least 2 evaluations, and --peer-steps too, or 0: none goes from noise in one")
    try:
        bench = Bench(args, cache_folder(), engine)
        state = State(state_path(args, bench), args.fresh)
        if state.samples:
            print("going on with a run that was stopped; --fresh begins anew", file=sys.stderr)
        with tqdm(file=sys.stderr, unit=" samples", disable=not (args.progress or sys.stderr.isatty())) as bar:
            rows, guard = measure(args, bench, state, bar)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except ZipSdkError as e:
        print(f"bench/speed.py: {e}", file=sys.stderr)
        return 3
    payload = report(args, bench, state, rows, guard)
    print(table(payload))
    path = record.write(args.name, payload, args.out or record.RESULTS)
    figures = draw(json.loads(path.read_text()), args.out or DOCS, args.name)
    state.path.unlink(missing_ok=True)  # what is finished is not gone on with
    for file in (path, *figures):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command ``zipsdk``: purify folders, look at models, ask what this machine can run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zipsdk
from zipsdk import images
from zipsdk.checks import positive
from zipsdk.engines import load_engine
from zipsdk.engines.plan import FLAVOURS, spec_of
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError, PictureError, ZipError
from zipsdk.files import check_sidecar, model_hashes, sha256_file
from zipsdk.jobs import U8, Run, find_jobs, same_file
from zipsdk.manifest import Job, Manifest
from zipsdk.models import bundled, find
from zipsdk.purifier import PRESETS, PROFILES, Purifier
from zipsdk.sheet import MAX_ROWS, before_after, contact_sheet, is_sheet
from zipsdk.spec import ModelSpec

_EXIT = """\
exit codes:
  0 all done    1 some pictures failed    2 wrong usage, input or output path
  3 the model is missing or damaged, or cannot run here    130 interrupted
"""

_START = """\
start with:
  zipsdk doctor                   what this machine can run
  zipsdk purify photos -o clean   purify a folder
  zipsdk purify --help            examples, and what the settings mean

"""

_PURIFY = (
    """\
examples:
  zipsdk purify photos -o clean                          a folder; its structure is kept
  zipsdk purify "photos/**/*.jpg" -o clean --format png  a glob; quote it, or the shell expands it and folders are lost
  zipsdk purify photos -o clean --profile fast           4 evaluations a picture in place of 20
  zipsdk purify photos -o clean --transforms blur4 --lam 2 --sheet

what the settings mean:
  --transforms  destroy a trigger. blurN averages cells of N x N pixels, gray the colours; "+" joins several, and "|"
                lets each picture draw one of several by chance: "blur2|blur4+gray"
  --lam         lambda, how long the restored picture is held to the input: 10 for patches, 2 for blended triggers
  --preset      default: what the model recommends; patch: against grey patches too; blended: against smooth coloured
                blends; random: each picture draws its transforms
  --profile     paper: 20 evaluations from pure noise; fast: 4 from a warm start, the blurred picture plus noise

A run that was stopped, however it was stopped, goes on where it was when the same command is given again: what has
been done is noted in OUT/.zipsdk-manifest.jsonl. A picture that has changed since is done again; one of another folder
that has the name of one that is done is refused. A picture that cannot be read is reported and left out; the next run
tries it again.

"""
    + _EXIT
)


_BUILD = (
    """\
examples:
  zipsdk build zip-tiny -o zip-tiny.plan                      for the GPU here; TensorRT-RTX: for all it knows
  zipsdk build adm256.onnx -o adm256.plan --batch 1,4         two profiles: for one picture, and for 2 to 4
  zipsdk build zip-tiny -o small.plan --size 32 --target sm86 one size, one kind of GPU: the smallest plan

A plan runs with the version of TensorRT that built it, on the GPUs that it was built for. Beside it PLAN.json is
written, which says so and holds its hash: keep the two together.

"""
    + _EXIT
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    warnings.formatwarning = lambda message, *_, **__: f"zipsdk: note: {message}\n"
    try:
        code: int = args.command(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # whoever read our output has left; without this the interpreter's last flush would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        where = e.filename2 or e.filename
        why = e.strerror or str(e) or type(e).__name__
        _say(f"error: {f'{where}: ' if where else ''}{why}; check the path, its permissions and the disk's room")
        return 2
    except KeyboardInterrupt:
        return 130
    except (ModelError, EngineError, MissingExtra) as e:
        _say(f"error: {e}")
        return 3
    except PictureError as e:
        _say(f"error: {e}")
        return 1
    except ZipError as e:
        _say(f"error: {e}")
        return 2


def _say(text: str) -> None:
    print(f"zipsdk: {text}", file=sys.stderr, flush=True)


# ---- purify


def _purify(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    out = Path(args.out)
    problems: list[str] = []
    note: Callable[[str], None] = (lambda text: None) if args.quiet else (lambda text: _say(f"note: {text}"))
    if out.suffix.lower() in images.SUFFIXES and not out.is_dir():
        raise InputError(f"{out}: the output is a folder, and this looks like a picture's name; give a folder")
    sheet = out / "zipsdk-sheet.png" if args.sheet is True else args.sheet and Path(args.sheet)
    jobs = find_jobs(args.inputs, out, args.format, problems.append, note, sheet)
    if sheet is not None:
        _check_sheet(sheet, out, jobs, args.overwrite)
    for problem in problems:
        _say(problem)

    engine = load_engine(args.model, device=args.device, threads=args.threads)
    purifier = Purifier(
        engine, args.transforms, lam=args.lam, steps=args.steps, eta=args.eta, combine=args.combine,
        profile=args.profile, preset=args.preset, start=args.start, seed=args.seed, canvas=args.canvas,
    )  # fmt: skip
    manifest = Manifest(out, jobs, _settings(purifier, args), args.seed, args.overwrite)
    # one seed for the folder, so that a run that goes on draws what the first one would have drawn
    purifier.seed = manifest.seed

    shown = not args.quiet and (args.progress or sys.stderr.isatty())
    with tqdm(unit=" pictures", disable=not shown, file=sys.stderr) as bar:
        run = Run(
            purifier, jobs, manifest, batch=args.batch,
            failure=lambda text: tqdm.write(f"zipsdk: {text}", file=sys.stderr), progress=bar.update,
        )  # fmt: skip
        bar.reset(len(run.todo))
        start = time.perf_counter()
        try:
            run()
        except BaseException as e:
            bar.close()
            what = "interrupted" if isinstance(e, KeyboardInterrupt) else "stopped"
            again = "the same command without --overwrite" if args.overwrite else "the same command"
            _say(f"{what} with {len(jobs) - len(run.todo) + run.done} of {len(jobs)} pictures done; {again} continues")
            raise
        finally:
            manifest.close()
    took = time.perf_counter() - start
    if sheet is not None:
        _write_sheet(sheet, purifier, out, jobs)
    failed = len(run.failed) + len(problems)
    if not args.quiet:
        rate = f" in {took:.1f} s ({run.done / took:.1f} pictures/s)" if run.done else ""
        print(f"{run.done} done{rate}, {len(jobs) - len(run.todo)} already done before, {failed} failed")
    return 1 if failed else 0


def _settings(purifier: Purifier, args: argparse.Namespace) -> dict[str, Any]:
    """What decides the result besides seed and pictures.

    Not device and batch, so that a run may go on elsewhere or with less memory: they shift it by no more than rounding,
    and the batch decides which pictures share a canvas.
    """
    return {
        "model": model_hashes(find(args.model) or Path(args.model)),
        "steps": [step.t for step in purifier.table.steps],
        **{key: purifier.info[key] for key in ("start", "transforms", "combine", "lam", "eta", "canvas")},
        "format": args.format,
    }


def _check_sheet(path: Path, out: Path, jobs: Sequence[Job], overwrite: bool) -> None:
    outputs = {os.path.realpath(out / job.name) for job in jobs}
    if os.path.realpath(path) in outputs or any(same_file(path, job.source) for job in jobs):
        raise InputError(f"{path}: the sheet would be written over a picture; give it another name")
    # before the run and not after it; its folders are made when it is written, so that a refusal leaves none behind
    folder = next(f for f in path.absolute().parents if os.path.lexists(f))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: {folder} is not a folder that may be written to; give the sheet another name")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the sheet another name")
    # perhaps a picture: --sheet before the inputs takes the first of them for its FILE
    if path.exists() and not overwrite and not is_sheet(path):
        raise InputError(
            f"{path}: is there already, and is no sheet that zipsdk wrote; give the sheet another name, or --overwrite"
        )


def _write_sheet(path: Path, purifier: Purifier, out: Path, jobs: Sequence[Job]) -> None:
    # spread over all pictures, in case neighbours look alike; of what failed there is no output, and that has been said
    shown = [job for job in jobs[:: -(-len(jobs) // MAX_ROWS)] if (out / job.name).exists()]

    def pairs() -> Iterator[tuple[U8, U8]]:  # one at a time, because they may be large
        for job in shown:
            with suppress(PictureError):
                yield images.read_one(job.source).rgb, images.read_one(out / job.name).rgb

    if shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        # where each picture drew its own transforms, no one guide shows what they left of all
        one = len(purifier.guides) == 1
        page = before_after(purifier.guides[0], pairs()) if one else contact_sheet(pairs(), ("before", "purified"))
        images.save(page, path)


# ---- info, models, doctor


def _info(args: argparse.Namespace) -> int:
    path = find(args.model) or Path(args.model)
    model, runs = (_plan_info if path.suffix == ".plan" and path.exists() else _onnx_info)(path, args.device)
    sidecar = check_sidecar(path)
    checked = "matches its sidecar" if sidecar else "not checked: there is no sidecar beside it"
    spec = dataclasses.asdict(model)
    record = {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path), "hash": checked}
    if args.json:
        print(json.dumps({**record, "spec": spec, "runs": runs}, indent=1))
        return 0
    for title, table in (("file", record), ("spec", spec), ("runs", runs)):
        print(title)
        for key, value in table.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            print(f"  {key:<15} {text or '-'}")
    return 0


def _onnx_info(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """What an ONNX model says, also where there is no ONNX Runtime but TensorRT, whose extra brings onnx."""
    try:
        engine = load_engine(path, device=device)
    except MissingExtra as e:
        try:
            return spec_of(path), {"engine": f"not here: {e}"}
        except MissingExtra:
            raise e from None
    return engine.spec, dict(getattr(engine, "info", {}))


def _plan_info(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """What a plan's sidecar says, also where the plan cannot run."""
    from zipsdk.engines.tensorrt import read_plan

    record = read_plan(path)
    try:
        runs = {**getattr(load_engine(path, device=device), "info", {})}
    except (EngineError, MissingExtra) as e:
        runs = {"engine": f"not here: {e}"}
    return record["spec"], {**record["plan"], **runs}


def _build(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from zipsdk.engines.plan import build

    model = find(args.model) or Path(args.model)
    out = Path(args.out)
    if out.suffix != ".plan":
        raise InputError(f"-o: got {out.name!r}, wanted a name that ends in .plan")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out}: is there already; give another name, or --overwrite")
    start, done = time.perf_counter(), 0
    shown = args.progress or sys.stderr.isatty()
    with tqdm(disable=not shown, file=sys.stderr, unit=" steps") as bar:

        def progress(phase: str, step: int, steps: int) -> bool:
            nonlocal done
            done += 1
            bar.set_description(phase[:40], refresh=False)
            bar.total = max(bar.total or 0, done + steps - step)
            bar.update()
            return True

        record = build(
            model, out, flavour=args.flavour, batches=args.batch, sizes=args.size, targets=args.target,
            progress=progress,
        )["plan"]  # fmt: skip
    took = time.perf_counter() - start
    sides = sorted(set(record["sizes"]))
    print(f"{out}: {out.stat().st_size / 1e6:,.1f} MB in {took:.1f} s by {FLAVOURS[record['flavour']][2]} "
          f"{record['runtime']}")  # fmt: skip
    print(
        f"  for {', '.join(record['targets'])}; batches up to {max(record['batches'])}, sides {sides[0]} to {sides[-1]}"
    )
    return 0


def _models(args: argparse.Namespace) -> int:
    for name in bundled():
        path = find(name) or Path(name)
        spec, _ = _onnx_info(path, "cpu")
        export = (check_sidecar(path) or {}).get("export", {})
        parameters = f"{export['parameters']:,} parameters" if "parameters" in export else "parameters unknown"
        sides = f"{spec.canvas}x{spec.canvas}"
        if spec.flexible:
            sides += f" (takes {spec.min_side} to {spec.max_side})"
        print(f"{name}  {sides}, {parameters}, {spec.licence or 'licence unknown'}")
    if not bundled():
        print("no model comes with this build of zipsdk; pass the path of an .onnx file as --model")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from zipsdk.doctor import checks

    lines, runs = checks()
    if args.json:
        print(json.dumps({"runs": runs, "checks": [dataclasses.asdict(c) for c in lines]}, indent=1))
    else:
        for c in lines:
            print(f"{'OK      ' if c.ok else 'not here'}  {c.name:<16}  {c.detail}")
            if c.fix:
                print(f"{'':28}-> {c.fix}")
        print("at least one engine runs here" if runs else "no engine runs here: see the lines above")
    return 0 if runs else 3


# ---- arguments


def _png(text: str) -> str:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted a .png file; without FILE put --sheet behind the inputs"
        )
    return text


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="zipsdk", description="Purify pictures in front of a classifier that may carry a backdoor.",
        epilog=_START + _EXIT, **form,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"zipsdk {zipsdk.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, epilog: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", epilog=epilog, **form
        )
        made.set_defaults(command=run)
        return made

    p = command("purify", _purify, "purify pictures, folders and globs", _PURIFY)
    p.add_argument("inputs", nargs="+", metavar="IN", help="a picture, a folder (with all below it) or a quoted glob")
    p.add_argument("-o", "--out", required=True, metavar="OUT", help="the folder to write to; it is made")
    p.add_argument(
        "--format",
        choices=("keep", "png", "jpg", "webp"),
        default="keep",
        help="of the outputs; keep writes GIF as PNG (default: keep)",
    )
    p.add_argument("--overwrite", action="store_true", help="start over, and write over what is in OUT and over FILE")
    p.add_argument(
        "--sheet",
        nargs="?",
        const=True,
        type=_png,
        metavar="FILE",
        help="write a page of up to 12 pictures before, transformed (if all are alike) and purified "
        "(without FILE: OUT/zipsdk-sheet.png)",
    )
    p.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")
    p.add_argument("--progress", action="store_true", help="show the progress bar even where there is no terminal")

    g = p.add_argument_group("settings (they decide the result)")
    g.add_argument("--profile", choices=tuple(PROFILES), default="paper", help="how to walk (default: paper)")
    g.add_argument(
        "--preset", choices=tuple(PRESETS), default="default", help="transforms and lambda by name (default: default)"
    )
    g.add_argument("--transforms", metavar="T", help='such as "blur2+gray" (default: the preset\'s)')
    g.add_argument("--lam", type=float, help="lambda, above 0 (default: the preset's)")
    g.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="evaluations a picture; from pure noise take a divisor of 1000: 600, for example, begin at time step 599, "
        "where the model expects a picture in the noise (default: the profile's, or one each 50 from --start)",
    )
    g.add_argument("--start", type=int, metavar="T", help="warm start at this time step (default: the profile's)")
    g.add_argument("--eta", type=float, default=1.0, help="1 fresh noise at each step, 0 none (default: 1, the paper)")
    g.add_argument(
        "--combine",
        choices=("mean", "joint"),
        default="mean",
        help="average the transforms, as the paper, or honour all at once (default: mean)",
    )
    g.add_argument(
        "--seed",
        type=int,
        help="for a result that can be repeated; who knows it can predict the noise, and "
        "OUT's manifest holds it (default: drawn once for OUT)",
    )
    g.add_argument(
        "--canvas",
        type=int,
        metavar="N",
        help="side of the canvases, for models that take several sizes (default: each picture at its own size)",
    )

    g = p.add_argument_group("machine")
    _add_model_options(g, positional=False)
    g.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU; 0 takes all cores (default: 0)")
    g.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="pictures to take together, at most; more keeps a GPU "
        "busy, and fills canvases that small pictures share (default: 16)",
    )  # fmt: skip

    p = command("build", _build, "compile an ONNX model into a TensorRT plan", _BUILD)
    p.add_argument("model", metavar="FILE|NAME", help="an .onnx file that zipsdk exported, or a bundled model's name")
    p.add_argument("-o", "--out", required=True, metavar="PLAN", help="the plan to write, NAME.plan")
    p.add_argument(
        "--flavour", choices=tuple(FLAVOURS), help="TensorRT (trt) or TensorRT-RTX (rtx) (default: what is installed)"
    )
    p.add_argument(
        "--batch", type=_numbers, default=[1, 8, 64], metavar="B,...", help="the largest batch of each profile "
        "(default: 1,8,64)",
    )  # fmt: skip
    p.add_argument(
        "--size",
        type=_numbers,
        metavar="N|MIN,USUAL,MAX",
        help="sides of the canvas (default: all that the model takes)",
    )
    p.add_argument(
        "--target", type=lambda text: text.split(","), metavar="sm86,...", help="GPUs to build for, TensorRT-RTX only "
        "(default: all that it knows, from sm80)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="write over PLAN")
    p.add_argument("--progress", action="store_true", help="show the progress bar even where there is no terminal")

    p = command("info", _info, "what a model file says of itself, and what runs it here",
                "examples:\n  zipsdk info zip-tiny\n  zipsdk info model.onnx --json\n")  # fmt: skip
    _add_model_options(p, positional=True)
    p.add_argument("--json", action="store_true", help="for programs")

    command("models", _models, "the models that come with zipsdk", "example:\n  zipsdk models\n")

    p = command("doctor", _doctor, "what this machine can run, why not, and what brings it",
                "examples:\n  zipsdk doctor\n  zipsdk doctor --json\n\nexit code 3: no engine runs\n")  # fmt: skip
    p.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add_model_options(p: Any, positional: bool) -> None:
    about = "a bundled model's name or a model file"
    if positional:
        p.add_argument("model", metavar="FILE|NAME", help=about)
    else:
        p.add_argument("--model", default="zip-tiny", help=f"{about} (default: zip-tiny)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")

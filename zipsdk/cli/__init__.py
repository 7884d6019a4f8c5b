"""The command ``zipsdk``: purify folders, look at models, ask what this machine can run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zipsdk import images
from zipsdk._util.atomic import make_folder
from zipsdk.batch.discovery import describe_skipped, find_jobs, same_file
from zipsdk.batch.manifest import Job, Manifest
from zipsdk.batch.runner import U8, Run
from zipsdk.cli.arguments import parse
from zipsdk.cli.console import (  # fmt: skip
    Signals,
    StdoutError,
    Stopped,
    hold_standard_files,
    notes_for_warnings,
    printable,
    progress_bar,
    say,
    settle_streams,
    stop_signals,
    tell,
)
from zipsdk.engines import load_engine
from zipsdk.engines.tensorrt.build import read_spec
from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError, PictureError, ZipError
from zipsdk.images.contact_sheet import MAX_ROWS, before_after, contact_sheet, is_sheet
from zipsdk.models import list_models, resolve
from zipsdk.models.sidecar import check_sidecar, model_hashes, sha256_file
from zipsdk.models.spec import ModelSpec
from zipsdk.purifier import Purifier


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Without `argv` this is the process's command: standard files that are closed are opened on the null device, and a
    second Ctrl-C ends the process at once. With it, streams, warnings and signal handlers are left as they were.
    """
    command = argv is None
    if command:
        hold_standard_files()
    try:
        with notes_for_warnings(), stop_signals(leave=command) as signals:
            code = _run(argv, signals)
    except SystemExit as e:  # argparse, after its help or its complaint
        if command and (late := settle_streams()) and not e.code:
            raise SystemExit(late) from None
        raise
    late = settle_streams() if command else 0
    return code or late


def _run(argv: Sequence[str] | None, signals: Signals) -> int:
    commands = {"purify": _purify, "build": _build, "info": _info, "models": _models, "doctor": _doctor}
    try:
        args = parse(commands, argv)
        code: int = args.command(args)
        return code
    except (KeyboardInterrupt, Stopped):
        return signals.code
    except Exception as e:
        if signals.signum is not None:  # a library has made an error of the interrupt: ONNX Runtime's import does
            return signals.code
        return _report(e)


def _report(e: Exception) -> int:
    """Say what went wrong; returns the exit code. What is no error of ours or of the system is raised again."""
    if isinstance(e, StdoutError):
        if isinstance(e.__cause__, BrokenPipeError):
            return 141
        why = getattr(e.__cause__, "strerror", None) or e.__cause__
        say(f"error: standard output: cannot be written ({why}); send it elsewhere, or to /dev/null")
        return 2
    if isinstance(e, OSError):
        where = e.filename2 or e.filename
        why = e.strerror or str(e) or type(e).__name__
        say(f"error: {f'{where}: ' if where else ''}{why}; check the path, its permissions and the disk's room")
        return 2
    if isinstance(e, ZipError):
        say(f"error: {e}")
        return 3 if isinstance(e, (ModelError, EngineError, MissingExtra)) else 1 if isinstance(e, PictureError) else 2
    raise e


# ---- purify


def _purify(args: argparse.Namespace) -> int:
    out = Path(args.out)
    problems: list[str] = []
    skipped: set[Path] = set()
    note: Callable[[str], None] = (lambda text: None) if args.quiet else (lambda text: say(f"note: {text}"))

    def problem(text: str) -> None:
        problems.append(text)
        say(text)

    if out.suffix.lower() in images.SUFFIXES and not out.is_dir():
        raise InputError(f"{out}: the output is a folder, and this looks like a picture's name; give a folder")
    sheet = out / "zipsdk-sheet.png" if args.sheet is True else args.sheet and Path(args.sheet)
    jobs = find_jobs(args.inputs, out, args.format, problem, note, sheet, skipped.add)
    if sheet is not None:
        _check_sheet(sheet, out, jobs, args.overwrite)
    if skipped:  # also with --quiet: who passes a folder on must know what is not in it
        say(describe_skipped(skipped))

    engine = load_engine(args.model, device=args.device, threads=args.threads)
    purifier = Purifier(
        engine, args.transforms, lam=args.lam, steps=args.steps, eta=args.eta, combine=args.combine,
        preset=args.preset, start=args.start, seed=args.seed, tile_size=args.canvas,
    )  # fmt: skip
    manifest = Manifest(out, jobs, _settings(purifier, args), args.seed, args.overwrite)

    with progress_bar(" pictures", args.progress, args.quiet) as bar:
        run = Run(purifier, jobs, manifest, batch=args.batch, failure=bar.say, progress=bar.update)
        bar.begin(len(run.todo))
        start = time.perf_counter()
        try:
            run()
        except BaseException as e:
            bar.close()
            what = "interrupted" if isinstance(e, KeyboardInterrupt) else "stopped"
            by = f" by {e}" if isinstance(e, Stopped) else ""
            again = "the same command without --overwrite" if args.overwrite else "the same command"
            n = len(jobs) - len(run.todo) + run.done
            say(f"{what}{by} with {n} of {len(jobs)} pictures done; {again} continues")
            raise
        finally:
            manifest.close()
    took = time.perf_counter() - start
    if sheet is not None:
        _write_sheet(sheet, purifier, out, jobs)
    failed = len(run.failed) + len(problems)
    if not args.quiet:
        rate = f" in {took:.1f} s ({run.done / took:.1f} pictures/s)" if run.done else ""
        tell(f"{run.done} done{rate}, {len(jobs) - len(run.todo)} already done before, {failed} failed")
    return 1 if failed else 0


def _settings(purifier: Purifier, args: argparse.Namespace) -> dict[str, Any]:
    """What decides the result besides seed and pictures.

    Not device and batch, so that a run may go on elsewhere or with less memory: they shift it by no more than rounding,
    and the batch decides which pictures share a canvas.
    """
    return {
        "model": model_hashes(resolve(args.model) or Path(args.model)),
        "steps": [step.t for step in purifier.table.steps],
        **{key: purifier.info[key] for key in ("start", "transforms", "combine", "lam", "eta", "tile_size")},
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
            f"{path}: is there already, and is no sheet that zipsdk wrote; give the sheet another name, "
            "or --overwrite, which starts the whole run over"
        )


def _write_sheet(path: Path, purifier: Purifier, out: Path, jobs: Sequence[Job]) -> None:
    # spread over all pictures, in case neighbours look alike; of what failed there is no output, and that has been said
    shown = [job for job in jobs[:: -(-len(jobs) // MAX_ROWS)] if (out / job.name).exists()]

    def pairs() -> Iterator[tuple[U8, U8]]:  # one at a time, because they may be large
        for job in shown:
            with suppress(PictureError):
                yield images.read_one(job.source).rgb, images.read_one(out / job.name).rgb

    if shown:
        make_folder(path.parent)
        # where each picture drew its own transforms, no one guide shows what they left of all
        one = len(purifier.guides) == 1
        page = before_after(purifier.guides[0], pairs()) if one else contact_sheet(pairs(), ("before", "purified"))
        images.save(page, path)


# ---- info, models, doctor


def _info(args: argparse.Namespace) -> int:
    path = resolve(args.model) or Path(args.model)
    model, runs = (_plan_info if path.suffix == ".plan" and path.exists() else _onnx_info)(path, args.device)
    sidecar = check_sidecar(path)
    checked = "matches its sidecar" if sidecar else "not checked: there is no sidecar beside it"
    spec = dataclasses.asdict(model)
    record = {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path), "hash": checked}
    if args.json:
        tell(json.dumps({**record, "spec": spec, "runs": runs}, indent=1))
        return 0
    for title, table in (("file", record), ("spec", spec), ("runs", runs)):
        tell(title)
        for key, value in table.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            tell(f"  {key:<15} {printable(text) or '-'}")
    return 0


def _onnx_info(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """What an ONNX model says, also where there is no ONNX Runtime but TensorRT, whose extra brings onnx."""
    try:
        engine = load_engine(path, device=device)
    except MissingExtra as e:
        try:
            return read_spec(path), {"engine": f"not here: {e}"}
        except MissingExtra:
            raise e from None
    return engine.spec, engine.info


def _plan_info(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """What a plan's sidecar says, also where the plan cannot run."""
    from zipsdk.engines.tensorrt.plan_file import read_plan

    record = read_plan(path)
    try:
        runs = load_engine(path, device=device).info
    except (EngineError, MissingExtra) as e:
        runs = {"engine": f"not here: {e}"}
    return record["spec"], {**record["plan"], **runs}


def _build(args: argparse.Namespace) -> int:
    from zipsdk.engines.tensorrt.build import build

    model = resolve(args.model) or Path(args.model)
    out = Path(args.out)
    if out.suffix != ".plan":
        raise InputError(f"-o: got {out.name!r}, wanted a name that ends in .plan")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out}: is there already; give another name, or --overwrite")
    start, done = time.perf_counter(), 0
    with progress_bar(" steps", args.progress, quiet=False) as bar:

        def progress(phase: str, step: int, steps: int) -> bool:
            nonlocal done
            done += 1
            bar.grow(done + steps - step, phase[:40])
            return True

        record = build(
            model, out, flavor=args.flavor, batches=args.batch, sizes=args.size, targets=args.target,
            progress=progress,
        )["plan"]  # fmt: skip
    took = time.perf_counter() - start
    sides = sorted(set(record["sizes"]))
    tell(f"{out}: {out.stat().st_size / 1e6:,.1f} MB in {took:.1f} s by {FLAVORS[record['flavor']].name} "
          f"{record['runtime']}")  # fmt: skip
    tell(
        f"  for {', '.join(record['targets'])}; batches up to {max(record['batches'])}, sides {sides[0]} to {sides[-1]}"
    )
    return 0


def _models(args: argparse.Namespace) -> int:
    for name in list_models():
        path = resolve(name) or Path(name)
        spec, _ = _onnx_info(path, "cpu")
        export = (check_sidecar(path) or {}).get("export", {})
        parameters = f"{export['parameters']:,} parameters" if "parameters" in export else "parameters unknown"
        sides = f"{spec.image_size}x{spec.image_size}"
        if spec.flexible:
            sides += f" (takes {spec.min_side} to {spec.max_side})"
        tell(f"{name}  {sides}, {parameters}, {spec.license or 'licence unknown'}")
    if not list_models():
        tell("no model comes with this build of zipsdk; pass the path of an .onnx file as --model")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from zipsdk.cli.doctor import checks

    lines, runs = checks()
    if args.json:
        tell(json.dumps({"runs": runs, "checks": [dataclasses.asdict(c) for c in lines]}, indent=1))
    else:
        for c in lines:
            tell(f"{'OK      ' if c.ok else 'not here'}  {c.name:<16}  {c.detail}")
            if c.fix:
                tell(f"{'':28}-> {c.fix}")
        tell("at least one engine runs here" if runs else "no engine runs here: see the lines above")
    return 0 if runs else 3

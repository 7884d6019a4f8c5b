"""The command ``zipsdk purify``: purify files, folders and patterns into a folder."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zipsdk import images
from zipsdk._util.atomic import make_folder
from zipsdk.batch.discovery import describe_skipped, find_jobs, same_file
from zipsdk.batch.manifest import Job, Manifest
from zipsdk.batch.runner import Run
from zipsdk.cli.args import (
    EXIT_CODES,
    add_command,
    add_device,
    add_precision,
    add_progress,
    path_text,
    png_path,
    positive_int,
    thread_count,
)
from zipsdk.cli.console import print_message, print_output, printable, progress_bar
from zipsdk.cli.signals import Stopped
from zipsdk.engines import load_engine
from zipsdk.errors import ImageReadError, InputError
from zipsdk.images.contact_sheet import MAX_ROWS, before_after, contact_sheet, is_sheet
from zipsdk.models.sidecar import model_hashes
from zipsdk.presets import PRESETS
from zipsdk.purifier import Purifier
from zipsdk.types import U8

_EPILOG = (
    """\
examples:
  zipsdk purify photos -o clean                          a folder; the output has the same structure
  zipsdk purify "photos/**/*.jpg" -o clean --format png  a pattern; in quotes, or the shell expands it to single files
  zipsdk purify photos -o clean --preset fast            4 steps for each image instead of 20
  zipsdk purify photos -o clean --transforms blur4 --lambda 2 --sheet

settings:
  --transforms  image transforms that destroy a trigger. blurN averages blocks of N x N pixels, gray removes colors;
                "+" joins several, and with "|" each image draws one of several at random: "blur2|blur4+gray";
                random draws one of "blur2|gray|blur2+gray|blur4+gray"
  --lambda      how long the restored image is held to the transformed input: 10 for patches, 2 for blended triggers
  --preset      paper: 20 steps from pure noise; fast: 4 steps from the transformed image plus noise

inputs:
  A path that exists is taken literally, also with *, ? or [ in its name. In a pattern *, ? and [...] match within a
  name, and ** matches any number of folders. Hidden names need a pattern with the dot. Write ./-name for a name that
  starts with -. Output folders of earlier runs inside a folder or a pattern are left out. Image formats that zipsdk
  does not read (.heic, .jxl and others) are skipped, and their number is printed to standard error; the exit code
  stays 0.

Interrupted runs resume: repeat the same command. Progress is kept in OUT/.zipsdk-manifest.jsonl. Modified inputs are
processed again; two inputs with the same output are an error; unreadable images are skipped and tried again by the
next run.

"""
    + EXIT_CODES
)


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    p = add_command(commands, "purify", "purify images, folders and patterns", _EPILOG, run)
    _add_files(p)
    _add_settings(p.add_argument_group("settings (they decide the result)"))
    _add_machine(p.add_argument_group("machine"))


def _add_files(p: Any) -> None:
    p.add_argument(
        "inputs",
        nargs="+",
        type=path_text,
        metavar="IN",
        help="an image, a folder (with all folders in it) or a quoted pattern",
    )
    p.add_argument("-o", "--out", required=True, type=path_text, metavar="OUT", help="the output folder; it is created")
    p.add_argument(
        "--format",
        choices=("keep", "png", "jpg", "webp"),
        default="keep",
        help="format of the outputs; keep writes GIF as PNG (default: keep)",
    )
    p.add_argument("--overwrite", action="store_true", help="start over, and overwrite files in OUT and FILE")
    p.add_argument(
        "--sheet",
        nargs="?",
        const=True,
        type=png_path,
        metavar="FILE",
        help="write a page of up to 12 images before, transformed (if all have the same transforms) and purified "
        "(without FILE: OUT/zipsdk-sheet.png)",
    )
    p.add_argument("--quiet", action="store_true", help="print errors only")
    add_progress(p)


def _add_settings(g: Any) -> None:
    g.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="sampling preset: paper (20 steps) or fast (4 steps) (default: from the model; zip-tiny: paper)",
    )
    g.add_argument("--transforms", metavar="T", help='such as "blur2+gray", or random (default: from the model)')
    g.add_argument(
        "--lambda", "--lam", dest="lam", type=float, metavar="X", help="lambda, above 0 (default: from the model)"
    )
    g.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="number of denoising steps; without --start use a divisor of 1000, such as 20, 50 or 100 "
        "(default: from --preset)",
    )
    g.add_argument("--start", type=int, metavar="T", help="start from this time step (default: from --preset)")
    g.add_argument(
        "--eta",
        metavar="X",
        type=float,
        default=1.0,
        help="fresh noise at each step, 0 (none) to 1 (default: 1, as in the paper)",
    )
    g.add_argument(
        "--combine",
        choices=("mean", "joint"),
        default="mean",
        help="average the transforms, as in the paper, or apply all of them jointly (default: mean)",
    )
    g.add_argument(
        "--seed",
        type=int,
        help="seed of the noise, for repeatable results; anyone who knows it can predict the noise, and the manifest "
        "in OUT contains it (default: drawn once for OUT)",
    )
    g.add_argument(
        "--tile-size",
        type=int,
        metavar="N",
        help="side of the tiles, for models that take several sizes (default: each image at its own size)",
    )


def _add_machine(g: Any) -> None:
    g.add_argument(
        "--model",
        type=path_text,
        default="zip-tiny",
        help="a model file or the name of a bundled model (default: zip-tiny)",
    )
    add_device(g)
    add_precision(g)
    g.add_argument(
        "--threads", type=thread_count, default=0, metavar="N", help="CPU threads; 0 for all cores (default: 0)"
    )
    g.add_argument(
        "--batch",
        type=positive_int,
        default=16,
        metavar="N",
        help="maximum number of images in a batch; larger batches keep a GPU busy and fill tiles that small images "
        "share (default: 16)",
    )


def run(args: argparse.Namespace) -> int:
    """Purify the inputs; return the exit code."""
    out = Path(args.out)
    errors: list[str] = []
    skipped: set[Path] = set()

    def on_error(message: str) -> None:
        errors.append(message)
        print_message(message)

    def on_warning(message: str) -> None:
        if not args.quiet:
            print_message(f"note: {message}")

    if out.suffix.lower() in images.SUFFIXES and not out.is_dir():
        raise InputError(f"{out}: got the name of an image, expected a folder to write to; use another name")
    sheet = out / "zipsdk-sheet.png" if args.sheet is True else args.sheet and Path(args.sheet)
    jobs = find_jobs(args.inputs, out, args.format, on_error, on_warning, sheet, skipped.add)
    if sheet is not None:
        _check_sheet(sheet, out, jobs, args.overwrite)
    if skipped:  # also with --quiet, because OUT lacks these images
        print_message(describe_skipped(skipped))

    engine = load_engine(args.model, device=args.device, threads=args.threads, precision=args.precision)
    purifier = Purifier(
        engine,
        args.transforms,
        lam=args.lam,
        steps=args.steps,
        eta=args.eta,
        combine=args.combine,
        preset=args.preset,
        start=args.start,
        seed=args.seed,
        tile_size=args.tile_size,
    )
    manifest = Manifest(out, jobs, _settings(purifier, engine.path, args.format), args.seed, args.overwrite)
    batches, seconds = _run_batches(purifier, jobs, manifest, args)
    if sheet is not None:
        _write_sheet(sheet, purifier, out, jobs)
    failed = len(batches.failed) + len(errors)
    if not args.quiet:
        rate = f" in {seconds:.1f} s ({_rate(batches.done, seconds)})" if batches.done else ""
        before, folder = len(jobs) - len(batches.todo), printable(str(out))
        print_output(f"{batches.done} done{rate}, {before} already done before, {failed} failed; results in {folder}")
        if sheet is not None and sheet.exists():
            print_output(f"sheet: {printable(str(sheet))}")
    return 1 if failed else 0


def _rate(images: int, seconds: float) -> str:
    return f"{images / seconds:.1f} images/s" if images >= seconds else f"{seconds / images:.1f} s per image"


def _run_batches(
    purifier: Purifier, jobs: Sequence[Job], manifest: Manifest, args: argparse.Namespace
) -> tuple[Run, float]:
    """Purify the jobs that are not done; return the finished run and its seconds."""
    with progress_bar(" images", args.progress, args.quiet) as bar:
        run = Run(purifier, jobs, manifest, batch=args.batch, on_error=bar.message, on_progress=bar.update)
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
            print_message(f"{what}{by} with {n} of {len(jobs)} images done; {again} continues")
            raise
        finally:
            manifest.close()
    return run, time.perf_counter() - start


def _settings(purifier: Purifier, model: Path, image_format: str) -> dict[str, Any]:
    """Return what decides the result besides the seed and the images.

    Device and batch size are left out, so that a run may continue on another device or with less memory: both change
    results by rounding only, and the batch size decides which images share a frame.
    """
    return {
        "model": model_hashes(model),
        "steps": [step.t for step in purifier.table.steps],
        **{key: purifier.info[key] for key in ("start", "transforms", "combine", "lam", "eta", "tile_size")},
        "format": image_format,
    }


def _check_sheet(path: Path, out: Path, jobs: Sequence[Job], overwrite: bool) -> None:
    """Check the path of the sheet before the run; its folders are made when it is written."""
    outputs = {os.path.realpath(out / job.name) for job in jobs}
    if os.path.realpath(path) in outputs or any(same_file(path, job.source) for job in jobs):
        raise InputError(f"{path}: the sheet would overwrite an image; give it another name")
    folder = next(f for f in path.absolute().parents if os.path.lexists(f))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: {folder} is not a writable folder; give the sheet another name")
    if path.is_dir():
        raise InputError(f"{path}: got a folder, expected a file; give the sheet another name")
    # it may be an image: --sheet in front of the inputs takes the first one as FILE
    if path.exists() and not overwrite and not is_sheet(path):
        raise InputError(
            f"{path}: got a file that is not a sheet of zipsdk; give the sheet another name, "
            "or use --overwrite, which starts the whole run over"
        )


def _write_sheet(path: Path, purifier: Purifier, out: Path, jobs: Sequence[Job]) -> None:
    # every n-th image, because images next to each other may look alike; failed images have no output
    shown = [job for job in jobs[:: -(-len(jobs) // MAX_ROWS)] if (out / job.name).exists()]

    def pairs() -> Iterator[tuple[U8, U8]]:  # a generator, because the images may be large
        for job in shown:
            with suppress(ImageReadError):
                yield images.read_one(job.source).rgb, images.read_one(out / job.name).rgb

    if shown:
        make_folder(path.parent)
        # with several choices of transforms, the transformed image is unknown
        one = len(purifier.guides) == 1
        page = before_after(purifier.guides[0], pairs()) if one else contact_sheet(pairs(), ("before", "purified"))
        images.save(page, path)

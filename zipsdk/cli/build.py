"""The command ``zipsdk build``: compile an ONNX model into a TensorRT plan."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from zipsdk.cli.args import EXIT_CODES, add_command, add_plan_options, add_progress, path_text, positive_ints
from zipsdk.cli.console import print_output, progress_bar
from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.errors import InputError
from zipsdk.models import resolve

_EPILOG = (
    """\
examples:
  zipsdk build zip-tiny -o zip-tiny.plan                for this GPU; with TensorRT-RTX for all supported GPUs
  zipsdk build adm256.onnx -o adm256.plan --batch 1,4   two profiles: for one image, and for 2 to 4
  zipsdk build zip-tiny -o zip-tiny.plan --image-size 32 --target sm86

A plan runs with the version of TensorRT that built it, on the GPUs for which it was built. PLAN.json, next to the
plan, records both and the hash of the plan: keep the two files together.

"""
    + EXIT_CODES
)


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    p = add_command(commands, "build", "compile an ONNX model into a TensorRT plan", _EPILOG, run)
    p.add_argument(
        "model",
        type=path_text,
        metavar="FILE|NAME",
        help="an .onnx file that zipsdk exported, or the name of a bundled model",
    )
    p.add_argument("-o", "--out", required=True, type=path_text, metavar="PLAN", help="the plan to write, NAME.plan")
    add_plan_options(p)
    p.add_argument(
        "--image-size",
        type=positive_ints,
        metavar="N|MIN,OPT,MAX",
        help="sides of the images that the engine takes (default: all that the model takes)",
    )
    p.add_argument("--overwrite", action="store_true", help="overwrite PLAN")
    add_progress(p)


def run(args: argparse.Namespace) -> int:
    """Build a plan; return the exit code."""
    from zipsdk.engines.tensorrt.build import build

    model = resolve(args.model) or Path(args.model)
    out = Path(args.out)
    if out.suffix != ".plan":
        raise InputError(f"-o: got {out.name!r}, expected a name that ends in .plan")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out}: got a file that exists, expected a new one; use another name, or --overwrite")
    start, done = time.perf_counter(), 0
    with progress_bar(" steps", args.progress, quiet=False) as bar:

        def on_progress(phase: str, step: int, steps: int) -> bool:
            nonlocal done
            done += 1
            bar.advance(done + steps - step, phase[:40])
            return True

        record = build(
            model,
            out,
            flavor=args.flavor,
            batches=args.batch,
            sizes=args.image_size,
            targets=args.target,
            progress=on_progress,
        )["plan"]
    seconds = time.perf_counter() - start
    sides = sorted(set(record["sizes"]))
    megabytes, runtime = out.stat().st_size / 1e6, FLAVORS[record["flavor"]].name
    print_output(f"{out}: {megabytes:,.1f} MB in {seconds:.1f} s by {runtime} {record['runtime']}")
    targets, batch = ", ".join(record["targets"]), max(record["batches"])
    print_output(f"  for {targets}; batches up to {batch}, sides {sides[0]} to {sides[-1]}")
    return 0

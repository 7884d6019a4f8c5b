"""The command ``zipsdk info``: show the spec of a model file and the runtime that runs it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from zipsdk.cli.args import add_command, add_device, add_json, path_text
from zipsdk.cli.console import print_output, printable
from zipsdk.engines import load_engine
from zipsdk.engines.tensorrt.build import read_spec
from zipsdk.errors import EngineError, MissingDependencyError
from zipsdk.models import resolve
from zipsdk.models.sidecar import check_sidecar, sha256_file
from zipsdk.models.spec import ModelSpec

_EPILOG = """\
examples:
  zipsdk info
  zipsdk info model.onnx --json
"""


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    p = add_command(commands, "info", "show what a model file contains, and what runs it on this machine", _EPILOG, run)
    p.add_argument(
        "model",
        nargs="?",
        default="zip-tiny",
        type=path_text,
        metavar="FILE|NAME",
        help="a model file or the name of a bundled model (default: zip-tiny)",
    )
    add_device(p)
    add_json(p)


def run(args: argparse.Namespace) -> int:
    """Print the file, spec and runtime of a model; return the exit code."""
    path = resolve(args.model) or Path(args.model)
    read = read_plan_file if path.suffix == ".plan" and path.exists() else read_onnx
    model, runs = read(path, args.device)
    hash_result = "matches its sidecar" if check_sidecar(path) else "not checked: the file has no sidecar"
    spec = {"name": model.name, **dataclasses.asdict(model)}
    record = {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path), "hash": hash_result}
    if args.json:
        print_output(json.dumps({**record, "spec": spec, "runs": runs}, indent=1))
        return 0
    for title, table in (("file", record), ("spec", spec), ("runs", runs)):
        print_output(title)
        for key, value in table.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            print_output(f"  {key:<15} {printable(text) or '-'}")
    return 0


def read_onnx(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """Read the spec of an ONNX model and what runs it; without ONNX Runtime, the package onnx reads the spec."""
    try:
        engine = load_engine(path, device=device)
    except MissingDependencyError as e:
        try:
            return read_spec(path), {"engine": f"not available: {e}"}
        except MissingDependencyError:
            raise e from None
    return engine.spec, engine.info


def read_plan_file(path: Path, device: str) -> tuple[ModelSpec, dict[str, Any]]:
    """Read the spec in the sidecar of a plan and what runs it; the plan itself may not run on this machine."""
    from zipsdk.engines.tensorrt.plan_file import read_plan

    record = read_plan(path)
    try:
        runs = load_engine(path, device=device).info
    except (EngineError, MissingDependencyError) as e:
        runs = {"engine": f"not available: {e}"}
    return record["spec"], {**record["plan"], **runs}

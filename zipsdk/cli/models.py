"""The command ``zipsdk models``: list the bundled models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zipsdk.cli.args import add_command
from zipsdk.cli.console import print_output
from zipsdk.cli.info import read_onnx
from zipsdk.models import list_models, resolve
from zipsdk.models.sidecar import check_sidecar


def add_parser(commands: Any) -> None:
    """Add the parser of the command."""
    add_command(commands, "models", "list the models that come with zipsdk", "example:\n  zipsdk models\n", run)


def run(args: argparse.Namespace) -> int:
    """Print one line for each bundled model; return the exit code."""
    names = list_models()
    for name in names:
        path = resolve(name) or Path(name)
        spec, _ = read_onnx(path, "cpu")
        export = (check_sidecar(path) or {}).get("export", {})
        parameters = f"{export['parameters']:,} parameters" if "parameters" in export else "parameters unknown"
        sides = f"{spec.image_size}x{spec.image_size}"
        if spec.flexible:
            sides += f" (takes {spec.min_side} to {spec.max_side})"
        print_output(f"{name:<{max(map(len, names))}}  {sides}, {parameters}, {spec.license or 'license unknown'}")
    if not names:
        print_output("no model comes with this build of zipsdk; pass the path of an .onnx file as --model")
    return 0

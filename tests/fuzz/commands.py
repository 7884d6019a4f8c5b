"""Command lines, and folders with a manifest that is damaged."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.edits import Draw, index
from tests.fuzz.graphs import toy
from tests.fuzz.recipes import Recipe, Violation, demand
from zipsdk.batch.manifest import MANIFEST
from zipsdk.cli import main

#: What an argument may be. Numbers that make a valid run long are left out.
PATHS = ("a.png", "photos", "photos/a.png", "photos/*.png", "ph*[", "[", "none.png", "photos/[x].png", "**",
         "text.txt",
         "out", ".", "..", "toy.onnx", "text.onnx", "x.plan", "zip-none", "nul\0byte", "bad\udcffname", "x" * 300,
         "/dev/null", "/proc/self/mem", "sheet.png", "out/zipsdk-sheet.png", "photos/b.png", "é")  # fmt: skip
NUMBERS = (
    "1",
    "2",
    "0",
    "-1",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1.5",
    "0x10",
    "٣",
    "1" * 30,
    "1" * 5000,
    "1e-300",
    "32",
    "64",
)
WORDS = ("", "-", "--", *PATHS, *NUMBERS, "1,2", "8,32,64", "2,1", ",", "gray", "+", "cpu", "keep", "-h", "--help",
         "--version")  # fmt: skip
#: The options of each command, with values that come close to what they take.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "purify": {
        "-o": PATHS, "--out": PATHS, "--format": ("keep", "jpg", "webp", "gif"), "--overwrite": (), "--sheet": PATHS,
        "--quiet": (), "--progress": (), "--preset": ("fast", "paper", "none"),
        "--transforms": ("blur2", "blur0", "blur2+gray", "blur2|gray", "blur9999", "blur3", "gray", "+", "|",
                         "blur7+blur11"),
        "--lam": NUMBERS, "--steps": ("1", "2", "3", "0", "-1", "nan", "1" * 30), "--start": ("1", "400", "999",
                                      "1000", "0", "-5"),
        "--eta": NUMBERS, "--combine": ("mean", "joint", "none"), "--seed": NUMBERS, "--tile-size": NUMBERS,
                                        "--model": PATHS,
        "--device": ("cpu", "cuda", "cuda:9", "auto", "cuda:", "gpu"), "--threads": ("1", "0", "-1", "2", "1" * 30),
        "--batch": NUMBERS, "--none": (),
    },
    "info": {"--json": (), "--device": ("cpu", "cuda", "cuda:" + "9" * 30, "gpu"), "--model": PATHS},
    "build": {
        "-o": PATHS, "--flavor": ("trt", "rtx", "none"), "--batch": ("1,2", "2,1", ",", "0", "1" * 30, "1,8,64"),
        "--image-size": ("32", "8,32,64", "64,32,8", "1,2", "0"),
        "--target": ("sm86", "sm75", ",", "sm" + "9" * 30, "x"), "--overwrite": (), "--progress": (),
    },
    "models": {"--json": ()},
    "none": {"-o": PATHS, "--version": ()},
}  # fmt: skip
CODES = {0, 1, 2, 3, 130, 141}


def draw_command(draw: Draw) -> Recipe:
    """Draw the recipe of a command line."""
    name = draw(st.sampled_from(("purify", "purify", "purify", "purify", "info", "build", "models", "none")))
    argv = [name] if name != "none" or draw(st.booleans()) else []
    if name == "purify" and draw(st.integers(0, 7)):  # mostly a run that would work
        argv += ["photos", "-o", "out", "--model", "toy.onnx", "--threads", "1", "--steps", "2"]
    if name == "info" and draw(st.booleans()):
        argv += ["toy.onnx"]
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        option = draw(st.sampled_from((*OPTIONS[name], "")))
        near = OPTIONS[name].get(option, ())
        word = draw(st.sampled_from(near if near and draw(st.integers(0, 4)) else WORDS))
        if option and draw(st.integers(0, 4)) == 0:
            argv.append(f"{option}={word}")
        elif option:
            argv += [option, word] if near and draw(st.integers(0, 9)) else [option]
        else:
            argv.insert(index(draw, len(argv) + 1), word)
    if name == "build":  # a build that works takes seconds: the model is never a model
        argv = ["toy-none.onnx" if a == "toy.onnx" else a for a in argv]
    return {"argv": argv}


@cache
def _template() -> Path:
    """Make a folder with images, a model, and outputs of a run."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (root / "photos").mkdir()
    rng = np.random.default_rng(3)
    for name in ("a.png", "b.png", "[x].png"):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(root / "photos" / name)
    (root / "text.txt").write_text("text")
    (root / "text.onnx").write_text("text")
    (root / "x.plan").write_text("text")
    (root / "toy.onnx").write_bytes(toy())
    code, _, err = _run(
        root, ["purify", "photos", "-o", "done", "--model", "toy.onnx", "--threads", "1", "--steps", "2", "--seed", "1"]
    )
    demand(code == 0, f"the run that makes the template ends with {code}: {err}")
    return root


def forget_template() -> None:
    """Remove the folder that `check_command` and `check_manifest` copy."""
    if _template.cache_info().currsize:
        shutil.rmtree(_template(), ignore_errors=True)
        _template.cache_clear()


def _run(folder: Path, argv: list[str]) -> tuple[Any, str, str]:
    """Run the command in a folder: (exit code, output, errors)."""
    before = Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    shown = warnings.formatwarning
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")  # as a user's command has it
            try:
                code: Any = main(argv)
            except SystemExit as e:
                code = e.code
    finally:
        warnings.formatwarning = shown
        os.chdir(before)
    return code, out.getvalue(), err.getvalue()


def _sources(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "photos").iterdir()}


def check_command(recipe: Recipe, folder: Path) -> str:
    """Run a command line: it ends with a documented code, prints the reason on stderr and keeps its inputs."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("done"))
    code, _, err = _run(folder, recipe["argv"])
    demand(code in CODES, f"exit code {code!r}")
    demand(code == 0 or err.strip(), f"exit code {code} and nothing on stderr")
    demand("Traceback" not in err and "Warning: " not in err, f"a traceback or a raw warning: {err[-300:]}")
    demand(_sources(folder).items() >= _sources(_template()).items(), "an input has changed")
    demand(not list(folder.rglob(".zipsdk-*.tmp")), "a temporary file is left")
    return "accepted" if code == 0 else f"exit code {code}"


def _line(how: str, line: str) -> list[str]:
    return {"drop": [], "twice": [line, line], "cut": [line[: len(line) // 2]]}.get(how, [line])


def check_manifest(recipe: Recipe, folder: Path) -> str:
    """Continue a run with a damaged manifest: it is refused or completes, and a repetition does nothing."""
    shutil.copytree(_template(), folder, dirs_exist_ok=True)
    out = folder / "done"
    template = str(_template())
    lines = (out / MANIFEST).read_text().replace(os.path.realpath(template), os.path.realpath(folder)).splitlines()
    if recipe["header"]:
        header = json.loads(lines[0])
        header[recipe["header"]] = "VALUE"
        lines[0] = json.dumps(header).replace('"VALUE"', recipe["value"])
    edits = [*recipe["lines"], *["keep"] * len(lines)]
    lines = [new for how, line in zip(edits, lines, strict=False) for new in _line(how, line)]
    lines[recipe["at"] : recipe["at"]] = recipe["add"]
    (out / MANIFEST).write_text("\n".join(lines) + "\n" + recipe["tail"])
    for p in out.glob("*.png"):
        if recipe["outputs"] == "drop":
            p.unlink()
        elif recipe["outputs"] == "empty":
            p.write_bytes(b"")
    argv = ["purify", "photos", "-o", "done", "--model", "toy.onnx", "--threads", "1", "--steps", "2"]
    code, _, err = _run(folder, argv)
    demand(code in CODES, f"exit code {code!r}")
    demand("Traceback" not in err and "Warning: " not in err, f"a traceback or a raw warning: {err[-300:]}")
    demand(_sources(folder) == _sources(_template()), "an input has changed")
    if code:
        demand(err.strip(), f"exit code {code} and nothing on stderr")
        return f"exit code {code}"
    made = {p.name for p in out.glob("*.png")}
    demand(made == set(_sources(folder)), f"outputs are {sorted(made)}")
    second, text, err = _run(folder, argv)
    if second != 0 or "0 done" not in text:
        raise Violation(f"a finished run continues: exit code {second}, {text!r}, {err!r}")
    return "accepted"

"""The arguments of the command ``zipsdk``, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zipsdk
from zipsdk._util.validation import MAX_THREADS, path_text, positive
from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.presets import PRESETS

Command = Callable[[argparse.Namespace], int]

_EXIT = """\
exit codes:
  0 all done    1 some pictures failed    2 wrong usage, input or output path
    (also: standard output cannot be written, where the work itself is done)
  3 the model is missing or damaged, or cannot run here
  130 interrupted (Ctrl-C)    143, 129 ended by SIGTERM, SIGHUP    141 the reader of standard output has left
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
  zipsdk purify photos -o clean --preset fast            4 steps an image instead of 20
  zipsdk purify photos -o clean --transforms blur4 --lam 2 --sheet

what the settings mean:
  --transforms  destroy a trigger. blurN averages cells of N x N pixels, gray the colours; "+" joins several, and "|"
                lets each picture draw one of several by chance: "blur2|blur4+gray"
  --lam         lambda, how long the restored picture is held to the input: 10 for patches, 2 for blended triggers
  --preset      paper: 20 steps from pure noise; fast: 4 steps from a warm start, the transformed image plus noise

inputs:
  What exists is taken as it is, also where its name has *, ? or [ in it; the rest of a glob is matched: * and ? and
  [...] within a name, ** for any number of folders. Hidden names need the dot. A name that begins with - is ./-name.
  Images that zipsdk does not read (.heic, .jxl and more) are skipped, counted on standard error, and no failure.

Interrupted runs resume: repeat the same command. Progress is kept in OUT/.zipsdk-manifest.jsonl. An input that has
changed since is done again; one of another folder with the name of one that is done is refused. An image that cannot
be read is reported and left out; the next run tries it again.

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


def _png(text: str) -> str:
    path_text(text)
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted a .png file; without FILE put --sheet behind the inputs"
        )
    return text


def _threads(text: str) -> int:
    if not text.isdecimal() or len(text) > 4 or int(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 for all cores, or 1 to {MAX_THREADS}")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def parse(commands: Mapping[str, Command], argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; a wrong one ends the program with code 2."""
    parser = build_parser(commands)
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if value == []:  # what argparse of Python 3.11 makes of --option=--
            parser.error(f"argument --{name}: got '--', expected a value; write ./-- for a path of that name")
    return args


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Build the parser; `commands` has the function of each command by its name."""
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="zipsdk", description="Purify pictures in front of a classifier that may carry a backdoor.",
        epilog=_START + _EXIT, **form,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"zipsdk {zipsdk.__version__}")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, about: str, epilog: str) -> argparse.ArgumentParser:
        made = parsers.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", epilog=epilog, **form
        )
        made.set_defaults(command=commands[name])
        return made

    p = command("purify", "purify pictures, folders and globs", _PURIFY)
    p.add_argument(
        "inputs",
        nargs="+",
        type=path_text,
        metavar="IN",
        help="a picture, a folder (with all below it) or a quoted glob",
    )
    p.add_argument(
        "-o", "--out", required=True, type=path_text, metavar="OUT", help="the folder to write to; it is made"
    )
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
    g.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="paper",
        help="sampling preset: paper (20 steps) or fast (4 steps) (default: paper)",
    )
    g.add_argument("--transforms", metavar="T", help='such as "blur2+gray" (default: the model\'s)')
    g.add_argument("--lam", type=float, help="lambda, above 0 (default: the model's)")
    g.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="number of denoising steps (default: the preset's); without --start use a divisor of 1000 such as 20, 50 "
        "or 100",
    )
    g.add_argument("--start", type=int, metavar="T", help="warm start at this time step (default: the preset's)")
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
    g.add_argument(
        "--threads", type=_threads, default=0, metavar="N", help="of the CPU; 0 takes all cores (default: 0)"
    )
    g.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="pictures to take together, at most; more keeps a GPU "
        "busy, and fills canvases that small pictures share (default: 16)",
    )  # fmt: skip

    p = command("build", "compile an ONNX model into a TensorRT plan", _BUILD)
    p.add_argument(
        "model",
        type=path_text,
        metavar="FILE|NAME",
        help="an .onnx file that zipsdk exported, or a bundled model's name",
    )
    p.add_argument("-o", "--out", required=True, type=path_text, metavar="PLAN", help="the plan to write, NAME.plan")
    p.add_argument(
        "--flavor", choices=tuple(FLAVORS), help="TensorRT (trt) or TensorRT-RTX (rtx) (default: what is installed)"
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

    p = command("info", "what a model file says of itself, and what runs it here",
                "examples:\n  zipsdk info zip-tiny\n  zipsdk info model.onnx --json\n")  # fmt: skip
    _add_model_options(p, positional=True)
    p.add_argument("--json", action="store_true", help="for programs")

    command("models", "the models that come with zipsdk", "example:\n  zipsdk models\n")

    p = command("doctor", "what this machine can run, why not, and what brings it",
                "examples:\n  zipsdk doctor\n  zipsdk doctor --json\n\nexit code 3: no engine runs\n")  # fmt: skip
    p.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add_model_options(p: Any, positional: bool) -> None:
    about = "a bundled model's name or a model file"
    if positional:
        p.add_argument("model", type=path_text, metavar="FILE|NAME", help=about)
    else:
        p.add_argument("--model", type=path_text, default="zip-tiny", help=f"{about} (default: zip-tiny)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")

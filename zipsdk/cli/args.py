"""Define the options that several commands share, and the types of option values."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, get_args

from zipsdk._util.validation import MAX_THREADS
from zipsdk.cli.console import StdoutError
from zipsdk.engines.tensorrt.flavor import FLAVORS
from zipsdk.types import Precision

#: Options of each parser.
FORMAT: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}

EXIT_CODES = """\
exit codes:
  0         success
  1         some images failed; the others are done
  2         wrong usage, input or output path, or standard output cannot be written
  3         the model is missing or damaged, or cannot run on this machine
  130       interrupted (Ctrl-C)
  129, 143  terminated by SIGHUP, SIGTERM
  141       the reader of standard output closed it
"""


class Parser(argparse.ArgumentParser):
    """Report help and a version that cannot be written, which argparse ignores where the stream has no buffer."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is None or file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            file.write(message)
            file.flush()
        except OSError as e:
            raise StdoutError from e


def add_command(
    commands: Any, name: str, about: str, epilog: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add the parser of a command; `run` takes its arguments and returns the exit code."""
    description = about[0].upper() + about[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=description, epilog=epilog, **FORMAT
    )
    parser.set_defaults(run=run)
    return parser


def add_device(parser: Any) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_precision(parser: Any) -> None:
    """Add --precision."""
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision of the model; picks the variant of a bundled model, such as zip-tiny with int8 (default: the "
        "model's)",
    )


def add_plan_options(parser: Any) -> None:
    """Add --flavor, --batch and --target of a TensorRT plan."""
    parser.add_argument(
        "--flavor", choices=tuple(FLAVORS), help="TensorRT (trt) or TensorRT-RTX (rtx) (default: the installed one)"
    )
    parser.add_argument(
        "--batch",
        type=positive_ints,
        default=[1, 8, 64],
        metavar="B,...",
        help="the largest batch of each profile (default: 1,8,64)",
    )
    parser.add_argument(
        "--target",
        type=lambda text: text.split(","),
        metavar="sm86,...",
        help="GPUs to build for, TensorRT-RTX only (default: all supported ones, from sm80)",
    )


def add_progress(parser: Any) -> None:
    """Add --progress."""
    parser.add_argument("--progress", action="store_true", help="show the progress bar even without a terminal")


def add_json(parser: Any) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def path_text(text: str) -> str:
    """Check a path.

    Raises:
        argparse.ArgumentTypeError: the text is empty, as an unset shell variable is, or has a zero byte.
    """
    if not text:
        raise argparse.ArgumentTypeError(
            "got an empty path, expected a name; check the variable that holds it, and write . for this folder"
        )
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a path without zero bytes; check where it comes from")
    return text


def png_path(text: str) -> str:
    """Check the path of a .png file."""
    path_text(text)
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a .png file; to use --sheet without FILE, put it after the inputs"
        )
    return text


def thread_count(text: str) -> int:
    """Parse a number of threads; 0 stands for all cores."""
    if not text.isdecimal() or len(text) > 4 or int(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 for all cores, or 1 to {MAX_THREADS}")
    return int(text)


def positive_int(text: str) -> int:
    """Parse a positive integer.

    Raises:
        argparse.ArgumentTypeError: the text is not an integer of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)


def positive_ints(text: str) -> list[int]:
    """Parse positive integers with commas between them."""
    return [positive_int(part) for part in text.split(",")]

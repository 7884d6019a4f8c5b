"""Implement the command ``zipsdk``: parse the arguments, run a command, turn errors into messages and exit codes.

purify.py, build.py, export.py, info.py, models.py, doctor.py   one command each: `add_parser` and `run`
args.py                                                         options and types of values that commands share
console.py                                                      messages, output, progress bar, warnings
signals.py                                                      Ctrl-C, SIGTERM and SIGHUP
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import zipsdk
from zipsdk.cli import build, doctor, export, info, models, purify
from zipsdk.cli.args import EXIT_CODES, FORMAT, Parser
from zipsdk.cli.console import StdoutError, flush_streams, open_standard_files, print_message, warnings_as_notes
from zipsdk.cli.signals import Signals, Stopped, stop_signals
from zipsdk.errors import EngineError, ImageReadError, MissingDependencyError, ModelError, ZipSdkError

_EPILOG = (
    """\
start with:
  zipsdk doctor                   show what this machine can run
  zipsdk purify photos -o clean   purify a folder
  zipsdk purify --help            examples, and the meaning of the settings

"""
    + EXIT_CODES
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Without `argv` the process is the command: closed standard files are opened on the null device, and a second Ctrl-C
    ends the process at once. With `argv`, streams, warnings and signal handlers are restored at the end.
    """
    is_process = argv is None
    if is_process:
        open_standard_files()
    try:
        with warnings_as_notes(), stop_signals(exit_process=is_process) as signals:
            code = _run(argv, signals)
    except SystemExit as e:  # raised by argparse after its help or an error
        if is_process and (stream_code := flush_streams()) and not e.code:
            raise SystemExit(stream_code) from None
        raise
    stream_code = flush_streams() if is_process else 0
    return code or stream_code


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; ``args.run`` is the function of the chosen one."""
    parser = Parser(
        prog="zipsdk",
        description="Purify images in front of a classifier that may have a backdoor.",
        epilog=_EPILOG,
        **FORMAT,
    )
    parser.add_argument("--version", action="version", version=f"zipsdk {zipsdk.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (purify, build, export, info, models, doctor):
        command.add_parser(commands)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; a wrong one ends the program with code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if value == []:  # argparse of Python 3.11 parses --option=-- as an empty list
            parser.error(f"argument --{name}: got '--', expected a value; write ./-- for a path of that name")
    return args


def _run(argv: Sequence[str] | None, signals: Signals) -> int:
    try:
        args = _parse(argv)
        code: int = args.run(args)
        return code
    except (KeyboardInterrupt, Stopped):
        return signals.code
    except Exception as e:
        if signals.signum is not None:  # a library may turn the interrupt into an error, as ONNX Runtime's import does
            return signals.code
        return _report(e)


def _report(e: Exception) -> int:
    """Print an error and return its exit code; raise an unexpected one again."""
    if isinstance(e, StdoutError):
        if isinstance(e.__cause__, BrokenPipeError):
            return 141
        reason = getattr(e.__cause__, "strerror", None) or e.__cause__
        print_message(f"error: standard output: cannot be written ({reason}); redirect it, for example to /dev/null")
        return 2
    if isinstance(e, OSError):
        path = e.filename2 or e.filename
        reason = e.strerror or str(e) or type(e).__name__
        print_message(f"error: {f'{path}: ' if path else ''}{reason}; check the path, its permissions and disk space")
        return 2
    if isinstance(e, ZipSdkError):
        print_message(f"error: {e}")
        if isinstance(e, (ModelError, EngineError, MissingDependencyError)):
            return 3
        return 1 if isinstance(e, ImageReadError) else 2
    raise e

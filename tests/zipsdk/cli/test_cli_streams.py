"""Test `zipsdk` with closed and full streams, any encoding, names of any bytes, warnings and signals."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.folders import folder, names, records, state, write_image
from tests.helpers.paths import ROOT
from zipsdk.cli import main
from zipsdk.cli.console import printable
from zipsdk.engines import load_engine

linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and file names of any bytes, as Linux has them")


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise ValueError("I/O operation on closed file")


# ---- closed and full


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_closed_streams_do_not_stop_the_work(purify, model, tmp_path, monkeypatch, closed):
    src = folder(tmp_path / "in", 2)
    (src / "broken.png").write_bytes(b"")
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert purify(src, "-o", tmp_path / "out", "--progress", "--sheet") == 1
    assert names(tmp_path / "out") == {"000.png", "001.png", "zipsdk-sheet.png"}
    assert purify(tmp_path / "nowhere", "-o", tmp_path / "out") == 2
    assert main(["info", model]) == 0


@pytest.mark.parametrize("stream", [Full, Closed])
def test_a_full_stderr_does_not_stop_the_work(purify, tmp_path, monkeypatch, capsys, stream):
    src = folder(tmp_path / "in", 2)
    (src / "broken.png").write_bytes(b"")
    monkeypatch.setattr(sys, "stderr", stream())
    assert purify(src, "-o", tmp_path / "out", "--progress") == 1
    assert "2 done" in capsys.readouterr().out


def test_a_full_stdout_is_reported_after_the_work(purify, model, tmp_path, monkeypatch, capsys):
    src = folder(tmp_path / "in", 2)
    monkeypatch.setattr(sys, "stdout", Full())
    text = "zipsdk: error: standard output: cannot be written (No space left on device); redirect it"
    assert purify(src, "-o", tmp_path / "out") == 2
    assert names(tmp_path / "out") == names(src) and text in capsys.readouterr().err
    assert main(["info", model]) == 2
    assert text in capsys.readouterr().err


def start(*args: str, shell: str = "", buffered: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a separate process, with buffered output unless `buffered` is false."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    if not buffered:
        env["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "zipsdk", *args]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, check=False, **options)


@linux
def test_files_do_not_get_the_descriptors_of_closed_streams(model, tmp_path):
    """A library that writes to standard error must not write into the manifest."""
    code = (
        "import os, sys; from zipsdk.batch import manifest; from zipsdk.cli import main\n"
        "finished = manifest.Manifest.finished\n"
        "def noisy(self, *done): os.write(2, b'noise'); os.write(1, b'noise'); finished(self, *done)\n"
        "manifest.Manifest.finished = noisy; sys.exit(main())"
    )
    src, out = folder(tmp_path / "in", 2), tmp_path / "out"
    args = ["purify", str(src), "-o", str(out), "--model", model, "--threads", "1", "--steps", "2", "--batch", "1"]
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, *args]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert names(out) == names(src) and len(records(out)) == 5


@linux
@pytest.mark.parametrize("buffered", [True, False])
def test_help_and_version_that_cannot_be_written(buffered):
    full = "zipsdk: error: standard output: cannot be written (No space left on device); redirect it"
    for option, shell, code, text in (("--version", ">/dev/full", 2, full), ("--help", ">/dev/full", 2, full),
                                      ("--version", "2>/dev/full >/dev/null", 0, "")):  # fmt: skip
        result = start(option, shell=shell, buffered=buffered)
        assert result.returncode == code and result.stderr.startswith(text) and bool(result.stderr) == bool(text)
    read, write = os.pipe()
    os.close(read)
    result = start("purify", "--help", stdout=write, buffered=buffered)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


# ---- encodings and names


@linux
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_encoding_and_names_of_any_bytes(purify, model, tmp_path, monkeypatch, encoding):
    plain, src, out = tmp_path / "plain", tmp_path / "in", Path(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff"))
    unusual = [os.fsdecode(b"\xff\xfe.png"), "ñ–写😀.png", os.fsdecode(b"d\xe9/a\nb\x1b[31m.png"), "a" * 251 + ".png"]
    for i, name in enumerate(unusual):
        write_image(plain / f"{i}.png", i)
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(plain / f"{i}.png", src / name)
    (src / os.fsdecode(b"broken\xe9\n\x1b.png")).write_bytes(b"")
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, streams[name])
    common = ("--seed", 1, "--progress")
    assert purify(src, "-o", out, *common, "--sheet") == 1
    output = streams["stderr"].buffer.getvalue().decode(encoding)
    line = next(t for t in output.replace("\r", "\n").splitlines() if "broken" in t)
    assert r"broken\xe9\n\x1b.png: got" in line and "\x1b[31m" not in output
    assert purify(plain, "-o", tmp_path / "same", *common) == 0
    made = {name: (out / name).read_bytes() for name in unusual}
    assert names(out) == {*unusual, "zipsdk-sheet.png"} and len(set(made.values())) == len(unusual)
    before = state(out)
    assert purify(src, "-o", out, *common) == 1
    assert state(out) == before  # the manifest has each name
    copy = Path(shutil.copy(model, tmp_path / "é写.onnx"))
    assert main(["info", str(copy)]) == 0
    shown = {"ascii": r"\xe9\u5199.onnx", "cp1252": r"é\u5199.onnx", "utf-8": "é写.onnx"}[encoding]
    assert shown in streams["stdout"].buffer.getvalue().decode(encoding)


def test_control_characters_are_escaped():
    text = "a\x1b[2J\r\nb\x7f\x9b\u202e\u2028\udcff"
    assert printable(text) == r"a\x1b[2J\r\nb\x7f\x9b\u202e\u2028\xff"
    assert printable("ñ – 写 😀") == "ñ – 写 😀"
    assert printable("\ud800") == r"\ud800"


# ---- warnings


@pytest.mark.parametrize("action", ["error", "default", "ignore"])
def test_warnings_are_notes_and_never_errors(purify, tmp_path, capsys, action):
    (tmp_path / "in").mkdir()
    Image.new("CMYK", (16, 16)).save(tmp_path / "in" / "cmyk.jpg")
    write_image(tmp_path / "in" / "z.png")
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        before = warnings.filters[:], warnings.showwarning, warnings.formatwarning
        assert purify(tmp_path / "in", "-o", tmp_path / "out") == 0
        assert (warnings.filters, warnings.showwarning, warnings.formatwarning) == before
    output = capsys.readouterr().err
    assert names(tmp_path / "out") == {"cmyk.jpg", "z.png"} and "UserWarning" not in output
    assert output.count("zipsdk: note: ") == (action != "ignore") == output.count("cmyk.jpg")


def test_the_log_is_printed_as_notes_during_a_command_only(purify, tmp_path, capsys, monkeypatch):
    write_image(tmp_path / "in" / "a.png")
    log = logging.getLogger("zipsdk.engines")
    before = logging.getLogger("zipsdk").handlers[:]

    def logging_engine(*args, **options):
        log.info("opened")
        log.warning("running on the %s", "CPU\n")
        return load_engine(*args, **options)

    monkeypatch.setattr("zipsdk.cli.purify.load_engine", logging_engine)
    assert purify(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().err == "zipsdk: note: running on the CPU\\n\n"
    assert logging.getLogger("zipsdk").handlers == before


# ---- signals


def raising(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal during the second batch."""
    from zipsdk.engines.onnxruntime import OnnxEngine

    evaluate, calls = OnnxEngine.__call__, []

    def call(self, x, t):
        calls.append(t)
        if len(calls) == 4:
            signal.raise_signal(number)
        return evaluate(self, x, t)

    monkeypatch.setattr(OnnxEngine, "__call__", call)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_run_that_a_signal_stopped_resumes(purify, tmp_path, monkeypatch, capsys, name, code):
    src, out = folder(tmp_path / "in", 4), tmp_path / "out"
    number, watched = signal.Signals[name], (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    monkeypatch.setattr(signal, "default_int_handler", signal.getsignal(signal.SIGINT))
    before = [signal.getsignal(n) for n in watched]
    raising(number, monkeypatch)
    assert purify(src, "-o", out, "--batch", 1) == code
    assert [signal.getsignal(n) for n in watched] == before
    output = capsys.readouterr().err
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert output == f"zipsdk: {what} with 1 of 4 images done; the same command continues\n"
    assert names(out) == {"000.png"}
    monkeypatch.undo()
    assert purify(src, "-o", out, "--batch", 1) == 0
    assert names(out) == names(src)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_handlers_of_the_caller_are_kept(purify, tmp_path, monkeypatch):
    """As `nohup` does."""
    src = folder(tmp_path / "in", 4)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        raising(signal.SIGHUP, monkeypatch)
        assert purify(src, "-o", tmp_path / "out", "--batch", 1) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_that_a_library_turns_into_an_error(purify, tmp_path, monkeypatch, capsys):
    """As the import of ONNX Runtime does."""

    def importing(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as e:
            raise ImportError("initialization failed") from e

    monkeypatch.setattr("zipsdk.cli.purify.load_engine", importing)
    assert purify(folder(tmp_path / "in", 1), "-o", tmp_path / "out") == 143
    assert capsys.readouterr().err == ""


@linux
def test_a_second_ctrl_c_ends_at_once():
    code = """
import signal, sys, time
from zipsdk import cli
def slow(args):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.doctor.run = slow
sys.argv = ["zipsdk", "doctor"]
cli.main()
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=50, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


@linux
@pytest.mark.parametrize(("numbers", "code"), [(["SIGTERM"], 143), (["SIGHUP"], 129), (["SIGINT"] * 2, 130)])
def test_signals_end_a_process_in_native_code(numbers, code):
    """Native code delays the exception, and SIGTERM would be lost without a later SIGKILL."""
    program = f"""
import os, signal, sys, threading, time
from zipsdk import cli
from zipsdk.cli import signals
signals.GRACE = 0.05
def stuck(args):
    numbers = {numbers}
    def send():
        for name in numbers:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.Signals[name])
    threading.Thread(target=send).start()
    lock = threading.Lock()
    lock.acquire()
    while True:  # the exception is raised, and native code drops it
        try:
            lock.acquire()
        except BaseException:
            pass
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.doctor.run = stuck
sys.argv = ["zipsdk", "doctor"]
cli.main()
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=50, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (code, b"", b"")

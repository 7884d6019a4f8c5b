"""Test forked children, engines in spawned processes, and programs that end without a warning."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import zipsdk
from tests.helpers.paths import ROOT
from zipsdk import EngineError, ModelError
from zipsdk._util import forks
from zipsdk.gpu.device import Device
from zipsdk.models import resolve

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


def run(*arguments, cwd=ROOT, **changes):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@forking
@pytest.mark.parametrize(
    "scenario", [pytest.param("combinations", marks=pytest.mark.slow), "ways_out", "files", "streams"]
)
def test_a_forked_child_works_and_ends_normally(scenario, tmp_path):
    done = run(ROOT / "tests" / "helpers" / "fork_script.py", scenario, cwd=tmp_path)
    ended = json.loads(done.stdout)
    assert ended and set(ended.values()) == {"0"}, (ended, done.stderr)


@pytest.fixture(scope="module")
def unet_input():
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    return x, np.float32([950, 400, 50, 0])


def call(engine, x, t):
    return engine(x, t), engine.info


def test_a_fork_without_hooks_is_detected_by_the_process_id(unet_input, monkeypatch):
    engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=2)
    x, t = unet_input
    expected, one = engine(x, t), engine(x[:1], t[:1])
    inherited = engine._session._session, engine._sharded._shared
    number = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: number)
    np.testing.assert_array_equal(engine(x, t), expected)
    np.testing.assert_array_equal(engine(x[:1], t[:1]), one)
    assert engine._session._session is not inherited[0] and engine._sharded._shared is not inherited[1]


def test_a_session_on_a_gpu_is_refused_in_a_forked_child(unet_input):
    """Use a CPU session under a GPU's name; only the refusal is tested."""
    engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=1)
    engine._session._device = "cuda:1"
    engine._session.after_fork()
    with pytest.raises(EngineError, match=r"zip-tiny.onnx: got a process forked .* on cuda:1, .* spawn or forkserver"):
        engine(*unet_input)


def test_an_engine_can_be_sent_to_a_spawned_process(unet_input):
    engine = zipsdk.load_engine("zip-tiny", device="cpu", threads=2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        eps, info = pool.apply(call, (engine, *unet_input))
    np.testing.assert_array_equal(eps, engine(*unet_input))
    assert info == engine.info


def test_a_pickled_engine_finds_its_file_or_raises(unet_input, tmp_path, monkeypatch):
    """Unpickle in another working directory, and by name where zipsdk is installed elsewhere."""
    for name in ("zip-tiny", "zip-tiny-int8"):
        (tmp_path / f"{name}.onnx").write_bytes(resolve(name).read_bytes())
    monkeypatch.chdir(tmp_path)
    saved = pickle.dumps(zipsdk.load_engine("./zip-tiny.onnx", device="cpu", threads=1))
    assert len(saved) < 2000  # no weights
    monkeypatch.chdir("/")
    expected = zipsdk.load_engine("zip-tiny", device="cpu", threads=1)(*unet_input)
    for _ in range(2):
        np.testing.assert_array_equal(pickle.loads(saved)(*unet_input), expected)
        (tmp_path / "zip-tiny.onnx").unlink(missing_ok=True)  # then the bundled model of that name is used
    (tmp_path / "zip-tiny-int8.onnx").rename(tmp_path / "zip-tiny.onnx")
    with pytest.raises(ModelError, match="got another model than the pickled engine had, expected zip-tiny"):
        pickle.loads(saved)


# ---- a GPU that was opened before the fork, with a fake CUDA and a real fork


class Context:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda: self.calls.append(name)


@pytest.fixture
def opened(monkeypatch):
    context = Context()
    card = SimpleNamespace(
        name=lambda: "A40", compute_capability=lambda: (8, 6), total_memory=lambda: 1, get_attribute=lambda which: 1,
        retain_primary_context=lambda: context,
    )  # fmt: skip
    cuda = SimpleNamespace(
        Device=lambda ordinal: card, Stream=lambda flags: SimpleNamespace(handle=1),
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT=0),
    )  # fmt: skip
    monkeypatch.setattr("zipsdk.gpu.device.ctypes.CDLL", lambda name: None)
    monkeypatch.setattr("zipsdk.gpu.device.atexit.register", lambda function: None)
    return Device(cuda, 0), context


def test_a_gpu_refuses_work_in_a_forked_child(opened):
    device, context = opened
    with device.active():
        pass
    assert context.calls == ["push", "pop"] * 2 and device in forks._tracked  # once when the streams were made
    device.lock.acquire()
    device.after_fork()
    assert device.lock.acquire(blocking=False)  # a thread of the parent may have held the old one
    with pytest.raises(EngineError, match=r"A40: got a process forked .* spawn or forkserver"), device.active():
        pytest.fail("the device accepted work")
    device._detach()
    assert context.calls == ["push", "pop"] * 2  # CUDA was not called again


def test_a_device_cached_before_the_fork_is_refused(opened, monkeypatch):
    from zipsdk.gpu import device as module

    device, _ = opened
    monkeypatch.setattr(module, "_open", lambda ordinal: device)
    assert module.open_device(0) is device
    device.after_fork()
    with pytest.raises(EngineError, match="forked after this GPU was opened"):
        module.open_device(0)


def test_all_tracked_objects_are_notified_of_a_fork_although_one_fails(monkeypatch):
    monkeypatch.setattr(forks, "_tracked", weakref.WeakSet())
    monkeypatch.setattr(forks, "_opening", forks._opening)

    class Thing:
        def __init__(self, fail):
            self.fail, self.notified = fail, False

        def after_fork(self):
            self.notified = True
            if self.fail:
                raise RuntimeError("in the child")

    things = [Thing(fail) for fail in (True, False, True)]
    for thing in things:
        forks.track(thing)
    forks._in_child()  # called by the hook; the scenarios above fork for real
    assert all(thing.notified for thing in things)


# ---- end of a program


@pytest.mark.parametrize("options", [["-W", "error"], ["-X", "dev", "-W", "error"]], ids=["errors", "dev"])
def test_a_program_with_a_purifier_ends_without_output(options):
    code = (
        "import numpy as np, zipsdk\n"
        "p = zipsdk.Purifier(zipsdk.load_engine('zip-tiny', device='cpu', threads=2), steps=1, start=400, seed=1)\n"
        "p.run(np.zeros((2, 16, 16, 3), np.uint8)); p.run(np.zeros((16, 16, 3), np.uint8))\n"
        "stream = p.stream([np.zeros((16, 16, 3), np.uint8)] * 3); next(stream)\n"
    )
    done = run(*options, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process of its own on Windows")
def test_an_interrupted_program_ends_by_the_signal():
    code = (
        "import numpy as np, zipsdk\n"
        "p = zipsdk.Purifier(zipsdk.load_engine('zip-tiny', device='cpu', threads=2), seed=1)\n"
        "print('ready', flush=True)\n"
        "while True: p.run(np.zeros((4, 32, 32, 3), np.uint8))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and errors.strip().endswith("KeyboardInterrupt"), errors
    assert errors.count("Traceback") == 1, errors

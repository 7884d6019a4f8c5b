"""The GPU's benchmarks and their one command on the tests' doubles: that they run, not what they measure."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.device import FakeDevice
from tests.fakes.engine import make_spec

torch = pytest.importorskip("torch")

from bench import gpu_check  # noqa: E402
from bench.common import timing  # noqa: E402
from bench.common.metrics import compare  # noqa: E402
from bench.gpu import loop  # noqa: E402
from bench.gpu.torch_engine import TorchEngine  # noqa: E402
from bench.gpu.torch_peers import torch_module  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def device(host):
    """A fake GPU without delay: torch reads and writes its memory at once."""
    made = FakeDevice(host)

    def at_once(stream):
        push = type(stream).push

        def now(what, work):
            push(stream, what, work)
            if stream.graph is None:
                stream.drain()

        return now

    made.compute.push, made.copies.push = at_once(made.compute), at_once(made.copies)
    return made


def test_the_loop_is_measured(device, capsys):
    class Toy(torch.nn.Module):
        def forward(self, x, t):
            return torch.tanh(x) * (0.3 + t[:, None, None, None] / 2000)

    engine = TorchEngine(Toy(), make_spec(), device, where="cpu")
    payload = loop.measure(engine, Toy(), where="cpu", batches=[2], side=32, rounds=1, soak_seconds=0, compiled=False)
    assert loop.passed(payload) and payload["gpu"] == "fake GPU" and payload["soak"]["flat"]
    (row,) = payload["rows"]
    assert row["repeats_bit_for_bit"]
    assert row["graph_off_equal"] is None  # torch is not captured by the loop, so nothing was compared
    assert row["one_by_one"]["largest"] <= 1 and row["total_steps"] == 20
    assert set(row["milliseconds"]) == {"loop", "UNet", "eager", "eager, x_t stays"}
    assert set(row["faster_than"]) == {"eager", "eager, x_t stays"}
    assert "batch 2:" in capsys.readouterr().out
    json.dumps(payload)


def test_the_gpu_is_compared_with_the_cpu(device):
    """The same weights in torch on the fake GPU and in ONNX Runtime."""
    module, spec = torch_module()
    found = loop.compare_with_cpu(TorchEngine(module, spec, device, where="cpu"))
    assert found["largest"] <= 2 and found["psnr_db"] > 60


def test_what_is_not_exact_or_leaks_does_not_pass():
    def payload(repeats=True, graph=True, flat=True):
        return {"rows": [{"repeats_bit_for_bit": repeats, "graph_off_equal": graph}], "soak": {"flat": flat}}

    assert loop.passed(payload()) and loop.passed(payload(graph=None))
    assert not any(loop.passed(payload(**{name: False})) for name in ("repeats", "graph", "flat"))


def test_the_whole_check_runs_every_step_and_records_it(tmp_path, monkeypatch, capsys):
    def steps(device, quick, out):
        assert (device, quick, out) == ("cuda:1", True, tmp_path / "out")
        python = sys.executable
        root = "import bench, os, sys; sys.exit(os.environ['PYTHONPATH'] != os.getcwd())"
        return [
            gpu_check.Step("good: one", [python, "-c", f"print('printed'); {root}"], 20),
            gpu_check.Step("loop, no GPU", [python, "-c", "raise SystemExit(3)", "bench.gpu.loop"], 20),
            gpu_check.Step("bad", [python, "-c", "raise SystemExit(5)"], 20),
            gpu_check.Step("missing", [python, "-c", ""], 20, ("no_such_package",)),
        ]

    monkeypatch.setattr(gpu_check, "steps", steps)
    words = ["--out", str(tmp_path / "out"), "--device", "cuda:1", "--quick"]
    results = {
        "good: one": "passed",
        "loop, no GPU": "left out: this engine cannot run here",
        "bad": "failed (5)",
        "missing": "left out: no no_such_package",
    }
    for only, code in (("", 1), ("good", 0), ("loop", 0), ("bad", 1), ("missing", 1), ("no such step", 1)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert gpu_check.main([*words, "--only", only]) == code, only
        chosen = {name: text for name, text in results.items() if only in name}
        if chosen:
            said = json.loads((tmp_path / "out" / "gpu-check.json").read_text())["steps"]
            assert {name: step["result"] for name, step in said.items()} == chosen
            assert next(iter(chosen)) in capsys.readouterr().out
        logs = sorted((tmp_path / "out" / "logs").iterdir())
        assert len(logs) == sum(name != "missing" for name in chosen)
        if only == "good":
            assert [log.name for log in logs] == ["00-good-one.log"] and logs[0].read_text() == "printed\n"


def test_steps_that_fail_are_told(tmp_path):
    def result(code, requires=(), limit=20):
        step = gpu_check.Step("x", [sys.executable, "-c", code], limit, requires)
        return gpu_check.run(step, tmp_path / "x.log", dict(os.environ))[0]

    assert result("") == "passed"
    assert result("raise SystemExit(3)") == "failed (3)"
    assert result("import time; time.sleep(60)", limit=1) == "took longer than 1 s"
    # with what it has started: a child that goes on would hold the GPU
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    assert result(child, limit=2) == "took longer than 2 s"
    pid = int((tmp_path / "x.log").read_text())
    time.sleep(0.2)
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert result("", requires=("pytest", "no-such-program", "no_such_package")) == (
        "left out: no no-such-program, no_such_package"
    )
    (tmp_path / "test_none.py").write_text("def test_x(): pass\n")
    skip_all = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(tmp_path)]
    skipping = gpu_check.Step("x", skip_all, 60)
    assert gpu_check.run(skipping, tmp_path / "x.log", dict(os.environ))[0] == "failed (no test ran)"


def test_a_gpu_is_missed(tmp_path, capsys):
    assert loop.main(["--engine", "torch", "--out", str(tmp_path)]) == 3
    assert "cuda:0" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_every_step_of_the_real_check_can_be_parsed(tmp_path):
    """A wrong option would show on the card only."""
    parsed = 0
    steps = gpu_check.steps("cuda:0", False, tmp_path)
    assert any("-DZIPSDK_TEST_KERNELS=ON" in word for step in steps for word in step.command)
    for step in steps:
        if "bench.gpu.loop" in step.command:
            words = step.command[step.command.index("bench.gpu.loop") + 1 :]
            assert loop.arguments().parse_args(words).out == tmp_path
            parsed += 1
        for word in step.command:
            if word.startswith("tests/"):
                assert (ROOT / word).is_file(), word
    assert parsed >= 4


def test_ratios_and_differences():
    assert timing.ratios([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]) == {"median": 4.0, "low": 3.0, "high": 5.0}
    a = np.zeros((1, 2, 2, 3), np.uint8)
    b = a.copy()
    assert compare(a, b) == {"largest": 0, "share": 0.0, "psnr_db": None, "identical": True}
    b[0, 0, 0, 0] = 255
    assert compare(a, b)["largest"] == 255 and compare(a, b)["share"] == pytest.approx(1 / 12)
    order, now = [], iter(range(100))
    timers = {name: timing.timer(lambda name=name: order.append(name), lambda: next(now)) for name in "ab"}
    times = timing.take_turns(timers, 3, warmup=1)
    assert order == ["a", "b"] + ["a", "b"] * 3 and times == {"a": [1] * 3, "b": [1] * 3}


def test_torch_engine_reads_and_writes_in_place(rng):
    class Module(torch.nn.Module):
        def forward(self, x, t):
            return 2 * x + t[:, None, None, None]

    engine = TorchEngine(Module(), make_spec(), None, where="cpu")
    x, t = rng.standard_normal((2, 3, 32, 36), np.float32), np.array([5, 7], np.float32)
    eps = np.full_like(x, np.nan)
    engine.enqueue(x.ctypes.data, t.ctypes.data, eps.ctypes.data, 2, 0, size=(32, 36))
    np.testing.assert_array_equal(eps, 2 * x + t[:, None, None, None])
    np.testing.assert_array_equal(engine(x, t), eps)

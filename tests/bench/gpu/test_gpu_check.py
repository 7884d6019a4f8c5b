"""The GPU's benchmarks and their one command, rehearsed on the tests' doubles: that they run, not what they measure."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import cuda

torch = pytest.importorskip("torch")

from bench import gpu_check  # noqa: E402
from bench.gpu import loop  # noqa: E402
from bench.gpu.torch_engine import TorchEngine  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402


@pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not() or "-")
@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed")
def test_the_whole_check_rehearsed(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_check", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    logs = "".join(p.read_text()[-3000:] for p in (tmp_path / "logs").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    said = json.loads((tmp_path / "gpu-check-rehearsal.json").read_text())["steps"]
    assert said and all(step["result"] == "passed" for step in said.values())
    row = json.loads((tmp_path / "loop-zip-tiny-fp32-torch-rehearsal.json").read_text())
    assert row["rehearsal"] and row["gpu"] == "fake GPU" and row["soak"]["flat"]
    assert row["rows"][0]["repeats_bit_for_bit"]
    assert row["rows"][0]["graph_off_equal"] is None  # torch is not captured by the loop, so nothing was compared
    assert row["rows"][0]["one_by_one"]["largest"] <= 1 and row["rows"][0]["evaluations"] == 20
    # the same weights in torch and in ONNX Runtime
    assert row["against_cpu"]["largest"] <= 2 and row["against_cpu"]["psnr_db"] > 60
    assert set(row["rows"][0]["milliseconds"]) == {"loop", "UNet", "eager", "eager, x_t stays"}


def test_steps_that_fail_are_told(tmp_path):
    def result(code, needs=(), limit=20):
        step = gpu_check.Step("x", [sys.executable, "-c", code], limit, needs)
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
    assert result("", needs=("pytest", "no-such-program", "no_such_package")) == (
        "left out: no no-such-program, no_such_package"
    )
    skipping = gpu_check.Step("x", [sys.executable, "-m", "pytest", "-q", "-m", "nothing", "--co"], 60)
    assert gpu_check.run(skipping, tmp_path / "x.log", dict(os.environ))[0] == "failed (no test ran)"


def test_a_rehearsal_wants_a_folder_and_a_gpu_is_missed(tmp_path, capsys):
    for main in (loop.main, gpu_check.main):
        with pytest.raises(SystemExit):
            main(["--rehearse"])
        assert "give --out" in capsys.readouterr().err
    assert loop.main(["--engine", "torch", "--out", str(tmp_path)]) == 3
    assert "cuda:0" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_every_step_of_the_real_check_can_be_parsed(tmp_path):
    """A wrong option would show on the card only."""
    parsed = 0
    assert any("-DZIPSDK_TEST_KERNELS=ON" in word for step in gpu_check.steps(gpu_check_arguments(), tmp_path)
               for word in step.command)  # fmt: skip
    for step in gpu_check.steps(gpu_check_arguments(quick=False), tmp_path):
        if "bench.gpu.loop" in step.command:
            words = step.command[step.command.index("bench.gpu.loop") + 1 :]
            assert loop.arguments().parse_args(words).out == tmp_path
            parsed += 1
        for word in step.command:
            if word.startswith("tests/"):
                assert (ROOT / word).is_file(), word
    assert parsed >= 4


def gpu_check_arguments(**values):
    import argparse

    return argparse.Namespace(**{"rehearse": False, "quick": True, "device": "cuda:0", **values})


def test_ratios_and_differences():
    assert loop._ratio([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]) == {"median": 4.0, "low": 2.0, "high": 6.0}
    a = np.zeros((1, 2, 2, 3), np.uint8)
    b = a.copy()
    assert loop.differences(a, b) == {"largest": 0, "share": 0.0, "psnr_db": None}
    b[0, 0, 0, 0] = 255
    assert loop.differences(a, b)["largest"] == 255 and loop.differences(a, b)["share"] == pytest.approx(1 / 12)
    order = []
    times = loop.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, warm=1)
    assert order == ["a", "b"] + ["a", "b"] * 3 and all(len(t) == 3 for t in times.values())


def test_torch_engine_reads_and_writes_in_place(rng):
    from tests.fakes.engine import make_spec

    class Module(torch.nn.Module):
        def forward(self, x, t):
            return 2 * x + t[:, None, None, None]

    engine = TorchEngine(Module(), make_spec(), None, where="cpu")
    x, t = rng.standard_normal((2, 3, 32, 36), np.float32), np.array([5, 7], np.float32)
    eps = np.full_like(x, np.nan)
    engine.enqueue(x.ctypes.data, t.ctypes.data, eps.ctypes.data, 2, 0, size=(32, 36))
    np.testing.assert_array_equal(eps, 2 * x + t[:, None, None, None])
    np.testing.assert_array_equal(engine(x, t), eps)

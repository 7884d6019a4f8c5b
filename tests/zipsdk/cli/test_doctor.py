"""Test `zipsdk doctor` on simulated machines: a driver without a GPU, with one, with two; compiled kernels.

The driver is an object with the functions of libcuda that are called; what they give is what NVIDIA documents.
"""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, FunctionEngine
from zipsdk import cli, gpu
from zipsdk.cli import doctor
from zipsdk.errors import EngineError, MissingDependencyError

FIX = "install the NVIDIA driver; it is not on PyPI"
MAJOR, MINOR = 75, 76


class Driver:
    """libcuda with these GPUs: (name, (major, minor))."""

    def __init__(self, *gpus, version=12040, status=0, attributes=0):
        self.gpus, self.version, self.status, self.attributes = gpus, version, status, attributes

    def cuInit(self, flags):
        assert flags == 0
        return self.status

    def cuDriverGetVersion(self, out):
        out._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, out):
        out._obj.value = len(self.gpus)
        return 0

    def cuDeviceGetName(self, buffer, size, index):
        name = self.gpus[index][0].encode()
        assert len(name) < size == len(buffer)
        buffer.value = name
        return 0

    def cuDeviceGetAttribute(self, out, attribute, index):
        out._obj.value = self.gpus[index][1][{MAJOR: 0, MINOR: 1}[attribute]]
        return self.attributes


@pytest.fixture
def machine(monkeypatch):
    """``machine(driver)``: the object to load as the library of the driver, or an exception; the requested names."""
    asked = []

    def put(driver):
        def load(name):
            asked.append(name)
            if isinstance(driver, Exception):
                raise driver
            return driver

        monkeypatch.setattr(doctor.ctypes, "CDLL", load)
        return asked

    return put


@pytest.mark.parametrize(
    ("driver", "line"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"),
         (False, "libcuda.so.1: cannot open shared object file", FIX)),
        (SimpleNamespace(), (False, "'types.SimpleNamespace' object has no attribute 'cuInit'", FIX)),
        (Driver(status=100), (False, "cuInit returned error 100 (100: no GPU is visible)", FIX)),
        (Driver(version=13000), (False, "CUDA 13.0, no GPU", FIX)),
        (Driver(("NVIDIA A40", (8, 6))), (True, "CUDA 12.4, NVIDIA A40", "")),
        (Driver(("NVIDIA A40", (8, 6)), ("T4", (7, 5)), version=12080), (True, "CUDA 12.8, NVIDIA A40, T4", "")),
    ],
    ids=["no driver", "no such function", "error 100", "no GPU", "one GPU", "two GPUs"],
)  # fmt: skip
def test_the_line_of_the_driver(machine, driver, line):
    asked = machine(driver)
    assert doctor._cuda() == doctor.Check("CUDA driver", *line)
    assert asked == ["nvcuda.dll" if os.name == "nt" else "libcuda.so.1"]


@pytest.mark.parametrize(
    ("driver", "number"),
    [(Driver(("a", (8, 6))), 86), (Driver(("a", (12, 0)), ("b", (7, 5))), 120), (Driver(("a", (7, 5))), 75),
     (Driver(("a", (8, 6)), attributes=1), 0), (SimpleNamespace(), 0), (OSError("none"), 0)],
)  # fmt: skip
def test_the_capability_of_the_first_gpu(machine, driver, number):
    machine(driver)
    assert doctor._capability() == number


@pytest.mark.parametrize(
    ("capability", "supported", "line"),
    [
        ((8, 6), [75, 80, 86], (True, "1.2 builds plans for sm75, sm80, sm86", "")),
        ((7, 0), [75, 80, 86], (False, "1.2 builds plans for sm75, sm80, sm86; this GPU is sm70",
                                "use pip install 'zipsdk[gpu]' on this GPU")),
        ((7, 0), [], (True, "1.2 builds plans for the installed GPU", "")),
    ],
)  # fmt: skip
def test_the_line_of_tensorrt_depends_on_the_gpu(machine, monkeypatch, capability, supported, line):
    machine(Driver(("a", capability)))

    def runtime(flavor):
        if flavor == "trt":
            raise MissingDependencyError("tensorrt", "gpu", "no module")
        return SimpleNamespace(__version__="1.2")

    monkeypatch.setattr(doctor, "runtime", runtime)
    monkeypatch.setattr(doctor, "compute_capabilities", lambda trt: supported)
    missing, found = doctor._tensorrt(True)
    assert found == doctor.Check("TensorRT-RTX", *line)
    assert (missing.name, missing.ok, missing.fix) == ("TensorRT", False, "pip install 'zipsdk[gpu]'")


@pytest.mark.parametrize("ok", [True, False])
def test_the_line_of_the_loop_names_the_gpu_or_the_reason(monkeypatch, ok):
    opened = []

    def open_device(number):
        opened.append(number)
        if not ok:
            raise EngineError("the driver is too old\nand a second line")
        return SimpleNamespace(capability=(8, 6), name="NVIDIA A40", total_memory=45 * 2**30 + 2**29)

    monkeypatch.setattr(doctor, "open_device", open_device)
    good, bad = (True, "NVIDIA A40 (sm86), 45.5 GiB"), (False, "the driver is too old", "pip install 'zipsdk[gpu]'")
    assert doctor._device(True) == doctor.Check("loop on the GPU", *(good if ok else bad))
    assert opened == [0]


def test_the_line_of_the_kernels_lists_architectures(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "__path__", [str(tmp_path)])
    missing = doctor._kernels()
    assert (missing.ok, missing.fix) == (False, "install zipsdk with nvcc on the PATH")
    assert missing.detail.startswith("the CUDA kernels are not in this installation") and ";" not in missing.detail
    (tmp_path / "zipsdk.fatbin").write_bytes(b"x")
    (tmp_path / "_build.json").write_text(json.dumps({"nvcc": "13.0.88", "sass": [75, 86, 120], "ptx": 75}))
    expected = "compiled for sm75, sm86, sm120 and newer, by nvcc 13.0.88"
    assert doctor._kernels() == doctor.Check("CUDA kernels", True, expected)


def test_all_lines_on_a_machine_with_a_gpu(machine, monkeypatch, capsys):
    """All lines of the command, with ONNX Runtime for CUDA and a working model."""
    machine(Driver(("NVIDIA A40", (8, 6))))
    device = SimpleNamespace(capability=(8, 6), name="NVIDIA A40", total_memory=45 * 2**30)
    names = dict.fromkeys(("InferenceSession", "RunOptions", "SessionOptions"))
    providers = ["CUDAExecutionProvider", "CPU"]
    ort = SimpleNamespace(__version__="1.22", get_available_providers=lambda: providers, **names)
    trt = SimpleNamespace(__version__="10.9")
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    monkeypatch.setattr(doctor, "open_device", lambda number: device)
    monkeypatch.setattr(doctor, "build_info", lambda: {"nvcc": "13.0", "sass": [86]})
    monkeypatch.setattr(doctor, "runtime", lambda flavor: trt)
    monkeypatch.setattr(doctor, "compute_capabilities", lambda trt: [86])
    monkeypatch.setattr(doctor, "list_models", lambda: ["toy"])
    monkeypatch.setattr(doctor, "load_engine", lambda name: FakeEngine())
    assert cli.main(["doctor", "--json"]) == 0
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)["checks"]}
    assert all(line["ok"] for line in lines.values()), lines
    assert lines["onnxruntime"]["detail"] == "1.22 with CUDAExecutionProvider, CPU; telemetry off"
    assert lines["onnxruntime CUDA"]["detail"].startswith("built in")
    assert lines["loop on the GPU"]["detail"] == "NVIDIA A40 (sm86), 45.0 GiB"
    assert lines["model toy"]["detail"].startswith("one step of 64x64 in ")


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda x: np.full_like(x, np.nan), "its output is not finite"), (lambda x: x[:, :1], "its output is"),
     (lambda x: 1 / 0, "division by zero")],
)  # fmt: skip
def test_a_model_with_wrong_outputs_is_not_ok(monkeypatch, answer, message):
    monkeypatch.setattr(doctor, "list_models", lambda: ["toy"])
    monkeypatch.setattr(doctor, "load_engine", lambda name: FunctionEngine(lambda x, t: answer(x)))
    (check,) = doctor._self_tests()
    assert check.name == "model toy" and not check.ok and message in check.detail and check.fix

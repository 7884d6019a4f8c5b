"""Fakes and helpers that several tests share."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

from kernels.launch import Host
from tests.fakes import cuda
from tests.fakes.device import FakeDevice
from tests.fakes.engine import make_spec
from zipsdk.cli import main

# torch reads this at import: threads that spin at a barrier slow training down 10 times on shared cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if cuda.VARIABLE in os.environ:
    cuda.install()


@pytest.fixture(autouse=True)
def global_seeds() -> None:
    """Seed the global generators, so that a test draws the same numbers alone, in any order and in the whole suite."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded generator."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """Compile the kernels for the CPU once."""
    try:
        return Host(tmp_path_factory.mktemp("shim"), ("-O2",))
    except FileNotFoundError:
        pytest.skip("there is no g++, so the kernels cannot be compiled for the CPU")


@pytest.fixture
def device(host):
    """Return a fake GPU, which is checked after the test."""
    fake = FakeDevice(host)
    yield fake
    fake.check()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a toy model, eps = 0.2 x + 0.1 (mean of the 3x3 pixels around); neighbors on a frame affect each other."""
    import onnx  # only some tests need onnx
    from onnx import TensorProto, helper

    spec = make_spec(name="toy", image_size=32, multiple=4, min_side=8, max_side=64, license="CC0")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    t = helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N"])
    eps = helper.make_tensor_value_info("eps", TensorProto.FLOAT, ["N", 3, "H", "W"])
    numbers = [helper.make_tensor(n, TensorProto.FLOAT, [1], [v]) for n, v in (("c0", 0.2), ("c1", 0.1))]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["x", "c0"], ["a"]),
        helper.make_node("Mul", ["m", "c1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["eps"]),
    ]
    graph = helper.make_graph(nodes, "toy", [x, t], [eps], numbers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(proto, {"zipsdk": spec.to_json()})
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    onnx.save(proto, str(path))
    return str(path)


@pytest.fixture
def purify(model: str):
    """Return ``purify(IN..., out, options...)``, which runs the command in this process with few steps."""

    def run(*args: object, steps: int = 2) -> int:
        return main(["purify", *map(str, args), "--model", model, "--threads", "1", "--steps", str(steps)])

    return run

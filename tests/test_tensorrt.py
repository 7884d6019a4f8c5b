"""TensorRT: plans are really built, by TensorRT-RTX on the CPU; running them is rehearsed, see trt_fake.py."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import trt_fake
from conftest import FakeEngine
from device_fake import FakeDevice
from test_gpu_loop import assert_same, host, pictures  # noqa: F401

import zipsdk
from zipsdk import cli
from zipsdk.engines import plan, tensorrt
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError
from zipsdk.files import sidecar_path, write_sidecar
from zipsdk.models import find
from zipsdk.spec import ModelSpec

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")
BATCHES = (1, 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The bundled model as a plan for one small size."""
    path = tmp_path_factory.mktemp("plan") / "tiny.plan"
    record = plan.build(find("zip-tiny"), path, batches=BATCHES, sizes=(32,), targets=["sm86", "sm89"])
    return path, record


@pytest.fixture
def copy(tiny, tmp_path):
    """A plan that a test may spoil."""
    path = tmp_path / "tiny.plan"
    for source in (tiny[0], sidecar_path(tiny[0])):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return path


def edit(path, **changes):
    """Change the plan's part of the sidecar."""
    record = json.loads(sidecar_path(path).read_text())
    record["plan"].update(changes)
    sidecar_path(path).write_text(json.dumps(record))


# ---- building


def test_the_bundled_model_is_built(tiny):
    path, record = tiny
    header = path.read_bytes()[: trt.Runtime(trt.Logger()).engine_header_size]
    assert len(header) == 64 and path.stat().st_size > 1e6
    said = tensorrt.read_plan(path)
    assert said["plan"] == record["plan"]
    assert said["plan"]["flavour"] == "rtx" and said["plan"]["runtime"] == trt.__version__
    assert said["plan"]["targets"] == ["sm86", "sm89"] and said["plan"]["batches"] == [1, 4]
    spec = said["spec"]
    assert (spec.min_side, spec.canvas, spec.max_side, spec.name) == (32, 32, 32, "zip-tiny")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_256x256_guided_diffusion_unet_is_built(tmp_path, precision):
    """The true graph at a reduced width, exported and built by one command."""
    pytest.importorskip("torch")
    from export.__main__ import main

    arguments = ["--random-adm", "--channels", "32", "-o", str(tmp_path), "--precision", precision]
    assert main([*arguments, "--engine", "--batch", "1,2", "--target", "sm86"]) == 0
    (path,) = tmp_path.glob("*.plan")
    record = tensorrt.read_plan(path)
    assert record["spec"].precision == precision and record["spec"].canvas == 256
    assert record["plan"]["onnx"]["name"] == path.with_suffix(".onnx").name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "wanted whole numbers of at least 1"),
        ({"batches": (4, 1)}, "each larger than the one before"),
        ({"batches": (0,)}, "at least 1"),
        ({"sizes": (33,)}, "multiples of 4"),
        ({"sizes": (32, 64)}, "one side, or the smallest, the usual and the largest"),
        ({"sizes": (64, 32, 128)}, "rising multiples"),
        ({"targets": ["sm75"]}, "sm75.*return zeros in silence.*wanted some of sm80"),
        ({"targets": ["sm90"]}, "sm90.*wanted some of sm80, sm86"),
        ({"targets": ["ampere"]}, "wanted some of"),
        ({"targets": ["sm86", "sm86"]}, "each once"),
        ({"flavour": "torch"}, "wanted one of trt, rtx"),
    ],
)
def test_options_that_cannot_be_met(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        plan.build(find("zip-tiny"), tmp_path / "x.plan", **{"flavour": "rtx", **options})
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_built(tmp_path):
    onnx = pytest.importorskip("onnx")
    broken = tmp_path / "broken.onnx"
    with pytest.raises(ModelError, match="no such file"):
        plan.build(broken, tmp_path / "x.plan", flavour="rtx")
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        plan.build(broken, tmp_path / "x.plan", flavour="rtx")
    model = onnx.load(str(find("zip-tiny")))
    metadata = list(model.metadata_props)
    del model.metadata_props[:]
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match="without a zipsdk spec"):
        plan.build(broken, tmp_path / "x.plan", flavour="rtx")
    model.metadata_props.extend(metadata)
    model.graph.node[3].op_type = "Unheard"
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match=r"TensorRT-RTX .* cannot read it .*Unheard"):
        plan.build(broken, tmp_path / "x.plan", flavour="rtx")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_what_tensorrt_says_reaches_the_user(tmp_path, monkeypatch):
    """It answers None; why stands in its log. A profile that contradicts the graph is such a case."""
    monkeypatch.setattr(plan, "_sizes", lambda spec, sizes: (spec, (6, 6, 6)))  # not a multiple of 4
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot build it \(.{20}"):
        plan.build(find("zip-tiny"), tmp_path / "x.plan", flavour="rtx", batches=(1,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["says no", "raises"])
def test_a_stopped_build_leaves_nothing(tmp_path, how):
    calls = []

    def progress(phase, step, steps):
        calls.append((phase, step, steps))
        assert 1 <= step <= steps and phase
        if len(calls) == 50 and how == "raises":
            raise KeyboardInterrupt
        return len(calls) < 50

    with pytest.raises(EngineError, match="was stopped; nothing was written"):
        plan.build(find("zip-tiny"), tmp_path / "x.plan", flavour="rtx", batches=(1,), progress=progress)
    assert len(calls) >= 50 and not list(tmp_path.iterdir())


def test_flavours(monkeypatch):
    assert "rtx" in plan.installed()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"tensorrt is not usable here.*zipsdk\[gpu\]"):
        plan.runtime("trt")
    monkeypatch.setattr(plan, "installed", list)
    with pytest.raises(MissingExtra, match="tensorrt"):
        plan.build(find("zip-tiny"), "x.plan")
    monkeypatch.setattr(plan, "installed", lambda: ["trt", "rtx"])
    with pytest.raises(InputError, match="say which one"):
        plan.build(find("zip-tiny"), "x.plan")


def test_classic_tensorrt_takes_no_targets():
    with pytest.raises(InputError, match="builds for the GPU that is present"):
        plan._targets(types.SimpleNamespace(), "trt", ["sm86"])


# ---- the command


def test_build_and_info_commands(tmp_path, capsys):
    out = tmp_path / "z.plan"
    command = ["build", "zip-tiny", "-o", str(out), "--size", "32", "--target", "sm86", "--batch", "1,2"]
    assert cli.main(command) == 0
    assert "for sm86; batches up to 2, sides 32 to 32" in capsys.readouterr().out
    assert cli.main(command) == 2 and "is there already" in capsys.readouterr().err
    assert cli.main(["build", "zip-tiny", "-o", str(tmp_path / "z.onnx")]) == 2
    assert "ends in .plan" in capsys.readouterr().err
    assert cli.main(["info", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"]["targets"] == ["sm86"] and said["spec"]["canvas"] == 32
    assert said["hash"] == "matches its sidecar"


# ---- plans that are refused before they are opened


def refuse(path, kind, message, **options):
    with pytest.raises(kind, match=message):
        zipsdk.load_engine(path, **options)


def test_a_damaged_plan(copy):
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    refuse(copy, ModelError, "SHA-256 .* changed or damaged")
    copy.write_bytes(data[:-1])
    refuse(copy, ModelError, "got .* bytes, wanted")


def test_a_plan_without_its_sidecar_or_with_another_ones(copy):
    sidecar = sidecar_path(copy)
    text = sidecar.read_text()
    sidecar.unlink()
    refuse(copy, ModelError, "opened only if its hash is known")
    sidecar.write_text(text.replace('"tiny.plan"', '"other.plan"'))
    refuse(copy, ModelError, "speaks of .*other.plan")
    write_sidecar(copy, {})
    refuse(copy, ModelError, "speaks of no plan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": "many"}, "batches: got 'many', wanted a list"),
        ({"batches": []}, r"batches \[\]"),
        ({"batches": [1, "8"]}, "whole numbers"),
        ({"flavour": "onnx"}, "flavour 'onnx'"),
        ({"targets": None}, "targets: got None"),
    ],
)
def test_an_edited_sidecar(copy, changes, message):
    edit(copy, **changes)
    refuse(copy, ModelError, message)


def test_another_version_and_another_flavour(copy, monkeypatch):
    edit(copy, runtime="1.0.0")
    refuse(copy, EngineError, r"built by TensorRT-RTX 1.0.0, and .* is installed.*build it again")
    edit(copy, flavour="trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refuse(copy, MissingExtra, r"tensorrt is not usable here.*zipsdk\[gpu\]")
    # the RTX module under the other's name
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    refuse(copy, EngineError, "module of the other flavour")


def test_no_driver(copy, monkeypatch):
    def no_driver(ordinal):
        raise EngineError("there is no NVIDIA driver here")

    monkeypatch.setattr(tensorrt, "open_device", no_driver)
    refuse(copy, EngineError, "no NVIDIA driver")
    refuse(copy, InputError, "got 'cpu' for a plan", device="cpu")


# ---- running, rehearsed


@pytest.fixture
def device(host):  # noqa: F811
    made = FakeDevice(host)
    yield made
    made.check()


def opened(copy, device, monkeypatch, *, capability=(8, 6), plain=None, **options):
    plain = plain or FakeEngine(ModelSpec.from_json(json.dumps(json.loads(sidecar_path(copy).read_text())["spec"]), ""))
    device.capability = capability
    fake = trt_fake.module(trt, device, plain, batches=BATCHES, **options)
    monkeypatch.setattr(tensorrt, "open_device", lambda ordinal: device)
    monkeypatch.setattr(tensorrt, "runtime", lambda flavour: fake)
    return zipsdk.load_engine(copy), plain, fake


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ((7, 5), r"sm75\), wanted sm80 or newer.*zeros in silence"),
        ((9, 0), r"does not support .*sm90"),
        ((12, 0), "built for sm86, sm89, and this is .*sm120.*--target sm120"),
    ],
)
def test_gpus_that_it_is_not_for(copy, device, monkeypatch, capability, message):
    with pytest.raises(EngineError, match=message):
        opened(copy, device, monkeypatch, capability=capability)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("deserialize_cuda_engine", EngineError, r"cannot open it on fake GPU \(header does not fit\)"),
        ("get_tensor_dtype", ModelError, "wanted float32"),
    ],
)
def test_what_it_refuses_to_open(copy, device, monkeypatch, method, kind, message):
    with pytest.raises(kind, match=message) as caught:
        opened(copy, device, monkeypatch, refuse=(method,)) if method != "get_tensor_dtype" else _half(
            copy, device, monkeypatch
        )
    assert str(copy) in str(caught.value)


def _half(copy, device, monkeypatch):
    trt_half = types.SimpleNamespace(**{n: getattr(trt, n) for n in dir(trt) if not n.startswith("__")})
    trt_half.__version__ = trt.__version__
    return opened(copy, device, monkeypatch, refuse=("get_tensor_dtype",))


@pytest.mark.parametrize(
    "method", ["create_execution_context", "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
               "execute_async_v3"],
)  # fmt: skip
def test_every_no_of_tensorrt_is_an_error(copy, device, monkeypatch, method):
    """It raises nothing by itself: a result that goes unread would be a picture full of noise."""
    engine, _, _ = opened(copy, device, monkeypatch, refuse=(method,))
    with pytest.raises(EngineError, match=r"tiny.plan: TensorRT-RTX .* refuses"):
        zipsdk.Purifier(engine).run(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("capturable", [True, False])
def test_the_loop_with_a_plan(copy, device, monkeypatch, rng, capturable):
    engine, plain, fake = opened(copy, device, monkeypatch, capturable=capturable)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    for n in (1, 3, 9, 2, 4):
        batch = pictures(rng, n, 32, 32)
        for _ in range(3):
            assert_same(gpu.run(batch), cpu.run(batch))
    assert (("graph", "compute") in device.log) == capturable
    assert ("one captured graph" in gpu.info["loop"]) == capturable
    assert gpu.info["engine"].startswith("TensorRT-RTX ") and gpu.info["device"] == "fake GPU"
    # a context for each batch, of the profile that it belongs to
    profiles = [entry[1] for entry in fake.log if entry[0] == "set_optimization_profile_async"]
    assert sorted(profiles) == [0, 1, 1, 1]


def test_on_arrays(copy, device, monkeypatch, rng):
    engine, plain, _ = opened(copy, device, monkeypatch)
    for n in (1, 4, 7, 4):
        x, t = rng.standard_normal((n, 3, 32, 32), np.float32), np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(engine(x, t), plain(x, t))
    with pytest.raises(InputError, match="got a batch of 5, wanted at most 4"):
        engine.prepare(5, 32, 32)


def test_contexts_are_dropped_but_not_those_that_a_graph_holds(copy, device, monkeypatch, rng):
    monkeypatch.setattr(tensorrt, "MAX_CONTEXTS", 2)
    engine, plain, _ = opened(copy, device, monkeypatch)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    batches = [pictures(rng, n, 32, 32) for n in (1, 2, 3, 4)]
    for _ in range(3):
        for batch in batches:
            assert_same(gpu.run(batch), cpu.run(batch))
    assert len(engine._contexts) == 2


def test_the_fake_refuses_what_the_real_module_does_not_have():
    with pytest.raises(AssertionError, match="has no enqueue_v9"):

        @trt_fake.like(trt.IExecutionContext)
        class Wrong:
            def enqueue_v9(self):
                pass

    @trt_fake.like(trt.IExecutionContext)
    class Right:
        def __init__(self):
            self._log = []

        def execute_async_v3(self, stream_handle):
            return True

    with pytest.raises(AssertionError, match="no overload takes"):
        Right().execute_async_v3(1, 2)
    with pytest.raises(AssertionError, match="no overload takes"):
        Right().execute_async_v3(stream=1)
    assert Right().execute_async_v3(stream_handle=1)
    with pytest.raises(AssertionError, match="has no scratch"):
        Right().scratch = 1

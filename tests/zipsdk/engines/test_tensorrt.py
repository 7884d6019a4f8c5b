"""Test plans: TensorRT-RTX really builds them on the CPU; running them is simulated, see tests/fakes/trt.py."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import sys
import threading
import types

import numpy as np
import pytest

import zipsdk
from tests.fakes import trt as fake_trt
from tests.fakes.engine import FakeEngine
from tests.helpers.gpu_pairs import Meanwhile, assert_same, noise_images
from zipsdk import cli
from zipsdk._util import forks
from zipsdk.cli import doctor
from zipsdk.engines.tensorrt import build, flavor, plan_file, request
from zipsdk.engines.tensorrt import engine as trt_engine
from zipsdk.errors import EngineError, InputError, MissingDependencyError, ModelError, OutOfMemoryError
from zipsdk.models import resolve
from zipsdk.models.sidecar import sidecar_path, write_sidecar
from zipsdk.models.spec import ModelSpec

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")
pytestmark = pytest.mark.trt
BATCHES = (1, 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Build the bundled model as a plan for one small size."""
    path = tmp_path_factory.mktemp("plan") / "tiny.plan"
    batches, sizes = np.array(BATCHES), np.array([32])  # NumPy's numbers are accepted
    record = build.build(resolve("zip-tiny"), path, batches=batches, sizes=sizes, targets=["sm86", "sm89"])
    return path, record


@pytest.fixture
def copy(tiny, tmp_path):
    """Copy the plan for a test that changes it."""
    path = tmp_path / "tiny.plan"
    for source in (tiny[0], sidecar_path(tiny[0])):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return path


def edit(path, **changes):
    """Change the sidecar's record of the plan."""
    record = json.loads(sidecar_path(path).read_text())
    record["plan"].update(changes)
    sidecar_path(path).write_text(json.dumps(record))


# ---- building


def test_the_bundled_model_is_built(tiny):
    path, record = tiny
    header = path.read_bytes()[: trt.Runtime(trt.Logger()).engine_header_size]
    assert len(header) == 64 and path.stat().st_size > 1e6
    read = plan_file.read_plan(path)
    assert read["plan"] == record["plan"]
    assert read["plan"]["flavor"] == "rtx" and read["plan"]["runtime"] == trt.__version__
    assert read["plan"]["targets"] == ["sm86", "sm89"] and read["plan"]["batches"] == [1, 4]
    spec = read["spec"]
    assert (spec.min_side, spec.image_size, spec.max_side, spec.name) == (32, 32, 32, "zip-tiny")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_256x256_guided_diffusion_unet_is_built(tmp_path, precision):
    """Export and build the real graph at a reduced width by one command."""
    pytest.importorskip("torch")
    from export.__main__ import main

    arguments = ["--random-adm", "--channels", "32", "-o", str(tmp_path), "--precision", precision]
    assert main([*arguments, "--engine", "--batch", "1,2", "--target", "sm86"]) == 0
    (path,) = tmp_path.glob("*.plan")
    record = plan_file.read_plan(path)
    assert record["spec"].precision == precision and record["spec"].image_size == 256
    assert record["plan"]["onnx"]["name"] == path.with_suffix(".onnx").name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "expected whole numbers of at least 1"),
        ({"batches": (4, 1)}, "each larger than the one before"),
        ({"batches": (0,)}, "at least 1"),
        ({"batches": (1, 4.0)}, "whole numbers"),
        ({"batches": (True,)}, "whole numbers"),
        ({"sizes": (33,)}, "multiples of 4"),
        ({"sizes": (32.0,)}, "in whole pixels"),
        ({"sizes": (32, 64)}, "one side, or the smallest, the usual and the largest"),
        ({"sizes": (64, 32, 128)}, "rising multiples"),
        ({"targets": ["sm75"]}, "sm75.*return zeros without an error.*expected some of sm80"),
        ({"targets": ["sm90"]}, "sm90.*expected some of sm80, sm86"),
        ({"targets": ["ampere"]}, "expected some of"),
        ({"targets": ["sm86", "sm86"]}, "each once"),
        ({"flavor": "torch"}, "expected one of trt, rtx"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", **{"flavor": "rtx", **options})
    assert not list(tmp_path.iterdir())


def test_invalid_models(tmp_path):
    onnx = pytest.importorskip("onnx")
    broken = tmp_path / "broken.onnx"
    with pytest.raises(ModelError, match="no such file"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    model = onnx.load(str(resolve("zip-tiny")))
    metadata = list(model.metadata_props)
    del model.metadata_props[:]
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match="without a zipsdk spec"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    model.metadata_props.extend(metadata)
    model.graph.node[3].op_type = "Unheard"
    onnx.save(model, str(broken))
    with pytest.raises(ModelError, match=r"TensorRT-RTX .* cannot read it .*Unheard"):
        build.build(broken, tmp_path / "x.plan", flavor="rtx")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_tensorrts_messages_reach_the_user(tmp_path, monkeypatch):
    """TensorRT returns None and logs the reason, for example for a profile that contradicts the graph."""
    unsupported = lambda spec, sizes: dataclasses.replace(spec, multiple=2, min_side=6, image_size=6, max_side=6)  # noqa: E731
    monkeypatch.setattr(build, "restrict_sizes", unsupported)  # not a multiple of 4
    with pytest.raises(EngineError, match=r"TensorRT-RTX .* cannot build it \(.{20}"):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,))
    assert not list(tmp_path.iterdir())


class Mistake(Exception):
    pass


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("returns False", EngineError, "was stopped; nothing was written"),
        ("raises", Mistake, "in the caller"),
        ("Ctrl-C", KeyboardInterrupt, "^$"),
    ],
)
def test_a_stopped_build_leaves_no_file(tmp_path, how, kind, message):
    calls = []

    def progress(phase, step, steps):
        calls.append((phase, step, steps))
        assert 1 <= step <= steps and phase
        if len(calls) == 50 and how == "raises":
            raise Mistake("in the caller")
        if len(calls) == 50 and how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        return len(calls) < 50 or how == "Ctrl-C"

    with pytest.raises(kind, match=message):
        build.build(
            resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,), sizes=(32,), progress=progress
        )
    assert len(calls) == 50 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_logger_runs_stops_the_build(tmp_path, monkeypatch, capfd):
    """Python raises KeyboardInterrupt in the first callback, usually the logger, where it was lost."""
    make, pressed = build.collecting_logger, []

    def pressing(trt):
        class Logger(type(make(trt))):
            def log(self, severity, message):
                if not pressed and threading.current_thread() is threading.main_thread():
                    pressed.append(message)
                    os.kill(os.getpid(), signal.SIGINT)
                super().log(severity, message)

        # the logger also speaks before the build
        logger = make(trt)
        logger.__class__ = Logger
        return logger

    monkeypatch.setattr(build, "collecting_logger", pressing)
    with pytest.raises(KeyboardInterrupt):
        build.build(resolve("zip-tiny"), tmp_path / "x.plan", flavor="rtx", batches=(1,), sizes=(32,))
    assert pressed and not list(tmp_path.iterdir())
    assert "Exception caught" not in capfd.readouterr().err


def test_the_callers_signal_handler_is_kept_and_threads_may_build(tmp_path, monkeypatch):
    seen, results = [], []
    builder = types.SimpleNamespace(build=lambda *args: seen.append(signal.getsignal(signal.SIGINT)) or b"")
    monkeypatch.setattr(build, "PlanBuilder", lambda *args: builder)

    def compile_():
        results.append(build.compile_plan(None, None, None, None))

    mine = lambda *_: None  # noqa: E731
    previous = signal.signal(signal.SIGINT, mine)
    try:
        compile_()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [mine]
    thread = threading.Thread(target=compile_)
    thread.start()
    thread.join()
    assert results == [b"", b""]


def test_an_unwritable_output_is_found_before_the_build(tmp_path):
    (tmp_path / "file").write_text("")
    calls = []
    with pytest.raises(OSError):
        build.build(resolve("zip-tiny"), tmp_path / "file" / "x.plan", flavor="rtx", batches=(1,), sizes=(32,),
                   progress=lambda *step: calls.append(step) or True)  # fmt: skip
    assert not calls


def test_all_targets_are_passed_to_the_builder(tmp_path):
    """The plan must be built for the targets in its sidecar; TensorRT-RTX's default gives another plan."""
    made = []
    for name, targets in (("a", None), ("b", [f"sm{n}" for n in flavor.compute_capabilities(trt)])):
        path = tmp_path / f"{name}.plan"
        record = build.build(resolve("zip-tiny"), path, flavor="rtx", batches=(1,), sizes=(32,), targets=targets)
        made.append((path.read_bytes(), record["plan"]["targets"]))
    assert made[0] == made[1]


def test_flavors(monkeypatch):
    assert "rtx" in flavor.installed()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not usable here.*zipsdk\[gpu\]"):
        flavor.runtime("trt")
    monkeypatch.setattr(request, "installed", list)
    with pytest.raises(MissingDependencyError, match="tensorrt"):
        build.build(resolve("zip-tiny"), "x.plan")
    monkeypatch.setattr(request, "installed", lambda: ["trt", "rtx"])
    with pytest.raises(InputError, match="choose one"):
        build.build(resolve("zip-tiny"), "x.plan")


def test_classic_tensorrt_takes_no_targets():
    with pytest.raises(InputError, match="builds for the GPU that is present"):
        request._check_targets(types.SimpleNamespace(), "trt", ["sm86"])


# ---- the command


def test_build_and_info_commands(tmp_path, capsys):
    out = tmp_path / "z.plan"
    command = ["build", "zip-tiny", "-o", str(out), "--image-size", "32", "--target", "sm86", "--batch", "1,2"]
    assert cli.main(command) == 0
    assert "for sm86; batches up to 2, sides 32 to 32" in capsys.readouterr().out
    assert cli.main(command) == 2 and "a file that exists" in capsys.readouterr().err
    assert cli.main(["build", "zip-tiny", "-o", str(tmp_path / "z.onnx")]) == 2
    assert "ends in .plan" in capsys.readouterr().err
    assert cli.main(["info", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["runs"]["targets"] == ["sm86"] and shown["spec"]["image_size"] == 32
    assert shown["hash"] == "matches its sidecar"


# ---- plans that are refused before they are opened


def refuse(path, kind, message, **options):
    with pytest.raises(kind, match=message):
        zipsdk.load_engine(path, **options)


def test_a_model_quantized_for_cpus_is_refused(tmp_path):
    with pytest.raises(ModelError, match="quantized for ONNX Runtime on CPUs"):
        build.build(resolve("zip-tiny-int8"), tmp_path / "x.plan", flavor="rtx")
    assert not list(tmp_path.iterdir())


def test_a_damaged_plan(copy):
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    refuse(copy, ModelError, "SHA-256 .* changed or damaged")
    copy.write_bytes(data[:-1])
    refuse(copy, ModelError, "got .* bytes, expected")


def test_a_missing_or_foreign_sidecar(copy):
    sidecar = sidecar_path(copy)
    text = sidecar.read_text()
    sidecar.unlink()
    refuse(copy, ModelError, "opened only if its hash is known")
    sidecar.write_text(text.replace('"tiny.plan"', '"other.plan"'))
    refuse(copy, ModelError, "got the files .*other.plan")
    write_sidecar(copy, {})
    refuse(copy, ModelError, "got no record of a plan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": "many"}, "batches: got 'many', expected a list"),
        ({"batches": []}, r"batches \[\]"),
        ({"batches": [1, "8"]}, "whole numbers"),
        ({"flavor": "onnx"}, "flavor 'onnx'"),
        ({"targets": None}, "targets: got None"),
        ({"targets": [86]}, r"targets: got \[86\], expected names such as"),
        ({"targets": []}, r"targets: got \[\], expected names such as"),
        ({"batches": [4, 1]}, r"batches \[4, 1\], expected .*rising"),
        ({"batches": [1, 1]}, "rising"),
    ],
)
def test_an_edited_sidecar(copy, changes, message):
    edit(copy, **changes)
    refuse(copy, ModelError, message)


def test_plans_of_another_version_or_flavor(copy, monkeypatch):
    edit(copy, runtime="1.0.0")
    refuse(copy, EngineError, r"built by TensorRT-RTX 1.0.0, and .* is installed.*build it again")
    edit(copy, flavor="trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refuse(copy, MissingDependencyError, r"tensorrt is not usable here.*zipsdk\[gpu\]")
    # the RTX module under the other name
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    refuse(copy, EngineError, "module of the other flavor")


@pytest.mark.parametrize("device", [0, None, "cpu"])
def test_devices_that_run_no_plan(device):
    with pytest.raises(InputError, match=f"device: got {device!r} for a plan, expected 'auto'"):
        trt_engine.TensorRTEngine("x.plan", device=device)


def test_no_driver(copy, monkeypatch):
    def no_driver(ordinal):
        raise EngineError("there is no NVIDIA driver here")

    monkeypatch.setattr(trt_engine, "open_device", no_driver)
    refuse(copy, EngineError, "no NVIDIA driver")
    refuse(copy, InputError, "got 'cpu' for a plan", device="cpu")


# ---- running, simulated


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("plan", {"batches": [1, 64]}, r"profile 1: got \[2, 3, 32, 32\] to \[4, .* expected .* to \[64, 3, 32, 32\]"),
        ("plan", {"batches": [1, 2, 4]}, "got 2 profiles, expected 3"),
        ("spec", {"min_side": 256, "image_size": 256, "max_side": 256}, "profile 0: got .* expected .*256"),
        ("spec", {"min_side": 16}, "profile 0: got .* expected .*16"),
        ("spec", {"input_x": "eps", "output": "x"}, "eps: expected an input of the plan"),
    ],
)
def test_a_consistently_edited_sidecar_is_compared_with_the_plan(copy, device, monkeypatch, part, changes, message):
    """The sidecar is valid and has the plan's hash, but differs from the plan."""
    record = json.loads(sidecar_path(copy).read_text())
    record[part].update(changes)
    sidecar_path(copy).write_text(json.dumps(record))
    with pytest.raises(ModelError, match=message):
        opened(copy, device, monkeypatch)


def opened(copy, device, monkeypatch, *, capability=(8, 6), plain=None, **options):
    plain = plain or FakeEngine(ModelSpec.from_json(json.dumps(json.loads(sidecar_path(copy).read_text())["spec"]), ""))
    device.capability = capability
    fake = fake_trt.module(trt, device, plain, batches=BATCHES, **options)
    monkeypatch.setattr(trt_engine, "open_device", lambda ordinal: device)
    monkeypatch.setattr(trt_engine, "runtime", lambda flavor: fake)
    return zipsdk.load_engine(copy), plain, fake


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ((7, 5), r"sm75\), expected sm80 or newer.*zeros without an error"),
        ((9, 0), r"does not support .*sm90"),
        ((12, 0), "built for sm86, sm89, and this GPU is .*sm120.*--target sm120"),
    ],
)
def test_unsupported_gpus(copy, device, monkeypatch, capability, message):
    with pytest.raises(EngineError, match=message):
        opened(copy, device, monkeypatch, capability=capability)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("deserialize_cuda_engine", EngineError, r"cannot open it on fake GPU \(header does not fit\)"),
        ("get_tensor_dtype", ModelError, "expected float32"),
    ],
)
def test_plans_that_cannot_be_opened(copy, device, monkeypatch, method, kind, message):
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
def test_every_refusal_of_tensorrt_is_an_error(copy, device, monkeypatch, method):
    """TensorRT does not raise: an ignored result would give an image of noise."""
    engine, _, _ = opened(copy, device, monkeypatch, refuse=(method,))
    with pytest.raises(EngineError, match=r"tiny.plan: TensorRT-RTX .* refuses"):
        zipsdk.Purifier(engine).run(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("capturable", [True, False])
def test_the_loop_with_a_plan(copy, device, monkeypatch, rng, capturable):
    engine, plain, fake = opened(copy, device, monkeypatch, capturable=capturable)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    for n in (1, 3, 9, 2, 4):
        batch = noise_images(rng, n, 32, 32)
        for _ in range(3):
            assert_same(gpu.run(batch), cpu.run(batch))
    assert (("graph", "compute") in device.log) == capturable
    assert ("one captured graph" in gpu.info["loop"]) == capturable
    assert gpu.info["engine"].startswith("TensorRT-RTX ") and gpu.info["device"] == "fake GPU"
    # one context for each batch size, of its profile
    profiles = [entry[1] for entry in fake.log if entry[0] == "set_optimization_profile_async"]
    assert sorted(profiles) == [0, 1, 1, 1]


def test_on_arrays(copy, device, monkeypatch, rng):
    engine, plain, _ = opened(copy, device, monkeypatch)
    for n in (1, 4, 7, 4):
        x, t = rng.standard_normal((n, 3, 32, 32), np.float32), np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(engine(x, t), plain(x, t))
    with pytest.raises(InputError, match="got a batch of 5, expected at most 4"):
        engine.prepare(5, 32, 32)


@pytest.mark.parametrize(
    "lacks",
    [
        ("create_runtime_config", "is_stream_capturable"),
        ("create_runtime_config", "is_stream_capturable", "update_device_memory_size_for_shapes"),
        ("create_runtime_config", "is_stream_capturable", "update_device_memory_size_for_shapes",
         "get_device_memory_size_for_profile_v2", "set_device_memory"),
    ],
)  # fmt: skip
def test_the_loop_without_newer_functions(copy, device, monkeypatch, rng, lacks):
    """Test the calls that classic TensorRT uses; its own signatures are not available here."""
    engine, plain, fake = opened(copy, device, monkeypatch, lacks=lacks)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    for n in (1, 3, 4):
        batch = noise_images(rng, n, 32, 32)
        assert_same(gpu.run(batch), cpu.run(batch))
    assert not {entry[0] for entry in fake.log} & set(lacks)


def test_scratch_memory_grows_to_the_needed_size_if_twice_the_size_does_not_fit(copy, device, monkeypatch):
    engine, _, _ = opened(copy, device, monkeypatch)
    with device.active():
        engine.prepare(3, 32, 32)
        device.room = device.used + 4500  # 4000 needed; doubled 6000
        engine.prepare(4, 32, 32)
        assert engine._memory.size == 4000


@pytest.mark.parametrize("spare", [0, 20_000, 49_152, 49_168])
def test_arrays_after_running_out_of_memory(copy, device, monkeypatch, rng, spare):
    """Freed memory must not be used again, and allocated memory must not leak."""
    engine, plain, _ = opened(copy, device, monkeypatch)
    x, t = rng.standard_normal((4, 3, 32, 32), np.float32), np.zeros(4, np.float32)
    engine(x[:1], t[:1])
    with device.active():
        engine.prepare(4, 32, 32)
    kept = device.used - (2 * x[:1].nbytes + 4)
    device.room = kept + spare
    with pytest.raises(OutOfMemoryError):
        engine(x, t)
    assert device.used == kept
    device.room = 1 << 30
    for n in (1, 4):
        np.testing.assert_array_equal(engine(x[:n], t[:n]), plain(x[:n], t[:n]))


def test_arrays_wait_while_another_thread_captures(copy, device, monkeypatch, rng):
    engine, plain, _ = opened(copy, device, monkeypatch)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    x, t = rng.standard_normal((4, 3, 32, 32), np.float32), np.arange(4, dtype=np.float32)
    meanwhile = Meanwhile(device, lambda: engine(x, t))
    enqueue = engine.enqueue
    engine.enqueue = lambda *args, **options: (meanwhile(), enqueue(*args, **options))
    batch = noise_images(rng, 2, 32, 32)
    for _ in range(3):
        assert_same(gpu.run(batch), cpu.run(batch))
    np.testing.assert_array_equal(meanwhile.end(), plain(x, t))


def test_memory_of_a_deleted_engine_is_freed(copy, device, monkeypatch, rng):
    engine, _, _ = opened(copy, device, monkeypatch)
    gpu = zipsdk.Purifier(engine, seed=3)
    for n in (1, 3, 4):
        for _ in range(2):
            gpu.run(noise_images(rng, n, 32, 32))
        engine(rng.standard_normal((n, 3, 32, 32), np.float32), np.zeros(n, np.float32))
    gpu.close()
    assert len(engine._memory.scratch) > 1 and device.used
    del engine, gpu
    gc.collect()
    with device.active():
        device.free(device.alloc(1))
    assert not device.used


def test_a_plan_in_other_processes(copy, device, monkeypatch, rng):
    """Unpickling opens the plan again; a forked child frees nothing by CUDA."""
    engine, _, _ = opened(copy, device, monkeypatch)
    make, arguments = engine.__reduce__()
    again = make(*arguments)
    assert (again.path, again.spec, again.info) == (copy.absolute(), engine.spec, engine.info)

    purifier = zipsdk.Purifier(engine)
    purifier.run(noise_images(rng, 3, 32, 32))
    pool, used = purifier._dispatcher.device_loop.pool, device.used
    assert pool.sizes and {pool, engine} <= set(forks._tracked)
    kept = []
    with monkeypatch.context() as m:
        m.setattr(forks, "keep_forever", lambda *things: kept.extend(things))
        engine.after_fork()
        pool.after_fork()
    for held in (pool.sizes, engine._engine, engine._runtime, engine._contexts, engine._memory):
        assert any(held is thing for thing in kept)
    purifier.close()
    assert pool.sizes and device.used == used
    pool.forked = False
    purifier.close()
    assert device.used < used


def test_arrays_of_other_types_and_empty_batches(copy, device, monkeypatch, rng):
    engine, plain, _ = opened(copy, device, monkeypatch)
    x = rng.standard_normal((2, 3, 32, 32), np.float32)
    got = engine(x.astype(np.float64), np.array([7, 9]))
    np.testing.assert_array_equal(got, plain(x, np.array([7, 9], np.float32)))
    assert engine(x[:0], np.zeros(0, np.float32)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(("capability", "ok"), [((7, 5), False), ((8, 6), True), ((9, 0), False), ((12, 0), True)])
def test_doctor_checks_that_tensorrt_rtx_supports_the_gpu(monkeypatch, capability, ok):
    monkeypatch.setattr(doctor, "_capability", lambda: 10 * capability[0] + capability[1])
    (check,) = [line for line in doctor._tensorrt(True) if line.name == "TensorRT-RTX"]
    assert check.ok == ok
    assert ok or f"this GPU is sm{capability[0]}{capability[1]}" in check.detail


def test_old_contexts_are_dropped_unless_a_graph_uses_them(copy, device, monkeypatch, rng):
    monkeypatch.setattr(trt_engine, "MAX_CONTEXTS", 2)
    engine, plain, _ = opened(copy, device, monkeypatch)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    batches = [noise_images(rng, n, 32, 32) for n in (1, 2, 3, 4)]
    for _ in range(3):  # each context is dropped before it can be captured
        for batch in batches:
            assert_same(gpu.run(batch), cpu.run(batch))
    assert ("graph", "compute") not in device.log
    for batch in batches * 2:
        for _ in range(3):
            assert_same(gpu.run(batch), cpu.run(batch))
    assert len(engine._contexts) == 2
    captured = [
        [n for n, entry in b.step_graphs.items() if entry.graph is not None]
        for b in gpu._dispatcher.device_loop.pool.sizes.values()
    ]
    (graphs,) = {tuple(counts) for counts in captured if len(counts) == 2}
    assert graphs == (3, 4)


def test_the_fake_refuses_names_that_the_real_module_lacks():
    with pytest.raises(AssertionError, match="has no enqueue_v9"):

        @fake_trt.like(trt.IExecutionContext)
        class Wrong:
            def enqueue_v9(self):
                pass

    @fake_trt.like(trt.IExecutionContext)
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

"""Run plans on the fake GPU; `tests.fakes.trt` simulates TensorRT-RTX."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import types

import numpy as np
import pytest

import zipsdk
from tests.fakes import trt as fake_trt
from tests.fakes.engine import FakeEngine
from tests.helpers.gpu_pairs import Meanwhile, assert_same, noise_images
from tests.helpers.plans import BATCHES, edit_sidecar
from zipsdk._util import forks
from zipsdk.engines.tensorrt import engine as trt_engine
from zipsdk.errors import EngineError, InputError, ModelError, OutOfMemoryError
from zipsdk.models.sidecar import sidecar_path
from zipsdk.models.spec import ModelSpec

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")


pytestmark = pytest.mark.trt


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
def test_a_consistently_edited_sidecar_is_compared_with_the_plan(plan, device, monkeypatch, part, changes, message):
    """The sidecar is valid and has the plan's hash, but differs from the plan."""
    edit_sidecar(plan, part, **changes)
    with pytest.raises(ModelError, match=message):
        opened(plan, device, monkeypatch)


def opened(plan, device, monkeypatch, *, capability=(8, 6), plain=None, **options):
    """Open a plan on the fake GPU; return its engine, the engine that computes for it, and the fake module."""
    plain = plain or FakeEngine(ModelSpec.from_json(json.dumps(json.loads(sidecar_path(plan).read_text())["spec"]), ""))
    device.capability = capability
    fake = fake_trt.module(trt, device, plain, batches=BATCHES, **options)
    monkeypatch.setattr(trt_engine, "open_device", lambda ordinal: device)
    monkeypatch.setattr(trt_engine, "runtime", lambda flavor: fake)
    return zipsdk.load_engine(plan), plain, fake


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ((7, 5), r"sm75\), expected sm80 or newer.*zeros without an error"),
        ((9, 0), r"does not support .*sm90"),
        ((12, 0), "built for sm86, sm89, and this GPU is .*sm120.*--target sm120"),
    ],
)
def test_unsupported_gpus_are_refused(plan, device, monkeypatch, capability, message):
    with pytest.raises(EngineError, match=message):
        opened(plan, device, monkeypatch, capability=capability)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("deserialize_cuda_engine", EngineError, r"cannot open it on fake GPU \(header does not fit\)"),
        ("get_tensor_dtype", ModelError, "expected float32"),
    ],
)
def test_plans_that_cannot_be_opened_are_refused(plan, device, monkeypatch, method, kind, message):
    with pytest.raises(kind, match=message) as caught:
        opened(plan, device, monkeypatch, refuse=(method,)) if method != "get_tensor_dtype" else _half(
            plan, device, monkeypatch
        )
    assert str(plan) in str(caught.value)


def _half(plan, device, monkeypatch):
    """Open a plan with float16 inputs, which no engine accepts."""
    trt_half = types.SimpleNamespace(**{n: getattr(trt, n) for n in dir(trt) if not n.startswith("__")})
    trt_half.__version__ = trt.__version__
    return opened(plan, device, monkeypatch, refuse=("get_tensor_dtype",))


@pytest.mark.parametrize(
    "method", ["create_execution_context", "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
               "execute_async_v3"],
)  # fmt: skip
def test_every_refusal_of_tensorrt_is_an_error(plan, device, monkeypatch, method):
    """TensorRT does not raise: an ignored result would give an image of noise."""
    engine, _, _ = opened(plan, device, monkeypatch, refuse=(method,))
    with pytest.raises(EngineError, match=r"tiny.plan: TensorRT-RTX .* refuses"):
        zipsdk.Purifier(engine).run(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("capturable", [True, False])
def test_the_loop_with_a_plan_equals_the_cpu(plan, device, monkeypatch, rng, capturable):
    engine, plain, fake = opened(plan, device, monkeypatch, capturable=capturable)
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


def test_an_engine_pickles_as_the_path_of_its_plan_and_its_gpu(plan, device, monkeypatch, rng):
    engine, plain, _ = opened(plan, device, monkeypatch)
    saved = pickle.dumps(zipsdk.Purifier(engine, preset="fast", seed=3))
    assert len(saved) < 2000
    x, t = rng.standard_normal((3, 3, 32, 32), np.float32), np.zeros(3, np.float32)
    for other in (pickle.loads(saved).engine, copy.deepcopy(engine)):
        assert (other.path, other.device.ordinal) == (engine.path, engine.device.ordinal) and other is not engine
        np.testing.assert_array_equal(other(x, t), plain(x, t))
    assert repr(engine) == "<TensorRTEngine zip-tiny: fp32, cuda:0>"
    plan.unlink()
    with pytest.raises(ModelError, match=r"tiny\.plan"):
        pickle.loads(saved)


def test_arrays_equal_those_of_the_cpu(plan, device, monkeypatch, rng):
    engine, plain, _ = opened(plan, device, monkeypatch)
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
def test_the_loop_runs_without_newer_functions(plan, device, monkeypatch, rng, lacks):
    """Test the calls that classic TensorRT uses; its own signatures are not available here."""
    engine, plain, fake = opened(plan, device, monkeypatch, lacks=lacks)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    for n in (1, 3, 4):
        batch = noise_images(rng, n, 32, 32)
        assert_same(gpu.run(batch), cpu.run(batch))
    assert not {entry[0] for entry in fake.log} & set(lacks)


def test_scratch_memory_grows_to_the_needed_size_if_twice_the_size_does_not_fit(plan, device, monkeypatch):
    engine, _, _ = opened(plan, device, monkeypatch)
    with device.active():
        engine.prepare(3, 32, 32)
        device.room = device.used + 4500  # 4000 needed; doubled 6000
        engine.prepare(4, 32, 32)
        assert engine._memory.size == 4000


@pytest.mark.parametrize("spare", [0, 20_000, 49_152, 49_168])
def test_arrays_are_right_after_running_out_of_memory(plan, device, monkeypatch, rng, spare):
    """Freed memory must not be used again, and allocated memory must not leak."""
    engine, plain, _ = opened(plan, device, monkeypatch)
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


def test_arrays_wait_while_another_thread_captures(plan, device, monkeypatch, rng):
    engine, plain, _ = opened(plan, device, monkeypatch)
    gpu, cpu = zipsdk.Purifier(engine, seed=3), zipsdk.Purifier(plain, seed=3)
    x, t = rng.standard_normal((4, 3, 32, 32), np.float32), np.arange(4, dtype=np.float32)
    meanwhile = Meanwhile(device, lambda: engine(x, t))
    enqueue = engine.enqueue
    engine.enqueue = lambda *args, **options: (meanwhile(), enqueue(*args, **options))
    batch = noise_images(rng, 2, 32, 32)
    for _ in range(3):
        assert_same(gpu.run(batch), cpu.run(batch))
    np.testing.assert_array_equal(meanwhile.end(), plain(x, t))


def test_memory_of_a_deleted_engine_is_freed(plan, device, monkeypatch, rng):
    engine, _, _ = opened(plan, device, monkeypatch)
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


def test_a_plan_works_in_other_processes(plan, device, monkeypatch, rng):
    """Unpickling opens the plan again; a forked child frees nothing by CUDA."""
    engine, _, _ = opened(plan, device, monkeypatch)
    make, arguments = engine.__reduce__()
    again = make(*arguments)
    assert (again.path, again.spec, again.info) == (plan.absolute(), engine.spec, engine.info)

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


def test_arrays_of_other_types_and_empty_batches_are_accepted(plan, device, monkeypatch, rng):
    engine, plain, _ = opened(plan, device, monkeypatch)
    x = rng.standard_normal((2, 3, 32, 32), np.float32)
    got = engine(x.astype(np.float64), np.array([7, 9]))
    np.testing.assert_array_equal(got, plain(x, np.array([7, 9], np.float32)))
    assert engine(x[:0], np.zeros(0, np.float32)).shape == (0, 3, 32, 32)


def test_old_contexts_are_dropped_unless_a_graph_uses_them(plan, device, monkeypatch, rng):
    monkeypatch.setattr(trt_engine, "MAX_CONTEXTS", 2)
    engine, plain, _ = opened(plan, device, monkeypatch)
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

"""Test the GPU loop on the fake GPU: its images equal those of the CPU, and errors leave it usable."""

from __future__ import annotations

import re

import numpy as np
import pytest

import zipsdk
from kernels.launch import SOURCES
from tests.fakes.device_engine import FakeDeviceEngine
from tests.fakes.engine import FakeEngine, FunctionEngine, make_spec
from tests.helpers.gpu_pairs import FIXED, SETTINGS, assert_same, in_flight, make, noise_images
from zipsdk import gpu as gpu_package
from zipsdk.errors import EngineError, InputError
from zipsdk.gpu import buffers as gpu_buffers
from zipsdk.gpu.device import SIGNATURES
from zipsdk.gpu.fatbin import fatbin_path


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    ("n", "height", "width", "fixed"),
    [
        (3, 32, 32, False),
        (2, 33, 45, False),
        (5, 32, 32, True),
        (7, 20, 28, True),
        (1, 64, 64, True),
        (9, 8, 8, True),
        (2, 40, 44, True),
    ],
)
def test_images_equal_those_of_the_cpu(device, rng, settings, n, height, width, fixed):
    """Cover padded frames, tiled frames with free places, and gaps beside tiles."""
    gpu, cpu = make(device, make_spec(**FIXED) if fixed else None, **settings)
    batch, keys = noise_images(rng, n, height, width), rng.integers(0, 2**63, n)
    expected = cpu.run(batch, noise_keys=keys)
    first, captured, replayed = (gpu.run(batch, noise_keys=keys) for _ in range(3))
    assert_same(first, expected)
    np.testing.assert_array_equal(first, captured)
    np.testing.assert_array_equal(first, replayed)
    assert ("graph", "compute") in device.log


def test_a_batch_of_seven_equals_seven_single_images(device, rng):
    gpu, _ = make(device)
    batch = noise_images(rng, 7, 40, 32)
    np.testing.assert_array_equal(gpu.run(batch), np.concatenate([gpu.run(p[None]) for p in batch]))


def test_after_the_first_call_nothing_is_allocated_and_one_copy_goes_each_way(device, rng):
    gpu, _ = make(device)
    for _ in range(2):
        gpu.run(noise_images(rng, 4, 32, 32))
    device.log.clear()
    gpu.run(noise_images(rng, 4, 32, 32))
    assert device.log == [
        ("upload", "copies"), ("record", "copies"), ("wait", "compute"), ("copy", "compute"), ("zip_ingest", "compute"),
        ("graph", "compute"), ("zip_egress", "compute"), ("record", "compute"), ("wait", "copies"),
        ("download", "copies"), ("record", "copies"), ("event.synchronize",),
    ]  # fmt: skip


def test_batches_are_cut_and_overlap(device, rng, monkeypatch):
    monkeypatch.setattr(gpu_buffers, "MAX_PIXELS_A_BATCH", 2 * 32 * 32)
    gpu, cpu = make(device)
    batch, done = noise_images(rng, 7, 32, 32), []
    got = gpu.run(batch, progress=done.append)
    assert_same(got, cpu.run(batch))
    assert done == [2, 2, 2, 1]
    copies = [entry[0] for entry in device.log if entry in (("upload", "copies"), ("download", "copies"))]
    assert copies == ["upload", "upload", "download", "upload", "download", "upload", "download", "download"]


def test_the_batch_limit_of_the_engine_is_kept(device, rng):
    plain = FakeEngine()
    gpu, cpu = make(device, engine=FakeDeviceEngine(plain, device, max_batch=3))
    batch = noise_images(rng, 8, 32, 32)
    assert_same(gpu.run(batch), cpu.run(batch))
    assert max(shape[0] for shape, _ in plain.calls) == 3


def test_impossible_sizes_are_refused_before_the_first_batch(device, rng):
    gpu, _ = make(device, make_spec(**FIXED))
    gpu._dispatcher.divisor = 48  # cells that divide no frame
    with pytest.raises(InputError):
        gpu.run([noise_images(rng, 1, 64, 64)[0], noise_images(rng, 1, 200, 64)[0]])
    assert in_flight(gpu) == 0


def test_one_call_takes_mixed_sizes(device, rng):
    gpu, cpu = make(device)
    batch = [noise_images(rng, 1, h, w)[0] for h, w in ((32, 32), (40, 36), (32, 32), (64, 33))]
    for got, expected in zip(gpu.run(batch), cpu.run(batch), strict=True):
        assert_same(got, expected)


def test_an_error_in_one_size_leaves_no_batch_in_flight(device, rng):
    plain = FakeEngine()

    def overflowing(x, t):
        eps = plain(x, t)
        return eps * np.float32(np.inf) if x.shape[2] == 40 and bad else eps

    gpu, cpu = make(device, engine=FakeDeviceEngine(FunctionEngine(overflowing), device))
    batch, bad = [noise_images(rng, 1, h, 32)[0] for h in (32, 40, 48, 56)], [True]
    with np.errstate(invalid="ignore"), pytest.raises(EngineError, match="not finite"):
        gpu.run(batch)
    assert in_flight(gpu) == 0
    bad.clear()
    for got, expected in zip(gpu.run(batch), cpu.run(batch), strict=True):
        assert_same(got, expected)
    gpu.close()
    assert not device.used


def test_a_result_that_is_not_finite_is_refused_and_the_next_one_is_correct(device, rng):
    plain = FakeEngine()
    bad = []

    def overflowing(x, t):
        eps = plain(x, t)
        if bad:
            eps[0, 1, 3, 5] = np.inf
        return eps

    gpu, cpu = make(device, engine=FakeDeviceEngine(FunctionEngine(overflowing), device))
    batch = noise_images(rng, 2, 32, 32)
    bad.append(1)
    with pytest.raises(EngineError, match="not finite"):
        gpu.run(batch)
    bad.clear()
    assert_same(gpu.run(batch), cpu.run(batch))


@pytest.mark.parametrize("call", [3, 25])
def test_an_engine_that_fails_leaves_the_loop_usable(device, rng, call):
    """Fail in the first run and, without graphs, in a later one."""
    count = []

    def fail():
        count.append(1)
        if len(count) == call:
            raise EngineError("the engine failed")

    gpu, cpu = make(device, engine=FakeDeviceEngine(FakeEngine(), device, fail=fail), cuda_graph=call == 3)
    batch, failures = noise_images(rng, 2, 32, 32), 0
    for _ in range(4):
        try:
            assert_same(gpu.run(batch), cpu.run(batch))
        except EngineError as e:
            assert "the engine failed" in str(e)
            failures += 1
    assert failures == 1
    (buffers,) = gpu._dispatcher.device_loop.pool.sizes.values()
    assert not buffers.pending and len(buffers.staging) == 2


def test_larger_images_take_the_host_loop(device, rng):
    gpu, cpu = make(device, make_spec(**FIXED), preset="fast")
    batch = noise_images(rng, 1, 80, 100)
    np.testing.assert_array_equal(gpu.run(batch), cpu.run(batch))
    assert ("zip_ingest", "compute") not in device.log


def test_transforms_without_a_kernel_take_the_host_loop_and_log_it(device, rng, caplog):
    gpu, cpu = make(device, transforms="blur3", preset="fast")
    (record,) = caplog.records
    assert re.match("no GPU kernel for blur3.*the loop runs on the host", record.getMessage())
    assert (record.name, record.levelname) == ("zipsdk.dispatcher", "WARNING")
    assert gpu.info["loop"].startswith("host (no GPU kernel for blur3")
    batch = noise_images(rng, 1, 48, 48)
    np.testing.assert_array_equal(gpu.run(batch), cpu.run(batch))


def test_info_of_a_plain_engine_names_the_host_loop():
    assert zipsdk.Purifier(FakeEngine()).info["loop"] == "host (the engine runs on the CPU)"


def test_an_empty_batch_gives_an_empty_batch(device):
    gpu, _ = make(device)
    assert gpu.run(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 32, 32, 3)


def test_missing_kernels_are_reported_with_the_install_command(monkeypatch):
    """The command installs from the source folder, because no package index has zipsdk."""
    monkeypatch.setattr(gpu_package, "__path__", [])
    with pytest.raises(EngineError, match=r"from the folder of zipsdk's source: pip install .* --no-deps \.$"):
        fatbin_path()


def test_launch_signatures_equal_those_of_the_kernels():
    """Compare `struct`'s letters with the C++ declarations: P is a pointer, 32s a ZipLayout by value."""
    text = "".join((SOURCES / name).read_text() for name in ("ingest.cuh", "egress.cuh"))
    found = dict(re.findall(r"(zip_\w+)\(([^)]*)\) \{", text))
    step = (SOURCES / "step.cuh").read_text()
    found["zip_step_f32"] = re.search(r"name\((const float\* x[^)]*)\)", step)[1].replace("\\", "")
    for name, letters in SIGNATURES.items():
        kinds = ["32s" if "ZipLayout" in a else "P" if "*" in a else a for a in found[name].split(",")]
        assert "".join(kinds) == letters, name


def test_zip_tiny_runs_on_the_fake_gpu(device, rng):
    """Run the bundled model, the kernels and the loop together; only the GPU is a fake."""
    pytest.importorskip("onnxruntime")
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    on_gpu = FakeDeviceEngine(engine, device, capturable=False)
    enqueue = engine.enqueue
    on_gpu.enqueue = lambda x, t, eps, batch, stream, size=None: device.streams[stream].push(
        "engine", lambda: enqueue(x, t, eps, batch, stream, size=size)
    )
    batch = noise_images(rng, 5, 32, 32)
    for preset in ("paper", "fast"):
        got = zipsdk.Purifier(on_gpu, preset=preset, seed=1).run(batch)
        assert_same(got, zipsdk.Purifier(engine, preset=preset, seed=1).run(batch))

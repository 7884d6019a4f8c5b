"""Test the loop on a GPU through PyCUDA; test_fake_cuda.py rehearses these tests on a CPU."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import pytest

import zipsdk
from tests.fakes.device import view
from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.gpu_pairs import SETTINGS, assert_same, noise_images
from zipsdk.errors import EngineError, MissingDependencyError, OutOfMemoryError
from zipsdk.gpu import buffers as gpu_buffers
from zipsdk.gpu.device import Device, open_device

pytestmark = pytest.mark.gpu
REHEARSAL = "ZIPSDK_FAKE_CUDA" in os.environ


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return open_device(0)
    except (EngineError, MissingDependencyError) as e:
        pytest.skip(str(e))


class HostFunctionEngine:
    """Run a plain engine as a host function of the stream: for the rehearsal, where device memory is host memory."""

    capturable, max_batch = True, None

    def __init__(self, plain, device):
        self.plain, self.device, self.spec, self.alive = plain, device, plain.spec, []

    def prepare(self, batch, height, width):
        return None

    def __call__(self, x, t):
        return self.plain(x, t)

    def enqueue(self, x, t, eps, batch, stream, *, size=None):
        shape = (batch, 3, *(size or (self.spec.image_size,) * 2))

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def work(_):
            view(eps, shape)[:] = self.plain(view(x, shape).copy(), view(t, (batch,)))

        self.alive.append(work)
        assert ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(ctypes.c_void_p(stream), work, None) == 0


def engines(device, **spec):
    """Return an engine on the GPU and one on the CPU with the same outputs up to rounding."""
    if REHEARSAL:
        plain = FakeEngine(make_spec(**spec))
        return HostFunctionEngine(plain, device), plain
    torch = pytest.importorskip("torch")
    from bench.gpu.torch_engine import TorchEngine

    class Same(torch.nn.Module):
        """Compute what FakeEngine computes, in torch."""

        def forward(self, x, t):
            mixed = 0.8 * x + 0.2 * torch.roll(x, 1, -1) * 0.5 + 0.1 * x.flip(1)
            return torch.tanh(mixed) * (0.3 + 0.6 * (t / 1000)[:, None, None, None])

    made = make_spec(**spec)
    return TorchEngine(Same(), made, device, where=f"cuda:{device.ordinal}"), FakeEngine(made)


class CopyEngine:
    """Copy x to eps on the device: the loop can capture this without a runtime."""

    capturable, max_batch = True, None

    def __init__(self, device):
        self.device, self.spec = device, make_spec()

    def prepare(self, batch, height, width):
        return None

    def __call__(self, x, t):
        return x.copy()

    def enqueue(self, x, t, eps, batch, stream, *, size=None):
        height, width = size or (self.spec.image_size,) * 2
        assert stream == self.device.compute.handle
        self.device.copy(eps, x, 12 * batch * height * width, self.device.compute)


class CopyOnCpu:
    def __init__(self):
        self.spec = make_spec()

    def __call__(self, x, t):
        return x.copy()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_captured_graphs_equal_single_launches_and_the_cpu(device, rng, settings):
    """Capture and replay for several batch sizes; compare with single launches and with the CPU."""
    on, off = (zipsdk.Purifier(CopyEngine(device), seed=5, cuda_graph=graph, **settings) for graph in (True, False))
    cpu = zipsdk.Purifier(CopyOnCpu(), seed=5, **settings)
    for n in (3, 4, 3, 4, 3):
        batch = noise_images(rng, n, 32, 48)
        got = on.run(batch)
        np.testing.assert_array_equal(got, off.run(batch))
        assert_same(got, cpu.run(batch))
    assert "one captured graph" in on.info["loop"]
    (buffers,) = on._dispatcher.device_loop.pool.sizes.values()
    assert {n for n, entry in buffers.step_graphs.items() if entry.graph is not None} == {3, 4}


def test_a_batch_of_seven_equals_seven_single_images(device, rng):
    gpu = zipsdk.Purifier(CopyEngine(device), seed=5)
    batch = noise_images(rng, 7, 40, 32)
    np.testing.assert_array_equal(gpu.run(batch), np.concatenate([gpu.run(p[None]) for p in batch]))


def test_out_of_memory_halves_the_batch(device, rng, monkeypatch, caplog):
    """Simulate the limit, because a full GPU would disturb its other users."""
    alloc = Device.alloc

    def small(self, size):
        if size > 300_000:
            raise OutOfMemoryError("more than the test allows")
        return alloc(self, size)

    monkeypatch.setattr(Device, "alloc", small)
    gpu, cpu = zipsdk.Purifier(CopyEngine(device), seed=5), zipsdk.Purifier(CopyOnCpu(), seed=5)
    batch = noise_images(rng, 32, 32, 32)  # the state of 32 takes 393,216 bytes
    got = gpu.run(batch)
    assert any("32 frames do not fit into its memory; continuing with 16" in m for m in caplog.messages)
    assert_same(got, cpu.run(batch))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("n", "side", "fixed"), [(3, 32, False), (5, 30, True), (1, 64, True)])
def test_images_equal_those_of_the_cpu(device, rng, settings, n, side, fixed):
    on_gpu, plain = engines(device, **({"min_side": 64, "max_side": 64} if fixed else {}))
    gpu, cpu = (zipsdk.Purifier(e, seed=5, **settings) for e in (on_gpu, plain))
    batch, keys = noise_images(rng, n, side, side), np.arange(n)
    expected = cpu.run(batch, noise_keys=keys)
    runs = [gpu.run(batch, noise_keys=keys) for _ in range(3)]
    assert_same(runs[0], expected)
    for again in runs[1:]:
        np.testing.assert_array_equal(runs[0], again)


def test_graph_off_gives_the_same_bits(device, rng):
    batch, (on_gpu, _) = noise_images(rng, 3, 32, 48), engines(device)
    on, off = (zipsdk.Purifier(on_gpu, seed=1, cuda_graph=graph) for graph in (True, False))
    for _ in range(3):
        np.testing.assert_array_equal(on.run(batch), off.run(batch))


def test_a_stream_in_small_batches_equals_the_cpu(device, rng, monkeypatch):
    monkeypatch.setattr(gpu_buffers, "MAX_PIXELS_A_BATCH", 2 * 32 * 32)
    on_gpu, plain = engines(device)
    gpu, cpu = (zipsdk.Purifier(e, seed=5, preset="fast") for e in (on_gpu, plain))
    batches = [noise_images(rng, n, 32, 32) for n in (1, 5, 2, 3)]
    for got, batch in zip(gpu.stream(batches), batches, strict=True):
        assert_same(got, cpu.run(batch))


def test_memory_is_flat(device, rng):
    """Run fifty batches of changing sizes; all memory is free at the end."""
    cuda = device._cuda
    gpu = zipsdk.Purifier(CopyEngine(device), seed=5, steps=2)

    def free():
        with device.active():
            return cuda.mem_get_info()[0]

    def work():
        for i in range(25):
            gpu.run(noise_images(rng, 1 + i % 3, 32 + 4 * (i % 6), 32))

    before = free()
    work()
    first = free()
    work()
    assert free() >= first - (1 << 20)
    gpu._dispatcher.device_loop.close()
    assert free() >= before - (64 << 20)


def test_zip_tiny_equals_the_cpu(device, rng):
    """Compare the bundled model on ONNX Runtime's CUDA provider with its CPU provider."""
    ort = pytest.importorskip("onnxruntime")
    cpu = zipsdk.load_engine("zip-tiny", device="cpu")
    if REHEARSAL:
        gpu = HostFunctionEngine(cpu, device)
    elif "CUDAExecutionProvider" in ort.get_available_providers():
        gpu = zipsdk.load_engine("zip-tiny", device="cuda")
        assert gpu.providers[0] == "CUDAExecutionProvider"
    else:
        pytest.skip(f"this onnxruntime has {ort.get_available_providers()}")
    batch = noise_images(rng, 4, 32, 32)
    got, expected = (zipsdk.Purifier(e, seed=5).run(batch) for e in (gpu, cpu))
    off = np.abs(got.astype(int) - expected.astype(int))
    # TF32 and other summation orders; set 8 to twice the value that a GPU shows
    assert off.max() <= (1 if REHEARSAL else 8)


def test_a_capture_refuses_synchronization(device):
    with device.active():
        with pytest.raises(Exception, match=r"(?i)capture|error"), device.capture(device.compute):
            device.compute.synchronize()
        # the stream is usable afterwards
        device.compute.synchronize()
        with device.capture(device.compute) as graph:
            pass
        graph.launch(device.compute)
        device.compute.synchronize()
        graph.close()

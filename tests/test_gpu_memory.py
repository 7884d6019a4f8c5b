"""The memory of the loop on a device, on the tests' own GPU: how much it takes, and what happens without room."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from conftest import FakeEngine
from device_fake import FakeDevice, FakeDeviceEngine
from gpu_pairs import assert_same, make, pictures

from zipsdk import canvas
from zipsdk.errors import OutOfMemory
from zipsdk.gpu import loop as gpu_loop


def test_buffers_of_old_sizes_are_freed(device, rng):
    gpu, _ = make(device)
    for side in (32, 36, 40, 44, 48, 52, 56):
        gpu.run(pictures(rng, 1, side, side))
    used = device.used
    for side in (32, 36, 40, 44, 48, 52, 56):
        gpu.run(pictures(rng, 1, side, side))
    assert device.used == used and len(gpu._device_loop._sizes) == gpu_loop.MAX_SIZES


def test_buffers_grow_with_the_batch_up_to_the_engines_limit(device, rng):
    """One picture must not cost the memory of the largest batch."""
    engine = FakeDeviceEngine(FakeEngine(), device, max_batch=6)
    gpu, _ = make(device, engine=engine)
    for n in (1, 3, 4, 5, 6, 7, 2):
        gpu.run(pictures(rng, n, 33, 32))
    assert sorted(b.canvases for b in gpu._device_loop._sizes.values()) == [1, 2, 4, 6]
    assert (2, 36, 32) in engine.prepared and (8, 36, 32) not in engine.prepared


def test_out_of_memory_halves_the_batch_and_says_so_once(host, rng, monkeypatch):
    monkeypatch.setattr(gpu_loop, "MAX_PIXELS_A_BATCH", 16 * 32 * 32)
    device = FakeDevice(host, room=250_000)  # 16 canvases want about 530 kB
    gpu, cpu = make(device)
    batch = pictures(rng, 16, 32, 32)
    with pytest.warns(UserWarning, match="16 canvases do not fit into its memory; going on with 8") as caught:
        got = gpu.run(batch)
    assert len(caught) == 1
    assert_same(got, cpu.run(batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(gpu.run(batch), cpu.run(batch))
    device.check()


def test_an_engine_out_of_memory_in_the_middle(device, rng):
    """ONNX Runtime finds out only when it evaluates; the pictures that are on their way are not lost."""
    plain = FakeEngine()
    engine = FakeDeviceEngine(plain, device)

    def enqueue(x, t, eps, batch, stream, *, size=None):
        if batch > 3:
            raise OutOfMemory("the arena is full")
        FakeDeviceEngine.enqueue(engine, x, t, eps, batch, stream, size=size)

    engine.enqueue = enqueue
    gpu, cpu = make(device, engine=engine)
    batch = pictures(rng, 13, 32, 32)
    with pytest.warns(UserWarning, match="do not fit"):
        assert_same(gpu.run(batch), cpu.run(batch))


def test_idle_buffers_of_other_sizes_make_room(device, rng):
    """They are ours to give up: that they fill the memory is no reason to halve a batch, or to refuse it."""
    gpu, cpu = make(device, profile="fast")
    small, large, used = pictures(rng, 1, 32, 32), pictures(rng, 8, 40, 40), []
    for batch in (small, large):
        with gpu:
            gpu.run(batch)
            used.append(device.used)
    device.room = max(used)
    for batch in (large, small, large):
        assert_same(gpu.run(batch), cpu.run(batch))
    assert gpu._device_loop._limit is None


def test_no_memory_is_lost_where_none_can_be_pinned(device, rng):
    gpu, cpu = make(device, profile="fast")
    loop, layout = gpu._device_loop, canvas.plan(gpu.engine.spec, 32, 32, 2)
    batch = pictures(rng, 2, 32, 32)
    device.pin_room = 10
    with pytest.raises(OutOfMemory, match="not even one canvas"), pytest.warns(UserWarning, match="do not fit"):
        gpu.run(batch)
    gpu.close()
    assert not device.used and not device.pinned_now
    loop._limit, device.pin_room = None, 1 << 30
    ids = np.arange(2, dtype=np.uint64)
    tickets = [loop.submit(batch, layout, ids, 0, 5) for _ in range(2)]
    used, device.pin_room = device.used, device.pinned_now
    with pytest.raises(OutOfMemory):
        loop.submit(batch, layout, ids, 0, 5)  # wants a third slot
    assert device.used == used
    for ticket in tickets:
        assert_same(loop.collect(ticket), cpu.run(batch, ids=ids))


def test_many_sizes_in_one_call_are_not_all_in_flight(device, rng):
    gpu, cpu = make(device, profile="fast")
    batch, together = [pictures(rng, 1, 32 + 4 * i, 32)[0] for i in range(9)], []
    gpu.engine.fail = lambda: together.append(len(gpu._device_loop._sizes))
    for got, wanted in zip(gpu.run(batch), cpu.run(batch), strict=True):
        assert_same(got, wanted)
    assert max(together) == gpu_loop.MAX_SIZES
    gpu.close()
    assert not device.used


def test_not_even_one_canvas_fits(host, rng):
    gpu, _ = make(FakeDevice(host, room=20_000))
    with pytest.raises(OutOfMemory, match="not even one canvas of 32x32 fits: use a smaller model"):
        gpu.run(pictures(rng, 1, 32, 32))

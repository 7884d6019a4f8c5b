"""Test the memory of the GPU loop on the fake GPU: its size, and what happens when it runs out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.device import FakeDevice
from tests.fakes.device_engine import FakeDeviceEngine
from tests.fakes.engine import FakeEngine, FunctionEngine
from tests.helpers.gpu_pairs import assert_same, make, noise_images
from zipsdk.errors import EngineError, OutOfMemoryError
from zipsdk.gpu import buffers as gpu_buffers
from zipsdk.sampling import tiling


def test_buffers_of_old_sizes_are_freed(device, rng):
    gpu, _ = make(device)
    for side in (32, 36, 40, 44, 48, 52, 56):
        gpu.run(noise_images(rng, 1, side, side))
    used = device.used
    for side in (32, 36, 40, 44, 48, 52, 56):
        gpu.run(noise_images(rng, 1, side, side))
    assert device.used == used and len(gpu._dispatcher.device_loop.pool.sizes) == gpu_buffers.MAX_SIZES


def test_buffers_grow_with_the_batch_up_to_the_engines_limit(device, rng):
    """One image must not cost the memory of the largest batch."""
    engine = FakeDeviceEngine(FakeEngine(), device, max_batch=6)
    gpu, _ = make(device, engine=engine)
    for n in (1, 3, 4, 5, 6, 7, 2):
        gpu.run(noise_images(rng, n, 33, 32))
    assert sorted(b.frames for b in gpu._dispatcher.device_loop.pool.sizes.values()) == [1, 2, 4, 6]
    assert (2, 36, 32) in engine.prepared and (8, 36, 32) not in engine.prepared


def test_out_of_memory_halves_the_batch_and_is_logged_once(host, rng, monkeypatch, caplog):
    monkeypatch.setattr(gpu_buffers, "MAX_PIXELS_A_BATCH", 16 * 32 * 32)
    device = FakeDevice(host, room=250_000)  # 16 frames need about 530 kB
    gpu, cpu = make(device)
    batch = noise_images(rng, 16, 32, 32)
    for _ in range(2):
        assert_same(gpu.run(batch), cpu.run(batch))
    (record,) = caplog.records
    assert "16 frames do not fit into its memory; continuing with 8 of 32x32 at a time" in record.getMessage()
    assert (record.name, record.levelname) == ("zipsdk.gpu.loop", "WARNING")
    device.check()


def test_an_engine_that_runs_out_of_memory_halves_the_batch(device, rng, caplog):
    """ONNX Runtime allocates only when it runs; images in flight are not lost."""
    plain = FakeEngine()
    engine = FakeDeviceEngine(plain, device)

    def enqueue(x, t, eps, batch, stream, *, size=None):
        if batch > 3:
            raise OutOfMemoryError("the arena is full")
        FakeDeviceEngine.enqueue(engine, x, t, eps, batch, stream, size=size)

    engine.enqueue = enqueue
    gpu, cpu = make(device, engine=engine)
    batch = noise_images(rng, 13, 32, 32)
    assert_same(gpu.run(batch), cpu.run(batch))
    assert any("do not fit" in m for m in caplog.messages)


def test_idle_buffers_of_other_sizes_make_room(device, rng):
    """Idle buffers are freed before a batch is halved or refused."""
    gpu, cpu = make(device, preset="fast")
    small, large, used = noise_images(rng, 1, 32, 32), noise_images(rng, 8, 40, 40), []
    for batch in (small, large):
        with gpu:
            gpu.run(batch)
            used.append(device.used)
    device.room = max(used)
    for batch in (large, small, large):
        assert_same(gpu.run(batch), cpu.run(batch))
    assert gpu._dispatcher.device_loop.pool.limit is None


def leave_room_for_one(device, gpu, batches):
    """Limit the memory so that each of these batches fits, and no two of them."""
    used = []
    for batch in batches:
        with gpu:
            gpu.run(batch)
            used.append(device.used)
    device.room = max(used) * 5 // 4
    assert min(used) * 2 > device.room


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("sides", [(40, 44, 48), (48, 44, 40)])
def test_sizes_that_fit_only_one_at_a_time_keep_their_batches(device, rng, sides, n, caplog):
    """Memory that other sizes of the call hold for now neither halves nor refuses a batch."""
    gpu, cpu = make(device, preset="fast")
    batches = [noise_images(rng, n, side, side) for side in sides]
    leave_room_for_one(device, gpu, batches)
    batch = [p for batch in batches for p in batch]
    for got, expected in zip(gpu.run(batch), cpu.run(batch), strict=True):
        assert_same(got, expected)
    assert not caplog.records
    assert gpu._dispatcher.device_loop.pool.limit is None


def test_calls_that_fit_only_one_at_a_time_are_collected_in_any_order(device, rng):
    """A stream or several threads make such calls."""
    gpu, cpu = make(device, preset="fast")
    batches = [noise_images(rng, 1, side, side) for side in (40, 44, 48)]
    leave_room_for_one(device, gpu, batches)
    waits = [gpu._submit(list(batch), list) for batch in batches]
    for wait, batch in reversed(list(zip(waits, batches, strict=True))):
        assert_same(wait.result()[0], cpu.run(batch)[0])
    assert gpu._dispatcher.device_loop.pool.limit is None
    gpu.close()
    assert not device.used


def test_idle_buffers_are_freed_before_those_of_a_batch_in_flight(device, rng):
    gpu, cpu = make(device, preset="fast")
    batches, used = [noise_images(rng, 1, side, side) for side in (40, 44, 48)], []
    for batch in batches:
        with gpu:
            gpu.run(batch)
            used.append(device.used)
    device.room = used[1] + used[2]
    gpu.run(batches[0])
    waits = [gpu._submit(list(batch), list) for batch in batches[1:]]
    assert [len(b.pending) for b in gpu._dispatcher.device_loop.pool.sizes.values()] == [1, 1]
    for wait, batch in zip(waits, batches[1:], strict=True):
        assert_same(wait.result()[0], cpu.run(batch)[0])


def test_a_batch_finished_early_for_its_memory_raises_its_own_error(device, rng):
    plain, bad = FakeEngine(), []

    def overflowing(x, t):
        return plain(x, t) * np.float32(np.inf if bad and x.shape[2] == 40 else 1)

    gpu, cpu = make(device, engine=FakeDeviceEngine(FunctionEngine(overflowing), device), preset="fast")
    batches = [noise_images(rng, 1, side, side) for side in (40, 44)]
    leave_room_for_one(device, gpu, batches)
    bad.append(1)
    with np.errstate(invalid="ignore"):
        first, second = (gpu._submit(list(batch), list) for batch in batches)
        assert_same(second.result()[0], cpu.run(batches[1])[0])
    with pytest.raises(EngineError, match="the result is not finite"):
        first.result()
    gpu.close()
    assert not device.used


def test_a_download_error_is_raised_to_the_caller_of_its_batch(device, rng, monkeypatch):
    gpu, cpu = make(device, preset="fast")
    batches = [noise_images(rng, 1, side, side) for side in (40, 44)]
    leave_room_for_one(device, gpu, batches)
    download, failed = device.download, []

    def fails_once(*words):
        if not failed:
            failed.append(1)
            raise MemoryError("no room for the result")
        download(*words)

    first = gpu._submit(list(batches[0]), list)
    monkeypatch.setattr(device, "download", fails_once)
    second = gpu._submit(list(batches[1]), list)
    assert failed
    assert_same(second.result()[0], cpu.run(batches[1])[0])
    with pytest.raises(MemoryError, match="no room for the result"):
        first.result()
    gpu.close()
    assert not device.used


def test_the_limit_after_running_out_of_memory_counts_pixels(device, rng, caplog):
    """A failure of a few large images limits small ones by their pixels, not by their number."""
    plain = FakeEngine()
    engine = FakeDeviceEngine(plain, device)

    def enqueue(x, t, eps, batch, stream, *, size=None):
        if batch * size[0] * size[1] > 64 * 32 * 32:
            raise OutOfMemoryError("the arena is full")
        FakeDeviceEngine.enqueue(engine, x, t, eps, batch, stream, size=size)

    engine.enqueue = enqueue
    gpu, cpu = make(device, engine=engine, preset="fast")
    small, large = noise_images(rng, 64, 32, 32), noise_images(rng, 5, 128, 128)
    gpu.run(small)
    assert {shape[0] for shape, _ in plain.calls} == {64}
    assert_same(gpu.run(large), cpu.run(large))
    assert any("5 frames do not fit into its memory; continuing with 2 of 128x128" in m for m in caplog.messages)
    plain.calls.clear()
    got = gpu.run(small)
    assert {shape[0] for shape, _ in plain.calls} == {32}
    assert_same(got, cpu.run(small))


def test_no_memory_leaks_if_none_can_be_pinned(device, rng, caplog):
    gpu, cpu = make(device, preset="fast")
    loop, layout = gpu._dispatcher.device_loop, tiling.plan_tiles(gpu.engine.spec, 32, 32, 2)
    batch = noise_images(rng, 2, 32, 32)
    device.pin_room = 10
    with pytest.raises(OutOfMemoryError, match="not even one frame"):
        gpu.run(batch)
    assert any("do not fit" in m for m in caplog.messages)
    gpu.close()
    assert not device.used and not device.pinned_now
    loop.pool.limit, device.pin_room = None, 1 << 30
    keys = np.arange(2, dtype=np.uint64)
    tickets = [loop.submit(batch, layout, keys, 0, 5) for _ in range(2)]
    device.pin_room = 10
    with pytest.raises(OutOfMemoryError):
        loop.submit(batch, layout, keys, 0, 5)  # needs a third slot, and then its own two
    gpu.close()
    assert not device.used and not device.pinned_now
    for ticket in tickets:
        assert_same(loop.collect(ticket), cpu.run(batch, noise_keys=keys))


def test_many_sizes_in_one_call_are_not_all_in_flight(device, rng):
    gpu, cpu = make(device, preset="fast")
    batch, together = [noise_images(rng, 1, 32 + 4 * i, 32)[0] for i in range(9)], []
    gpu.engine.fail = lambda: together.append(len(gpu._dispatcher.device_loop.pool.sizes))
    for got, expected in zip(gpu.run(batch), cpu.run(batch), strict=True):
        assert_same(got, expected)
    assert max(together) == gpu_buffers.MAX_SIZES
    gpu.close()
    assert not device.used


def test_a_frame_that_does_not_fit_is_an_error(host, rng):
    gpu, _ = make(FakeDevice(host, room=20_000))
    with pytest.raises(OutOfMemoryError, match="not even one frame of 32x32 fits: use a smaller model"):
        gpu.run(noise_images(rng, 1, 32, 32))

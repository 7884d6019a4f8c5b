"""Test threads and purifiers that share one fake GPU, and that they free its memory."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.fakes.device_engine import FakeDeviceEngine
from tests.fakes.engine import FakeEngine
from tests.helpers.gpu_pairs import Meanwhile, assert_same, make, noise_images
from zipsdk.errors import OutOfMemoryError
from zipsdk.sampling import tiling


def test_threads_share_a_purifier(device, rng):
    gpu, cpu = make(device, preset="fast")
    batches = [noise_images(rng, 1 + i % 3, 32, 32) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for got, batch in zip(pool.map(gpu.run, batches), batches, strict=True):
            assert_same(got, cpu.run(batch))


def test_a_batch_is_split_and_submitted_before_another_thread_lowers_the_limit(device, rng):
    gpu, cpu = make(device, preset="fast")
    loop, threads, batch = gpu._dispatcher.device_loop, [], noise_images(rng, 4, 32, 32)
    loop.pool.limit, frames = 8 * 32 * 32, loop.frames

    def interrupted(layout):
        most = frames(layout)
        if not threads:
            threads.append(threading.Thread(target=loop.halve_limit, args=(layout, 4, OutOfMemoryError("no room"))))
            threads[0].start()
            threads[0].join(0.3)
        return most

    loop.frames = interrupted
    assert_same(gpu.run(batch), cpu.run(batch))
    threads[0].join(30)
    assert loop.pool.limit == 2 * 32 * 32
    loop.halve_limit(tiling.plan_tiles(gpu.engine.spec, 32, 32, 2), 16, OutOfMemoryError("no room"))
    assert loop.pool.limit == 2 * 32 * 32  # a larger batch under an older limit does not raise it


def test_the_graph_of_one_purifier_has_no_work_of_another(device, rng):
    batch = noise_images(rng, 2, 32, 32)
    other, cpu = make(device)
    meanwhile = Meanwhile(device, lambda: other.run(batch))
    gpu, _ = make(device, engine=FakeDeviceEngine(FakeEngine(), device, fail=meanwhile))
    expected = cpu.run(batch)
    for _ in range(3):
        assert_same(gpu.run(batch), expected)
    assert_same(meanwhile.end(), expected)
    assert_same(other.run(batch), expected)


def test_a_purifier_may_be_created_while_another_one_captures(device, rng):
    batch, settings = noise_images(rng, 2, 32, 32), {"transforms": "blur4", "preset": "fast"}
    meanwhile = Meanwhile(device, lambda: make(device, **settings)[0].run(batch))
    gpu, cpu = make(device, engine=FakeDeviceEngine(FakeEngine(), device, fail=meanwhile))
    for _ in range(3):
        assert_same(gpu.run(batch), cpu.run(batch))
    assert_same(meanwhile.end(), make(device, **settings)[1].run(batch))


def test_closing_frees_all_memory_and_the_next_run_allocates_it_again(device, rng):
    gpu, cpu = make(device, preset="fast")
    batch = noise_images(rng, 2, 32, 32)
    for _ in range(2):
        with gpu:
            for _ in range(3):
                assert_same(gpu.run(batch), cpu.run(batch))
            assert device.used
        assert not device.used
    gpu.close()
    assert ("graph", "compute") in device.log
    assert not device.pinned_now
    device.check()  # all of it was freed while a context was current


def test_closing_keeps_batches_in_flight(device, rng):
    gpu, cpu = make(device)
    batches = [noise_images(rng, 1, 32, 32) for _ in range(4)]
    finish = [gpu._submit([b[0]], list) for b in batches[:2]]
    gpu.close()
    assert device.used
    for wait, batch in zip(finish, batches, strict=False):
        assert_same(wait.result()[0], cpu.run(batch)[0])
    for _ in range(2):
        assert_same(gpu.run(batches[3]), cpu.run(batches[3]))
    gpu.close()
    assert not device.used


def test_memory_of_deleted_purifiers_is_freed(device, rng):
    used, engine, batch = [], FakeDeviceEngine(FakeEngine(), device), noise_images(rng, 2, 32, 32)
    for lam in (1, 2, 4, 8):
        gpu, _ = make(device, engine=engine, lam=lam, steps=2)
        for _ in range(3):
            gpu.run(batch)
        used.append(device.used)
        del gpu
        gc.collect()
    assert len(set(used)) == 1
    with device.active():
        device.free(device.alloc(1))  # the next allocation frees what is pending
    assert not device.used


def test_a_purifier_may_be_deleted_while_another_one_captures(device, rng):
    """The garbage collector may run at any time; to free memory then would break the capture."""
    holder, batch = [make(device)[0]], noise_images(rng, 2, 32, 32)
    holder[0].run(batch)
    meanwhile = Meanwhile(device, lambda: (holder.clear(), gc.collect()), in_place=True)
    gpu, cpu = make(device, engine=FakeDeviceEngine(FakeEngine(), device, fail=meanwhile))
    for _ in range(3):
        assert_same(gpu.run(batch), cpu.run(batch))
    assert meanwhile.result
    gpu.close()
    with device.active():
        device.free(device.alloc(1))
    assert not device.used

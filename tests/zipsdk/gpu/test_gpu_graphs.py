"""Test the captured graphs of the GPU loop on the fake GPU."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.fakes.device_engine import FakeDeviceEngine
from tests.fakes.engine import FakeEngine, make_spec
from tests.helpers.gpu_pairs import FIXED, assert_same, make, noise_images
from zipsdk.errors import EngineError
from zipsdk.gpu import steps as gpu_steps


def test_a_graph_serves_other_images_counts_and_seeds(device, rng):
    gpu, cpu = make(device, make_spec(**FIXED))
    for n, seed in ((4, 1), (3, 2), (2, 3), (4, 4)):  # all fit on one frame
        batch = noise_images(rng, n, 32, 32)
        assert_same(gpu.run(batch, seed=seed), cpu.run(batch, seed=seed))
    assert device.log.count(("graph", "compute")) == 3


def test_graph_off_gives_the_same_bits(device, rng):
    batch = noise_images(rng, 4, 32, 48)
    on, off = (make(device, cuda_graph=graph)[0] for graph in (True, False))
    for _ in range(2):
        np.testing.assert_array_equal(on.run(batch), off.run(batch))
    assert "one captured graph" in on.info["loop"] and "step by step" in off.info["loop"]


def test_a_graph_holds_every_step_and_nothing_else(device, rng):
    gpu, _ = make(device, make_spec(**FIXED), preset="fast")
    for _ in range(2):
        gpu.run(noise_images(rng, 2, 30, 30))
    captured = [entry[0] for entry in device.log if entry[-1] == "captured"]
    assert captured == ["zip_step_f32"] + ["zip_fill", "engine", "zip_step_f32"] * 4


def test_only_what_has_run_is_captured(device, rng):
    """Neither a failed run nor a run before the engine replaced its context is a warm-up."""
    count, made = [], [object()]

    def fail():
        count.append(1)
        if len(count) == 3:
            raise EngineError("the engine failed")

    engine = FakeDeviceEngine(FakeEngine(), device, fail=fail)
    engine.prepare = lambda batch, height, width: made[0]
    gpu, cpu = make(device, engine=engine)
    batch = noise_images(rng, 2, 32, 32)
    with pytest.raises(EngineError, match="the engine failed"):
        gpu.run(batch)
    graphs = []
    for _ in range(4):
        assert_same(gpu.run(batch), cpu.run(batch))
        graphs.append(device.log.count(("graph", "compute")))
        if len(graphs) == 1:
            made[0] = object()
    assert graphs == [0, 0, 1, 2]


def test_a_capture_that_fails_leaves_the_loop_step_by_step(device, rng, caplog):
    plain = FakeEngine()
    captures = []

    def fail():
        if device.compute.graph is not None:
            captures.append(1)
            raise RuntimeError("not while a stream is captured")

    gpu, cpu = make(device, engine=FakeDeviceEngine(plain, device, fail=fail))
    batch = noise_images(rng, 2, 32, 32)
    assert_same(gpu.run(batch), cpu.run(batch))
    assert_same(gpu.run(batch), cpu.run(batch))
    (message,) = caplog.messages
    assert re.search(r"capturing the loop failed \(not while .*\); it continues step by step", message)
    assert_same(gpu.run(batch), cpu.run(batch))
    assert len(captures) == 1 and "step by step" in gpu.info["loop"]


def test_an_engine_that_cannot_be_captured_runs_step_by_step(device, rng):
    gpu, cpu = make(device, engine=FakeDeviceEngine(FakeEngine(), device, capturable=False))
    batch = noise_images(rng, 2, 32, 32)
    for _ in range(3):
        assert_same(gpu.run(batch), cpu.run(batch))
    assert ("graph", "compute") not in device.log and "step by step" in gpu.info["loop"]


def captured(buffers):
    """Return the frame counts that have a captured graph."""
    return [n for n, entry in buffers.step_graphs.items() if entry.graph is not None]


def test_graphs_of_old_counts_are_dropped(device, rng, monkeypatch):
    monkeypatch.setattr(gpu_steps, "MAX_GRAPHS", 2)
    gpu, cpu = make(device, preset="fast")
    batch = noise_images(rng, 8, 32, 32)
    for n in (5, 6, 7, 8, 5, 7):
        expected = cpu.run(batch[:n])
        for _ in range(3):
            assert_same(gpu.run(batch[:n]), expected)
    (buffers,) = gpu._dispatcher.device_loop.pool.sizes.values()
    assert captured(buffers) == [5, 7]

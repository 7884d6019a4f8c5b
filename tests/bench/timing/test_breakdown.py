"""The breakdown of the time, and the start of a new process."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from bench.common.timing import Stopwatch
from bench.timing import breakdown
from bench.timing.setup import synthetic
from tests.fakes.clock import Clock
from tests.fakes.engine import FakeEngine
from zipsdk.sampling import denoiser, sampler
from zipsdk.sampling.noise import Noise

pytestmark = pytest.mark.torch


def test_stopwatch_counts_nothing_twice():
    clock = Clock()
    watch = Stopwatch(clock)

    def inner():
        clock.now += 2

    def outer():
        clock.now += 1
        watch.timed("UNet", inner)()
        clock.now += 4

    clock.now += 100  # between the parts: nobody's
    watch.timed("step", outer)()
    clock.now += 100
    assert watch.seconds["step"] == 5 and watch.seconds["UNet"] == 2
    assert sum(watch.seconds.values()) == 7


def test_parts_add_up_and_leave_everything_as_it_was(tmp_path):
    before = sampler.sample, Noise.normal, denoiser.TiledDenoiser.__call__
    engine = FakeEngine()
    got = breakdown.overhead(engine, synthetic(4, 32), 64, 1, steps=2)
    assert set(got["ms"]) == set(breakdown.PARTS) and all(v > 0 for v in got["ms"].values())
    assert 0 < got["not_unet"] < 1
    assert [shape for shape, _ in engine.calls] == [(1, 3, 64, 64)] * 3  # one to warm up, two steps
    assert before == (sampler.sample, Noise.normal, denoiser.TiledDenoiser.__call__)


def test_start_times_a_fresh_process_and_says_why_it_failed():
    got = breakdown.start("import json, time; print(json.dumps({'run': 0.5, 'done': time.time()}))")
    assert got["run"] == 0.5 and got["first"] > 0
    with pytest.raises(RuntimeError, match="no such model here"):
        breakdown.start("raise SystemExit('no such model here')")

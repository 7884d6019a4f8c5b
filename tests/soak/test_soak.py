"""Test the parts of the soak: slope, verdict, and one round of all activities."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("psutil")
pytest.importorskip("scipy")

from tests.soak import activities
from tests.soak.__main__ import LIMIT, SPARE, judge
from tests.soak.sampler import Sampler
from tests.soak.trend import slope, typical

SECONDS = np.arange(600.0)


def noise(rng: np.random.Generator, correlation: float) -> np.ndarray:
    y = np.zeros(len(SECONDS))
    for i, e in enumerate(rng.standard_normal(len(y))):
        y[i] = correlation * y[i - 1] + e
    return y


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_interval_covers_the_true_slope(correlation: float) -> None:
    rng = np.random.default_rng(5)
    true = 100.0
    fits = [slope(SECONDS, true / 3600 * SECONDS + noise(rng, correlation)) for _ in range(25)]
    assert sum(f.low <= true <= f.high for f in fits) >= 21
    assert sum(f.low <= 0 <= f.high for f in fits) < (1 if correlation == 0 else 25)


def test_a_slope_is_per_hour_and_needs_samples() -> None:
    fit = slope(SECONDS, 2 + SECONDS / 60)
    for value in (fit.value, fit.low, fit.high, fit.median):
        assert value == pytest.approx(60)
    with pytest.raises(ValueError, match="expected at least 24"):
        slope(SECONDS[:23], SECONDS[:23])


def record(rss: np.ndarray, threads: float = 5, files: float = 9, faults: tuple[str, ...] = ()) -> dict[str, object]:
    half = len(rss) // 2
    parts = {"whole": slope(SECONDS, rss), "second half": slope(SECONDS[half:], rss[half:])}
    return {
        "faults": list(faults),
        "slopes_per_hour": {"rss": {name: vars(s) for name, s in parts.items()}},
        "typical_per_hour": {"rss": typical(SECONDS, rss)},
        "most_in_warm_up": {"threads": 5, "files": 9},
        "at_rest": {"threads": threads, "files": files},
    }


def test_a_leak_is_distinguished_from_a_plateau() -> None:
    rng = np.random.default_rng(1)
    flat = 200 + noise(rng, 0.9) / 10
    assert judge(record(flat)) == []
    (leak,) = judge(record(flat + 5 * LIMIT / 3600 * SECONDS))
    assert "memory grows by" in leak
    plateau = 30 * (1 - np.exp(-SECONDS / 60))
    assert slope(SECONDS, flat + plateau).low > LIMIT
    assert judge(record(flat + plateau)) == []
    # a new arena in the second half is one step; a leak in small steps is a leak
    step = 8.0 * (SECONDS > 400)
    assert slope(SECONDS, flat + step).low > LIMIT and slope(SECONDS[300:], (flat + step)[300:]).low > LIMIT
    assert judge(record(flat + step)) == []
    assert judge(record(flat + np.floor(SECONDS / 20)))


def test_threads_files_and_faults_are_reported() -> None:
    flat = 200 + noise(np.random.default_rng(2), 0.5) / 10
    assert judge(record(flat, threads=5 + SPARE, files=9 + SPARE)) == []
    assert [w.split(":")[0] for w in judge(record(flat, threads=6 + SPARE))] == ["threads"]
    assert [w.split(":")[0] for w in judge(record(flat, files=10 + SPARE))] == ["files"]
    assert judge(record(flat, faults=("files: KeyError: 1",))) == ["fault: files: KeyError: 1"]


def test_all_activities_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = activities.Activities(tmp_path, seed=3)
    sampler = Sampler()
    with warnings.catch_warnings():
        activities.silence()
        for name in work.all:
            for _ in range(2):
                work.run(name)
        assert activities.command(tmp_path, random.Random(0)) in ("exit code 0", "exit code 1")
    assert not work.faults
    assert {name.split(":")[0] for name in work.done} == set(work.all)
    sampler.take()
    assert sampler.samples.rss[0] > 10 and sampler.samples.threads[0] >= 1
    capsys.readouterr()


def test_an_unexpected_exception_is_recorded(tmp_path: Path) -> None:
    work = activities.Activities(tmp_path, seed=0)
    work.all["broken"] = lambda: str(1 // 0)
    work.run("broken")
    assert work.faults == ["broken: ZeroDivisionError: integer division or modulo by zero"]

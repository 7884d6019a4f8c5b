"""Rows of the guard: what is timed, and the bound that they are compared with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import zipsdk  # noqa: E402
from bench import speed  # noqa: E402
from bench.common import timing  # noqa: E402
from bench.timing import guard_rows  # noqa: E402
from bench.timing.setup import LeftOut, SpeedSetup  # noqa: E402
from tests.fakes.engine import FakeEngine  # noqa: E402

pytestmark = pytest.mark.torch


def test_flagged_places_are_as_many_as_asked_and_spread():
    for n, share, wanted in ((20, 0.05, 1), (640, 0.05, 32), (5, 0.05, 1), (4, 1.0, 4)):
        places = guard_rows.flagged_places(n, share)
        assert places.shape == (n,) and places.sum() == wanted
        assert np.ptp(np.diff(np.flatnonzero(places), prepend=-1)) <= 1


def test_simulated_flags_go_by_place_and_still_compute_the_score():
    detector = guard_rows.Simulated(places=(False, True))
    scores = np.eye(2)[[0] * 6]
    assert [detector.is_suspicious(detector.score(scores)) for _ in range(4)] == [False, True] * 2
    with pytest.raises(zipsdk.InputError):
        detector.score(scores[:3])


def test_compare_with_bound_is_the_bound_where_the_guard_costs_nothing():
    """20 decisions at t_det 1 and one purification at T 30: 1 / (0.05 + 1/30) = 12."""
    samples = {"detect": [1.0], "whole-classify": [30.0], "guard-whole": [(20 + 30) / 20]}
    counts = {"guard-whole": [{"images": 20, "flagged": 1, "frames": 1, "inside": 50.0}],
              "whole-classify": [{"images": 1, "flagged": 1, "frames": 1}]}  # fmt: skip
    got = guard_rows.compare_with_bound(samples, counts, "whole", "guard-whole")
    assert got["bound"] == pytest.approx(12) and got["measured"] == pytest.approx(12)
    assert got["of_bound"]["median"] == pytest.approx(1)
    samples["guard-whole"] = [5.0]
    got = guard_rows.compare_with_bound(samples, counts, "whole", "guard-whole")
    assert got["bound"] == pytest.approx(12) and got["measured"] == pytest.approx(6)
    assert got["of_bound"]["median"] == pytest.approx(0.5)


def test_compare_with_bound_knows_how_full_the_frames_were():
    """A frame of 4 costs 40 however full: 10 an image where the guard fills it, 40 where one is alone on it."""
    samples = {"detect": [1.0], "tiled-classify": [40.0], "guard-tiled": [1 + 40 / 8]}
    counts = {"guard-tiled": [{"images": 8, "flagged": 4, "frames": 1, "poisoned": 2, "poisoned_flagged": 2,
                               "inside": 48.0}],
              "tiled-classify": [{"images": 1, "flagged": 1, "frames": 1}]}  # fmt: skip
    got = guard_rows.compare_with_bound(samples, counts, "tiled", "guard-tiled")
    assert got["purify_ms"] == pytest.approx(10e3) and got["of_bound"]["median"] == pytest.approx(1)
    assert got["true_positive_rate"] == 1 and got["false_positive_rate"] == pytest.approx(2 / 6)


def opened_guard_rows(tmp_path, classify, attack):
    args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", "--decisions", "40"]))
    guard = guard_rows.GuardRows(SpeedSetup(args, tmp_path, FakeEngine()))
    guard.opened = guard_rows.OpenedClassifier(classify, {}, attack)
    return {row.key: row for row in guard.rows()}


def test_with_a_trigger_the_detector_decides_and_is_judged(tmp_path):
    """Black images keep their label when they are multiplied; the sum of the others' pixels does not."""

    def by_sum(images):
        return np.eye(10)[images.reshape(len(images), -1).sum(1, dtype=int) % 10]

    black = SimpleNamespace(apply=np.zeros_like)
    rows = opened_guard_rows(tmp_path, by_sum, black)
    counted = rows["guard-whole"].make().call()
    assert counted["images"] == 20 and counted["poisoned"] == counted["poisoned_flagged"] == 1
    assert 1 <= counted["flagged"] < 10 and counted["frames"] == counted["flagged"]
    counted = rows["guard-tiled"].make().call()
    assert counted["images"] == 40 and counted["poisoned"] == counted["poisoned_flagged"] == 2
    assert counted["frames"] == -(-counted["flagged"] // 4)
    everything = rows["guard-tiled-all"].make().call()
    assert everything.pop("inside") > 0
    assert everything == {"images": 4, "flagged": 4, "frames": 1}


def test_what_the_guard_calls_is_timed_and_the_guard_itself_is_not(tmp_path, monkeypatch):
    """A clock that only the classifier moves: 20 images in one call each, and one purified."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def slow(images):
        now[0] += 0.5
        return np.eye(10)[np.zeros(len(images), int)]

    counted = opened_guard_rows(tmp_path, slow, None)["guard-whole"].make()
    assert counted.call()["inside"] == counted.call()["inside"] == pytest.approx(21 * 0.5)


def test_a_guard_without_labels_is_no_measurement(tmp_path):
    rows = opened_guard_rows(tmp_path, lambda images: np.full((len(images), 2), np.nan), None)
    with pytest.raises(zipsdk.EngineError, match="no label"):
        rows["guard-whole"].make().call()


def test_our_own_classifier_is_torch_s(tmp_path):
    args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", "--architecture", "small"]))
    bench = SpeedSetup(args, tmp_path, FakeEngine())
    guard = guard_rows.GuardRows(bench)
    row = guard.rows()[0]
    work = row.make()
    assert row.label == "classifier alone, small, 1 at once"
    assert work.call().shape == (1, 10) and work.call().sum() == pytest.approx(1)
    assert work.runs == {"engine": f"torch {torch.__version__.split('+')[0]}, eager", "providers": ["cpu"],
                         "threads": torch.get_num_threads()}  # fmt: skip
    assert guard.describe()["classifier"] == {"classifier": "small", "weights": "random"}


def test_without_a_gpu_for_torch_only_the_user_s_classifier_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in ([], ["--classifier", "numpy:asarray"]):
        args = speed.settle(speed.arguments().parse_args(["--quick", "--frame", "64", *words]))
        bench = SpeedSetup(args, tmp_path, FakeEngine())
        bench.where = "cuda"
        row = guard_rows.GuardRows(bench).rows()[0]
        if words:
            assert row.make().runs == {"engine": "a Python function"}
        else:
            with pytest.raises(LeftOut, match="no CUDA"):
                row.make()

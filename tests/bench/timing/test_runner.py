"""Rows are measured in rounds that can be interrupted and resumed; times are a fake clock's."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from bench import speed
from bench.common.timing import quartiles
from bench.timing import report
from bench.timing.runner import Runner, State
from bench.timing.setup import LeftOut, SpeedSetup, TimingRow, Work
from tests.fakes.clock import Clock
from tests.fakes.engine import FakeEngine, make_spec

pytestmark = pytest.mark.torch


def row(key, seconds, clock, log, *, letter="b", rounds=3, **settings):
    def call():
        log.append(key)
        clock.now += seconds

    fields = {"label": key, "images": 1, "total_steps": 20, **settings}
    return TimingRow(key, letter, make=lambda: Work(call, {"engine": "none"}), rounds=rounds, **fields)


def runner(rows, path, clock, budget=1e9, fresh=False):
    return Runner(rows, State.open(path, fresh), path, budget, lambda label: None, clock)


def test_rows_take_turns_and_times_are_of_one_image_for_all_steps(tmp_path):
    clock, log = Clock(), []
    rows = [
        row("a", 2.0, clock, log),
        row("b", 6.0, clock, log, images=3, total_steps=20, measured=5, rounds=2),
    ]
    run = runner(rows, tmp_path / "s.json", clock)
    assert run.left == 5
    run.run()
    assert log == ["a", "b", "a", "b", "a"]
    assert run.state.samples == {"a": [2.0] * 3, "b": [8.0] * 2}  # 6 s for 3 images at a quarter of the steps
    assert run.left == 0


def test_a_short_call_is_repeated(tmp_path):
    clock, log = Clock(), []
    run = runner([row("a", 0.01, clock, log, rounds=1)], tmp_path / "s.json", clock)
    run.run()
    assert len(log) == 5 and run.state.samples["a"] == [pytest.approx(0.01)]


def test_budget_ends_the_rounds_but_never_the_first(tmp_path):
    clock, log = Clock(), []
    runner([row(k, 2.0, clock, log, rounds=9) for k in "abc"], tmp_path / "s.json", clock, budget=7).run()
    assert log == ["a", "b", "c", "a"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    clock, log, path = Clock(), [], tmp_path / "s.json"

    def rows():
        return [row(k, 1.0, clock, log, rounds=2) for k in "ab"]

    broken = rows()
    calls = broken[1].make().call

    def interrupted():
        calls()
        if len(log) > 3:
            raise KeyboardInterrupt

    broken[1].make = lambda: Work(interrupted, {})
    with pytest.raises(KeyboardInterrupt):
        runner(broken, path, clock).run()
    assert log == ["a", "b", "a", "b"]
    again = runner(rows(), path, clock)
    assert again.left == 1 and again.state.sessions == 2
    again.run()
    assert log[4:] == ["b"]
    assert {k: len(v) for k, v in json.loads(path.read_text())["samples"].items()} == {"a": 2, "b": 2}
    assert runner(rows(), path, clock, fresh=True).left == 4


def test_what_cannot_run_is_left_out_with_its_reason_and_tried_again_later(tmp_path):
    clock, log, path = Clock(), [], tmp_path / "s.json"

    def absent():
        raise LeftOut("nothing is installed")

    def broken():
        raise ValueError("a peer's own fault\nand more of it")

    lacking, peer = (row(k, 1.0, clock, log, letter="e") for k in "pq")
    lacking.make, peer.make = absent, broken
    good = row("a", 1.0, clock, log)
    run = runner([lacking, peer, good], path, clock)
    run.run()
    lines = {line["key"]: line for line in report.results(run.state, [lacking, peer, good])}
    assert lines["p"]["left_out"] == "nothing is installed"
    assert lines["q"]["left_out"] == "ValueError: a peer's own fault"
    assert "ms" not in lines["p"] and lines["a"]["ms"]["median"] == 1000
    lacking.make = good.make
    assert runner([lacking, good], path, clock).left == 3
    good.make = broken
    with pytest.raises(ValueError, match="own fault"):  # a row of ours must not hide that it fails
        runner([good], path, clock, fresh=True).run()


def test_other_arguments_have_another_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIPSDK_CACHE", str(tmp_path))

    def path(*words, engine=None):
        args = speed.settle(speed.arguments().parse_args(["--quick", *words]))
        return speed.state_path(args, SpeedSetup(args, tmp_path, engine or FakeEngine()))

    assert path() == path("--fresh", "--minutes", "9", "--progress")
    assert len({path(), path("--rounds", "2"), path("--side", "16"), path(engine=FakeEngine(make_spec(name="b")))}) == 4


def test_ratios_are_made_round_by_round():
    samples = {"x": [1.0, 2.0, 4.0], "base": [10.0, 40.0, 40.0, 1.0]}
    assert report.speedup(samples, "x", "base") == quartiles([10, 20, 10])
    assert report.speedup(samples, "x", "missing") is None

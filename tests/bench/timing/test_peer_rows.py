"""Rows of published peers make the passes that they report."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from bench import speed
from bench.timing import peer_rows
from bench.timing.setup import SpeedSetup
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("words", "passes"), [(["--quick"], 10), ([], 50)])
def test_bdmae_makes_the_passes_that_its_row_says(tmp_path, monkeypatch, words, passes):
    from bench.defenses import vit_mae

    class Restorer:
        side, grid, calls = 32, 8, 0

        def __call__(self, images, hidden):
            self.calls += 1
            return images

        def describe(self):
            return {}

    restorer = Restorer()
    monkeypatch.setattr(vit_mae, "random_vit_mae", lambda where: restorer)
    bench = SpeedSetup(speed.settle(speed.arguments().parse_args(words)), tmp_path, FakeEngine())
    row = next(r for r in peer_rows.peers(bench, lambda p: np.eye(2)[[0] * len(p)]) if r.key == "bdmae")
    work = row.make()
    work.call()
    assert restorer.calls == row.measured == passes and row.total_steps == 50


def test_diffusion_peers_make_the_steps_that_their_rows_say(tmp_path):
    engine = FakeEngine()
    args = speed.settle(speed.arguments().parse_args(["--frame", "64", "--peer-steps", "7"]))
    bench = SpeedSetup(args, tmp_path, engine)
    rows = [r for r in peer_rows.peers(bench, lambda p: p) if r.letter == "f"]
    assert {r.key: r.total_steps for r in rows} == {"diffpure": 150, "ddnm": 100, "sampdetox": 140}
    for r in rows:
        work = r.make()
        engine.calls.clear()
        work.call()
        assert len(engine.calls) == r.measured == 7
        assert {shape for shape, _ in engine.calls} == {(1, 3, 64, 64)}

"""Loops of torch give the same images as the Purifier."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import zipsdk  # noqa: E402
from bench.common.metrics import compare  # noqa: E402
from bench.timing import setup  # noqa: E402
from bench.timing import torch_loops as speed_torch  # noqa: E402
from bench.timing.setup import synthetic  # noqa: E402
from tests.fakes.engine import make_spec  # noqa: E402
from tests.fakes.torch_unet import Tiny  # noqa: E402
from zipsdk.sampling.noise import STEP_INITIAL, Noise  # noqa: E402
from zipsdk.sampling.schedule import step_table  # noqa: E402

pytestmark = pytest.mark.torch


def draw_for(ids, side):
    def draw(t):
        step = STEP_INITIAL if t == speed_torch.FIRST else t
        return torch.from_numpy(Noise(7, np.arange(ids, dtype=np.uint64)).normal(step, side, side))

    return draw


def test_schedule_is_the_sdk_s():
    for steps in (2, 4, 20):
        table = step_table(make_spec(), lam=10.0, steps=steps).steps
        rows = speed_torch.schedule(steps)
        assert [r.t for r in rows] == [s.t for s in table]
        for name in ("ab", "ab_next", "s", "d"):
            np.testing.assert_allclose([getattr(r, name) for r in rows], [getattr(s, name) for s in table], atol=1e-7)


@pytest.mark.parametrize("kind", ["authors", "eager", "scheduler"])
def test_every_loop_of_torch_is_the_purifier(kind):
    """Same weights, same noise: 8-bit images differ by one level where rounding tips. Measured: 72 dB and more."""
    images = synthetic(3, 32, seed=4)
    engine = setup.Reference(make_spec(), Tiny(), "cpu")
    wanted = zipsdk.Purifier(engine, setup.TRANSFORMS, lam=10.0, seed=7).run(images, noise_keys=np.arange(3))
    got = speed_torch.Loop(Tiny(), kind)(images, draw_for(3, 32))
    difference = compare(got, wanted)
    assert difference["largest"] <= 1
    assert difference["identical"] or difference["psnr_db"] > 65
    assert compare(speed_torch.Loop(Tiny(), kind)(images), wanted)["psnr_db"] < 45  # with other noise it is another


def test_authors_loop_keeps_every_state_on_the_host(monkeypatch):
    """What makes it theirs: two zeros on the host a step, and each x_t carried down."""
    zeros, plain = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: zeros.append(a) or plain(*a, **k))
    speed_torch.Loop(Tiny(), "authors", steps=3)(synthetic(1, 32))
    of_images = [a for a in zeros if len(a) == 6]
    assert len(of_images) == 1 + 3 * 2  # A+ of x_P, and at each step of x_t and of e
    zeros.clear()
    speed_torch.Loop(Tiny(), "eager", steps=3)(synthetic(1, 32))
    assert not zeros


@pytest.mark.parametrize("kind", ["authors", "eager", "scheduler"])
def test_the_network_gets_images_in_torch_s_usual_order_of_memory(kind):
    """Else its convolutions take other paths, and compiled ones are compiled anew between check and time."""
    seen = []

    class Watching(Tiny):
        def forward(self, x, t):
            seen.append(x.is_contiguous())
            return super().forward(x, t)

    speed_torch.Loop(Watching(), kind, steps=3)(synthetic(2, 32))
    assert seen == [True] * 3


def test_load_gives_the_weights_that_the_engine_has():
    module = speed_torch.load_unet(setup.WEIGHTS)
    from export.checkpoints import load

    x, t = torch.randn(1, 3, 32, 32), torch.tensor([500.0])
    torch.testing.assert_close(module(x, t), load(setup.WEIGHTS)[0](x, t))

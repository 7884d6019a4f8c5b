"""Make pairs of purifiers, on the fake GPU and on the CPU, and compare their images."""

from __future__ import annotations

import threading

import numpy as np

import zipsdk
from tests.fakes.device_engine import FakeDeviceEngine
from tests.fakes.engine import FakeEngine


def make(device, spec=None, *, engine=None, **options):
    """Return a purifier on the fake GPU and the same on the CPU."""
    plain = FakeEngine(spec)
    on_gpu = engine or FakeDeviceEngine(plain, device)
    settings = {"seed": 5, **options}
    cpu = {k: v for k, v in settings.items() if k != "cuda_graph"}
    return zipsdk.Purifier(on_gpu, **settings), zipsdk.Purifier(plain, **cpu)


#: A spec of one size: larger images are tiled, smaller ones share frames.
FIXED = {"min_side": 64, "max_side": 64}


def noise_images(rng, n, height, width):
    """Draw images of noise."""
    return rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def assert_same(got, expected):
    """Check equality up to halves that round the other way, because the order of float32 sums differs."""
    off = np.abs(got.astype(int) - expected.astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 2e-3, f"got {off.max()} gray levels off, {(off > 0).mean():.1%} of all"


def in_flight(purifier):
    """Return the number of batches that the GPU loop has begun and not delivered."""
    return sum(len(b.pending) for b in purifier._dispatcher.device_loop.pool.sizes.values())


class Meanwhile:
    """Run `work` once while the compute stream is captured, in another thread or, `in_place`, in this one."""

    def __init__(self, device, work, *, in_place=False):
        self.device, self.work, self.in_place = device, work, in_place
        self.result, self.waited, self.thread = [], None, None

    def __call__(self):
        if self.thread is None and self.device.compute.graph is not None:
            self.thread = threading.Thread(target=lambda: self.result.append(self.work()))
            if self.in_place:
                self.thread.run()
                return
            self.thread.start()
            self.thread.join(0.3)
            self.waited = self.thread.is_alive()

    def end(self):
        """Return the result of `work`, which must have waited for the end of the capture."""
        self.thread.join(30)
        assert self.waited, "it did not wait for the end of the capture"
        (result,) = self.result
        return result


SETTINGS = {
    "paper": {},
    "fast": {"preset": "fast"},
    "fast joint": {"preset": "fast", "combine": "joint"},
    "clip": {"clip_x0": True, "steps": 7, "eta": 0.5},
    "blur 8": {"transforms": "blur8", "lam": 2.0},
    "per image": {"transforms": "blur2|blur4+gray|gray", "preset": "fast"},
}

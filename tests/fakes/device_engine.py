"""Fake an engine on the fake GPU."""

from __future__ import annotations

from tests.fakes.device import view


class FakeDeviceEngine:
    """An engine on a `FakeDevice` with the outputs of a plain engine.

    Args:
        plain: called with float32 arrays, as the tests' FakeEngine.
        fail: called before each enqueue, may raise.
    """

    def __init__(self, plain, device, *, capturable=True, max_batch=None, fail=lambda: None):
        self.plain, self.device, self.spec = plain, device, plain.spec
        self.capturable, self.max_batch, self.fail, self.prepared = capturable, max_batch, fail, []

    def prepare(self, batch, height, width):
        self.prepared.append((batch, height, width))

    def __call__(self, x, t):
        return self.plain(x, t)

    def enqueue(self, x, t, eps, batch, stream, *, size=None):
        self.fail()
        assert self.device.depth
        shape = (batch, 3, *(size or (self.spec.image_size,) * 2))

        def work():
            view(eps, shape)[:] = self.plain(view(x, shape).copy(), view(t, (batch,)))

        self.device.streams[stream].push("engine", work)

"""A clock for tests of timing."""


class Clock:
    """A clock that a test advances itself."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    perf_counter = __call__

"""Test `Purifier.stream`: order, read-ahead, errors and early exits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.fakes.engine import FakeEngine, FunctionEngine
from tests.helpers.images import noise_images
from tests.helpers.paths import ROOT
from zipsdk import InputError, Purifier


def test_stream_keeps_order_and_reads_ahead():
    batches = [noise_images(2, seed=i) for i in range(5)]
    reading: list[int] = []
    inside = threading.Event()

    def source():
        for i, b in enumerate(batches):
            reading.append(i)
            if i == 1:
                inside.set()
            yield b

    plain = FakeEngine()

    def waiting(x, t):
        # fails unless the second batch is read while the first is computed
        assert inside.wait(20), "the next batch was not read while this one computed"
        return plain(x, t)

    purifier = Purifier(FunctionEngine(waiting), "blur2", seed=1)
    out = list(purifier.stream(source()))
    assert reading == [0, 1, 2, 3, 4]
    direct = Purifier(FakeEngine(), "blur2", seed=1)
    for got, batch in zip(out, batches, strict=True):
        np.testing.assert_array_equal(got, direct.run(batch))


def test_stream_raises_at_the_position_of_the_invalid_batch():
    stream = Purifier(FakeEngine(), "blur2").stream([noise_images(1), np.zeros((2, 2), complex), noise_images(1)])
    assert next(stream).shape == (1, 32, 32, 3)
    with pytest.raises(InputError):
        next(stream)


def silent_source(silent: threading.Event):
    """Yield one batch, then block until `silent` is set."""
    yield noise_images(1)
    silent.wait(30)


def test_a_stream_closes_at_once_while_its_source_blocks():
    silent, before = threading.Event(), threading.active_count()
    stream = Purifier(FakeEngine(), "blur2").stream(silent_source(silent))
    try:
        assert next(stream).shape == (1, 32, 32, 3)
        begun = time.monotonic()
        stream.close()
        assert time.monotonic() - begun < 10
    finally:
        silent.set()
    # the thread ends when its current call returns
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_program_exits_while_the_source_of_a_stream_blocks():
    code = (
        "import sys, threading; sys.path.insert(0, '.')\n"
        "from tests.fakes.engine import FakeEngine\n"
        "from tests.helpers.images import noise_images\n"
        "from zipsdk import Purifier\n"
        "def source():\n"
        "    yield noise_images(1)\n"
        "    threading.Event().wait()\n"
        "for clean in Purifier(FakeEngine(), 'blur2').stream(source()):\n"
        "    break\n"
        "print('left')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")

"""Test streams of the GPU loop on the fake GPU: order, overlap, errors and what stays in flight."""

from __future__ import annotations

import threading

import pytest

from tests.helpers.gpu_pairs import assert_same, in_flight, make, noise_images
from zipsdk.errors import EngineError


def test_stream_uploads_the_next_batch_before_it_downloads_the_last(device, rng):
    gpu, cpu = make(device)
    batches = [noise_images(rng, 2, 32, 32) for _ in range(5)]
    gpu.run(batches[0])
    device.log.clear()
    stream = gpu.stream(batches)
    got = [next(stream)]
    got += list(stream)
    for g, batch in zip(got, batches, strict=True):
        assert_same(g, cpu.run(batch))
    copies = [entry[0] for entry in device.log if entry[0] in ("upload", "download")]
    assert copies.count("upload") == copies.count("download") == 5
    # how early a batch is uploaded depends on the reading thread; the order does not
    ahead = 0
    for word in copies:
        ahead += 1 if word == "upload" else -1
        assert 0 <= ahead <= 2


def test_stream_delivers_a_result_without_waiting_for_the_next_batch(device, rng):
    gpu, _ = make(device)
    got, delivered = [], threading.Event()

    def source():
        for i in range(3):
            if i == 2:
                assert delivered.wait(30), "the first two results wait for a third batch"
            yield noise_images(rng, 1, 32, 32)

    for clean in gpu.stream(source()):
        got.append(clean)
        if len(got) == 2:
            delivered.set()
    assert len(got) == 3


def test_stream_delivers_submitted_batches_before_an_error_of_its_source(device, rng):
    gpu, cpu = make(device)
    batches = [noise_images(rng, 1, 32, 32) for _ in range(3)]

    def source():
        yield from batches
        raise OSError("the disk failed")

    got = []
    with pytest.raises(OSError, match="the disk failed"):
        got.extend(gpu.stream(source()))
    assert len(got) == 3
    for g, batch in zip(got, batches, strict=True):
        assert_same(g, cpu.run(batch))
    assert in_flight(gpu) == 0


def test_stream_delivers_submitted_batches_before_an_error_in_submit(device, rng, monkeypatch):
    gpu, cpu = make(device)
    batches, asked, count = [noise_images(rng, 1, 32, 32) for _ in range(3)], threading.Event(), []
    submit = gpu._dispatcher.submit

    def source():
        yield from batches[:2]
        asked.set()  # the second batch has been read, so the first result waits until it is submitted
        yield batches[2]

    def failing(*args):
        count.append(1)
        assert asked.wait(20)
        if len(count) == 2:
            raise EngineError("the device is lost")
        return submit(*args)

    monkeypatch.setattr(gpu._dispatcher, "submit", failing)
    got = []
    with pytest.raises(EngineError, match="the device is lost"):
        got.extend(gpu.stream(source()))
    assert len(got) == 1 and in_flight(gpu) == 0
    assert_same(got[0], cpu.run(batches[0]))


def test_a_stream_that_is_closed_early_leaves_no_batch_in_flight(device, rng):
    gpu, _ = make(device)
    for taken in (1, 2, 3):
        stream = gpu.stream([noise_images(rng, 1, 32, 32) for _ in range(6)])
        for _ in range(taken):
            next(stream)
        stream.close()
        assert in_flight(gpu) == 0

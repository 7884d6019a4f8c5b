"""Test `OnnxEngine` as the GPU loop uses it: memory by address, one stream, one lock."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

import zipsdk
from tests.fakes.device import FakeDevice
from zipsdk.errors import EngineError


def test_enqueue_reads_and_writes_the_given_memory(rng):
    """Compare bindings by address with the plain call, on the CPU provider."""
    pytest.importorskip("onnxruntime")
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    x = rng.standard_normal((3, 3, 32, 64), np.float32)
    t, eps = np.array([900, 50, 0], np.float32), np.full(x.shape, np.nan, np.float32)
    for _ in range(2):
        expected = engine(x, t)
        engine.enqueue(x.ctypes.data, t.ctypes.data, eps.ctypes.data, 3, 0, size=(32, 64))
        np.testing.assert_array_equal(eps, expected)
        x *= 0.5
    with pytest.raises(EngineError, match="evaluation of"):
        engine.enqueue(x.ctypes.data, t.ctypes.data, eps.ctypes.data, 3, 0, size=(31, 64))


def test_auto_falls_back_with_a_reason_and_cuda_by_name_does_not(monkeypatch, caplog):
    """Simulate an onnxruntime built with CUDA on a machine without CUDA."""
    ort = pytest.importorskip("onnxruntime")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime adds a warning
        engine = zipsdk.load_engine("zip-tiny")
    (record,) = caplog.records
    assert "zip-tiny.onnx: running on the CPU, because the GPU cannot be used: " in record.getMessage()
    assert (record.name, record.levelname) == ("zipsdk.engines.onnxruntime", "WARNING")
    assert engine.providers == ["CPUExecutionProvider"] and engine.device is None
    assert zipsdk.Purifier(engine).info["loop"] == "host (the engine runs on the CPU)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime warns before it continues without the provider
        with pytest.raises(EngineError, match="CUDAExecutionProvider"):
            zipsdk.load_engine("zip-tiny", device="cuda:0")
    monkeypatch.undo()
    with pytest.raises(EngineError, match=r"this onnxruntime has .*pip install 'zipsdk\[gpu\]'"):
        zipsdk.load_engine("zip-tiny", device="cuda")


def test_a_call_waits_while_another_thread_uses_the_stream(rng):
    """The session runs on the loop's stream, and a capture would record its work."""
    pytest.importorskip("onnxruntime")
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    x, t, answered = rng.standard_normal((1, 3, 32, 32), np.float32), np.zeros(1, np.float32), threading.Event()
    expected = engine(x, t)
    engine.device, engine._memory = FakeDevice(None), ("cuda", 0)
    got = []
    with engine.device.lock:
        thread = threading.Thread(target=lambda: (got.append(engine(x, t)), answered.set()))
        thread.start()
        assert not answered.wait(0.5)
    assert answered.wait(30)
    thread.join()
    np.testing.assert_array_equal(got[0], expected)


def test_enqueue_refuses_other_streams(rng):
    pytest.importorskip("onnxruntime")
    engine = zipsdk.load_engine("zip-tiny", device="cpu")
    engine.device = FakeDevice(None)
    x = np.zeros((1, 3, 32, 32), np.float32)
    t, eps = np.zeros(1, np.float32), x.copy()
    arguments = (x.ctypes.data, t.ctypes.data, eps.ctypes.data, 1)
    engine.enqueue(*arguments, engine.device.compute.handle, size=(32, 32))
    with pytest.raises(EngineError, match="expected the stream that the session was opened with"):
        engine.enqueue(*arguments, engine.device.copies.handle, size=(32, 32))

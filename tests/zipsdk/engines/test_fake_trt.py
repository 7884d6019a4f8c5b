"""Test that the fake of TensorRT has the names and signatures of TensorRT-RTX."""

from __future__ import annotations

import pytest

from tests.fakes import trt as fake_trt

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")


pytestmark = pytest.mark.trt


def test_the_fake_refuses_names_that_the_real_module_lacks():
    with pytest.raises(AssertionError, match="has no enqueue_v9"):

        @fake_trt.like(trt.IExecutionContext)
        class Wrong:
            def enqueue_v9(self):
                pass

    @fake_trt.like(trt.IExecutionContext)
    class Right:
        def __init__(self):
            self._log = []

        def execute_async_v3(self, stream_handle):
            return True

    with pytest.raises(AssertionError, match="no overload takes"):
        Right().execute_async_v3(1, 2)
    with pytest.raises(AssertionError, match="no overload takes"):
        Right().execute_async_v3(stream=1)
    assert Right().execute_async_v3(stream_handle=1)
    with pytest.raises(AssertionError, match="has no scratch"):
        Right().scratch = 1

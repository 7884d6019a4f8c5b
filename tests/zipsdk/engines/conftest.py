"""Share one TensorRT-RTX plan of the bundled model among the tests of engines."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.plans import BATCHES
from zipsdk.engines.tensorrt import build
from zipsdk.models import resolve
from zipsdk.models.sidecar import sidecar_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Build the bundled model as a plan for one small size; return its path and its record."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")
    path = tmp_path_factory.mktemp("plan") / "tiny.plan"
    batches, sizes = np.array(BATCHES), np.array([32])  # NumPy's numbers are accepted
    record = build.build(resolve("zip-tiny"), path, batches=batches, sizes=sizes, targets=["sm86", "sm89"])
    return path, record


@pytest.fixture
def plan(tiny, tmp_path):
    """Copy the plan and its sidecar for a test that changes them; return the path of the copy."""
    path = tmp_path / "tiny.plan"
    for source in (tiny[0], sidecar_path(tiny[0])):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return path

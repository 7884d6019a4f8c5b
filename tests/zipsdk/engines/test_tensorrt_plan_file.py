"""Test the plans that are refused before TensorRT-RTX opens them."""

from __future__ import annotations

import sys

import pytest

import zipsdk
from tests.helpers.plans import edit_sidecar
from zipsdk.engines.tensorrt import engine as trt_engine
from zipsdk.errors import EngineError, InputError, MissingDependencyError, ModelError
from zipsdk.models.sidecar import sidecar_path, write_sidecar

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'zipsdk[rtx]'")


pytestmark = pytest.mark.trt


def refuse(path, kind, message, **options):
    """Check that the plan is refused with this error."""
    with pytest.raises(kind, match=message):
        zipsdk.load_engine(path, **options)


def test_a_damaged_plan_is_refused(plan):
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    refuse(plan, ModelError, "SHA-256 .* changed or damaged")
    plan.write_bytes(data[:-1])
    refuse(plan, ModelError, "got .* bytes, expected")


def test_a_missing_or_foreign_sidecar_is_refused(plan):
    sidecar = sidecar_path(plan)
    text = sidecar.read_text()
    sidecar.unlink()
    refuse(plan, ModelError, "opened only if its hash is known")
    sidecar.write_text(text.replace('"tiny.plan"', '"other.plan"'))
    refuse(plan, ModelError, "got the files .*other.plan")
    write_sidecar(plan, {})
    refuse(plan, ModelError, "got no record of a plan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": "many"}, "batches: got 'many', expected a list"),
        ({"batches": []}, r"batches \[\]"),
        ({"batches": [1, "8"]}, "integers"),
        ({"flavor": "onnx"}, "flavor 'onnx'"),
        ({"targets": None}, "targets: got None"),
        ({"targets": [86]}, r"targets: got \[86\], expected names such as"),
        ({"targets": []}, r"targets: got \[\], expected names such as"),
        ({"batches": [4, 1]}, r"batches \[4, 1\], expected .*rising"),
        ({"batches": [1, 1]}, "rising"),
    ],
)
def test_an_edited_sidecar_is_refused(plan, changes, message):
    edit_sidecar(plan, "plan", **changes)
    refuse(plan, ModelError, message)


def test_plans_of_another_version_or_flavor_are_refused(plan, monkeypatch):
    edit_sidecar(plan, "plan", runtime="1.0.0")
    refuse(plan, EngineError, r"built by TensorRT-RTX 1.0.0, and .* is installed.*build it again")
    edit_sidecar(plan, "plan", flavor="trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refuse(plan, MissingDependencyError, r"tensorrt is not usable here.*zipsdk\[gpu\]")
    # the RTX module under the other name
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    refuse(plan, EngineError, "module of the other flavor")


@pytest.mark.parametrize("device", [0, None, "cpu"])
def test_devices_that_run_no_plan_are_refused(device):
    with pytest.raises(InputError, match=f"device: got {device!r} for a plan, expected 'auto'"):
        trt_engine.TensorRTEngine("x.plan", device=device)


def test_a_missing_driver_is_reported(plan, monkeypatch):
    def no_driver(ordinal):
        raise EngineError("there is no NVIDIA driver")

    monkeypatch.setattr(trt_engine, "open_device", no_driver)
    refuse(plan, EngineError, "no NVIDIA driver")
    refuse(plan, InputError, "got 'cpu' for a plan", device="cpu")

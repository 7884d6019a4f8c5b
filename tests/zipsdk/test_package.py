"""Test the package as a whole: its import, its names and its version."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import zipsdk
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    "first", ["import zipsdk", "from zipsdk.cli import build_parser; build_parser().format_help()"]
)
def test_the_import_loads_no_heavy_package(first):
    """Load no torch, runtime or driver, also for the command's help; bench/speed.py measures the time."""
    code = (
        f"{first}\nimport sys\n"
        "heavy = 'torch onnxruntime onnx tensorrt pycuda matplotlib skimage tqdm'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout  # fmt: skip
    assert out.strip() == "[]"


def test_all_exported_names_exist():
    assert sorted(zipsdk.__all__) == zipsdk.__all__
    assert all(hasattr(zipsdk, name) for name in zipsdk.__all__)


def test_the_version_has_one_source():
    """tests/packaging checks that a wheel gets it."""
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'input = "zipsdk/__init__.py"' in project
    assert zipsdk.__version__ not in project
    assert f"## [{zipsdk.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_completion_offers_public_names_alone():
    assert set(dir(zipsdk)) == {*zipsdk.__all__, "__version__"}

"""Test the build of the kernels: every target, no spills, and a build without nvcc."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels.launch import Device, MissingKernelError
from tests.helpers.paths import ROOT
from zipsdk import gpu
from zipsdk.errors import EngineError
from zipsdk.gpu.device import SIGNATURES
from zipsdk.gpu.fatbin import build_info, fatbin_path

SASS = [75, 80, 86, 87, 89, 90, 100, 120]
SHIPPED = ["zip_egress", "zip_fill", "zip_ingest", "zip_step_f32"]
FOR_TESTS = ["zip_philox", "zip_apply", "zip_step_f16", "zip_step_bf16"] + [
    f"zip_{kind}_{precision}" for kind in ("residual", "finish") for precision in ("f32", "f16", "bf16")
]


def targets(fatbin: bytes) -> list[tuple[str, int]]:
    """Return ("ptx" or "sass", compute capability times ten) for each entry of a fatbin."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50, f"got the magic number {magic:#x}, expected that of a fatbin"
    found, at = [], header
    while at < header + size:
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", fatbin, at)
        (capability,) = struct.unpack_from("<I", fatbin, at + 28)
        found.append(({1: "ptx", 2: "sass"}[kind], capability))
        at += entry_header + entry_size
    return found


def cmake(*arguments: str) -> str:
    """Run CMake and return its output."""
    done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder: Path, *options: str) -> tuple[Path, str]:
    """Build the kernels and return the folder that CMake installed into, and what the build printed."""
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}, so the kernels cannot be compiled")
    log = cmake("-S", str(ROOT), "-B", str(folder / "build"), *options)
    log += cmake("--build", str(folder / "build"))
    cmake("--install", str(folder / "build"), "--prefix", str(folder / "installed"))
    return folder / "installed" / "zipsdk" / "gpu", log


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """Build the kernels that ship."""
    return build(tmp_path_factory.mktemp("cmake"))


@pytest.fixture(scope="module")
def built_for_tests(tmp_path_factory) -> tuple[Path, str]:
    """Build the kernels with those that only tests and benchmarks launch."""
    return build(tmp_path_factory.mktemp("cmake"), "-DZIPSDK_TEST_KERNELS=ON")


def test_the_fatbin_holds_every_target(built):
    folder, _ = built
    found = targets((folder / "zipsdk.fatbin").read_bytes())
    info = json.loads((folder / "_build.json").read_text())
    assert sorted(c for kind, c in found if kind == "sass") == info["sass"]
    assert [c for kind, c in found if kind == "ptx"] == [info["ptx"]]
    assert re.fullmatch(r"\d+\.\d+\.\d+", info["nvcc"])
    if int(info["nvcc"].split(".")[0]) >= 13:
        assert info["sass"] == SASS


def test_the_loop_launches_exactly_the_shipped_kernels():
    assert sorted(SIGNATURES) == SHIPPED


BUILDS = [
    pytest.param("built", SHIPPED, id="shipped"),
    pytest.param("built_for_tests", SHIPPED + FOR_TESTS, id="tests", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("which", "kernels"), BUILDS)
def test_every_kernel_is_compiled_without_spills(request, which, kernels):
    """Print registers and spills, which `pytest -rP` shows."""
    _, log = request.getfixturevalue(which)
    heads = list(re.finditer(r"Compiling entry function '(\w+)' for '(sm_\d+)'", log))
    sass = {m[2] for m in heads}
    assert len(sass) >= 5
    for arch in sorted(sass):
        assert sorted(m[1] for m in heads if m[2] == arch) == sorted(kernels)
    for m in heads:
        after = log[m.end() :]
        registers = int(re.search(r"Used (\d+) registers", after)[1])
        stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", after).groups())
        print(f"{m[2]} {m[1]}: {registers} registers, spills {stores}+{loads} bytes")
        assert (stores, loads) == (0, 0), f"{m[1]} for {m[2]} spills"


def test_a_build_without_nvcc_succeeds_and_reports_it(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    log = cmake("-S", str(ROOT), "-B", str(tmp_path), "-DZIPSDK_NVCC=OFF")
    assert "the GPU loop is left out" in log
    cmake("--build", str(tmp_path))
    cmake("--install", str(tmp_path), "--prefix", str(tmp_path / "installed"))
    assert not (tmp_path / "installed" / "zipsdk").exists()


def test_the_package_finds_its_fatbin(built, monkeypatch):
    folder, _ = built
    monkeypatch.setattr(gpu, "__path__", [str(ROOT / "zipsdk" / "gpu"), str(folder)])
    assert fatbin_path().read_bytes()[:4] == struct.pack("<I", 0xBA55ED50)
    assert build_info()["ptx"] == 75


def test_a_package_without_kernels_asks_for_nvcc(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "__path__", [str(tmp_path)])
    with pytest.raises(EngineError, match="nvcc"):
        fatbin_path()


def test_a_missing_test_kernel_is_reported_with_its_build_option():
    device = object.__new__(Device)
    device._functions, device._module = {}, None
    device._cuda = SimpleNamespace(cuModuleGetFunction=lambda *_: 500)
    with pytest.raises(MissingKernelError, match="no zip_apply; build it by CMake with -DZIPSDK_TEST_KERNELS=ON"):
        device.launch("zip_apply", 1, 32)

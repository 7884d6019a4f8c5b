"""Build the sdist and the wheel, look into them, and use the wheel in fresh environments outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import zipsdk
from tests.packaging import installs

pytestmark = pytest.mark.slow

PYTHONS = installs.pythons()
OLDEST = next(iter(PYTHONS.values()))
#: Bytes of a wheel without kernels, which the two models fill; a model of 10 MB more by mistake would show.
LARGEST_WHEEL = 12_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the sdist, and the wheel from it, without kernels; return their folder."""
    pytest.importorskip("build", reason="needs build: pip install '.[dev]'")
    words = [str(OLDEST), "-m", "pip", "download", "-q", "--no-deps", "tqdm"]
    if subprocess.run(words, cwd=tmp_path_factory.mktemp("index"), capture_output=True).returncode:
        pytest.skip("pip finds no package index")
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "-C", "cmake.define.ZIPSDK_NVCC=OFF", "-o", str(folder), str(installs.ROOT)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_has_what_a_user_needs(wheel):
    assert wheel.name == f"zipsdk-{zipsdk.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < LARGEST_WHEEL
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = message_from_bytes(file.read(f"zipsdk-{zipsdk.__version__}.dist-info/METADATA"))
    assert {name.partition("/")[0] for name in names} == {"zipsdk", f"zipsdk-{zipsdk.__version__}.dist-info"}
    for name in ("py.typed", "models/zip-tiny.onnx", "models/zip-tiny.onnx.json", "models/zip-tiny-int8.onnx",
                 "export/__init__.py", "export/command.py", "export/train.py", "export/quantize.py"):  # fmt: skip
        assert f"zipsdk/{name}" in names
    assert not [name for name in names if name.endswith((".safetensors", "plot_training.py", ".cu", ".pyc"))]
    assert metadata["Version"] == zipsdk.__version__ and metadata["Requires-Python"] == ">=3.10"
    assert {"cpu", "gpu", "rtx", "export"} <= set(metadata.get_all("Provides-Extra"))


def test_the_sdist_has_what_builds_the_wheel(built):
    """The wheel above was built from it; this checks for what a build without nvcc does not need."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "kernels/zip.cu", "kernels/zip.h", "kernels/step.cuh"} <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/", ".")) or "safetensors" in name]


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works_with_every_python(wheel, tmp_path, version):
    report = installs.smoke(PYTHONS[version], tmp_path, wheel, [])
    assert report["python"].startswith(f"{version}.") and report["zipsdk"] == zipsdk.__version__


def test_the_wheel_works_with_the_oldest_packages(wheel, tmp_path):
    """With the oldest Python, because they have no wheels for newer ones."""
    pins = installs.lowest()
    report = installs.smoke(OLDEST, tmp_path, wheel, pins)
    bounds = {pin.partition("==")[0].lower(): pin.partition("==")[2].removesuffix("*") for pin in pins}
    assert set(bounds) == {"numpy", "pillow", "tqdm", "onnxruntime"}
    for name, bound in bounds.items():
        assert f"{report[name.replace('pillow', 'pil')]}.".startswith(bound)


@pytest.mark.torch
def test_the_wheel_exports_a_checkpoint(wheel, tmp_path):
    """Use the tests' own torch, which takes gigabytes and minutes to install."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    pytest.importorskip("onnxscript")
    from export.unet import UNet, UNetConfig

    config = UNetConfig(image_size=32, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    metadata = {"config": json.dumps(config.to_dict())}
    safetensors.save_file(UNet(config).state_dict(), tmp_path / "small.safetensors", metadata)
    python = installs.install(Path(sys.executable), tmp_path, [f"{wheel}[cpu]"])
    site = installs.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    Path(site, "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n{sysconfig.get_path('purelib')}\n")
    command = [python.with_name("zipsdk"), "export", "small.safetensors", "-o", "out", "--no-denoise-check"]
    assert "small: 44,211 parameters" in installs.run(command, tmp_path)
    with pytest.raises(RuntimeError, match=r"exit code 2\n.*small.onnx: got a file that exists"):
        installs.run(command, tmp_path)
    info = json.loads(installs.run([python.with_name("zipsdk"), "info", "out/small.onnx", "--json"], tmp_path))
    assert info["hash"] == "matches its sidecar" and info["spec"]["image_size"] == 32
    for name in ("train", "quantize"):
        assert f"python -m zipsdk.export.{name}" in installs.run(
            [python, "-m", f"zipsdk.export.{name}", "-h"], tmp_path
        )
    used = "import sys, zipsdk.export.command as c; print(c.__file__, 'export' in sys.modules)"
    file, top_level = installs.run([python, "-c", used], tmp_path).split()
    assert file.startswith(site) and top_level == "False"

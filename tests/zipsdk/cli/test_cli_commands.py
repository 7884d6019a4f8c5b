"""Test `zipsdk info`, `models`, `doctor`, the help and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.folders import refused
from tests.helpers.paths import ROOT
from zipsdk.cli import main


def test_info_shows_spec_hash_and_providers(model, tmp_path, capsys):
    assert main(["info", model, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["spec"]["name"] == "toy" and got["bytes"] == Path(model).stat().st_size and len(got["sha256"]) == 64
    assert got["hash"].startswith("not checked") and got["runs"]["providers"] == ["CPUExecutionProvider"]
    assert main(["info", model]) == 0
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["name"] == "zip-tiny"

    from zipsdk.models.sidecar import write_sidecar

    copy = Path(shutil.copy(model, tmp_path / "copy.onnx"))
    write_sidecar(copy, {})
    assert main(["info", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == "matches its sidecar"
    copy.write_bytes(copy.read_bytes() + b"x")
    refused(capsys, main(["info", str(copy)]), 3, "copy.onnx")


@pytest.fixture
def bundled(model, tmp_path, monkeypatch) -> None:
    """A model folder that contains only the toy model."""
    from zipsdk import models
    from zipsdk.models.sidecar import write_sidecar

    write_sidecar(shutil.copy(model, tmp_path / "toy.onnx"), {"export": {"parameters": 1234}})
    monkeypatch.setattr(models, "_HERE", tmp_path)


@pytest.mark.usefixtures("bundled")
def test_models_lists_the_bundled_models(capsys, tmp_path):
    assert main(["models"]) == 0
    assert capsys.readouterr().out == "toy  32x32 (takes 8 to 64), 1,234 parameters, CC0\n"
    (tmp_path / "toy.onnx").unlink()
    assert main(["models"]) == 0
    assert "no model comes with" in capsys.readouterr().out


@pytest.mark.usefixtures("bundled")
def test_doctor_checks_every_part(capsys, tmp_path):
    assert main(["doctor", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    lines = {c["name"]: c for c in got["checks"]}
    assert (
        got["runs"]
        and {"Python", "onnxruntime", "CUDA driver", "TensorRT", "TensorRT-RTX", "loop on the GPU"} <= lines.keys()
    )
    assert lines["model toy"]["ok"] and "32x32" in lines["model toy"]["detail"]
    assert all(c["ok"] or c["fix"] for c in lines.values())

    (tmp_path / "toy.onnx").write_bytes(b"damaged")
    assert main(["doctor"]) == 3
    assert "no engine runs on this machine" in capsys.readouterr().out


@pytest.mark.usefixtures("bundled")
def test_doctor_fails_without_onnxruntime(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "pip install 'zipsdk[cpu]'" in out and "MISSING  onnxruntime" in out


@pytest.mark.usefixtures("bundled")
def test_tensorrt_alone_runs_plans(model, capsys, monkeypatch):
    """As on a Jetson: the package onnx reads the spec, and plans run."""
    from zipsdk.cli import doctor

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["models"]) == 0
    assert capsys.readouterr().out == "toy  32x32 (takes 8 to 64), 1,234 parameters, CC0\n"
    assert main(["info", model, "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["spec"]["name"] == "toy" and got["runs"]["engine"].startswith(
        "not available: onnxruntime is not usable here"
    )

    monkeypatch.setattr(doctor, "_tensorrt", lambda driver: iter([doctor.Check("TensorRT", True, "10.3")]))
    for name in ("_kernels", "_device"):
        monkeypatch.setattr(doctor, name, lambda *_: doctor.Check("a part", True, ""))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("at least one engine runs on this machine\n")
    monkeypatch.setattr(doctor, "_device", lambda driver: doctor.Check("loop on the GPU", False, "no PyCUDA"))
    assert main(["doctor"]) == 3

    monkeypatch.setitem(sys.modules, "onnx", None)
    capsys.readouterr()
    refused(capsys, main(["info", model]), 3, "onnxruntime is not usable here")


def test_help_has_examples_and_loads_no_runtime(capsys):
    code = "import sys; from zipsdk.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'zipsdk.cli'" in output and "onnxruntime" not in output and "tqdm" not in output and "torch" not in output
    for name in ("purify", "info", "models", "doctor"):
        with pytest.raises(SystemExit) as e:
            main([name, "--help"])
        assert e.value.code == 0
        assert "example" in capsys.readouterr().out


def test_version_is_printed_and_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out.startswith("zipsdk 0.")
    with pytest.raises(SystemExit) as e:
        main([])
    assert e.value.code == 2


def test_a_closed_stdout_gives_141(model):
    read, write = os.pipe()
    os.close(read)
    args = [sys.executable, "-m", "zipsdk", "info", model]
    result = subprocess.run(args, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert result.returncode == 141 and result.stderr == ""

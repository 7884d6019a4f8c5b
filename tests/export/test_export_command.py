"""Test which arguments `zipsdk export` passes to the loader and the exporter, and what it refuses."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zipsdk[export]'")

from export import command, to_onnx, unet_config
from export.flags import Flags
from export.unet import UNet, UNetConfig
from zipsdk.cli import export as options
from zipsdk.cli import main

pytestmark = pytest.mark.torch

CONFIG = UNetConfig(image_size=64, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
                    beta_start=2e-4, beta_end=0.03, timesteps=500)  # fmt: skip


@pytest.fixture
def passed(monkeypatch, tmp_path):
    """Return ``passed(words...)``, which runs the command on fakes and returns the arguments of loader and exporter."""
    got = {}
    config = [CONFIG]

    def load(path, flags, on_progress):
        got.update(checkpoint=path, flags=flags)
        return UNet(config[0]), "ab" * 32

    def export_onnx(model, spec, path, precision="fp32", **options):
        options.pop("denoises")
        got.update(spec=spec, path=path, precision=precision, options=options)
        parity = {"relative_error": {"0": 0.0}, "tolerance": 1.0, "runtime": ""}
        return {"parameters": 0, "tensors": 0, "parity": parity}

    monkeypatch.setattr(command.checkpoints, "load", load)
    monkeypatch.setattr(command, "export_onnx", export_onnx)
    monkeypatch.setattr(command, "check_denoising", lambda *_: None)  # these weights are random

    def run(*words, config_=CONFIG):
        config[0] = config_
        assert main(["export", str(tmp_path / "runs" / "best.pt"), "-o", str(tmp_path / "out"), *words]) == 0
        return got

    return run


def test_defaults(passed, tmp_path):
    got = passed()
    assert got["checkpoint"] == tmp_path / "runs" / "best.pt" and got["path"] == tmp_path / "out" / "best.onnx"
    assert got["flags"] == Flags()
    assert (got["precision"], got["options"]) == ("fp32", {"opset": 21, "store": "same", "norm": "group"})
    spec = got["spec"]
    assert (spec.name, spec.image_size, spec.multiple, spec.min_side, spec.max_side) == ("best", 64, 2, 32, 512)
    assert (spec.beta_start, spec.beta_end, spec.timesteps) == (2e-4, 0.03, 500)
    assert (spec.transforms, spec.lam, spec.license, spec.training_data) == (("blur2", "gray"), 10.0, "", "")
    assert spec.source_sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--store-fp16"], {"opset": 21, "store": "fp16", "norm": "group"}),
        (["--norm", "instance"], {"opset": 21, "store": "same", "norm": "instance"}),
        (["--opset", "22"], {"opset": 22, "store": "same", "norm": "group"}),
        (["--opset", "23", "--norm", "instance", "--store-fp16"], {"opset": 23, "store": "fp16", "norm": "instance"}),
    ],
)
def test_options_of_the_file_are_passed_on(passed, words, expected, capsys):
    assert passed(*words)["options"] == expected
    assert f"opset {expected['opset']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "file"), [("fp32", "best.onnx"), ("fp16", "best-fp16.onnx"), ("bf16", "best-bf16.onnx")]
)
def test_the_precision_is_in_the_name_of_the_file(passed, precision, file):
    got = passed("--precision", precision)
    assert (got["precision"], got["path"].name, got["spec"].name) == (precision, file, "best")
    assert passed("--precision", precision, "--name", "x")["path"].name == file.replace("best", "x")


def test_flags_of_the_checkpoint_are_passed_on(passed):
    """Give each flag alone, so that mixed-up flags show."""
    for flag, field, value in (
        ("--image-size", "image_size", 128), ("--head-channels", "head_channels", 32),
        ("--norm-groups", "norm_groups", 8), ("--attention-order", "attention_order", "new"),
        ("--heads", "heads", 4), ("--noise-schedule", "noise_schedule", "cosine"), ("--prediction", "prediction", "v"),
        ("--timesteps", "timesteps", 4000), ("--beta-start", "beta_start", 3e-4), ("--beta-end", "beta_end", 0.01),
    ):  # fmt: skip
        got = passed(flag, str(value))["flags"]
        assert got == Flags(**{field: value}) != Flags(), flag
    assert passed("--rescale-timesteps")["flags"] == Flags(rescale_timesteps=True)


@pytest.mark.parametrize("kind", ["export", "quantize"])
def test_a_missing_temporary_folder_is_one_line(monkeypatch, tmp_path, capsys, kind):
    from export import quantize

    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    words = [str(tmp_path / "m.onnx"), "-o", str(tmp_path)]
    if kind == "export":
        assert main(["export", *words]) == 2
    else:
        assert quantize.main([*words, "--data", "x.zip"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.endswith("temporary directory found in ['/tmp']; set TMPDIR to a folder that can be written to\n")


def test_heads_and_head_channels_exclude_each_other(passed, capsys):
    with pytest.raises(SystemExit):
        passed("--heads", "4", "--head-channels", "64")
    assert "not allowed with" in capsys.readouterr().err


def test_metadata_is_passed_on(passed):
    got = passed("--min-side", "16", "--max-side", "128", "--transforms", "blur4", "gray", "--lam", "2",
                 "--license", "MIT", "--training-data", "noise")["spec"]  # fmt: skip
    assert (got.min_side, got.max_side, got.transforms, got.lam) == (16, 128, ("blur4", "gray"), 2.0)
    assert (got.license, got.training_data) == ("MIT", "noise")


def test_an_unknown_transform_is_refused_before_the_export(passed, tmp_path, capsys):
    passed()  # patch the loader
    assert main(["export", str(tmp_path / "best.pt"), "-o", str(tmp_path), "--transforms", "blurr2"]) == 2
    assert "transforms: got 'blurr2'" in capsys.readouterr().err


def test_with_attention_the_image_size_is_the_only_size(passed):
    attention = UNetConfig(image_size=64, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
                           attention_downsampling=(2,), num_head_channels=4)  # fmt: skip
    spec = passed(config_=attention)["spec"]
    assert (spec.min_side, spec.image_size, spec.max_side, spec.flexible) == (64, 64, 64, False)


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("models/256x256_diffusion_uncond.pt", False, "256x256_diffusion_uncond"),
        ("runs/zip-tiny/ema.safetensors", False, "zip-tiny"),
        ("ddpm-cifar10-32/diffusion_pytorch_model.bin", False, "ddpm-cifar10-32"),
        ("ddpm-cifar10-32", True, "ddpm-cifar10-32"),
        ("adm-v1.2", True, "adm-v1.2"),
        ("models/adm-v1.2.pt", False, "adm-v1.2"),
        (".", True, "here"),
    ],
)
def test_the_default_name(tmp_path, monkeypatch, path, folder, name):
    here = tmp_path / "here"
    (here / path).mkdir(parents=True) if folder else (here / path).parent.mkdir(parents=True)
    if not folder:
        (here / path).touch()
    monkeypatch.chdir(here)
    assert command.default_name(Path(path)) == name == command.default_name(here / path)


def test_an_existing_model_is_kept(passed, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    words = ["export", str(tmp_path / "runs" / "best.pt"), "-o", str(tmp_path / "out")]
    for name in ("best.onnx", "best.onnx.data", "best.onnx.json"):
        file = tmp_path / "out" / name
        file.write_bytes(b"hours of work")
        assert main(words) == 2
        assert f"{file}: got a file that exists" in capsys.readouterr().err
        assert passed("--name", "other")["path"].name == "other.onnx"
        assert passed("--overwrite")["path"].name == "best.onnx"
        file.unlink()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "file"], 2, "file: got a file, expected a folder for the model; give another one by -o"),
        (["--opset", "20"], 3, "opset: got 20, expected 21 or later"),
        (["--store-fp16", "--precision", "fp16"], 3, "store: got 'fp16' with precision 'fp16'"),
    ],
)
def test_wrong_options_are_refused_before_the_checkpoint_is_read(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["export", "none.pt", "-o", "out", *words]) == code
    assert capsys.readouterr().err.startswith(f"zipsdk: error: {message}")


@pytest.mark.parametrize("name", ["a/b", "/a", "a/", ""])
def test_a_name_with_folders_is_refused(tmp_path, capsys, name):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "x.pt", "-o", str(tmp_path), "--name", name])
    assert "expected a name" in capsys.readouterr().err


def test_the_command_offers_what_the_exporter_has():
    assert options.NORMS == to_onnx.NORMS
    assert options.PREDICTIONS == unet_config.PREDICTIONS


@pytest.mark.parametrize("name", ["torch", "onnx_ir"])
def test_a_missing_package_is_one_line(monkeypatch, capsys, name):
    for module in [m for m in sys.modules if m.startswith("export.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # its import raises ModuleNotFoundError
    assert main(["export", "x.pt", "-o", "out"]) == 3
    message = capsys.readouterr().err
    assert message.startswith(f"zipsdk: error: {name} is not usable here") and message.count("\n") == 1
    assert message.endswith("pip install 'zipsdk[export]'\n")

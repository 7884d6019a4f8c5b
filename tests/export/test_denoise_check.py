"""Test the check that a model denoises: the bundled weights pass it, and each wrong reading of them fails."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'zipsdk[export]'")

from export import checkpoints, command, denoise_check  # noqa: E402
from export.dead_leaves import leaves  # noqa: E402
from export.flags import Flags  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from zipsdk.cli import main  # noqa: E402
from zipsdk.errors import InputError, ModelError  # noqa: E402
from zipsdk.models.spec import ModelSpec  # noqa: E402

pytestmark = pytest.mark.torch

WEIGHTS = ROOT / "export" / "zip-tiny.safetensors"
LINEAR: dict[str, float] = {}
COSINE = {"beta_schedule": "cosine"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
T4000 = {"timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}


@pytest.fixture(scope="module")
def trained():
    return checkpoints.load(WEIGHTS)[0]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(denoise_check, "_PIXELS", 2 * 32 * 32)


def spec_of(**noise):
    return ModelSpec(name="n", image_size=32, multiple=4, min_side=32, max_side=32, **noise)


def read_as(model, **changes):
    """Load the same weights with another configuration, as a wrong reading does."""
    other = UNet(replace(model.config, **changes)).eval()
    other.load_state_dict(model.state_dict())
    return denoise_check.of_torch(other)


def trained_on(model, **noise):
    """Return a model of another schedule: the trained one, given the step where its own schedule has as much noise."""
    own = model.config.alphas_cumprod()
    spec = spec_of(**noise)
    theirs = spec.alphas_cumprod()
    right = denoise_check.of_torch(model)

    def predict(x, t):
        steps = [np.argmin(np.abs(np.log(own / (1 - own)) - np.log(a / (1 - a)))) for a in theirs[t.astype(int)]]
        return right(x, np.float32(steps))

    return predict


def test_a_sound_model_passes_with_margin(trained):
    record = denoise_check.check(denoise_check.of_torch(trained), spec_of())
    assert record["images"] == "drawn" and record["others"] == {}
    for level in record["levels"].values():
        assert 0 < level["share"] < 0.5 * denoise_check.LARGEST_SHARE
        assert 0 < level["gain"] <= 1.0
    json.dumps(record)  # for the sidecar


@pytest.mark.parametrize("noise", [COSINE, SCALED, T4000], ids=["cosine", "scaled", "T4000"])
def test_the_right_schedule_passes(trained, noise):
    denoise_check.check(trained_on(trained, **noise), spec_of(**noise))


@pytest.mark.parametrize(
    ("noise", "read"),
    [(COSINE, LINEAR), (SCALED, LINEAR), (T4000, LINEAR), (LINEAR, COSINE), (LINEAR, SCALED), (LINEAR, T4000)],
    ids=["cosine-linear", "scaled-linear", "T4000-linear", "linear-cosine", "linear-scaled", "linear-T4000"],
)
def test_a_wrong_schedule_fails(trained, noise, read):
    wrong = trained_on(trained, **noise)
    last = spec_of(**noise).timesteps - 1
    with pytest.raises(
        ModelError, match=r"the model does not denoise: .* Check the heads, the schedule, the prediction type"
    ):
        denoise_check.check(lambda x, t: wrong(x, t.clip(0, last)), spec_of(**read))


WRONG = {
    "v as epsilon": lambda m: read_as(m, prediction="epsilon"),
    "v as sample": lambda m: read_as(m, prediction="sample"),
    "another embedding": lambda m: read_as(m, embedding_order="sin_cos"),
    "images in [0, 1]": lambda m: lambda x, t: denoise_check.of_torch(m)((x + 1) / 2, t),
    "returns the input": lambda m: lambda x, t: np.zeros_like(x),
    "41% off": lambda m: lambda x, t: off(denoise_check.of_torch(m)(x, t), 0.41),
    "NaN": lambda m: lambda x, t: np.full_like(x, np.nan),
}


def test_v_of_another_schedule_fails(trained):
    """Convert v to epsilon with the wrong schedule as well, consistent with the steps."""
    with pytest.raises(ModelError, match="the model does not denoise"):
        denoise_check.check(read_as(trained, **COSINE), spec_of(**COSINE))


def off(eps, share):
    noise = np.random.default_rng(1).standard_normal(eps.shape)
    return (eps + share * np.linalg.norm(eps) / np.linalg.norm(noise) * noise).astype(np.float32)


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_reading_fails(trained, fault):
    with pytest.raises(ModelError, match="the model does not denoise"):
        denoise_check.check(WRONG[fault](trained), spec_of())


def test_a_better_reading_is_named(trained):
    right = denoise_check.of_torch(trained)

    def chosen(x, t):
        return off(right(x, t), 0.1)

    record = denoise_check.check(right, spec_of(), others=[("--heads 4", chosen), ("--heads 1", right)])
    assert record["others"]["--heads 4"] < 0.95 and record["others"]["--heads 1"] == 1.0
    with pytest.raises(ModelError, match=r"got an error 1\.\d\d times that with --heads 4, .* Check the heads"):
        denoise_check.check(chosen, spec_of(), others=[("--heads 1", chosen), ("--heads 4", right)])


def test_other_readings_of_a_guided_diffusion_checkpoint(tmp_path):
    """Try each number of heads once, and other norm groups; none if the file has its configuration."""
    config = UNetConfig(image_size=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
                        attention_downsampling=(2,), num_heads=4)  # fmt: skip
    torch.manual_seed(0)
    torch.save(UNet(config).state_dict(), tmp_path / "m.pt")
    flags = Flags(image_size=32, heads=4, norm_groups=4)
    model, _ = checkpoints.load(tmp_path / "m.pt", flags)
    others = dict(denoise_check.other_readings(tmp_path / "m.pt", flags, model.config))
    assert list(others) == ["--attention-order new", "--heads 1", "--heads 8", "--head-channels 32",
                            "--norm-groups 8", "--norm-groups 16", "--norm-groups 32"]  # fmt: skip
    x, t = np.ones((1, 3, 32, 32), np.float32), np.float32([500])
    answers = [denoise_check.of_torch(model)(x, t), *(other(x, t) for other in others.values())]
    assert all(not np.allclose(a, b, atol=1e-6) for i, a in enumerate(answers) for b in answers[:i])
    assert list(denoise_check.other_readings(WEIGHTS, Flags(), checkpoints.load(WEIGHTS)[0].config)) == []


def test_wrong_norm_groups_are_found(tmp_path, capsys):
    """With 4 groups instead of 8, zip-tiny still beats the linear estimate."""
    torch.save(checkpoints.load(WEIGHTS)[0].state_dict(), tmp_path / "m.pt")
    words = [str(tmp_path / "m.pt"), "-o", str(tmp_path / "out"), "--image-size", "64", "--prediction", "v"]
    assert main(["export", *words, "--norm-groups", "4"]) == 3
    assert "times that with --norm-groups 8" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_drawn_images_are_like_photographs():
    """Check the range, repeatability and the power spectrum, which falls as 1/f^2 (1.8 to 2.4 in Field 1987)."""
    x = leaves(6, 64)
    np.testing.assert_array_equal(x, leaves(6, 64))
    assert x.shape == (6, 3, 64, 64) and -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1
    gray = x.mean(1)
    power = (
        np.abs(np.fft.fft2((gray - gray.mean((1, 2), keepdims=True)) * np.hanning(64) * np.hanning(64)[:, None])) ** 2
    )
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64) * 64, np.fft.fftfreq(64) * 64))
    rings = [power[:, (f >= k) & (f < k + 1)].mean() for k in range(2, 24)]
    slope = np.polyfit(np.log(np.arange(2.5, 24.5)), np.log(rings), 1)[0]
    assert -3.3 < slope < -1.7


def test_images_are_read_from_a_folder(tmp_path, trained):
    for i, image in enumerate(leaves(6, 48)):
        array = np.rint((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        Image.fromarray(np.hstack([array, array])).save(tmp_path / f"{i}.png")  # 96x48: the middle square is used
    images = denoise_check.load_images(tmp_path, spec_of())
    assert images.shape == (2, 3, 32, 32) and -1 <= images.min() < images.max() <= 1
    record = denoise_check.check(denoise_check.of_torch(trained), spec_of(), images)
    assert record["images"] == 2 and len(record["levels"]) == len(denoise_check.LEVELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="got no image in it"):
        denoise_check.load_images(tmp_path / "empty", spec_of())


# ------------------------------------------------------------------------------------------- in the command


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """Return ``exported(words...)``, which returns the exit status and the record for the sidecar."""
    got = {}

    def export_onnx(model, spec, path, precision="fp32", **options):
        got.update(options)
        return {
            "parameters": 0,
            "tensors": 0,
            "parity": {"relative_error": {"0": 0.0}, "tolerance": 1.0, "runtime": ""},
        }

    monkeypatch.setattr(command, "export_onnx", export_onnx)

    def run(*words):
        got.clear()
        status = main(["export", *map(str, words), "-o", str(tmp_path / "out")])
        return status, got.get("denoises")

    return run


def test_the_command_checks_and_records(exported, capsys):
    status, record = exported(WEIGHTS)
    assert status == 0 and record["images"] == "drawn" and len(record["levels"]) == 3
    assert "denoises: error 0." in capsys.readouterr().out
    assert exported(WEIGHTS, "--no-denoise-check") == (0, {"skipped": "--no-denoise-check"})
    assert exported("--random-adm", "--channels", "32") == (0, {"skipped": "random weights"})


def test_the_command_exports_no_model_that_does_not_denoise(exported, tmp_path, capsys, trained):
    from safetensors.torch import save_file

    config = json.dumps(replace(trained.config, prediction="epsilon").to_dict())
    save_file(trained.state_dict(), tmp_path / "ema.safetensors", {"config": config})
    assert exported(tmp_path / "ema.safetensors") == (3, None)  # the exporter was not called
    assert "the model does not denoise: got an error" in capsys.readouterr().err

"""Test the noise process of a diffusers pipeline: it is read, replaced by flags with a message, or refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'zipsdk[export]'")
from export import checkpoints  # noqa: E402
from export.command import default_name, spec_for  # noqa: E402
from export.flags import Flags  # noqa: E402
from export.scheduler import NoiseProcess, read_scheduler, resolve  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from tests.helpers.beta_schedules import cosine, linear, oracle, scaled_linear  # noqa: E402
from tests.helpers.diffusers import DDPM, DDPM_JSON, folder_of  # noqa: E402
from zipsdk.cli import build_parser  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

#: What DDPMScheduler.save_pretrained writes.
DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.42.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0, "steps_offset": 0, "thresholding": False, "timestep_spacing": "leading",
    "trained_betas": None, "variance_type": "fixed_small",
}  # fmt: skip
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def pipeline(tmp_path):
    """Return ``pipeline(changes)``, which returns the folder of a DDPMPipeline with these changes of its scheduler."""
    folder = tmp_path / "my-model"
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True)
    folder_of(DDPM, DDPM_JSON, folder / "unet")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))

    def make(**changes):
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(DDPM_SCHEDULER | changes))
        return folder

    return make


@pytest.mark.parametrize(
    ("changes", "expected", "formula"),
    [
        ({}, {}, lambda: oracle(linear, 1000, 1e-4, 0.02)),
        ({"prediction_type": "v_prediction"}, {"prediction": "v"}, lambda: oracle(linear, 1000, 1e-4, 0.02)),
        ({"prediction_type": "sample"}, {"prediction": "sample"}, lambda: oracle(linear, 1000, 1e-4, 0.02)),
        ({"num_train_timesteps": 4000}, {"timesteps": 4000}, lambda: oracle(linear, 4000, 1e-4, 0.02)),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "cosine"}, lambda: oracle(cosine, 1000, 0, 0)),
        (LATENT, LATENT, lambda: oracle(scaled_linear, 1000, 0.00085, 0.012)),
        ({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3, "beta_schedule": "squaredcos_cap_v2"},
         {"beta_schedule": "betas", "betas": (0.1, 0.2, 0.3), "timesteps": 3}, lambda: [0.9, 0.72, 0.504]),
    ],
    ids=["plain", "v", "sample", "T4000", "cosine", "scaled_linear", "betas"],
)  # fmt: skip
@pytest.mark.parametrize("given", [".", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_the_noise_process_of_a_pipeline_is_read(pipeline, changes, expected, formula, given):
    folder, lines = pipeline(**changes), []
    model, _ = checkpoints.load(folder / given, on_progress=lines.append)
    noise = {field: getattr(model.config, field) for field in asdict(NoiseProcess())}
    assert noise == asdict(NoiseProcess()) | expected
    assert len(lines) == 1 and lines[0].startswith(f"{folder / 'scheduler' / 'scheduler_config.json'}: ")
    assert noise["beta_schedule"] in lines[0] and f"{noise['timesteps']} steps" in lines[0]
    # the exported spec and the torch model both have the formula's alpha-bar
    spec = spec_for(model, build_parser().parse_args(["export", "x", "-o", "y"]), "n", "", "")
    np.testing.assert_allclose(spec.alphas_cumprod(), formula(), rtol=1e-9)
    np.testing.assert_allclose(model.alphas_cumprod.numpy(), formula(), rtol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_prediction_becomes_the_same_epsilon(prediction, schedule, monkeypatch):
    """Check that a perfect network of each prediction type returns the added noise."""
    config = UNetConfig(image_size=16, model_channels=8, channel_mult=(1,), norm_groups=4, prediction=prediction,
                        beta_schedule=schedule)  # fmt: skip
    model, ab = UNet(config), torch.from_numpy(config.alphas_cumprod()).float()
    torch.manual_seed(0)
    x0, eps, t = torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 3, 16, 16), torch.tensor([20.0, 500.0, 990.0])
    a = ab[t.long()][:, None, None, None]
    meant = {"epsilon": eps, "v": a.sqrt() * eps - (1 - a).sqrt() * x0, "sample": x0}[prediction]
    monkeypatch.setattr(model, "network", lambda x, t: meant)
    got = model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t)
    torch.testing.assert_close(got, eps, rtol=0, atol=1e-4)


def test_sample_is_divided_by_a_float64_result_at_the_first_step(monkeypatch):
    """Check 1 - alpha-bar, which is 4e-5 there; subtracted in float32, it has three digits."""
    config = UNetConfig(image_size=16, model_channels=8, channel_mult=(1,), norm_groups=4, prediction="sample",
                        beta_schedule="cosine")  # fmt: skip
    model = UNet(config)
    monkeypatch.setattr(model, "network", lambda x, t: torch.zeros_like(x))
    x = torch.ones(1, 3, 16, 16)
    expected = 1 / np.sqrt(1 - config.alphas_cumprod()[0])
    assert float(model(x, torch.zeros(1)).mean()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "belongs to a flow-matching model"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "belongs to a flow-matching model"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "belongs to a variance-exploding model"),
        ({"_class_name": "KarrasVeScheduler"}, "belongs to a variance-exploding model"),
        ({"_class_name": "EDMEulerScheduler"}, "belongs to an EDM model"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "belongs to an EDM model"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "belongs to a consistency model"),
        ({"_class_name": "LCMScheduler"}, "belongs to a distilled model"),
        ({"_class_name": "UnCLIPScheduler"}, "_class_name: got 'UnCLIPScheduler'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type: got 'continuous'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "a flow-matching model"),
        ({"prediction_type": "flow_prediction"}, "a flow-matching model"),
        ({"prediction_type": "x"}, "prediction_type: got 'x', expected one of epsilon, v_prediction, sample"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: got True, expected false: with zero terminal SNR"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: got 'sigmoid', expected one of linear, scaled_linear, squ"),
        ({"beta_schedule": "laplace"}, "beta_schedule: got 'laplace'"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps: got '1000'"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: got '2 numbers', expected num_train_timesteps = 1000"),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, r"trained_betas: got '\[0.1, 1.0\]'"),
        ({"beta_start": 0.5}, "beta_start and beta_end: got"),
    ],
)
def test_other_noise_processes_are_refused_by_name(pipeline, changes, message):
    folder = pipeline(**changes)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoints.load(folder)
    assert str(caught.value).startswith(str(folder / "scheduler" / "scheduler_config.json"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}, "denoises latents"),
        ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, "LDMPipeline has a vqvae"),
        ({"_class_name": "IFPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "has a UNet2DConditionModel"),
        ({"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}, "has no unet"),
    ],
)
def test_other_pipelines_are_refused_by_name(pipeline, index, message):
    folder = pipeline()
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        checkpoints.load(folder)


def test_missing_values_have_the_defaults_of_their_scheduler(tmp_path):
    """Read files that lack values; diffusers itself writes all."""
    path = tmp_path / "scheduler_config.json"
    for name, ends in (("DDIMScheduler", (1e-4, 0.02)), ("HeunDiscreteScheduler", (0.00085, 0.012))):
        path.write_text(json.dumps({"_class_name": name}))
        assert read_scheduler(path) == NoiseProcess(beta_start=ends[0], beta_end=ends[1])
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", "predict_epsilon": False}))  # before version 0.10
    assert read_scheduler(path).prediction == "sample"


def test_without_a_scheduler_the_assumption_is_printed(tmp_path):
    folder, _ = folder_of(DDPM, DDPM_JSON, tmp_path)
    lines = []
    checkpoints.load(folder, on_progress=lines.append)
    assert len(lines) == 1 and "no scheduler_config.json in it or in ../scheduler; assuming linear schedule" in lines[0]
    lines.clear()
    flags = Flags(noise_schedule="cosine", prediction="v", timesteps=4000)
    config = checkpoints.load(folder, flags, lines.append)[0].config
    assert (config.beta_schedule, config.prediction, config.timesteps) == ("cosine", "v", 4000)
    assert lines == []  # nothing was assumed


def test_flags_replace_values_of_the_file_with_a_message(pipeline):
    folder, lines = pipeline(prediction_type="v_prediction"), []
    flags = Flags(prediction="epsilon", timesteps=1000)
    assert checkpoints.load(folder, flags, lines.append)[0].config.prediction == "epsilon"
    assert lines[0].endswith("1000 steps, v prediction; flags replace prediction v by epsilon")
    folder = pipeline(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3)
    with pytest.raises(ModelError, match=r"got trained_betas and flags of another schedule, .* give --noise-schedule"):
        checkpoints.load(folder, Flags(timesteps=1000))
    config = checkpoints.load(folder, Flags(noise_schedule="linear", timesteps=1000))[0].config
    assert (config.beta_schedule, config.betas, config.timesteps) == ("linear", (), 1000)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (Flags(noise_schedule="sigmoid"), "noise schedule: got 'sigmoid'"),
        (Flags(noise_schedule="betas"), "noise schedule: got 'betas'"),
        (Flags(prediction="flow"), "prediction: got 'flow'"),
        (Flags(timesteps=1), "--timesteps: got 1, expected 2 to 100000"),
        (Flags(beta_start=0.5), "--beta-start and --beta-end: got 0.5 and 0.02"),
    ],
)
def test_invalid_flags_are_refused(flags, message):
    with pytest.raises(ModelError, match=message):
        resolve(None, flags, "x", print)


def test_betas_of_guided_diffusion_keep_their_sum():
    """Check its linear schedule: Ho et al.'s times 1000 / T, so that alpha-bar ends at the same value for any T."""
    process = resolve(None, Flags(timesteps=4000), "x", lambda _: None, rescaled=True)
    assert (process.beta_start, process.beta_end) == pytest.approx((2.5e-5, 0.005))
    given = resolve(None, Flags(timesteps=4000, beta_start=1e-4), "x", lambda _: None, rescaled=True)
    assert (given.beta_start, given.beta_end) == pytest.approx((1e-4, 0.005))
    assert resolve(None, Flags(timesteps=4000), "x", lambda _: None).beta_end == 0.02  # as in diffusers


def test_the_default_name_is_the_pipelines(pipeline):
    folder = pipeline()
    for given in (folder, folder / "unet", folder / "unet" / "diffusion_pytorch_model.safetensors"):
        assert default_name(given) == "my-model"

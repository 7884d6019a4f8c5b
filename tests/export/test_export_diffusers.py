"""Test diffusers' UNet2DModel: names and configuration by hand, numbers against diffusers if it is installed."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors.load_file, safetensors.save_file

from export import checkpoints  # noqa: E402
from export.diffusers_names import read_config  # noqa: E402
from export.flags import Flags  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from tests.helpers.diffusers import (  # noqa: E402
    DDPM,
    DDPM_JSON,
    HEADS,
    HEADS_JSON,
    LAYERS,
    OTHERS,
    RESNETS,
    diffusers_state,
    folder_of,
)
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

X, T = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), torch.tensor([3.0, 950.0])


@pytest.fixture
def ddpm(tmp_path):
    return folder_of(DDPM, DDPM_JSON, tmp_path)


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize(("config", "config_json"), [(DDPM, DDPM_JSON), (HEADS, HEADS_JSON)], ids=["ddpm", "heads"])
def test_a_folder_loads(tmp_path, config, config_json, old_names):
    folder, model = folder_of(config, config_json, tmp_path)
    if old_names:
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        parts = ("query", "key", "value", "proj_attn")
        torch.save(diffusers_state(model, parts), folder / "diffusion_pytorch_model.bin")
    loaded, _ = checkpoints.load(folder)
    assert loaded.config == config
    assert torch.equal(loaded(X, T), model(X, T))


def test_heads_are_reordered(tmp_path):
    """Check the third of four heads, which has rows 8 to 11 of q, k and v."""
    folder, _ = folder_of(HEADS, HEADS_JSON, tmp_path)
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        state[f"mid_block.attentions.0.{part}.bias"] = torch.arange(16.0) + 100 * i
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    bias = dict(checkpoints.load(folder)[0].named_parameters())["middle_block.1.qkv.bias"]
    assert bias.reshape(4, 3, 4)[2].tolist() == [[8, 9, 10, 11], [108, 109, 110, 111], [208, 209, 210, 211]]


def test_missing_values_have_the_defaults_of_diffusers(tmp_path):
    least = {
        "sample_size": 64, "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(least))
    assert read_config(tmp_path / "config.json") == UNetConfig(
        image_size=64, model_channels=32, channel_mult=(1, 2), num_res_blocks=2, in_channels=3, out_channels=3,
        attention_downsampling=(2,), num_head_channels=8, resblock_updown=False, use_scale_shift_norm=False,
        embedding_order="cos_sin", embedding_shift=0, norm_groups=32, norm_eps=1e-5, asymmetric_downsampling=False,
        prediction="epsilon", beta_start=1e-4, beta_end=0.02, timesteps=1000,
    )  # fmt: skip


def test_a_model_without_attention(tmp_path):
    config = replace(DDPM, attention_downsampling=())
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    torch.manual_seed(0)
    model = UNet(config).eval().requires_grad_(False)
    names = RESNETS | {"middle_block.1": "mid_block.resnets.1"}
    names.pop("middle_block.2")
    state = {}
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        block = next((b for b in names if module.startswith(f"{b}.")), None)
        theirs = f"{names[block]}.{LAYERS[module.removeprefix(f'{block}.')]}" if block else None
        if theirs is None:
            theirs = OTHERS.get(module) or OTHERS["output_blocks.1.2.conv"]  # without attention one index earlier
        state[f"{theirs}.{leaf}"] = tensor
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(DDPM_JSON | plain | {"sample_size": [16, 16], "dropout": 0.3}))
    loaded, _ = checkpoints.load(tmp_path)
    assert loaded.config == config and torch.equal(loaded(X, T), model(X, T))


@pytest.mark.parametrize("flag", [{"heads": 4}, {"head_channels": 8}, {"norm_groups": 8}, {"image_size": 32},
                                  {"attention_order": "new"}, {"rescale_timesteps": True}])  # fmt: skip
def test_flags_for_values_of_the_configuration_are_refused(ddpm, flag):
    with pytest.raises(
        ModelError,
        match=f"got --{next(iter(flag)).replace('_', '-')}, expected no such flag, because the configuration fixes it",
    ):
        checkpoints.load(ddpm[0], Flags(**flag))


def test_missing_and_misshapen_tensors_are_named(ddpm):
    folder, model = ddpm
    state = diffusers_state(model, ("to_q", "to_k", "to_v", "to_out.0"))
    del state["mid_block.attentions.0.to_k.bias"]
    state["conv_out.bias"] = torch.zeros(4)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ModelError, match=r"1 missing: mid_block.attentions.0.to_k.bias; 1 of another shape: conv_out.bias"
    ):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "block type: got 'SkipDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "mirror image"),
        ({"act_fn": "gelu"}, "act_fn: got 'gelu', expected 'silu'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type: got 'fourier'"),
        ({"center_input_sample": True}, "center_input_sample: got True"),
        ({"class_embed_type": "timestep"}, "class_embed_type: got 'timestep'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift: got 'scale_shift'"),
        ({"block_out_channels": [8, 20]}, "block_out_channels"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": [16, 32]}, "sample_size"),
        ({"in_channels": 4}, "in_channels: got 4, expected 3 .RGB., and 4 is a latent-diffusion UNet's"),
        ({"in_channels": 1}, "in_channels: got 1"),
        ({"attention_head_dim": 5}, r"attention_head_dim: got 5, expected a divisor of \[16, 16\]"),
        ({"attention_head_dim": 0}, "attention_head_dim: got 0"),
        ({"norm_num_groups": None}, "norm_num_groups: got None"),
        ({"freq_shift": 0.5}, "freq_shift: got 0.5"),
        ({"layers_per_block": [1, 1]}, r"layers_per_block: got \[1, 1\]"),
        ({"downsample_padding": 2}, "downsample_padding: got 2, expected 0 or 1"),
        ({"downsample_type": "resnet"}, "downsample_type: got 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type: got 'resnet'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim: got 64"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor: got 2"),
        ({"mid_block_type": None}, "mid_block_type: got None"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups: got 4"),
        ({"num_class_embeds": 10}, "num_class_embeds: got 10"),
        ({"add_attention": False}, "down_block_types: got .* expected no attention"),
        ({"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}, "attention in one of them"),
        ({"brand_new_option": 1}, "brand_new_option: got 1, expected no such key"),
        ({"block_out_channels": 8}, "not a UNet2DModel's configuration"),
    ],
)
def test_other_diffusers_models_are_refused(ddpm, change, message):
    folder, _ = ddpm
    (folder / "config.json").write_text(json.dumps(DDPM_JSON | change))
    with pytest.raises(ModelError, match=message):
        checkpoints.load(folder)


def test_the_scheduler_is_read(ddpm):
    folder, _ = ddpm
    scheduler = folder / "scheduler_config.json"
    scheduler.write_text(json.dumps({"beta_end": 0.03, "beta_schedule": "linear", "prediction_type": "v_prediction"}))
    config = checkpoints.load(folder)[0].config
    assert (config.beta_end, config.prediction) == (0.03, "v")
    scheduler.write_text("[]")
    with pytest.raises(ModelError, match=r"scheduler_config\.json: got a list, expected a JSON object"):
        checkpoints.load(folder)


def test_weights_without_config_are_refused(ddpm):
    folder, _ = ddpm
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"without config\.json"):
        checkpoints.load(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("kind", ["ddpm", "heads", "no attention"])
def test_parity_with_diffusers(tmp_path, kind):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    options = {"attention_head_dim": 16}
    if kind == "ddpm":
        options = {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
        options["downsample_padding"] = 0
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    if kind == "no attention":
        blocks = {
            "down_block_types": ("DownBlock2D",) * 3,
            "up_block_types": ("UpBlock2D",) * 3,
            "add_attention": False,
        }
    theirs = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(32, 64, 64), layers_per_block=2, norm_num_groups=8, **blocks, **options,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours, _ = checkpoints.load(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    for t in (950, 500, 0):
        with torch.no_grad():
            expected = theirs(x, t).sample
        got = ours(x, torch.full((2,), float(t)))
        error = float((got - expected).norm() / expected.norm())
        print(f"{kind}, t = {t}: relative error {error:.1e}")
        assert error < 5e-6

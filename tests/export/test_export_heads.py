"""Test values that guided-diffusion checkpoints do not hold: flags are required, but for OpenAI's 256x256 model."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'zipsdk[export]'")
from export import checkpoints, guided_diffusion  # noqa: E402
from export.flags import Flags  # noqa: E402
from export.unet import ADM256, AttentionBlock, UNet, UNetConfig  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

#: guided-diffusion's training defaults: four heads at every level.
HEADS = UNetConfig(
    image_size=16, model_channels=8, channel_mult=(1, 2, 4), num_res_blocks=1, attention_downsampling=(2, 4),
    norm_groups=4, num_heads=4, num_head_channels=0,
)  # fmt: skip
FLAGS = Flags(image_size=16, norm_groups=4, heads=4)
X, T = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), torch.tensor([3.0, 950.0])


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = UNet(HEADS).eval().requires_grad_(False)
    torch.save(model.state_dict(), tmp_path / "ema_0.9999_500000.pt")
    return tmp_path / "ema_0.9999_500000.pt", model


def on_meta(config):
    with torch.device("meta"):
        return UNet(config).state_dict()


def test_heads_are_the_same_number_at_every_level(saved):
    path, model = saved
    loaded, _ = checkpoints.load(path, FLAGS)
    assert loaded.config == HEADS and torch.equal(loaded(X, T), model(X, T))
    blocks = [m for m in loaded.modules() if isinstance(m, AttentionBlock)]
    assert {(b.qkv.in_channels, b.heads) for b in blocks} == {(16, 4), (32, 4)}
    # a number of channels per head is another network with the same tensors
    other, _ = checkpoints.load(path, replace(FLAGS, heads=None, head_channels=4))
    blocks = [m for m in other.modules() if isinstance(m, AttentionBlock)]
    assert {(b.qkv.in_channels, b.heads) for b in blocks} == {(16, 4), (32, 8)}
    assert not torch.allclose(other(X, T), model(X, T), atol=1e-6)


def test_the_new_order_with_heads(saved):
    path, model = saved
    state = torch.load(path, weights_only=True)
    for key in [k for k in state if ".qkv." in k]:  # per head (q, k, v) -> (q of all heads, k of all heads, v of all)
        rows = state[key].split(len(state[key]) // 12)
        state[key] = torch.cat([rows[i] for part in range(3) for i in range(part, 12, 3)])
    torch.save(state, path)
    loaded, _ = checkpoints.load(path, replace(FLAGS, attention_order="new"))
    torch.testing.assert_close(loaded(X, T), model(X, T), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            Flags(image_size=16),
            "attention heads, .* not OpenAI's 256x256 model. Give --heads N or",
        ),
        (Flags(heads=4), "got no image size, which tensors do not give; give --image-size"),
        (Flags(image_size=16, heads=4, head_channels=8), "got --heads and --head-channels, expected one of them"),
        (Flags(image_size=16, heads=3), r"got heads=3, expected a divisor of attention's \[16, 32, 32\] channels"),
        (Flags(image_size=16, heads=-4), r"got heads=-4, expected a divisor"),
        (Flags(image_size=16, head_channels=32), r"got head_channels=32, expected a divisor"),
    ],
)
def test_missing_flags_are_named(saved, flags, message):
    with pytest.raises(ModelError, match=message):
        checkpoints.load(saved[0], flags)


def test_openai_256_needs_no_flags():
    lines = []
    config = guided_diffusion.read_config(on_meta(ADM256), Flags(), "256x256_diffusion_uncond.pt", lines.append)
    assert config == replace(ADM256, num_head_channels=64)
    assert lines[1].endswith("image size 256, 64 channels per head, legacy attention order")


@pytest.mark.parametrize(
    "changes",
    [{"model_channels": 128}, {"num_res_blocks": 1}, {"attention_downsampling": (16,)}, {"resblock_updown": False},
     {"use_scale_shift_norm": False}, {"out_channels": 3}, {"channel_mult": (1, 2, 3, 4)}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_a_model_that_differs_from_openai_256_needs_flags(changes):
    state = on_meta(replace(ADM256, **changes))
    with pytest.raises(ModelError, match="got no number of attention heads"):
        guided_diffusion.read_config(state, Flags(), "m.pt", lambda _: None)
    assert guided_diffusion.read_config(state, Flags(heads=4), "m.pt", lambda _: None).num_heads == 4


@pytest.mark.parametrize(
    ("mult", "size"), [((1, 1, 2, 2, 4, 4), 256), ((1, 1, 2, 3, 4), 128), ((1, 2, 3, 4), 64), ((1, 2, 2, 2), 32)]
)
def test_channel_mult_of_guided_diffusion_implies_the_image_size(mult, size):
    config = replace(ADM256, channel_mult=mult, model_channels=32, num_res_blocks=1, attention_downsampling=(4,))
    state = on_meta(config)
    assert guided_diffusion.read_config(state, Flags(heads=4), "m.pt", lambda _: None).image_size == size
    given = Flags(heads=4, image_size=2 * size)
    assert guided_diffusion.read_config(state, given, "m.pt", lambda _: None).image_size == 2 * size


def test_rescale_timesteps(saved):
    """With T = 4000, networks of improved-diffusion take t / 4."""
    path, _ = saved
    flags = replace(FLAGS, timesteps=4000, noise_schedule="cosine")
    plain = checkpoints.load(path, flags)[0]
    scaled = checkpoints.load(path, replace(flags, rescale_timesteps=True))[0]
    assert (scaled.config.time_scale, scaled.config.beta_schedule) == (0.25, "cosine")
    assert torch.equal(scaled(X, 4 * T), plain(X, T)) and not torch.allclose(scaled(X, T), plain(X, T), atol=1e-6)


def test_older_configurations_stay_equal():
    """Check that later fields are left out at their defaults: training states compare the dict."""
    plain = replace(HEADS, num_heads=0)
    assert not {"num_heads", "beta_schedule", "betas", "time_scale"} & plain.to_dict().keys()
    for config in (plain, HEADS, replace(HEADS, beta_schedule="betas", betas=(0.1, 0.2), timesteps=2, time_scale=0.5)):
        assert UNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("changes", [{"prediction": "x0"}, {"embedding_order": "cos"}, {"beta_schedule": "sigmoid"}])
def test_invalid_configurations_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}: got"):
        replace(HEADS, **changes)

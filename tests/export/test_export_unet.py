"""Test the UNet against literal formulas of its description."""

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from export import unet  # noqa: E402
from export.unet import ADM256, ZIP_TINY, AttentionBlock, ResBlock, UNet, UNetConfig  # noqa: E402

pytestmark = pytest.mark.torch

SMALL = UNetConfig(
    image_size=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_downsampling=(2,),
    num_head_channels=4, norm_groups=4, resblock_updown=True,
)  # fmt: skip


def on_meta(config):
    with torch.device("meta"):
        return UNet(config)


def seeded(config, seed=0):
    torch.manual_seed(seed)
    return UNet(config).eval().requires_grad_(False)


def test_openai_256_has_the_published_shape():
    state = on_meta(ADM256).state_dict()
    assert len(state) == 566
    assert sum(v.numel() for v in state.values()) == 552_814_086
    shapes = {
        "time_embed.0.weight": (1024, 256),
        "input_blocks.0.0.weight": (256, 3, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (256, 256, 3, 3),  # halving ResBlock
        "input_blocks.3.0.emb_layers.1.weight": (512, 1024),
        "input_blocks.7.0.skip_connection.weight": (512, 256, 1, 1),
        "input_blocks.10.1.qkv.weight": (1536, 512, 1),
        "input_blocks.17.1.proj_out.weight": (1024, 1024, 1),
        "middle_block.1.norm.weight": (1024,),
        "middle_block.2.out_layers.3.bias": (1024,),
        "output_blocks.2.2.in_layers.0.weight": (1024,),  # ResBlock, attention, doubling ResBlock
        "output_blocks.17.0.in_layers.2.weight": (256, 512, 3, 3),
        "out.0.weight": (256,),
        "out.2.weight": (6, 256, 3, 3),
    }
    assert {k: tuple(state[k].shape) for k in shapes} == shapes
    assert "input_blocks.9.1.qkv.weight" not in state  # attention at 32, 16 and 8 pixels only
    assert "output_blocks.17.1.qkv.weight" not in state


def test_ddpm_cifar10_has_the_published_count():
    config = UNetConfig(
        image_size=32, model_channels=128, channel_mult=(1, 2, 2, 2), attention_downsampling=(2,), num_head_channels=0,
        use_scale_shift_norm=False, embedding_order="sin_cos", embedding_shift=1, norm_eps=1e-6,
        asymmetric_downsampling=True,
    )  # fmt: skip
    assert sum(p.numel() for p in on_meta(config).parameters()) == 35_746_307


def test_config_round_trip():
    for config in (ADM256, ZIP_TINY, SMALL):
        assert UNetConfig.from_dict(config.to_dict()) == config
    with pytest.raises(TypeError):
        UNetConfig.from_dict(SMALL.to_dict() | {"unknown": 1})


@pytest.mark.parametrize(("order", "shift"), [("cos_sin", 0), ("sin_cos", 1)])
def test_timestep_embedding(order, shift):
    got = unet.timestep_embedding(torch.tensor([0.0, 1.0, 950.0]), 8, order, shift)
    for n, t in enumerate((0, 1, 950)):
        angles = [t * math.exp(-math.log(10000) * i / (4 - shift)) for i in range(4)]
        cos, sin = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        expected = cos + sin if order == "cos_sin" else sin + cos
        assert got[n].tolist() == pytest.approx(expected, abs=2e-4)  # float32 angles up to 950


@pytest.mark.parametrize("resample", ["", "up", "down"])
@pytest.mark.parametrize("film", [True, False])
def test_residual_block(resample, film):
    config = UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), norm_groups=4, use_scale_shift_norm=film)
    torch.manual_seed(1)
    block = ResBlock(config, 8, 12, resample).requires_grad_(False)
    for p in block.parameters():
        p.copy_(torch.randn_like(p))
    x, emb = torch.randn(2, 8, 6, 4), torch.randn(2, 32)
    w = {k: v.double() for k, v in block.state_dict().items()}

    def resized(h):
        if resample == "up":
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if resample == "down":
            return (h[:, :, ::2, ::2] + h[:, :, 1::2, ::2] + h[:, :, ::2, 1::2] + h[:, :, 1::2, 1::2]) / 4
        return h

    h = functional.silu(functional.group_norm(x.double(), 4, w["in_layers.0.weight"], w["in_layers.0.bias"], 1e-5))
    h = functional.conv2d(resized(h), w["in_layers.2.weight"], w["in_layers.2.bias"], padding=1)
    time = functional.silu(emb.double()) @ w["emb_layers.1.weight"].T + w["emb_layers.1.bias"]
    norm = (4, w["out_layers.0.weight"], w["out_layers.0.bias"], 1e-5)
    if film:  # the first half scales, the second shifts, after the normalization
        scale, shift = time[:, :12, None, None], time[:, 12:, None, None]
        h = functional.group_norm(h, *norm) * (1 + scale) + shift
    else:
        h = functional.group_norm(h + time[:, :, None, None], *norm)
    h = functional.conv2d(functional.silu(h), w["out_layers.3.weight"], w["out_layers.3.bias"], padding=1)
    expected = h + functional.conv2d(resized(x.double()), w["skip_connection.weight"], w["skip_connection.bias"])
    torch.testing.assert_close(block(x, emb).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_attention_is_per_head():
    config = UNetConfig(image_size=8, model_channels=12, channel_mult=(1,), norm_groups=3, num_head_channels=4)
    torch.manual_seed(2)
    block = AttentionBlock(config, 12).requires_grad_(False)
    x = torch.randn(2, 12, 3, 5)
    w = {k: v.double() for k, v in block.state_dict().items()}
    flat = x.double().reshape(2, 12, 15)
    qkv = w["qkv.weight"][:, :, 0] @ functional.group_norm(flat, 3, w["norm.weight"], w["norm.bias"], 1e-5)
    qkv = qkv + w["qkv.bias"][:, None]
    heads = []
    for head in range(3):
        q, k, v = (qkv[:, 12 * head + 4 * i : 12 * head + 4 * (i + 1)] for i in range(3))
        answer = torch.zeros_like(q)
        for n in range(2):
            for i in range(15):
                scores = torch.stack([q[n, :, i] @ k[n, :, j] / 2 for j in range(15)])  # sqrt(4 channels) = 2
                answer[n, :, i] = v[n] @ scores.softmax(0)
        heads.append(answer)
    out = w["proj_out.weight"][:, :, 0] @ torch.cat(heads, 1) + w["proj_out.bias"][:, None]
    torch.testing.assert_close(block(x).double(), (flat + out).reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_v_prediction_gives_epsilon():
    config = UNetConfig(image_size=16, model_channels=8, channel_mult=(1, 2), norm_groups=4, prediction="v")
    model = seeded(config)
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 500.0, 950.0])
    v, eps = model.network(x, t).double(), model(x, t).double()
    for n, step in enumerate((0, 500, 950)):
        ab = math.prod(1 - b for b in betas[: step + 1])
        x0 = math.sqrt(ab) * x[n].double() - math.sqrt(1 - ab) * v[n]  # estimated from v
        torch.testing.assert_close(math.sqrt(ab) * x0 + math.sqrt(1 - ab) * eps[n], x[n].double(), rtol=0, atol=1e-5)


def test_torso_precision():
    model = seeded(SMALL)
    expected = model(torch.ones(1, 3, 16, 16), torch.tensor([7.0]))
    half = seeded(SMALL).to_torso(torch.bfloat16)
    kinds = {k: v.dtype for k, v in half.state_dict().items()}
    assert kinds["input_blocks.0.0.weight"] == kinds["middle_block.1.qkv.weight"] == torch.bfloat16
    float32_parts = (
        "time_embed.0.weight",
        "middle_block.0.emb_layers.1.weight",
        "middle_block.1.norm.weight",
        "out.2.weight",
    )
    assert {kinds[k] for k in float32_parts} == {torch.float32}
    got = half(torch.ones(1, 3, 16, 16), torch.tensor([7.0]))
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("updown", [True, False])
def test_any_multiple_of_the_downsampling_works(updown):
    config = replace(SMALL, resblock_updown=updown)
    assert seeded(config)(torch.zeros(1, 3, 8, 22), torch.zeros(1)).shape == (1, 3, 8, 22)

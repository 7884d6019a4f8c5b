"""Test Ho et al.'s layout against the network written out on the checkpoint's own names."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'zipsdk[export]'")
from torch.nn import functional  # noqa: E402

from export import checkpoints  # noqa: E402
from export.flags import Flags  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

CHANNELS, MULT, BLOCKS, ATTENTION, GROUPS = 8, (1, 2, 2), 2, 1, 4


def random_state(seed=0):
    """Draw random tensors with ermongroup/ddim's names: three levels, attention at the second."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name, *shape):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(fan)
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def block(name, cin, cout):
        layer(f"{name}.norm1", cin)
        layer(f"{name}.conv1", cout, cin, 3, 3)
        layer(f"{name}.temb_proj", cout, 4 * CHANNELS)
        layer(f"{name}.norm2", cout)
        layer(f"{name}.conv2", cout, cout, 3, 3)
        if cin != cout:
            layer(f"{name}.nin_shortcut", cout, cin, 1, 1)

    def attention(name, c):
        layer(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", c, c, 1, 1)

    layer("temb.dense.0", 4 * CHANNELS, CHANNELS)
    layer("temb.dense.1", 4 * CHANNELS, 4 * CHANNELS)
    layer("conv_in", CHANNELS, 3, 3, 3)
    skips, c = [CHANNELS], CHANNELS
    for level, mult in enumerate(MULT):
        for i in range(BLOCKS):
            block(f"down.{level}.block.{i}", c, mult * CHANNELS)
            c = mult * CHANNELS
            if level == ATTENTION:
                attention(f"down.{level}.attn.{i}", c)
            skips.append(c)
        if level < len(MULT) - 1:
            layer(f"down.{level}.downsample.conv", c, c, 3, 3)
            skips.append(c)
    block("mid.block_1", c, c)
    attention("mid.attn_1", c)
    block("mid.block_2", c, c)
    for level, mult in reversed(list(enumerate(MULT))):
        for i in range(BLOCKS + 1):
            block(f"up.{level}.block.{i}", c + skips.pop(), mult * CHANNELS)
            c = mult * CHANNELS
            if level == ATTENTION:
                attention(f"up.{level}.attn.{i}", c)
        if level:
            layer(f"up.{level}.upsample.conv", c, c, 3, 3)
    layer("norm_out", c)
    layer("conv_out", 3, c, 3, 3)
    return state


def literal(state, x, t):
    """Compute the network of Ho et al. 2020, appendix B, in float64."""
    w = {k: v.double() for k, v in state.items()}

    def conv(h, name, **options):
        return functional.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def dense(h, name):
        return functional.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(h, name):
        return functional.group_norm(h, GROUPS, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def block(h, name):
        y = conv(functional.silu(norm(h, f"{name}.norm1")), f"{name}.conv1", padding=1)
        y = y + dense(functional.silu(emb), f"{name}.temb_proj")[:, :, None, None]
        y = conv(functional.silu(norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return y + (conv(h, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in w else h)

    def attention(h, name):
        n, c, rows, columns = h.shape
        q, k, v = (conv(norm(h, f"{name}.norm"), f"{name}.{part}").flatten(2) for part in "qkv")
        weight = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / math.sqrt(c), dim=2)
        mixed = torch.einsum("nij,ncj->nci", weight, v).reshape(n, c, rows, columns)
        return h + conv(mixed, f"{name}.proj_out")

    half = CHANNELS // 2
    angles = t.double()[:, None] * torch.tensor([10000 ** (-i / (half - 1)) for i in range(half)], dtype=torch.double)
    emb = dense(functional.silu(dense(torch.cat([angles.sin(), angles.cos()], 1), "temb.dense.0")), "temb.dense.1")
    h = conv(x.double(), "conv_in", padding=1)
    skips = [h]
    for level in range(len(MULT)):
        for i in range(BLOCKS):
            h = block(h, f"down.{level}.block.{i}")
            h = attention(h, f"down.{level}.attn.{i}") if level == ATTENTION else h
            skips.append(h)
        if level < len(MULT) - 1:
            h = conv(functional.pad(h, (0, 1, 0, 1)), f"down.{level}.downsample.conv", stride=2)
            skips.append(h)
    h = block(attention(block(h, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    for level in reversed(range(len(MULT))):
        for i in range(BLOCKS + 1):
            h = block(torch.cat([h, skips.pop()], 1), f"up.{level}.block.{i}")
            h = attention(h, f"up.{level}.attn.{i}") if level == ATTENTION else h
        if level:
            h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), f"up.{level}.upsample.conv", padding=1)
    return conv(functional.silu(norm(h, "norm_out")), "conv_out", padding=1)


FLAGS = Flags(norm_groups=GROUPS)
X, T = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin(), torch.tensor([3.0, 950.0])


def test_a_checkpoint_computes_the_literal_network(tmp_path):
    state, lines = random_state(), []
    torch.save(state, tmp_path / "celeba_hq.ckpt")
    model, _ = checkpoints.load(tmp_path / "celeba_hq.ckpt", FLAGS, lines.append)
    expected = literal(state, X, T)
    assert float((model(X, T) - expected).norm() / expected.norm()) < 1e-5
    config = model.config
    assert (config.image_size, config.attention_downsampling, config.channel_mult) == (32, (2,), (1, 2, 2))
    assert (config.num_res_blocks, config.prediction, config.beta_schedule) == (2, "epsilon", "linear")
    assert "assuming image size 32" in lines[0] and "assuming linear schedule 0.0001 to 0.02, 1000 steps" in lines[1]


def test_celeba_hq_has_256_pixels():
    """Read the shapes of the published file: 128 channels, six levels, attention at the fifth."""
    from export import ho

    names = {"temb.dense.0": (512, 128), "conv_in": (128, 3, 3, 3), "conv_out": (3, 128, 3, 3),
             "down.0.downsample.conv": (128, 128, 3, 3), "down.4.attn.0.q": (512, 512, 1, 1)}  # fmt: skip
    for level, mult in enumerate((1, 1, 2, 2, 4, 4)):
        names |= {f"down.{level}.block.{i}.conv1": (128 * mult, 1, 3, 3) for i in range(2)}
    state = {f"{k}.weight": torch.empty(shape, device="meta") for k, shape in names.items()}
    config = ho.read_config(state, Flags(), "celeba_hq.ckpt", lambda _: None)
    assert (config.image_size, config.model_channels, config.norm_groups) == (256, 128, 32)
    assert config.attention_downsampling == (16,) and config.channel_mult == (1, 1, 2, 2, 4, 4)


@pytest.mark.parametrize("kind", ["wrapped", "training", "averaged"])
def test_training_states_of_ddim_are_read(tmp_path, kind):
    """Read [model, optimizer, epoch, step] with and without averaged weights, and names of DataParallel."""
    state, other = random_state(), random_state(seed=1)
    wrapped = {f"module.{k}": v for k, v in state.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]}
    last = {f"module.{k}": v for k, v in other.items()}
    content = {"wrapped": wrapped, "training": [wrapped, optimizer, 3, 1000],
               "averaged": [last, optimizer, 3, 1000, state]}[kind]  # fmt: skip
    torch.save(content, tmp_path / "ckpt.pth")
    lines = []
    model, _ = checkpoints.load(tmp_path / "ckpt.pth", FLAGS, lines.append)
    expected = literal(state, X, T)
    assert float((model(X, T) - expected).norm() / expected.norm()) < 1e-5
    assert ("taking its averaged weights" in lines[0]) == (kind == "averaged")
    assert ("taking its last weights" in lines[0]) == (kind == "training")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"down.1.block.0.conv_shortcut.weight": torch.zeros(16, 8, 3, 3)}), "3x3 shortcuts"),
        (lambda s: s.pop("down.0.downsample.conv.weight"), "resamp_with_conv: false"),
        (lambda s: s.pop("mid.attn_1.k.bias"), r"1 missing: mid\.attn_1\.k\.bias"),
        (lambda s: s.update({"logvar": torch.zeros(1000)}), "1 extra: logvar"),
        (lambda s: s.update({"conv_in.weight": torch.zeros(8, 6, 3, 3)}), "got 6 input and 3 output channels"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("down")], "cut short"),
    ],
)
def test_other_variants_are_refused_with_the_reason(tmp_path, change, message):
    state = random_state()
    change(state)
    torch.save(state, tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match=message):
        checkpoints.load(tmp_path / "m.ckpt", FLAGS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (Flags(heads=4), "got --heads, expected no such flag, because Ho et al.'s layout fixes it"),
        (Flags(image_size=30, norm_groups=4), "image size: got 30, expected a multiple of 4"),
        (Flags(norm_groups=5), "no UNet can be built"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, flags, message):
    torch.save(random_state(), tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match=message):
        checkpoints.load(tmp_path / "m.ckpt", flags)

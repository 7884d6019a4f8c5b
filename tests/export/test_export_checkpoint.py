"""Test that checkpoints load strictly, and that only tensors are unpickled."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from export import checkpoints  # noqa: E402
from export.flags import Flags  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from zipsdk.errors import ModelError  # noqa: E402

pytestmark = pytest.mark.torch

OPENAI = UNetConfig(
    image_size=16, model_channels=8, channel_mult=(1, 2, 4), num_res_blocks=2, out_channels=6,
    attention_downsampling=(2, 4), num_head_channels=4, norm_groups=4, resblock_updown=True,
)  # fmt: skip
FLAGS = Flags(image_size=16, head_channels=4, norm_groups=4)
X, T = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), torch.tensor([3.0, 950.0])


def seeded(config):
    torch.manual_seed(0)
    return UNet(config).eval().requires_grad_(False)


@pytest.fixture
def openai(tmp_path):
    """Write a small guided-diffusion checkpoint: its path, and the six-channel model that it was saved from."""
    model = seeded(OPENAI)
    torch.save(model.state_dict(), tmp_path / "adm.pt")
    return tmp_path / "adm.pt", model


def resaved(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


# ------------------------------------------------------------------------------------------- guided-diffusion


def test_openai_checkpoint(openai):
    path, model = openai
    loaded, sha256 = checkpoints.load(path, FLAGS)
    assert loaded.config == replace(OPENAI, out_channels=3)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # cutting the last convolution slices its output
    torch.testing.assert_close(loaded(X, T), model(X, T)[:, :3], rtol=0, atol=1e-6)
    assert loaded.out[2].weight.shape[0] == loaded.out[2].out_channels == 3
    assert not loaded.training


@pytest.mark.parametrize(
    "changes",
    [
        {"resblock_updown": False},
        {"use_scale_shift_norm": False},
        {"out_channels": 3},
        {"num_res_blocks": 1},
        {"attention_downsampling": (4,)},
        {"channel_mult": (1, 1, 2, 2), "attention_downsampling": (8, 2)},
        {"channel_mult": (2,), "attention_downsampling": (1,)},
    ],
)
def test_shapes_reveal_the_architecture(tmp_path, changes):
    config = replace(OPENAI, **changes)
    if len(config.channel_mult) == 1:
        config = replace(config, resblock_updown=False)  # one level has nothing to resample
    torch.save(seeded(config).state_dict(), tmp_path / "m.pt")
    got = checkpoints.load(tmp_path / "m.pt", FLAGS)[0].config
    assert got == replace(config, out_channels=3, attention_downsampling=tuple(sorted(config.attention_downsampling)))


def test_old_zipless_pt_half_precision_and_safetensors(openai):
    path, model = openai
    halves = {k: v.half() for k, v in model.state_dict().items()}
    torch.save(halves, path.with_name("old.pt"), _use_new_zipfile_serialization=False)
    save_file(halves, path.with_name("new.safetensors"))
    for name in ("old.pt", "new.safetensors"):
        loaded, _ = checkpoints.load(path.with_name(name), FLAGS)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        torch.testing.assert_close(loaded(X, T), model(X, T)[:, :3], rtol=0, atol=1e-2)


def test_new_attention_order_is_translated(openai):
    path, model = openai

    def reorder(state):  # per head (q, k, v) -> (q of all heads, k of all heads, v of all heads)
        for key in [k for k in state if ".qkv." in k]:
            rows = state[key].split(4)  # a head has four channels
            state[key] = torch.cat([rows[i] for part in range(3) for i in range(part, len(rows), 3)])

    resaved(path, reorder)
    loaded, _ = checkpoints.load(path, replace(FLAGS, attention_order="new"))
    torch.testing.assert_close(loaded(X, T), model(X, T)[:, :3], rtol=0, atol=1e-6)
    with pytest.raises(ModelError, match="attention order: got 'newest'"):
        checkpoints.load(path, replace(FLAGS, attention_order="newest"))


def test_missing_keys_are_named(openai):
    path, _ = openai
    removed = ["middle_block.1.norm.bias", "out.0.weight", "out.0.bias", "time_embed.2.bias"]
    resaved(path, lambda s: [s.pop(k) for k in removed])
    with pytest.raises(ModelError, match=r"4 missing: time_embed\.2\.bias, .* and 1 more"):
        checkpoints.load(path, FLAGS)


def test_extra_and_misshapen_keys_are_named(openai):
    path, _ = openai
    resaved(path, lambda s: s.update({"out.3.bias": torch.zeros(1), "out.0.bias": torch.zeros(9)}))
    message = r"1 extra: out\.3\.bias; 1 of another shape: out\.0\.bias \(got \(9,\), expected \(8,\)\)"
    with pytest.raises(ModelError, match=message):
        checkpoints.load(path, FLAGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"label_emb.weight": torch.zeros(1000, 32)}), "class-conditional"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("output_blocks")], "classifier"),
        (lambda s: s.pop("time_embed.0.weight"), "time_embed.0.weight"),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(8, 6, 3, 3)}), "6 input channels"),
        (lambda s: s.update({"out.2.weight": torch.zeros(4, 8, 3, 3)}), "4 output channels"),
        (lambda s: s.update({"time_embed.0.weight": torch.zeros(32, 5)}), "multiples of the time embedding's 5"),
    ],
)
def test_other_networks_are_refused_with_the_reason(openai, change, message):
    path, _ = openai
    resaved(path, change)
    with pytest.raises(ModelError, match=message):
        checkpoints.load(path, FLAGS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (replace(FLAGS, head_channels=12), "got head_channels=12, expected a divisor"),
        (replace(FLAGS, norm_groups=5), "no UNet can be built"),
        (replace(FLAGS, image_size=18), "expected a multiple of 4"),
    ],
)
def test_flags_that_do_not_fit_are_refused(openai, flags, message):
    with pytest.raises(ModelError, match=message):
        checkpoints.load(openai[0], flags)


def test_wrapped_names_are_not_guessed(openai):
    path, model = openai
    torch.save({f"ema_model.{k}": v for k, v in model.state_dict().items()}, path)
    with pytest.raises(ModelError, match=r"removeprefix\('ema_model\.'\)"):
        checkpoints.load(path, FLAGS)


def test_names_of_data_parallel_are_stripped(openai):
    path, model = openai
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, path)
    loaded, _ = checkpoints.load(path, FLAGS)
    torch.testing.assert_close(loaded(X, T), model(X, T)[:, :3], rtol=0, atol=1e-6)


def test_training_states_are_not_guessed(openai):
    path, model = openai
    torch.save({"model": model.state_dict(), "ema": model.state_dict(), "step": 3}, path)
    with pytest.raises(ModelError, match=r"got a dict of model, ema, step, expected a plain dict.*state\['ema'\]"):
        checkpoints.load(path, FLAGS)


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("save", ["torch", "zipless", "pickle"])
def test_a_pickle_is_not_executed(tmp_path, save):
    victim, path = tmp_path / "touched", tmp_path / "evil.pt"
    content = {"input_blocks.0.0.weight": Evil(victim)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(ModelError, match="Python objects besides tensors"):
        checkpoints.load(path, FLAGS)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Evil(victim)))  # unpickling does create the file
    assert victim.exists()


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<html>404</html>", b"\x08\x0a\x12\x07pytorch"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: not a "):
        checkpoints.load(tmp_path / name)


def test_a_truncated_file_is_refused(openai):
    path, _ = openai
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="cut short"):
        checkpoints.load(path, FLAGS)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        checkpoints.load(tmp_path / "nothing.pt")
    with pytest.raises(ModelError, match=r"neither diffusion_pytorch_model\.safetensors"):
        checkpoints.load(tmp_path)


def test_random_adm_is_deterministic():
    state = torch.get_rng_state()
    a, b = (checkpoints.random_adm(channels=32).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(a) == 566
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert a["out.2.weight"].shape == (3, 32, 3, 3)


# ------------------------------------------------------------------------------------------- our own


def test_own_checkpoint(tmp_path):
    config = UNetConfig(image_size=16, model_channels=8, channel_mult=(1, 2), norm_groups=4, prediction="v")
    model = seeded(config)
    file = tmp_path / "ema.safetensors"
    save_file(model.state_dict(), file, {"config": json.dumps(config.to_dict()), "samples": "10"})
    loaded, _ = checkpoints.load(file)
    assert loaded.config == config
    assert torch.equal(loaded(X, T), model(X, T))
    save_file(model.state_dict(), file, {"config": '{"image_size": 3}'})
    with pytest.raises(ModelError, match="its UNetConfig cannot be read"):
        checkpoints.load(file)

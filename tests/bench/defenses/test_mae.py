"""Masked autoencoders, ours and a user's, restore without looking at what is hidden."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from bench.defenses import mae, vit_mae  # noqa: E402
from bench.defenses.bdmae import BDMAE  # noqa: E402
from zipsdk.errors import EngineError, InputError, MissingDependencyError, ModelError  # noqa: E402

pytestmark = pytest.mark.torch

TINY = mae.Recipe(epochs=3, batch=16, lr=0.01, widths=(8, 8, 8), depth=1, bf16=False, seed=1)
TINY_VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32,
}  # fmt: skip


# ours


@pytest.fixture
def many(rng) -> np.ndarray:
    """48 images of one color each, with a little noise."""
    colors = rng.integers(20, 236, (48, 1, 1, 3))
    return (colors + rng.integers(-5, 6, (48, 32, 32, 3))).astype(np.uint8)


def weights(folder) -> dict[str, torch.Tensor]:
    (path,) = (folder / "autoencoders").glob("*.pt")
    return torch.load(path, weights_only=True)


def test_a_stopped_training_ends_as_one_that_was_not(tmp_path, many):
    errors: dict[int, float] = {}
    whole = mae.train(many, TINY, cache=tmp_path / "a", progress=errors.__setitem__)
    assert sorted(errors) == [1, 2, 3] and errors[3] < errors[1]

    def stop(epoch, error):
        assert error == errors[epoch]
        raise KeyboardInterrupt

    for epochs in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            mae.train(many, TINY, cache=tmp_path / "b", progress=stop)
        assert weights(tmp_path / "b")["epochs"] == epochs and "optimizer" in weights(tmp_path / "b")
    torch.rand(3)  # the world's chance is not the training's
    resumed = mae.train(many, TINY, cache=tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert a["key"] == b["key"] and "optimizer" not in b
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    x, hidden = torch.rand(2, 3, 32, 32), torch.rand(2, 256) < 0.75
    assert torch.equal(whole(x, hidden), resumed(x, hidden))
    assert whole.describe() == resumed.describe() and json.dumps(whole.describe())
    assert (whole.side, whole.grid) == (32, 16)


def test_a_finished_training_is_not_done_again_nor_taken_for_another(tmp_path, many):
    def never(epoch, error):
        raise AssertionError("trained again")

    first = mae.train(many, TINY, cache=tmp_path)
    mae.train(many, TINY, cache=tmp_path, progress=never)
    for images, how in ((many, replace(TINY, seed=2)), (many[::-1], TINY)):
        other = mae.train(images, how, cache=tmp_path)
        assert other.describe()["key"] != first.describe()["key"]
    path = tmp_path / "autoencoders" / f"{first.describe()['key']}.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="delete it"):
        mae.train(many, TINY, cache=tmp_path)


@pytest.mark.parametrize("mirror", [True, False])
def test_signs_are_not_mirrored(mirror):
    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.level, self.left = torch.nn.Parameter(torch.zeros(1)), []

        def forward(self, x, hidden):
            self.left += (x[:, 0, 0, 0] > 0.5).tolist()
            return torch.zeros_like(x) + self.level

    images = np.zeros((64, 32, 32, 3), np.uint8)
    images[:, :, :16] = 255
    model, how = Watched(), replace(TINY, mirror=mirror)
    mae._epoch(model, torch.optim.SGD(model.parameters(), 0.1), images, how, 0)
    assert len(model.left) == 64 and all(model.left) is not mirror and any(model.left)
    named = mae.config_dict(images, how)["recipe"]
    assert named.get("mirror", True) is mirror and ("mirror" in named) is not mirror


@pytest.mark.parametrize("bf16", [False, True])
def test_ours_learns_to_restore(tmp_path, many, bf16):
    """Images of one color each: what is hidden is what is beside it."""
    restorer = mae.train(many, replace(TINY, epochs=10, bf16=bf16), cache=tmp_path)
    x = torch.from_numpy(many).permute(0, 3, 1, 2).float() / 255
    hidden = torch.rand(48, 256, generator=torch.Generator().manual_seed(1)) < 0.75
    gone = F.interpolate(hidden.view(-1, 1, 16, 16).float(), (32, 32)).expand_as(x) > 0
    error = (restorer(x, hidden) - x)[gone].square().mean().sqrt()
    # without training as far off as the mean color is; with it, 0.5 to 0.6 of that, whatever the seed
    assert error < 0.8 * (x - x.mean((0, 2, 3), keepdim=True))[gone].square().mean().sqrt()


@pytest.mark.parametrize("shape", [(4, 30, 30, 3), (4, 32, 48, 3), (4, 32, 32), (0, 32, 32, 3)])
def test_images_that_ours_cannot_take(tmp_path, shape):
    with pytest.raises(InputError, match=r"BDMAE's .* multiple of 16; give such a --side, or .* --mae FOLDER"):
        mae.train(np.zeros(shape, np.uint8), TINY, cache=tmp_path)
    with pytest.raises(InputError, match="uint8"):
        mae.train(np.zeros((4, 32, 32, 3), np.float32), TINY, cache=tmp_path)


def test_a_gpu_that_torch_does_not_find_is_told(tmp_path, many, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="got 'cuda', and this torch finds no GPU"):
        mae.train(many, TINY, cache=tmp_path, device="cuda")
    with pytest.raises(EngineError, match="got 'cuda', and this torch finds no GPU"):
        vit_mae._ViTMAE(None, {}, "cuda")


# ViT-MAE


@pytest.fixture
def vit() -> mae.Restorer:
    pytest.importorskip("transformers", reason="ViT-MAE needs transformers")
    return vit_mae.random_vit_mae(**TINY_VIT)


def restorers(tmp_path, many):
    """Ours, and ViT-MAE where it can be had."""
    yield mae.train(many, TINY, cache=tmp_path)
    if importlib.util.find_spec("transformers"):
        yield vit_mae.random_vit_mae(**TINY_VIT)


def test_nobody_sees_what_is_hidden(tmp_path, many, rng):
    for restorer in restorers(tmp_path, many):
        tokens = restorer.grid**2
        x = torch.from_numpy(rng.random((4, 3, 32, 32), np.float32))
        hidden = torch.from_numpy(rng.random((4, tokens)) < np.array([[0.1], [0.5], [0.75], [0.75]]))
        gone = F.interpolate(hidden.view(-1, 1, restorer.grid, restorer.grid).float(), (32, 32)) > 0
        y = restorer(x, hidden)
        assert y.shape == x.shape and y.dtype == torch.float32
        torch.testing.assert_close(restorer(torch.where(gone, 0.9, x), hidden), y)
        assert not torch.allclose(restorer(torch.where(gone, x, 0.9), hidden), y)
        # however many the others hide
        alone = torch.cat([restorer(x[i : i + 1], hidden[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(alone, y)
        for share in (torch.zeros_like(hidden), torch.ones_like(hidden)):
            assert torch.isfinite(restorer(x, share)).all()


def test_vit_mae_hides_what_it_is_told_to(vit):
    """Held against the library's own account of what it hid."""
    hidden = torch.rand(3, 64, generator=torch.Generator().manual_seed(2)) < 0.6
    seen = []
    vit.model.register_forward_hook(lambda _, __, out: seen.append(out.mask.bool()))
    vit(torch.rand(3, 3, 32, 32), hidden)
    assert {tuple(row.tolist()) for mask in seen for row in mask} == {tuple(row.tolist()) for row in hidden}


def by_brightness(images: np.ndarray) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[(images.mean((1, 2, 3)) > 127).astype(int)]


def test_a_users_vit_mae(tmp_path, vit, many):
    vit.model.save_pretrained(tmp_path)
    loaded = vit_mae.vit_mae(tmp_path)
    x, hidden = torch.rand(2, 3, 32, 32), torch.rand(2, 64) < 0.75
    assert torch.equal(loaded(x, hidden), vit(x, hidden))
    described = loaded.describe()
    assert json.dumps(described) and len(described["sha256"]) == 64 and described["config"] == vit.describe()["config"]
    out = BDMAE(loaded, masks=2, rounds=1, refinements=1).run(many[:6], 1, classify=by_brightness)
    assert out.shape == many[:6].shape


def test_a_vit_mae_that_cannot_be_used(tmp_path, vit):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    with pytest.raises(ModelError, match=r"config\.json"):
        vit_mae.vit_mae(tmp_path / "nowhere")
    vit.model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = safetensors.load_file(weights)

    lacking = {k: v for k, v in state.items() if "decoder_pred" not in k}
    assert len(lacking) < len(state)
    safetensors.save_file(lacking, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="decoder_pred"):
        vit_mae.vit_mae(tmp_path)

    weights.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        vit_mae.vit_mae(tmp_path)

    weights.rename(tmp_path / "pytorch_model.bin")  # which would be unpickled
    with pytest.raises(ModelError, match="safetensors"):
        vit_mae.vit_mae(tmp_path)

    safetensors.save_file(state, weights, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "norm_pix_loss": True}))
    with pytest.raises(ModelError, match="norm_pix_loss"):
        vit_mae.vit_mae(tmp_path)


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="transformers"):
        vit_mae.vit_mae(tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install"):
        vit_mae.random_vit_mae()

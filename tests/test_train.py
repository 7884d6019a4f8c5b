"""Training: it learns, it stops and goes on, and what it leaves can be exported and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")

from export import checkpoint, train  # noqa: E402
from export.data import Pictures  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """Ten tiles and four photos of smooth colours."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(32, 32)] * 10 + [(90, 120)] * 4):
        y, x = np.mgrid[0 : size[0], 0 : size[1]] / 60
        a, b, c = rng.uniform(-3, 3, (3, 3))
        picture = np.uint8(127.5 + 100 * np.stack([np.sin(a[k] * x + b[k] * y + c[k]) for k in range(3)], -1))
        (tmp_path / "pictures" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png")
    return tmp_path


def run(folder, samples, *more):
    args = train.parser().parse_args(
        ["-o", str(folder / "run"), "--train", str(folder / "pictures"), "--held-out", str(folder / "pictures"),
         "--samples", str(samples), "--batch", "16", "--channels", "8", "--mult", "1", "2", "--res-blocks", "1",
         "--save-every", "400", "--device", "cpu", *more]
    )  # fmt: skip
    config = UNetConfig(image_size=64, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8,
                        prediction="v")  # fmt: skip
    train.train(config, args)


def test_training_learns_and_goes_on_where_it_stopped(folder):
    run(folder, 800)
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["samples"] >= n for r, n in zip(log, (400, 800), strict=False)] == [True, True]
    first = torch.load(folder / "run" / "latest.pt", weights_only=True)
    run(folder, 1600)
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    last = torch.load(folder / "run" / "latest.pt", weights_only=True)
    assert last["samples"] >= 1600 and last["step"] > first["step"]
    assert log[-1]["samples"] == last["samples"]
    t200 = train.VISITED.index(200)
    before, after = (r["held_out:pictures"][t200] for r in (log[0], log[-1]))
    assert after < before < 1.5  # mean squared error of eps; 1 is what "no noise" scores
    model, sha256 = checkpoint.load(folder / "run" / "ema.safetensors", checkpoint.Flags())
    assert model.config.prediction == "v" and len(sha256) == 64
    assert not list((folder / "run").glob("*.part"))


def test_a_run_can_begin_from_weights(folder):
    run(folder, 100)
    weights = folder / "given.safetensors"
    (folder / "run" / "ema.safetensors").rename(weights)
    before, _ = checkpoint.load(weights, checkpoint.Flags())
    for f in (folder / "run").iterdir():
        f.unlink()
    run(folder, 0, "--init", str(weights))
    after, _ = checkpoint.load(folder / "run" / "ema.safetensors", checkpoint.Flags())
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for f in (folder / "run").iterdir():
        f.unlink()
    with pytest.raises(SystemExit, match="another shape"):
        run(folder, 0, "--init", str(Path(__file__).parent.parent / "export" / "zip-tiny.safetensors"))


def test_a_run_of_another_shape_is_not_overwritten(folder):
    run(folder, 100)
    other = UNetConfig(image_size=64, model_channels=16, channel_mult=(1, 2), norm_groups=8, prediction="v")
    args = train.parser().parse_args(["-o", str(folder / "run"), "--train", str(folder / "pictures")])
    with pytest.raises(SystemExit, match="another shape"):
        train.train(other, args)


def test_the_held_out_loss_leaves_the_random_numbers_of_training_alone(monkeypatch):
    """On the CPU and on a GPU, of which the calls that would seed it are all that is seen here."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = UNet(UNetConfig(image_size=64, model_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=8))
    pictures = [torch.zeros(1, 3, 8, 8)]
    before = torch.get_rng_state()
    losses = train.held_out_loss(model, pictures)
    assert torch.equal(torch.get_rng_state(), before) and not seeded
    torch.rand(1)
    assert train.held_out_loss(model, pictures) == losses


def test_held_out_photos_have_no_border_of_black(tmp_path):
    for width, height in ((64, 64), (90, 120), (127, 64), (128, 200), (301, 150)):
        y, x = np.mgrid[0:height, 0:width]
        picture = np.uint8(np.stack([100 + x % 100, 100 + y % 100, 255 - (x + y) % 100], -1))
        Image.fromarray(picture).save(tmp_path / f"{width}x{height}.png")
    data = Pictures([str(tmp_path)])
    (got,) = data.held_out(5)
    assert got.shape == (5, 3, 64, 64) and float(got.min()) > -0.5
    for photo, x in zip(data.photos, got, strict=True):
        if min(photo.size) >= 128:  # shrunk by half
            half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)
            left, top = (half.width - 64) // 2, (half.height - 64) // 2
            wanted = np.asarray(half.crop((left, top, left + 64, top + 64)))
            assert torch.equal(x, torch.from_numpy(wanted.copy()).permute(2, 0, 1).float() / 127.5 - 1)


def test_batches_are_what_they_say(folder):
    pictures = Pictures([str(folder / "pictures")])
    assert (len(pictures.tiles), len(pictures.photos)) == (10, 4)
    shapes = set()
    for _ in range(40):
        x = pictures.batch(16)
        assert x.dtype == torch.float32 and float(x.abs().max()) <= 1
        shapes.add(tuple(x.shape))
    assert shapes == {(16, 3, 32, 32), (4, 3, 64, 64)}
    fixed = pictures.held_out(4)
    assert all(torch.equal(a, b) for a, b in zip(fixed, pictures.held_out(4), strict=True))
    with pytest.raises(SystemExit, match="neither a folder nor a zip"):
        Pictures([str(folder / "pictures" / "class0" / "0.png")])


def test_v_loss_equals_weighted_epsilon_loss():
    """(SNR + 1) times the v weight on x0 is what min-SNR gives epsilon: one loss, two parameterisations."""

    class Perfect(UNet):
        """Answers with a fixed error on x0."""

        def network(self, x, t):
            ab = self.alphas_cumprod[t][:, None, None, None]
            x0 = self.x0 + 0.1
            eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
            return ab.sqrt() * eps - (1 - ab).sqrt() * x0 if self.config.prediction == "v" else eps

    losses = {}
    for prediction in ("v", "epsilon"):
        model = Perfect(UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), norm_groups=8,
                                   prediction=prediction))  # fmt: skip
        model.x0 = torch.linspace(-1, 1, 64 * 3 * 64).reshape(64, 3, 8, 8)
        torch.manual_seed(1)
        losses[prediction] = float(train.loss_fn(model, model.x0, gamma=5.0))
    # the error on x0 is 0.1 everywhere, so the loss is 0.01 mean(min(SNR, 5)) either way
    assert losses["v"] == pytest.approx(losses["epsilon"], rel=1e-3)
    assert 0 < losses["v"] <= 0.05


def test_learning_rate_schedule():
    rate = [train.learning_rate(d, 1.0) for d in (0.0, 0.01, 0.02, 0.5, 0.6, 0.8, 1.0)]
    assert rate[0] < 0.1 and rate[1] < rate[2] == rate[3] == rate[4] == 1.0
    assert rate[5] == pytest.approx(0.5) and rate[6] == pytest.approx(0, abs=1e-9)

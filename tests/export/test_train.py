"""Test training: it learns, it resumes, and its weights can be exported."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch: pip install 'zipsdk[export]'")

from export import checkpoints, losses, train  # noqa: E402
from export.training_data import TrainingImages  # noqa: E402
from export.unet import UNet, UNetConfig  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from zipsdk.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def folder(tmp_path):
    """Write ten tiles and four photos of smooth colors."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(32, 32)] * 10 + [(90, 120)] * 4):
        y, x = np.mgrid[0 : size[0], 0 : size[1]] / 60
        a, b, c = rng.uniform(-3, 3, (3, 3))
        image = np.uint8(127.5 + 100 * np.stack([np.sin(a[k] * x + b[k] * y + c[k]) for k in range(3)], -1))
        (tmp_path / "images" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"class{i % 2}" / f"{i}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def few_levels(monkeypatch):
    """Compute the held-out loss at two noise levels, which saves time."""
    monkeypatch.setattr(train, "VISITED", [200, 600])


def run(folder, samples, *more):
    args = train.parser().parse_args(
        ["-o", str(folder / "run"), "--train", str(folder / "images"), "--held-out", str(folder / "images"),
         "--samples", str(samples), "--batch", "16", "--channels", "8", "--mult", "1", "--res-blocks", "1",
         "--save-every", "160", "--device", "cpu", "--seed", "0", *more]
    )  # fmt: skip
    config = UNetConfig(image_size=64, model_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=8,
                        prediction="v")  # fmt: skip
    train.train(config, args)


def read_log(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


def test_training_learns_and_resumes(folder):
    run(folder, 0)
    run(folder, 320, "--lr", "0.003")
    assert [r["samples"] for r in read_log(folder)] == [0, 160, 320, 320]
    first = latest(folder)
    run(folder, 640, "--lr", "0.003")
    log, last = read_log(folder), latest(folder)
    assert (first["samples"], first["step"], last["samples"], last["step"]) == (320, 20, 640, 40)
    assert [r["samples"] for r in log[4:]] == [480, 640, 640]
    # mean squared error of eps: random weights have about 1 or more; an eps of zero has 1
    before, after = (r["held_out:images"][0] for r in (log[0], log[-1]))
    assert after < 0.6 * before
    model, sha256 = checkpoints.load(folder / "run" / "ema.safetensors", checkpoints.Flags())
    assert model.config.prediction == "v" and len(sha256) == 64
    assert not list((folder / "run").glob("*.part"))


def test_a_run_can_start_from_weights(folder):
    run(folder, 16)
    weights = folder / "given.safetensors"
    (folder / "run" / "ema.safetensors").rename(weights)
    before, _ = checkpoints.load(weights, checkpoints.Flags())
    for f in (folder / "run").iterdir():
        f.unlink()
    run(folder, 0, "--init", str(weights))
    after, _ = checkpoints.load(folder / "run" / "ema.safetensors", checkpoints.Flags())
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for f in (folder / "run").iterdir():
        f.unlink()
    with pytest.raises(SystemExit, match="another shape"):
        run(folder, 0, "--init", str(ROOT / "export" / "zip-tiny.safetensors"))


def test_a_run_of_another_shape_is_not_overwritten(folder):
    run(folder, 16)
    other = UNetConfig(image_size=64, model_channels=16, channel_mult=(1,), norm_groups=8, prediction="v")
    args = train.parser().parse_args(["-o", str(folder / "run"), "--train", str(folder / "images")])
    with pytest.raises(SystemExit, match="another shape"):
        train.train(other, args)


def test_the_held_out_loss_keeps_the_random_state(monkeypatch):
    """Check the state on the CPU, and that no call seeds a GPU."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = UNet(UNetConfig(image_size=64, model_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=8))
    batches = [torch.zeros(1, 3, 8, 8)]
    before = torch.get_rng_state()
    first = train.held_out_loss(model, batches)
    assert torch.equal(torch.get_rng_state(), before) and not seeded
    torch.rand(1)
    assert train.held_out_loss(model, batches) == first


def test_held_out_photos_have_no_black_border(tmp_path):
    for width, height in ((64, 64), (90, 120), (127, 64), (128, 200), (301, 150)):
        y, x = np.mgrid[0:height, 0:width]
        image = np.uint8(np.stack([100 + x % 100, 100 + y % 100, 255 - (x + y) % 100], -1))
        Image.fromarray(image).save(tmp_path / f"{width}x{height}.png")
    data = TrainingImages([str(tmp_path)])
    (got,) = data.held_out(5)
    assert got.shape == (5, 3, 64, 64) and float(got.min()) > -0.5
    for photo, x in zip(data.photos, got, strict=True):
        if min(photo.size) >= 128:  # shrunk by half
            half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)
            left, top = (half.width - 64) // 2, (half.height - 64) // 2
            expected = np.asarray(half.crop((left, top, left + 64, top + 64)))
            assert torch.equal(x, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 127.5 - 1)


def test_images_are_read_as_by_the_sdk(tmp_path):
    """Check that 16 bits are scaled, not clipped, and that EXIF orientation is applied."""
    y, x = np.mgrid[0:32, 0:32]
    Image.fromarray(np.uint16(257 * (4 * y + x))).save(tmp_path / "tile.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    y2, x2 = np.mgrid[0:80, 0:100]
    photo = np.uint8(np.stack([2 * x2, 3 * y2, x2 + y2], -1))
    Image.fromarray(np.rot90(photo)).save(tmp_path / "photo.png", exif=turned)
    data = TrainingImages([str(tmp_path)])
    assert (data.tiles == (4 * y + x)[None, ..., None]).all()
    assert np.array_equal(np.asarray(data.photos[0]), photo)


def test_batches(folder):
    images = TrainingImages([str(folder / "images")])
    assert (len(images.tiles), len(images.photos)) == (10, 4)
    shapes = set()
    for _ in range(40):
        x = images.batch(16)
        assert x.dtype == torch.float32 and float(x.abs().max()) <= 1
        shapes.add(tuple(x.shape))
    assert shapes == {(16, 3, 32, 32), (4, 3, 64, 64)}
    fixed = images.held_out(4)
    assert all(torch.equal(a, b) for a, b in zip(fixed, images.held_out(4), strict=True))
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        TrainingImages([str(folder / "images" / "class0" / "0.png")])


def test_v_loss_equals_weighted_epsilon_loss():
    """Check that the v loss and the epsilon loss are one loss in two parameterizations."""

    class Perfect(UNet):
        """Return a prediction with a fixed error on x0."""

        def network(self, x, t):
            ab = self.alphas_cumprod[t][:, None, None, None]
            x0 = self.x0 + 0.1
            eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
            return ab.sqrt() * eps - (1 - ab).sqrt() * x0 if self.config.prediction == "v" else eps

    got = {}
    for prediction in ("v", "epsilon"):
        model = Perfect(UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), norm_groups=8,
                                   prediction=prediction))  # fmt: skip
        model.x0 = torch.linspace(-1, 1, 64 * 3 * 64).reshape(64, 3, 8, 8)
        torch.manual_seed(1)
        got[prediction] = float(losses.loss_fn(model, model.x0, gamma=5.0))
    # the error on x0 is 0.1 everywhere, so the loss is 0.01 mean(min(SNR, 5)) either way
    assert got["v"] == pytest.approx(got["epsilon"], rel=1e-3)
    assert 0 < got["v"] <= 0.05


def test_learning_rate_schedule():
    rate = [train.learning_rate(d, 1.0) for d in (0.0, 0.01, 0.02, 0.5, 0.6, 0.8, 1.0)]
    assert rate[0] < 0.1 and rate[1] < rate[2] == rate[3] == rate[4] == 1.0
    assert rate[5] == pytest.approx(0.5) and rate[6] == pytest.approx(0, abs=1e-9)


def test_a_short_run_has_a_longer_warm_up():
    """Check the warm-up: at least ten steps, or 2% of a run like the bundled model's."""
    assert [train.warm_up_share(n, 64) for n in (1_000_000, 32_000)] == [0.02, 0.02]
    assert train.warm_up_share(6_400, 64) == pytest.approx(0.1)
    assert train.warm_up_share(64, 64) == train.warm_up_share(0, 64) == 0.2
    assert [train.learning_rate(d, 1.0, 0.1) for d in (0.05, 0.1, 0.5)] == pytest.approx([0.505, 1, 1], abs=1e-3)
    assert train.learning_rate(0.01, 1.0) == train.learning_rate(0.01, 1.0, 0.02) == 0.011 / 0.021


def test_a_seed_determines_the_run_and_a_resumed_run_draws_other_images(folder):
    def drawn(seed, samples):
        train.seed_everything(seed, samples)
        return TrainingImages([str(folder / "images")]).batch(16)

    assert torch.equal(drawn(3, 0), drawn(3, 0))
    for other in ((4, 0), (3, 160)):
        assert drawn(3, 0).shape != drawn(*other).shape or not torch.equal(drawn(3, 0), drawn(*other))
    train.seed_everything(None, 0)
    state = torch.get_rng_state()
    train.seed_everything(None, 0)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_zero_loss_is_the_loss_of_a_network_that_returns_zero(prediction):
    class Zero(UNet):
        def network(self, x, t):
            return torch.zeros_like(x)

    model = Zero(UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), norm_groups=8, prediction=prediction))
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(20_000, 3, 2, 2)
    zero = losses.zero_loss(model, 20.0, float(x0.square().mean()))
    assert zero == pytest.approx(float(losses.loss_fn(model, x0, 20.0)), rel=0.02)


@pytest.mark.parametrize(
    ("values", "fresh", "warned"),
    [([1.0] * 19, True, False), ([0.4] * 10 + [0.2] * 30, True, False), ([0.2] * 10 + [0.3] * 30, True, True),
     ([0.2] * 10 + [0.3] * 30, False, False), ([0.9] * 10 + [0.6] * 30, False, True)],
)  # fmt: skip
def test_a_run_that_did_not_converge_warns(values, fresh, warned):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        losses.check_losses(values, 0.5, fresh, 0.003)
    assert len(seen) == warned
    if warned:
        assert re.search(
            r"did not converge: got loss \S+ -> \S+, .* lower the .* \(--lr 0\.003\)", str(seen[0].message)
        )


def test_a_run_with_a_rate_of_zero_warns(folder, cheap):
    with pytest.warns(UserWarning, match="training did not converge"):
        run(folder, 320, "--lr", "0")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_diverged_run_keeps_its_checkpoint(folder, monkeypatch, where):
    def loss(model, x0, gamma):
        weight = next(model.parameters())
        if where == "loss":
            return torch.inf * weight.square().sum()
        return torch.sqrt(0 * weight).sum() + 1.0

    run(folder, 0)
    before = (folder / "run" / "latest.pt").read_bytes()
    monkeypatch.setattr(train, "loss_fn", loss)
    with pytest.raises(SystemExit, match=r"at step 0, expected finite ones; lower --lr 0\.001"):
        run(folder, 16)
    assert (folder / "run" / "latest.pt").read_bytes() == before


def latest(folder):
    return torch.load(folder / "run" / "latest.pt", weights_only=True)


@pytest.fixture
def cheap(monkeypatch):
    """Replace the losses by cheap ones; everything else of a run stays."""
    monkeypatch.setattr(train, "held_out_loss", lambda model, batches: [1.0] * len(train.VISITED))
    monkeypatch.setattr(train, "loss_fn", lambda model, x0, gamma: sum(p.square().sum() for p in model.parameters()))


def test_a_finished_run_takes_no_step_and_keeps_its_state(folder, cheap):
    run(folder, 5, "--batch", "4")
    first, log = latest(folder), (folder / "run" / "log.jsonl").read_text().splitlines()
    assert first["step"] > 0 and first["optimizer"]["state"]
    run(folder, first["samples"], "--batch", "4")
    second = latest(folder)
    assert (second["step"], second["samples"]) == (first["step"], first["samples"])
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][k], second[part][k]) for k in first[part]), part
    assert not all(torch.equal(first["model"][k], first["ema"][k]) for k in first["model"])
    before, after = (s["optimizer"]["state"] for s in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in ("step", "exp_avg", "exp_avg_sq"))
    assert (folder / "run" / "log.jsonl").read_text().splitlines()[: len(log)] == log
    # a longer run goes on counting, Adam's own steps too
    run(folder, first["samples"] + 1, "--batch", "4")
    third = latest(folder)
    assert third["step"] == first["step"] + 1 and third["samples"] > first["samples"]
    assert {float(s["step"]) for s in third["optimizer"]["state"].values()} == {first["step"] + 1}


@pytest.mark.parametrize(("decay", "share"), [(0.999, 9 / 11), (0.1, 0.9)])
def test_the_average_after_one_step(folder, cheap, decay, share):
    """Check the share of the new weights: 1 - min(decay, (1 + step) / (10 + step))."""
    run(folder, 0)
    weights = folder / "given.safetensors"
    (folder / "run" / "ema.safetensors").rename(weights)
    (folder / "run" / "latest.pt").unlink()
    before = checkpoints.load(weights, checkpoints.Flags())[0].state_dict()
    run(folder, 1, "--init", str(weights), "--ema", str(decay), "--lr", "1", "--batch", "4")
    after = latest(folder)
    assert after["step"] == 1
    moved = 0.0
    for key, old in before.items():
        new, average = after["model"][key], after["ema"][key]
        torch.testing.assert_close(average, old + share * (new - old), rtol=0, atol=1e-6)
        moved = max(moved, float((new - old).abs().max()))
    # Adam's first step is the learning rate, here at the start of the warm-up, plus weight decay
    rate = train.learning_rate(0, 1.0, train.warm_up_share(1, 4))
    assert moved == pytest.approx(rate, rel=0.03)


def test_min_snr_is_passed_to_the_loss(folder, cheap, monkeypatch):
    seen = []

    def loss(model, x0, gamma):
        seen.append((gamma, x0.shape[0] * x0.shape[2] * x0.shape[3] // 1024))
        return 0.0 * sum(p.sum() for p in model.parameters())

    monkeypatch.setattr(train, "loss_fn", loss)
    run(folder, 1, "--min-snr", "7")
    (folder / "run" / "latest.pt").unlink()
    run(folder, 1)
    assert seen == [(7.0, 16), (20.0, 16)]


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_min_snr_weights(prediction):
    """Check the mean weight, min(SNR, gamma) / (SNR + 1) or / SNR, by an error of one everywhere."""
    x0 = torch.linspace(-1, 1, 64 * 3 * 64).reshape(64, 3, 8, 8)
    drawn = []

    class OffByOne(UNet):
        def network(self, x, t):
            drawn.append(t)
            ab = self.alphas_cumprod[t][:, None, None, None]
            eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
            return 1 + (ab.sqrt() * eps - (1 - ab).sqrt() * x0 if prediction == "v" else eps)

    model = OffByOne(
        UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), norm_groups=8, prediction=prediction)
    )
    betas = np.linspace(1e-4, 0.02, 1000)
    ab = np.cumprod(1 - betas)
    for gamma in (5.0, 20.0):
        torch.manual_seed(3)
        loss = float(losses.loss_fn(model, x0, gamma))
        snr = (ab / (1 - ab))[drawn[-1].numpy()]
        assert (snr > gamma).sum() > 5 and (snr < gamma).sum() > 5
        expected = np.minimum(snr, gamma) / (snr + 1 if prediction == "v" else snr)
        assert loss == pytest.approx(expected.mean(), rel=2e-3)


def test_half_of_the_steps_are_uniform_and_half_fall_as_one_over_the_square_root():
    torch.manual_seed(0)
    t = losses.draw_steps(40_000, 1000, torch.device("cpu"))
    assert t.dtype == torch.int64 and int(t.min()) == 0 and int(t.max()) == 999
    for s in (0.01, 0.05, 0.25, 0.5, 0.75, 0.9):
        # the integrals of 1 and of 1 / (2 sqrt(s)), half of each
        assert float((t < 1000 * s).float().mean()) == pytest.approx(0.5 * s + 0.5 * s**0.5, abs=0.01)
    # stratified: the i-th of n lies in the i-th of n equal parts, or in that part's square
    parts = torch.arange(16)
    for _ in range(50):
        t = losses.draw_steps(16, 1000, torch.device("cpu")) / 1000
        low, high = parts / 16, (parts + 1) / 16
        assert bool((((t >= low - 1e-3) & (t <= high)) | ((t >= low**2 - 1e-3) & (t <= high**2))).all())

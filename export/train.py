"""Train a UNet of `export.unet` from pictures: how zip-tiny was made.

    python -m export.train -o runs/zip-tiny --samples 1000000 \
        --train cifar10-train.zip imagenette-train.zip photos.zip --held-out cifar10-test.zip imagenette-val.zip

A sample is one 32x32 picture's worth of pixels. Stop it at any time: it goes on from ``latest.pt`` when called again.
``--init export/zip-tiny.safetensors`` begins from the weights of the bundled model in place of random ones.
It leaves in the output folder ``latest.pt`` (everything needed to resume), ``ema.safetensors`` (the averaged weights,
for ``python -m export``) and ``log.jsonl`` (training loss, and the held-out loss by noise level).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch as safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from export import checkpoints
from export.training_data import LoadedImages
from export.unet import ZIP_TINY, UNet, UNetConfig
from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ZipSdkError

#: The steps that the 20-step loop visits: where the held-out loss is read.
VISITED = list(range(0, 1000, 50))
#: Optimizer steps over which the rate rises, where 2% of the run are fewer; and the largest share of a run for it.
WARM_UP_STEPS, LONGEST_WARM_UP = 10, 0.2
#: A run of fewer optimizer steps is not judged by its losses: they differ by the noise levels drawn.
FEWEST_JUDGED = 20


def add_noise(x0: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x0 (N,3,H,W) and t (N,) -> x_t = sqrt(ab) x0 + sqrt(1-ab) eps, its eps, and ab as (N,1,1,1)."""
    ab = alphas_cumprod[t][:, None, None, None]
    eps = torch.randn_like(x0)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps, eps, ab


def draw_steps(n: int, timesteps: int, device: torch.device) -> Tensor:
    """Half uniform, half with density falling as 1/sqrt(t): the low noise levels decide what a restored picture looks
    like, because above t = 400 the guide fixes nearly all of it. Stratified, so that every batch spans the range."""
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    u = torch.where(torch.rand(n, device=device) < 0.5, u, u * u)
    return (u * timesteps).long().clamp(0, timesteps - 1)


def loss_fn(model: UNet, x0: Tensor, gamma: float) -> Tensor:
    """The v-prediction loss with min-SNR weights (Hang et al. 2023, arXiv 2303.09556): min(SNR, gamma) / (SNR + 1).

    A model that predicts epsilon is trained by the same loss, expressed in its own target: min(SNR, gamma)/SNR.
    """
    t = draw_steps(len(x0), model.config.timesteps, x0.device)
    x_t, eps, ab = add_noise(x0, t, model.alphas_cumprod)
    with torch.autocast(x0.device.type, torch.bfloat16):
        out = model.network(x_t, t)
    v = model.config.prediction == "v"
    target = ab.sqrt() * eps - (1 - ab).sqrt() * x0 if v else eps
    return (min_snr_weight(ab, gamma, v) * (out.float() - target).square()).mean()


def min_snr_weight(ab: Tensor, gamma: float, v: bool) -> Tensor:
    """Compute the weight of each alpha-bar in the loss of a model that predicts v, or epsilon."""
    snr = ab / (1 - ab)
    return snr.clamp(max=gamma) / (snr + 1 if v else snr)


def guess_loss(model: UNet, gamma: float, power: float) -> float:
    """Compute the expected `loss_fn` of a network that always answers zero, for images of this mean square."""
    ab = model.alphas_cumprod.double().cpu()
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = ab[(torch.cat([u, u * u]) * len(ab)).long()]  # the density of `draw_steps`
    v = model.config.prediction == "v"
    target = drawn + (1 - drawn) * power if v else torch.ones_like(drawn)
    return float((min_snr_weight(drawn, gamma, v) * target).mean())


def mean_square(pictures: LoadedImages) -> float:
    """Compute the mean square of some images' values, which are in [-1, 1]."""
    batches = pictures.held_out(64)
    return sum(float(x.square().sum()) for x in batches) / sum(x.numel() for x in batches)


def check_losses(values: list[float], guess: float, fresh: bool, lr: float) -> None:
    """Warn where a run ended no better than `guess`, or, if it began from random weights, than it began."""
    if len(values) < FEWEST_JUDGED:
        return
    part = max(FEWEST_JUDGED // 4, len(values) // 10)
    first, last = (sum(v) / len(v) for v in (values[:part], values[-part:]))
    if last < guess and (last < first or not fresh):
        return
    warnings.warn(
        f"training did not converge: loss {first:.3g} -> {last:.3g}, expected it to fall, and below {guess:.3g}, which "
        f"an answer of zero has; lower the learning rate (--lr {lr:.3g}) or train longer (--samples)",
        UserWarning,
        stacklevel=3,
    )


@torch.no_grad()
def held_out_loss(model: UNet, pictures: list[Tensor]) -> list[float]:
    """Mean squared error of epsilon at each of `VISITED`, over the same pictures and the same noise every time."""
    model.eval()
    device = model.alphas_cumprod.device
    generator_state = torch.get_rng_state()
    # the noise is drawn on the CPU; torch.manual_seed would seed the GPUs too, and nobody would give their state back
    torch.default_generator.manual_seed(0)
    losses = []
    for t in VISITED:
        total = count = 0.0
        for x0 in pictures:
            steps = torch.full((len(x0),), t)
            x_t, eps, _ = add_noise(x0, steps, model.alphas_cumprod.cpu())
            with torch.autocast(device.type, torch.bfloat16):
                out = model(x_t.to(device, memory_format=torch.channels_last), steps.to(device))
            total += float((out.float().cpu() - eps).square().sum())
            count += eps.numel()
        losses.append(total / count)
    torch.set_rng_state(generator_state)
    model.train()
    return losses


def learning_rate(done: float, peak: float, warm_up: float = 0.02) -> float:
    """`done` in [0, 1]: a share of it for warm-up, constant, then a cosine to zero over the last 40%."""
    if done < warm_up:
        return peak * (done + 1e-3) / (warm_up + 1e-3)
    return peak * (0.5 + 0.5 * math.cos(math.pi * max(0.0, (done - 0.6) / 0.4)))


def warm_up_share(samples: int, batch: int) -> float:
    """Return the share of a run in which the rate rises: 2%, or more of a run of few steps."""
    return max(0.02, min(LONGEST_WARM_UP, WARM_UP_STEPS * batch / max(1, samples)))


def seed_everything(seed: int | None, samples: int) -> None:
    """Seed torch, NumPy and `random`: by the clock, or by a seed and the samples that were done before.

    A resumed run must not draw the images of the interrupted one again.
    """
    value = time.time_ns() if seed is None else 1_000_003 * seed + samples
    torch.manual_seed(value % 2**31)
    np.random.seed(value % 2**32)
    random.seed(value)


def train(config: UNetConfig, args: argparse.Namespace) -> None:
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    seed_everything(args.seed, 0)
    pictures = LoadedImages(args.train)
    print(f"{pictures.describe()} to train on", flush=True)
    held_out = [LoadedImages([f], limit=64).held_out(64) for f in args.held_out]

    model = UNet(config).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, samples = 0, 0
    latest = out / "latest.pt"
    if latest.exists():
        state = torch.load(latest, map_location=device, weights_only=True)
        if state["config"] != config.to_dict():
            raise SystemExit(
                f"{latest} holds a model of another shape: {state['config']}; choose another output folder"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, samples = state["ema"], state["step"], state["samples"]
        seed_everything(args.seed, samples)
        print(f"go on from {samples} samples", flush=True)
    elif args.init:
        given, _ = checkpoints.load(args.init, checkpoints.Flags())
        if given.config != config:
            raise SystemExit(
                f"{args.init} holds a model of another shape: {given.config.to_dict()}; change the flags to it"
            )
        model.load_state_dict(given.state_dict())
        ema = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def save() -> None:
        state = {"config": config.to_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                 "ema": ema, "step": step, "samples": samples}  # fmt: skip
        file = io.BytesIO()
        torch.save(state, file)
        write_atomically(latest, file.getbuffer())
        meta = {"config": json.dumps(config.to_dict()), "samples": str(samples)}
        write_atomically(out / "ema.safetensors", safetensors.save({k: v.contiguous() for k, v in ema.items()}, meta))

    averaged = UNet(config).to(device, memory_format=torch.channels_last)

    def evaluate(loss: float) -> None:
        averaged.load_state_dict(ema)
        record = {"samples": samples, "step": step, "loss": loss, "steps": VISITED, "wall": time.time()}
        for file, batch in zip(args.held_out, held_out, strict=True):
            record[f"held_out:{Path(file).stem}"] = held_out_loss(averaged, batch)
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")

    warm_up, fresh = warm_up_share(args.samples, args.batch), not samples and not args.init
    values: list[float] = []
    running, next_save = math.nan, samples + args.save_every
    bar = tqdm(total=args.samples, initial=samples, unit="sample", unit_scale=True, mininterval=5)
    while samples < args.samples:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(samples / args.samples, args.lr, warm_up)
        x0 = pictures.batch(args.batch).to(device, memory_format=torch.channels_last)
        loss = loss_fn(model, x0, args.min_snr)
        value = loss.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise SystemExit(
                f"training: got a loss of {value} with a gradient of {norm} at step {step}, expected finite ones; "
                f"lower --lr {args.lr:.3g} and start again from {latest}"
            )
        optimizer.step()
        values.append(value)
        step += 1
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        done = x0.shape[0] * x0.shape[2] * x0.shape[3] // 1024
        samples += done
        running = value if math.isnan(running) else 0.99 * running + 0.01 * value
        bar.update(done)
        bar.set_postfix(loss=f"{running:.4f}")
        if samples >= next_save:
            next_save += args.save_every
            save()
            evaluate(running)
    bar.close()
    save()
    evaluate(running)
    check_losses(values, guess_loss(model, args.min_snr, mean_square(pictures)), fresh, args.lr)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m export.train", description=__doc__.split("\n")[0])
    p.add_argument("-o", "--output", type=Path, required=True, help="folder for checkpoints and the log")
    p.add_argument("--train", nargs="+", required=True, help="zip files or folders of pictures")
    p.add_argument("--held-out", nargs="+", default=[], help="zip files or folders, never trained on")
    p.add_argument("--init", type=Path, help="weights to begin from, where there is no latest.pt yet")
    p.add_argument("--samples", type=int, default=1_000_000, help="in 32x32 pictures' worth of pixels")
    p.add_argument("--batch", type=int, default=64, help="samples a step")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights, per step")
    p.add_argument("--min-snr", type=float, default=20.0, help="gamma of the min-SNR weights")
    p.add_argument("--save-every", type=int, default=50_000, help="samples between checkpoints")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, help="of weights, images and noise; default: another one each time")
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    p.add_argument("--channels", type=int, default=ZIP_TINY.model_channels)
    p.add_argument("--mult", type=int, nargs="+", default=list(ZIP_TINY.channel_mult))
    p.add_argument("--res-blocks", type=int, default=ZIP_TINY.num_res_blocks)
    return p


def main() -> None:
    args = parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = UNetConfig(
        image_size=ZIP_TINY.image_size, model_channels=args.channels, channel_mult=tuple(args.mult),
        num_res_blocks=args.res_blocks, norm_groups=ZIP_TINY.norm_groups, prediction=ZIP_TINY.prediction,
    )  # fmt: skip
    try:
        train(config, args)
    except ZipSdkError as e:
        raise SystemExit(f"error: {e}") from e


if __name__ == "__main__":
    main()

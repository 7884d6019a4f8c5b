"""Train a UNet of `export.unet` on images, as zip-tiny was.

    python -m export.train -o runs/zip-tiny --samples 1000000 \
        --train cifar10-train.zip imagenette-train.zip photos.zip --held-out cifar10-test.zip imagenette-val.zip

A sample is as many pixels as one 32x32 image has. Interrupted runs resume from ``latest.pt``: repeat the same command.
``--init export/zip-tiny.safetensors`` starts from the weights of the bundled model instead of random ones.

The output folder holds ``latest.pt`` (everything needed to resume), ``ema.safetensors`` (the averaged weights, for
``zipsdk export``) and ``log.jsonl`` (training loss, and held-out loss by noise level).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch as safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from zipsdk._util.atomic import write_atomically
from zipsdk.errors import ZipSdkError

from . import checkpoints
from .losses import add_noise, check_losses, loss_fn, zero_loss
from .training_data import TrainingImages
from .unet import ZIP_TINY, UNet, UNetConfig

#: Steps at which the held-out loss is computed: those that the 20-step loop visits.
VISITED = list(range(0, 1000, 50))
#: The learning rate rises over at least this many optimizer steps, but at most over this share of a run.
WARM_UP_STEPS, LONGEST_WARM_UP = 10, 0.2


def mean_square(images: TrainingImages) -> float:
    """Compute the mean square of the values of 64 images, which are in [-1, 1]."""
    batches = images.held_out(64)
    return sum(float(x.square().sum()) for x in batches) / sum(x.numel() for x in batches)


@torch.no_grad()
def held_out_loss(model: UNet, batches: list[Tensor]) -> list[float]:
    """Compute the mean squared error of epsilon at each step of `VISITED`, with the same noise in every call.

    Args:
        model: it is left in training mode.
        batches: float (N, 3, H, W) in [-1, 1], on the CPU.
    """
    model.eval()
    device = model.alphas_cumprod.device
    generator_state = torch.get_rng_state()
    # The noise is drawn on the CPU. torch.manual_seed would seed the GPUs as well, whose state is not restored below.
    torch.default_generator.manual_seed(0)
    losses = []
    for t in VISITED:
        total = count = 0.0
        for x0 in batches:
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
    """Return the learning rate at a share `done` in [0, 1] of a run.

    It rises over the share `warm_up`, is constant at `peak`, and falls as a cosine to zero over the last 40%.
    """
    if done < warm_up:
        return peak * (done + 1e-3) / (warm_up + 1e-3)
    return peak * (0.5 + 0.5 * math.cos(math.pi * max(0.0, (done - 0.6) / 0.4)))


def warm_up_share(samples: int, batch: int) -> float:
    """Return the share of a run in which the learning rate rises: 2%, or more if the run has few steps."""
    return max(0.02, min(LONGEST_WARM_UP, WARM_UP_STEPS * batch / max(1, samples)))


def seed_everything(seed: int | None, samples: int) -> None:
    """Seed torch, NumPy and `random` from the clock, or from a seed and the number of samples already trained on.

    The number of samples makes a resumed run draw other images than the interrupted one.
    """
    value = time.time_ns() if seed is None else 1_000_003 * seed + samples
    torch.manual_seed(value % 2**31)
    np.random.seed(value % 2**32)
    random.seed(value)


def new_model(config: UNetConfig, device: torch.device) -> UNet:
    """Build a UNet with random weights on a device, with channels last in memory."""
    model = UNet(config)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class TrainingRun:
    """Hold everything that a training run changes, and save and restore it.

    Attributes:
        model, ema, optimizer: the weights, their running average and AdamW.
        step, samples: optimizer steps and samples so far.
        fresh: whether the run started from random weights in this call.
    """

    def __init__(self, config: UNetConfig, args: argparse.Namespace):
        self.config, self.args = config, args
        self.output: Path = args.output
        self.device = torch.device(args.device)
        self.model = new_model(config, self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.ema = self._weights()
        self.step, self.samples = 0, 0
        self.latest = self.output / "latest.pt"
        if self.latest.exists():
            self._resume()
        elif args.init:
            self._start_from(args.init)
        self.fresh = not self.samples and not args.init
        self.warm_up = warm_up_share(args.samples, args.batch)
        self.averaged = new_model(config, self.device)

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _resume(self) -> None:
        state = torch.load(self.latest, map_location=self.device, weights_only=True)
        if state["config"] != self.config.to_dict():
            raise SystemExit(
                f"{self.latest}: got a model of another shape: {state['config']}, expected {self.config.to_dict()}; "
                "choose another output folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.step, self.samples = state["ema"], state["step"], state["samples"]
        seed_everything(self.args.seed, self.samples)
        print(f"resuming from {self.samples} samples", flush=True)

    def _start_from(self, weights: Path) -> None:
        given, _ = checkpoints.load(weights)
        if given.config != self.config:
            raise SystemExit(
                f"{weights}: got a model of another shape: {given.config.to_dict()}, expected {self.config.to_dict()}; "
                "change the flags to it"
            )
        self.model.load_state_dict(given.state_dict())
        self.ema = self._weights()

    def train_on(self, x0: Tensor) -> float:
        """Take one optimizer step and update the averaged weights.

        Args:
            x0: float (N, 3, H, W) in [-1, 1].

        Returns:
            The loss before the step.

        Raises:
            SystemExit: the loss or its gradient is not finite; the weights are left as they were.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.samples / self.args.samples, self.args.lr, self.warm_up)
        loss = loss_fn(self.model, x0.to(self.device, memory_format=torch.channels_last), self.args.min_snr)
        value = loss.item()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise SystemExit(
                f"training: got a loss of {value} with a gradient of {norm} at step {self.step}, expected finite ones; "
                f"lower --lr {self.args.lr:.3g} and start again from {self.latest}"
            )
        self.optimizer.step()
        self.step += 1
        self.samples += x0.shape[0] * x0.shape[2] * x0.shape[3] // 1024
        decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for k, v in self.model.state_dict().items():
                self.ema[k].lerp_(v, 1 - decay)
        return value

    def save(self) -> None:
        """Write ``latest.pt`` and ``ema.safetensors``."""
        state = {"config": self.config.to_dict(), "model": self.model.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "ema": self.ema, "step": self.step,
                 "samples": self.samples}  # fmt: skip
        file = io.BytesIO()
        torch.save(state, file)
        write_atomically(self.latest, file.getbuffer())
        meta = {"config": json.dumps(self.config.to_dict()), "samples": str(self.samples)}
        averaged = safetensors.save({k: v.contiguous() for k, v in self.ema.items()}, meta)
        write_atomically(self.output / "ema.safetensors", averaged)

    def log(self, loss: float, held_out: dict[str, list[Tensor]]) -> None:
        """Append a line to ``log.jsonl``.

        Args:
            loss: running mean of the training loss.
            held_out: batches by the name of their source; `held_out_loss` of the averaged weights is logged for each.
        """
        self.averaged.load_state_dict(self.ema)
        record: dict[str, Any] = {"samples": self.samples, "step": self.step, "loss": loss, "steps": VISITED,
                                  "wall": time.time()}  # fmt: skip
        record |= {f"held_out:{name}": held_out_loss(self.averaged, batches) for name, batches in held_out.items()}
        with (self.output / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")


def train(config: UNetConfig, args: argparse.Namespace) -> None:
    """Train a model, or resume its training, up to ``args.samples`` samples.

    Args:
        config: the network; it predicts "v" or "epsilon".
        args: what `parser` returns.

    Raises:
        SystemExit: ``latest.pt`` or ``--init`` holds another network, or the loss is not finite.
        InputError: a source is not a folder or zip archive of images.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    seed_everything(args.seed, 0)
    images = TrainingImages(args.train)
    print(f"training on {images.describe()}", flush=True)
    held_out = {Path(file).stem: TrainingImages([file], limit=64).held_out(64) for file in args.held_out}
    run = TrainingRun(config, args)
    values: list[float] = []
    running, next_save = math.nan, run.samples + args.save_every
    with tqdm(total=args.samples, initial=run.samples, unit="sample", unit_scale=True, mininterval=5) as bar:
        while run.samples < args.samples:
            before = run.samples
            value = run.train_on(images.batch(args.batch))
            values.append(value)
            running = value if math.isnan(running) else 0.99 * running + 0.01 * value
            bar.update(run.samples - before)
            bar.set_postfix(loss=f"{running:.4f}")
            if run.samples >= next_save:
                next_save += args.save_every
                run.save()
                run.log(running, held_out)
    run.save()
    run.log(running, held_out)
    check_losses(values, zero_loss(run.model, args.min_snr, mean_square(images)), run.fresh, args.lr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(
        prog=f"python -m {__package__}.train", description="Train a UNet on images, as zip-tiny was."
    )
    p.add_argument("-o", "--output", type=Path, required=True, help="folder for checkpoints and the log")
    p.add_argument("--train", nargs="+", required=True, help="zip files or folders of images to train on")
    p.add_argument("--held-out", nargs="+", default=[], help="zip files or folders of images to validate on")
    p.add_argument("--init", type=Path, help="weights to start from, if the output folder has no latest.pt")
    p.add_argument("--samples", type=int, default=1_000_000, help="length of the run, in 32x32 images' worth of pixels")
    p.add_argument("--batch", type=int, default=64, help="samples per optimizer step")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    p.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights, per step")
    p.add_argument("--min-snr", type=float, default=20.0, help="gamma of the min-SNR weights")
    p.add_argument("--save-every", type=int, default=50_000, help="samples between checkpoints")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    p.add_argument("--seed", type=int, help="of weights, images and noise; default: from the clock")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    p.add_argument("--channels", type=int, default=ZIP_TINY.model_channels, help="width of the network")
    p.add_argument(
        "--mult", type=int, nargs="+", default=list(ZIP_TINY.channel_mult), help="width of each level, as a multiple"
    )
    p.add_argument("--res-blocks", type=int, default=ZIP_TINY.num_res_blocks, help="residual blocks per level")
    return p


def main() -> None:
    """Run the command."""
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

"""Masked autoencoders: restore hidden tokens of an image from the others (He et al. 2022, arXiv:2111.06377).

`Restorer` is the interface that BDMAE needs, and `train` makes a small one from images of the same kind; ViT-MAE is in
vit_mae.py. The small one takes images at their own side as 16 x 16 tokens and is a convolutional U-Net: after 75 s on
one CPU core a small vision transformer on the same tokens of CIFAR-10 had twice its error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common.checkpoints import load_checkpoint, save_checkpoint
from bench.common.optimization import (
    channel_statistics,
    check_loss,
    for_few_steps,
    optimize,
    set_learning_rate,
    without_defaults,
)
from bench.data.datasets import hash_of
from bench.victims import training
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

#: Counts the changes of this file that make old checkpoints differ from a new training.
VERSION = 1
#: As `bench.common.optimization.FEW_STEPS`; an autoencoder of the measured rows took 138.
FEW_STEPS = 100


class Restorer(Protocol):
    """A masked autoencoder for images of one side, with a square grid of tokens.

    side: of its images, in pixels.
    grid: number of tokens in a row, and in a column.
    """

    @property
    def side(self) -> int: ...
    @property
    def grid(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Describe the autoencoder as JSON."""

    def __call__(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Restore the hidden tokens of images.

        Args:
            images: float32 (N, 3, side, side) in [0, 1].
            hidden: bool (N, grid * grid), row-major: the tokens to restore. Their number may vary between images.

        Returns:
            float32 (N, 3, side, side), not clipped to [0, 1]. Only hidden tokens are meaningful.
        """


class _Block(nn.Module):
    """A residual block of two convolutions. The second starts at zero, so no normalization is needed."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class _Network(nn.Module):
    """A U-Net on the grid of tokens, at three resolutions: 16, 8 and 4 tokens wide."""

    def __init__(self, patch: int, widths: tuple[int, int, int], depth: int):
        super().__init__()
        self.patch = patch
        channels = 3 * patch * patch
        a, b, c = widths
        self.stem, self.head = nn.Conv2d(channels + 1, a, 3, padding=1), nn.Conv2d(a, channels, 3, padding=1)
        self.down1, self.down2 = nn.Conv2d(a, b, 2, 2), nn.Conv2d(b, c, 2, 2)
        self.up1, self.up2 = nn.ConvTranspose2d(b, a, 2, 2), nn.ConvTranspose2d(c, b, 2, 2)
        self.in1, self.in2, self.inmost, self.out2, self.out1 = (
            nn.Sequential(*[_Block(width) for _ in range(depth)]) for width in (a, b, c, b, a)
        )

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Restore float images (N, 3, H, W) in [0, 1] whose `hidden` tokens, bool (N, tokens), are not read."""
        tokens = F.pixel_unshuffle(4 * images - 2, self.patch)  # standard deviation near 1
        mask = hidden.view(len(tokens), 1, *tokens.shape[2:])
        x1 = self.in1(self.stem(torch.cat([tokens.masked_fill(mask, 0), mask.to(tokens.dtype)], 1)))
        x2 = self.in2(self.down1(x1))
        y2 = self.out2(x2 + self.up2(self.inmost(self.down2(x2))))
        y1 = self.out1(x1 + self.up1(y2))
        return (F.pixel_shuffle(self.head(y1), self.patch) + 2) / 4


@dataclass(frozen=True)
class Recipe:
    """The training of the small autoencoder: AdamW, one cycle of the learning rate, squared error of hidden pixels.

    Half the images of a batch have `share` of their tokens hidden, as in BDMAE's search for a trigger; the others any
    share up to that, as in its restoration of what it found.
    """

    # keys of checkpoints hash the names of these fields

    epochs: int = 6
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    share: float = 0.75
    grid: int = 16
    widths: tuple[int, int, int] = (32, 64, 160)
    depth: int = 2
    #: half of the images are mirrored
    mirror: bool = True
    #: autocast to bfloat16 in training; restorations are always float32
    bf16: bool = True
    seed: int = 0
    #: largest norm of the gradients, None for any
    clip: float | None = None


def recipe(images: U8, *, mirror: bool = True, device: str = "cpu") -> Recipe:
    """Return the standard recipe for images uint8 (N, S, S, 3), adapted where few optimizer steps are left."""
    return for_few_steps(Recipe(mirror=mirror, bf16=training.fast_bf16(device)), len(images), FEW_STEPS)


def named(how: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that are in its key; without defaults of fields that measured rows lack."""
    return without_defaults(asdict(how), {"mirror": True, "clip": None})


def config_dict(images: U8, how: Recipe) -> dict[str, Any]:
    """Describe everything that decides an autoencoder, except device and threads; see `victims.training`."""
    return {
        "version": VERSION,
        "pictures": len(images),
        "side": images.shape[1],
        "sha256": hash_of(images),
        "recipe": named(how),
        "torch": torch.__version__.split("+")[0],
    }


def train(
    images: U8,
    how: Recipe,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Restorer:
    """Train a small masked autoencoder on images, or load the one that an earlier call left in the cache.

    The images should have no triggers: the autoencoder restores what is common in them.

    Args:
        images: uint8 (N, S, S, 3), S a multiple of the recipe's grid.
        how: from `recipe`; for GTSRB without mirroring, see `victims.training.NOT_MIRRORED`.
        cache: as for `victims.training.train`; the checkpoints are stored beside the classifiers.
        device: "cpu" or "cuda".
        progress: called with the number of epochs done and the RMS error of hidden pixels in the last one.

    Raises:
        InputError: images of another shape or dtype, or a loss that is not finite.
        ModelError: the checkpoint in the cache cannot be used.
        EngineError: no such device.

    Warns:
        UserWarning: the error did not fall, or is no better than a constant guess.
    """
    training.check_device(device)
    side = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or not side or images.shape[2:] != (side, 3) or side % how.grid or not len(images):
        raise InputError(
            f"BDMAE's small autoencoder: got images {images.dtype} {images.shape}, expected uint8 (N, S, S, 3), "
            f"S a multiple of {how.grid}; give such a --side, or a ViT-MAE, which takes any: --mae FOLDER"
        )
    config = config_dict(images, how)
    key = training.config_hash(config)
    path = training.cache_folder(cache).with_name("autoencoders") / f"{key}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = _Network(side // how.grid, how.widths, how.depth)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), how.lr, betas=(0.9, 0.95), weight_decay=how.weight_decay)
    done, errors = load_checkpoint(path, key, model, optimizer) if path.is_file() else (0, [])
    for epoch in range(done, how.epochs):
        errors.append(_epoch(model, optimizer, images, how, epoch))
        save_checkpoint(path, key, model, optimizer, epoch + 1, errors, finished=epoch + 1 == how.epochs)
        if progress is not None:
            progress(epoch + 1, errors[-1])
    check_loss(errors, _guess(images), "BDMAE's small autoencoder", how)
    return _SmallMAE(model.eval(), side, how.grid, {"autoencoder": "small", "key": key, **config})


def _guess(images: U8) -> float:
    """Compute the RMS error of a constant mean color, at least one gray level."""
    variance = sum(deviation**2 for _, deviation in channel_statistics(images)) / 3
    return max(variance**0.5, 1 / 255)


def _epoch(model: _Network, optimizer: torch.optim.Optimizer, images: U8, how: Recipe, number: int) -> float:
    """Train for one epoch, without the last incomplete batch. All random numbers come from (seed, number)."""
    rng = torch.Generator().manual_seed(how.seed * 100_003 + number)
    device = next(model.parameters()).device
    data, tokens = torch.from_numpy(np.ascontiguousarray(images)), how.grid**2
    batch = min(how.batch, len(data))
    batches = len(data) // batch
    order = torch.randperm(len(data), generator=rng)
    model.train()
    total = 0.0
    for i in range(batches):
        set_learning_rate(optimizer, how.lr * training.one_cycle((number * batches + i) / (how.epochs * batches)))
        x = data[order[i * batch : (i + 1) * batch]].to(device).permute(0, 3, 1, 2).float() / 255
        mirrored = (torch.rand(batch, 1, 1, 1, generator=rng) < 0.5).to(device)
        x = torch.where(mirrored, x.flip(-1), x) if how.mirror else x
        share = how.share * torch.rand(batch, 1, generator=rng)
        share[: batch // 2] = how.share
        counts = (share * tokens).long().clamp_min(1)
        places = torch.rand(batch, tokens, generator=rng).argsort(1).argsort(1)
        hidden = (places < counts).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16):
            y = model(x, hidden)
        mask = F.interpolate(hidden.view(batch, 1, how.grid, how.grid).float(), x.shape[2:])
        loss = (mask * (y.float() - x).square()).sum() / (3 * mask.sum())
        total += optimize(model, optimizer, loss, how.clip)
    return (total / batches) ** 0.5


class _SmallMAE:
    """A trained network as a `Restorer`."""

    def __init__(self, model: _Network, side: int, grid: int, info: dict[str, Any]):
        self.model, self.side, self.grid, self.info = model, side, grid, info

    def describe(self) -> dict[str, Any]:
        return self.info

    def __call__(self, images: Tensor, hidden: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        x = images.to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return self.model(x, hidden.to(device)).cpu()

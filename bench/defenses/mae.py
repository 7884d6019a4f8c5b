"""Masked autoencoders: they see a part of a picture's tokens and restore the others (He et al. 2022, arXiv:2111.06377).

`Restorer` is what BDMAE asks of one, and `train` makes a small one of our own from pictures like those that it is to
restore; ViT-MAE is in vit_mae.py. Ours sees pictures at their own side as 16 x 16 tokens, and is a convolutional
network in the shape of a U: after 75 s on one CPU core a small vision transformer on the same tokens of CIFAR-10 was
left with twice its error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common.checkpoints import keep, restore
from bench.common.optimization import channel_statistics, check_loss, for_few_steps, optimize, without_defaults
from bench.victims import training
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

#: Counts changes of this file after which old checkpoints are no longer what a training would give.
VERSION = 1
#: As `bench.common.optimization.FEW_STEPS`; an autoencoder of the measured rows took 138.
FEW_STEPS = 100


class Restorer(Protocol):
    """A masked autoencoder for pictures of one side, with a square grid of tokens.

    side: of its pictures, in pixels.
    grid: tokens in a row, and in a column.
    """

    @property
    def side(self) -> int: ...
    @property
    def grid(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """What it is; JSON."""

    def __call__(self, pictures: Tensor, hidden: Tensor) -> Tensor:
        """What it takes the pictures to be.

        Args:
            pictures: float32 (N, 3, side, side) in [0, 1].
            hidden: bool (N, grid * grid), row by row: the tokens that it must not see. Pictures may differ in how many.

        Returns:
            float32 (N, 3, side, side). Only hidden tokens mean something, and nothing keeps them within [0, 1].
        """


class _Block(nn.Module):
    """Two convolutions beside a way past them. The second begins as zero, so that no normalisation is needed."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class _Network(nn.Module):
    """Tokens on a grid, and which of them are hidden -> all tokens: a U-Net of three sizes, 16, 8 and 4 tokens wide."""

    def __init__(self, patch: int, widths: tuple[int, int, int], depth: int):
        super().__init__()
        self.patch = patch
        colours = 3 * patch * patch
        a, b, c = widths
        self.stem, self.head = nn.Conv2d(colours + 1, a, 3, padding=1), nn.Conv2d(a, colours, 3, padding=1)
        self.down1, self.down2 = nn.Conv2d(a, b, 2, 2), nn.Conv2d(b, c, 2, 2)
        self.up1, self.up2 = nn.ConvTranspose2d(b, a, 2, 2), nn.ConvTranspose2d(c, b, 2, 2)
        self.in1, self.in2, self.inmost, self.out2, self.out1 = (
            nn.Sequential(*[_Block(width) for _ in range(depth)]) for width in (a, b, c, b, a)
        )

    def forward(self, pictures: Tensor, hidden: Tensor) -> Tensor:
        """float (N, 3, H, W) in [0, 1], bool (N, tokens) -> float (N, 3, H, W)."""
        tokens = F.pixel_unshuffle(4 * pictures - 2, self.patch)  # deviation near 1
        gone = hidden.view(len(tokens), 1, *tokens.shape[2:])
        x1 = self.in1(self.stem(torch.cat([tokens.masked_fill(gone, 0), gone.to(tokens.dtype)], 1)))
        x2 = self.in2(self.down1(x1))
        y2 = self.out2(x2 + self.up2(self.inmost(self.down2(x2))))
        y1 = self.out1(x1 + self.up1(y2))
        return (F.pixel_shuffle(self.head(y1), self.patch) + 2) / 4


@dataclass(frozen=True)
class Recipe:
    """How ours is trained: AdamW, one cycle of the learning rate, the squared error of hidden pixels as in MAE.

    Half the pictures of a batch have `share` of their tokens hidden, as BDMAE's search for a trigger has it; the others
    any share up to that, because what it finds and restores is less.
    """

    epochs: int = 6
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    share: float = 0.75
    grid: int = 16
    widths: tuple[int, int, int] = (32, 64, 160)
    depth: int = 2
    #: half of the pictures are mirrored
    mirror: bool = True
    #: autocast to bfloat16 in training; restorations are always float32
    bf16: bool = True
    seed: int = 0
    #: largest norm of the gradients, None for any
    clip: float | None = None


def recipe(pictures: U8, *, mirror: bool = True, device: str = "cpu") -> Recipe:
    """Return the standard recipe for pictures uint8 (N, S, S, 3), adapted where they leave few optimizer"""
    return for_few_steps(Recipe(mirror=mirror, bf16=training.fast_bf16(device)), len(pictures), FEW_STEPS)


def named(how: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that are in its key."""
    return without_defaults(asdict(how), {"mirror": True, "clip": None})


def ingredients(pictures: U8, how: Recipe) -> dict[str, Any]:
    """All that makes an autoencoder what it is; device and threads left out as in `victims.training.ingredients`.

    Mirroring is named where there is none, clipping where there is some: older checkpoints stay what they were.
    """
    digest = hashlib.sha256(repr(pictures.shape).encode())
    digest.update(np.ascontiguousarray(pictures))
    return {
        "version": VERSION,
        "pictures": len(pictures),
        "side": pictures.shape[1],
        "sha256": digest.hexdigest(),
        "recipe": named(how),
        "torch": torch.__version__.split("+")[0],
    }


def train(
    pictures: U8,
    how: Recipe,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Restorer:
    """A small masked autoencoder trained on pictures, or the one that an earlier call left in the cache.

    Whoever defends should have pictures without triggers for this: what is common in them is what it restores.

    Args:
        pictures: uint8 (N, S, S, 3), S a multiple of the recipe's grid.
        how: from `recipe`; for signs without mirroring, see `victims.training.NOT_MIRRORED`.
        cache: as for `victims.training.train`; the checkpoints lie beside the classifiers.
        device: "cpu" or "cuda".
        progress: called with the epochs done and the root mean square error of hidden pixels in the last one.

    Raises:
        InputError: pictures that do not fit, or a loss that is not finite.
        ModelError: the checkpoint in the cache cannot be used.
        EngineError: no such device.

    Warns:
        UserWarning: the error did not fall, or is no better than a constant guess.
    """
    training.check_device(device)
    side = pictures.shape[1] if pictures.ndim == 4 else 0
    if (
        pictures.dtype != np.uint8
        or not side
        or pictures.shape[2:] != (side, 3)
        or side % how.grid
        or not len(pictures)
    ):
        raise InputError(
            f"BDMAE's small autoencoder: got pictures {pictures.dtype} {pictures.shape}, wanted uint8 (N, S, S, 3), S "
            f"a multiple of {how.grid}; give such a --side, or a ViT-MAE, which takes any: --mae FOLDER"
        )
    made_of = ingredients(pictures, how)
    key = training.key_of(made_of)
    path = training.cache_folder(cache).with_name("autoencoders") / f"{key}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = _Network(side // how.grid, how.widths, how.depth)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), how.lr, betas=(0.9, 0.95), weight_decay=how.weight_decay)
    done, errors = restore(path, key, model, optimizer) if path.is_file() else (0, [])
    for epoch in range(done, how.epochs):
        errors.append(_epoch(model, optimizer, pictures, how, epoch))
        keep(path, key, model, optimizer, epoch + 1, errors, finished=epoch + 1 == how.epochs)
        if progress is not None:
            progress(epoch + 1, errors[-1])
    check_loss(errors, _guess(pictures), "BDMAE's small autoencoder", how)
    return _Ours(model.eval(), side, how.grid, {"autoencoder": "small", "key": key, **made_of})


def _guess(pictures: U8) -> float:
    """Compute the root mean square error of the mean color of all pictures, which is never below one gray level."""
    variance = sum(deviation**2 for _, deviation in channel_statistics(pictures)) / 3
    return max(variance**0.5, 1 / 255)


def _epoch(model: _Network, optimizer: torch.optim.Optimizer, pictures: U8, how: Recipe, number: int) -> float:
    """One pass over the pictures, less what does not fill a batch. All chance comes from (seed, number)."""
    rng = torch.Generator().manual_seed(how.seed * 100_003 + number)
    device = next(model.parameters()).device
    data, tokens = torch.from_numpy(np.ascontiguousarray(pictures)), how.grid**2
    batch = min(how.batch, len(data))
    batches = len(data) // batch
    order = torch.randperm(len(data), generator=rng)
    model.train()
    total = 0.0
    for i in range(batches):
        for group in optimizer.param_groups:
            group["lr"] = how.lr * training.one_cycle((number * batches + i) / (how.epochs * batches))
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
        gone = F.interpolate(hidden.view(batch, 1, how.grid, how.grid).float(), x.shape[2:])
        loss = (gone * (y.float() - x).square()).sum() / (3 * gone.sum())
        total += optimize(model, optimizer, loss, how.clip)
    return (total / batches) ** 0.5


class _Ours:
    def __init__(self, model: _Network, side: int, grid: int, info: dict[str, Any]):
        self.model, self.side, self.grid, self.info = model, side, grid, info

    def describe(self) -> dict[str, Any]:
        return self.info

    def __call__(self, pictures: Tensor, hidden: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        x = pictures.to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            return self.model(x, hidden.to(device)).cpu()

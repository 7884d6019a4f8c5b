"""One-pass super-resolution: a network that doubles both sides of an image, trained here on clean images.

It has the role of SwinIR-light in Lite-BD and in its re-runs: reduce by 0.5, enlarge in one pass. It is a convolutional
U-Net of 2.5 M parameters, the size of zip-tiny, that adds detail to the bicubic enlargement; before any training
it is the bicubic enlargement.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common.checkpoints import load_checkpoint, save_checkpoint
from bench.common.optimization import optimize, set_learning_rate
from bench.data.datasets import hash_of
from bench.defenses.resizing import resized
from bench.victims import training
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

#: Counts the changes of this file that make old checkpoints differ from a new training.
VERSION = 1
#: Samples of 32 x 32 pixels of the standard recipe; of larger ones it takes as many pixels.
SAMPLES = 150_000
#: At the end the network is compared with the bicubic filter on every 50th image, which it is not trained on.
HELD_OUT = 50


class _Block(nn.Module):
    """A residual block of two convolutions. The second starts at zero, so no normalization is needed."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(x)))


class _Network(nn.Module):
    """A U-Net at three resolutions on the small image, whose sides must be multiples of 4."""

    def __init__(self, widths: tuple[int, int, int], depth: int):
        super().__init__()
        a, b, c = widths
        self.stem, self.head = nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(a, 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.down1, self.down2 = nn.Conv2d(a, b, 2, 2), nn.Conv2d(b, c, 2, 2)
        self.up1, self.up2 = nn.ConvTranspose2d(b, a, 2, 2), nn.ConvTranspose2d(c, b, 2, 2)
        self.in1, self.in2, self.inmost, self.out2, self.out1 = (
            nn.Sequential(*[_Block(width) for _ in range(depth)]) for width in (a, b, c, b, a)
        )

    def forward(self, small: Tensor) -> Tensor:
        """Enlarge float (N, 3, h, w) in [0, 1] to (N, 3, 2 h, 2 w), not clipped."""
        x1 = self.in1(self.stem(4 * small - 2))  # standard deviation near 1
        x2 = self.in2(self.down1(x1))
        y2 = self.out2(x2 + self.up2(self.inmost(self.down2(x2))))
        detail = F.pixel_shuffle(self.head(self.out1(x1 + self.up1(y2))), 2)
        # with antialiasing it is Pillow's filter
        return detail + F.interpolate(small, scale_factor=2, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Recipe:
    """The training: AdamW, one cycle of the learning rate, mean absolute error plus half the mean squared error."""

    # keys of checkpoints hash the names of these fields

    epochs: int = 6
    batch: int = 64
    #: side in pixels of the crops that images above it are trained on; a multiple of 8
    crop: int = 64
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    widths: tuple[int, int, int] = (48, 96, 144)
    depth: int = 3
    #: half of the images are mirrored
    mirror: bool = True
    #: autocast to bfloat16 in training; results are always computed in float32
    bf16: bool = True
    seed: int = 0
    #: largest norm of the gradients
    clip: float = 1.0


def recipe(images: U8, *, mirror: bool = True, device: str = "cpu") -> Recipe:
    """Return the standard recipe for images uint8 (N, S, S, 3): as many pixels as in `SAMPLES`, whatever N and S."""
    side = min(images.shape[1], Recipe.crop)
    epochs = math.ceil(SAMPLES * 32**2 / max(1, len(images) * side**2))
    return Recipe(epochs=epochs, mirror=mirror, bf16=training.fast_bf16(device))


def config_dict(images: U8, how: Recipe) -> dict[str, Any]:
    """Describe everything that decides a network, except device and threads; see `victims.training`."""
    return {"version": VERSION, "images": len(images), "side": images.shape[1], "sha256": hash_of(images),
            "recipe": asdict(how), "torch": torch.__version__.split("+")[0]}  # fmt: skip


def train(
    images: U8,
    how: Recipe,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> SuperResolution:
    """Train the network on images, or load the one that an earlier call left in the cache.

    Args:
        images: without triggers, uint8 (N, S, S, 3), N at least 2, S or the recipe's crop a multiple of 8.
        how: from `recipe`; for GTSRB without mirroring, see `victims.training.NOT_MIRRORED`.
        cache: as for `victims.training.train`; the checkpoints are stored beside the classifiers.
        device: "cpu" or "cuda".
        progress: called with the number of epochs done and the loss of the last one.

    Raises:
        InputError: images of another shape or dtype, or a loss that is not finite.
        ModelError: the checkpoint in the cache cannot be used.
        EngineError: no such device.

    Warns:
        UserWarning: the network is no better than the bicubic filter on images that it was not trained on.
    """
    training.check_device(device)
    side = images.shape[1] if images.ndim == 4 else 0
    crop = min(side, how.crop)
    if images.dtype != np.uint8 or not side or images.shape[2:] != (side, 3) or side % 2 or crop % 8 or len(images) < 2:
        raise InputError(
            f"super-resolution: got images {images.dtype} {images.shape}, expected at least 2, uint8 (N, S, S, 3), S "
            "even, and up to 64 a multiple of 8; give such a --side"
        )
    config = config_dict(images, how)
    key = training.config_hash(config)
    path = training.cache_folder(cache).with_name("super-resolution") / f"{key}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = _Network(how.widths, how.depth)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), how.lr, weight_decay=how.weight_decay)
    done, losses = load_checkpoint(path, key, model, optimizer) if path.is_file() else (0, [])
    held_out = np.arange(len(images)) % HELD_OUT == 0
    if done < how.epochs:
        large = torch.from_numpy(images[~held_out])
        small = torch.from_numpy(resized(images[~held_out], side // 2, side // 2))
        for epoch in range(done, how.epochs):
            losses.append(_epoch(model, optimizer, small, large, how, epoch))
            save_checkpoint(path, key, model, optimizer, epoch + 1, losses, finished=epoch + 1 == how.epochs)
            if progress is not None:
                progress(epoch + 1, losses[-1])
    trained = SuperResolution(model.eval(), {"upsampler": "one-pass SR", "key": key, **config})
    _compare(trained, images[held_out])
    return trained


def _epoch(
    model: _Network, optimizer: torch.optim.Optimizer, small: Tensor, large: Tensor, how: Recipe, number: int
) -> float:
    """Train for one epoch, without the last incomplete batch. All random numbers come from (seed, number)."""
    rng = torch.Generator().manual_seed(how.seed * 100_003 + number)
    device = next(model.parameters()).device
    batch, side = min(how.batch, len(small)), small.shape[1]
    crop = min(side, how.crop // 2)
    batches = len(small) // batch
    order = torch.randperm(len(small), generator=rng)
    model.train()
    total = 0.0
    for i in range(batches):
        set_learning_rate(optimizer, how.lr * training.one_cycle((number * batches + i) / (how.epochs * batches)))
        top, left = torch.randint(side - crop + 1, (2,), generator=rng).tolist()
        chosen = order[i * batch : (i + 1) * batch]
        x, y = (
            images[chosen, k * top : k * (top + crop), k * left : k * (left + crop)]
            .to(device).permute(0, 3, 1, 2).float() / 255
            for k, images in ((1, small), (2, large))
        )  # fmt: skip
        if how.mirror and torch.rand((), generator=rng) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16):
            found = model(x)
        error = found.float() - y
        total += optimize(model, optimizer, error.abs().mean() + 0.5 * error.square().mean(), how.clip)
    return total / batches


def _compare(trained: SuperResolution, images: U8) -> None:
    side = images.shape[1]
    small = resized(images, side // 2, side // 2)
    ours, bicubic = (
        float(np.sqrt(np.mean((found.astype(np.float64) - images) ** 2)))
        for found in (trained(small, side, side), resized(small, side, side))
    )
    if not ours < bicubic:
        warnings.warn(
            f"super-resolution: got an RMS error of {ours:.2f} gray levels on images that were held out, expected less "
            f"than the bicubic filter's {bicubic:.2f}; train on more images or for more epochs",
            UserWarning,
            stacklevel=3,
        )


class SuperResolution:
    """A trained network as an `Upsampler`; sizes other than the double are resized from the double, bicubic."""

    name = "one-pass SR"
    steps = 1

    def __init__(self, model: _Network, info: dict[str, Any]):
        self.model, self.info = model, info

    def describe(self) -> dict[str, Any]:
        return self.info

    def __call__(self, small: U8, height: int, width: int) -> U8:
        _, h, w, _ = small.shape
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            x = torch.from_numpy(small).to(device).permute(0, 3, 1, 2).float() / 255
            x = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate").contiguous(memory_format=torch.channels_last)
            y = self.model(x)[:, :, : 2 * h, : 2 * w]
            found = (y * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        double: U8 = np.ascontiguousarray(found)
        return double if double.shape[1:3] == (height, width) else resized(double, height, width)

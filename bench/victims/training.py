"""Train the classifiers that the defenses protect, on poisoned images; `bench.victims.user` loads a user's own.

    classifier = train(poison(data, attack, RATE, TARGET, SEED), recipe(data, "small"), cache=folder)
    scores = classifier(images)          # uint8 (N, H, W, 3) -> float32 (N, classes)

A training depends on its images, recipe and versions alone. Its checkpoint is named by their hash and written after
every epoch: finished trainings are reused, interrupted ones resume. Of portable recipes the weights travel with the
repository (`bench.victims.stored_weights`) and are preferred to a training.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.camera import PHYSICAL, physical
from bench.attacks.poisoning import Poisoned
from bench.common.checkpoints import load_checkpoint, save_checkpoint
from bench.common.optimization import channel_statistics, check_loss, optimize, set_learning_rate, without_defaults
from bench.data.datasets import Dataset
from bench.victims import stored_weights
from bench.victims.networks import ARCHITECTURES
from bench.victims.recipes import NOT_MIRRORED, Recipe, fast_bf16, recipe
from bench.victims.user import Classifier
from zipsdk.errors import EngineError, InputError

__all__ = ["NOT_MIRRORED", "Recipe", "fast_bf16", "recipe", "train"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

#: The environment variable that names the default folder of checkpoints.
VARIABLE = "ZIPSDK_CACHE"
#: Counts changes of this file, recipes.py, networks.py and camera.py that make old checkpoints obsolete.
VERSION = 1
#: Images a batch at most where statistics are measured anew.
REMEASURE_BATCH = 256


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of checkpoints: in the given one, in $ZIPSDK_CACHE, or in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or os.environ.get(VARIABLE) or Path(user) / "zipsdk") / "classifiers"


def named(how: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that are in its key."""
    return without_defaults(asdict(how), {"optimizer": "sgd", "clip": None, "remeasure": False, "bf16": None})


def config_dict(training: Poisoned, how: Recipe) -> dict[str, Any]:
    """Describe a training; its checkpoint is named by the hash of this description.

    The device and the number of threads are left out, so that checkpoints are portable: they change roundings only.
    bfloat16 is included, so a machine that is slow at it trains its own networks. Fields with the defaults of the time
    before they existed are left out, so that older checkpoints keep their names. Portable recipes have neither
    precision, torch's version nor the name of the source in their key, so that their weights are found everywhere.
    """
    data = training.data.describe()
    config = {
        "version": VERSION,
        "data": data,
        "poison": training.description,
        "augment": training.augment,
        "recipe": named(how),
    }
    if how.portable:
        del data["source"]
    else:
        config["torch"] = torch.__version__.split("+")[0]
    return config


def check_device(device: str) -> None:
    """Check that torch has a device.

    Raises:
        EngineError: torch finds no GPU.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device: got {device!r}, and this torch finds no GPU; expected cpu")


def config_hash(config: dict[str, Any]) -> str:
    """Return the name of a checkpoint: the hash of its description, 64 hex digits."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def train(
    training: Poisoned,
    how: Recipe,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
    weights: Path = stored_weights.FOLDER,
) -> Classifier:
    """Train a classifier on (poisoned) images, or load it from the cache; a portable one from its stored weights.

    Args:
        training: from `bench.attacks.poisoning.poison`.
        how: from `recipe`.
        cache: see `cache_folder`.
        device: "cpu" or "cuda".
        progress: called with the number of epochs done and the mean loss of the last one.
        weights: the folder of stored weights.

    Returns:
        A classifier whose scores are probabilities. ``info`` has the description and the key.

    Raises:
        ModelError: the checkpoint in the cache or the stored weights cannot be used.
        InputError: an unknown optimizer, or a loss that is not finite.
        EngineError: no such device.

    Warns:
        UserWarning: the loss did not decrease, or is no better than a constant guess.
    """
    check_device(device)
    config = config_dict(training, how)
    key = config_hash(config)
    path = cache_folder(cache) / f"{key}.pt"
    data = training.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = ARCHITECTURES[how.architecture](len(data.classes), data.side)
    info = {"classifier": how.architecture, "key": key, **config}
    if how.portable and stored_weights.load_into(model, key, weights):
        return black_box(model.to(device), device, info)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stub
    optimizer = _optimizer(model, how)
    done: int = 0
    losses: list[float] = []
    if path.is_file():
        done, losses = load_checkpoint(path, key, model, optimizer)
    else:
        _measure_channels(model[0], data.images)
    if done < how.epochs:
        run = _Training(training, how, model, optimizer, device)
        for epoch in range(done, how.epochs):
            losses.append(run.epoch(epoch))
            if how.remeasure and epoch + 1 == how.epochs:
                run.remeasure()
            if how.portable and epoch + 1 == how.epochs:
                stored_weights.round_to_half(model)
            save_checkpoint(path, key, model, optimizer, epoch + 1, losses, finished=epoch + 1 == how.epochs)
            if progress is not None:
                progress(epoch + 1, losses[-1])
    # old checkpoints have fewer losses than epochs, or none
    own = losses[max(0, training.trigger_warmup_epochs - (how.epochs - len(losses))) :]
    check_loss(own, _guess(data, how.smoothing), f"classifier {how.architecture}", how)
    return black_box(model, device, info)


def black_box(model: nn.Module, device: str, info: dict[str, Any]) -> Classifier:
    """Wrap a network on a device as a classifier whose scores are probabilities."""
    model.eval()

    def scores(images: U8) -> F32:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return model(x).softmax(1).cpu().numpy()

    runs = {"engine": f"torch {torch.__version__.split('+')[0]}, eager", "providers": [device],
            "threads": torch.get_num_threads()}  # fmt: skip
    return Classifier(scores, info, runs=runs)


def _optimizer(model: nn.Module, how: Recipe) -> torch.optim.Optimizer:
    decay, momentum = how.weight_decay, how.momentum
    if how.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), how.lr, (momentum, 0.999), weight_decay=decay)
    if how.optimizer != "sgd":
        raise InputError(f"optimizer: got {how.optimizer!r}, expected sgd or adamw")
    return torch.optim.SGD(model.parameters(), how.lr, momentum=momentum, weight_decay=decay, nesterov=True)


def _measure_channels(normalize: Any, images: U8) -> None:
    """Set mean and deviation of each color channel."""
    for c, (mean, deviation) in enumerate(channel_statistics(images)):
        normalize.mean[c] = mean
        normalize.std[c] = max(deviation, 1e-3)


def _guess(data: Dataset, smoothing: float) -> float:
    """Compute the cross entropy of the best answer that is the same for all images."""
    classes = len(data.classes)
    share = (1 - smoothing) * np.bincount(data.labels, minlength=classes) / len(data) + smoothing / classes
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


class _Training:
    """Run epochs. Random numbers come from (seed, epoch), so that a resumed training equals an uninterrupted one."""

    def __init__(
        self, training: Poisoned, how: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, device: str
    ):
        self.how, self.model, self.optimizer = how, model, optimizer
        self.device, self.augment = torch.device(device), training.augment
        self.bf16 = fast_bf16(device) if how.bf16 is None else how.bf16
        self.images = torch.from_numpy(np.ascontiguousarray(training.data.images))
        self.labels = torch.from_numpy(training.data.labels)
        self.trigger_warmup_epochs = training.trigger_warmup_epochs
        if training.triggered is not None:
            self.triggered, self.target = torch.from_numpy(training.triggered), training.description["target"]
        self.batch = min(how.batch, len(self.labels))
        self.batches = len(self.labels) // self.batch

    def epoch(self, number: int) -> float:
        """Train on all full batches once; return the mean loss."""
        rng = torch.Generator().manual_seed(self.how.seed * 100_003 + number)
        order = torch.randperm(len(self.labels), generator=rng)
        self.model.train()
        total = 0.0
        for i in range(self.batches):
            rate = one_cycle((number * self.batches + i) / (self.how.epochs * self.batches))
            set_learning_rate(self.optimizer, self.how.lr * rate)
            part = order[i * self.batch : (i + 1) * self.batch]
            images, labels = self.images[part], self.labels[part]
            if number < self.trigger_warmup_epochs:
                half = torch.rand(len(part), generator=rng) < 0.5
                images[half], labels[half] = self.triggered[part[half]], self.target
            x = self._augment(images, rng).to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                scores = self.model(x)
            loss = F.cross_entropy(scores.float(), labels.to(self.device), label_smoothing=self.how.smoothing)
            total += optimize(self.model, self.optimizer, loss, self.how.clip)
        return total / self.batches

    def remeasure(self) -> None:
        """Replace the batch normalizations' running statistics by means over all images, as they are.

        Running ones forget a tenth a batch: after few they are still those of the random weights, and a classifier
        whose training went well answers at random (Wu and Johnson 2021, arXiv:2105.07576).
        """
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [m.momentum for m in norms]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a mean over all batches
        self.model.train()
        with torch.no_grad():
            for images in self.images.tensor_split(math.ceil(len(self.images) / REMEASURE_BATCH)):
                x = images.to(self.device).permute(0, 3, 1, 2).float() / 255
                self.model(x.contiguous(memory_format=torch.channels_last))
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum

    def _augment(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Augment uint8 (n, H, W, 3) by the recipe or the attack: float (n, 3, H, W) in [0, 1]."""
        n, side = len(images), images.shape[1]
        if self.augment == "physical":
            draws = torch.rand(n, len(PHYSICAL), generator=rng)
            if not self.how.mirror:
                draws[:, 0] = 1
            return physical(images.permute(0, 3, 1, 2).float() / 255, draws)
        shift = self.how.shift
        by = torch.randint(-shift, shift + 1, (2, n, 1), generator=rng)
        rows, columns = torch.arange(side) + by
        if self.how.mirror:
            mirrored = torch.rand(n, 1, generator=rng) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = (_inside(at, side) for at in (rows, columns))
        x = images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        return x.permute(0, 3, 1, 2).float() / 255


def _inside(at: Tensor, side: int) -> Tensor:
    """Reflect positions outside of 0..side - 1 at the edge."""
    at = at.abs()
    return torch.where(at < side, at, 2 * (side - 1) - at)


def one_cycle(progress: float) -> float:
    """Return the learning rate relative to its peak: up from 0.1 in the first quarter, then down to 0."""
    return 0.1 + 0.9 * progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75

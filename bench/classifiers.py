"""The classifiers behind the defence: trained here on poisoned pictures, or a user's own black box.

    classifier = train(attacks.poison(data, attack), recipe(data, "small"), cache=folder)
    scores = classifier(pictures)          # uint8 (N, H, W, 3) -> float32 (N, classes)

A training is a pure function of its pictures, recipe and versions; its checkpoint is kept under the hash of all these,
and written after every epoch, so that the same training is never done twice and a stopped one goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import attacks
from bench.datasets import Dataset
from zipsdk.errors import EngineError, InputError, MissingExtra, ModelError
from zipsdk.files import write_atomically

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

#: Where checkpoints are kept when no folder is given.
VARIABLE = "ZIPSDK_CACHE"
#: Counts changes of this file after which old checkpoints are no longer what a training would give.
VERSION = 1


class Classifier:
    """A black box: uint8 (N, H, W, 3) -> float32 scores (N, classes), in batches, held to that.

    Args:
        function: the same, for one batch; any real dtype.
        info: what it is, for records.
        batch: pictures a call at most.
    """

    def __init__(self, function: Callable[[U8], Any], info: dict[str, Any], batch: int = 256):
        self.function, self.info, self.batch = function, info, batch

    def __call__(self, pictures: U8) -> F32:
        """Scores, the highest for the class it takes each picture for.

        Raises:
            InputError: not pictures.
            ModelError: the black box gave something else than finite scores, one row a picture.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or not len(pictures):
            raise InputError(
                f"pictures: got {pictures.dtype} {pictures.shape}, wanted uint8 (N, H, W, 3), N at least 1"
            )
        return np.concatenate(
            [self._checked(pictures[i : i + self.batch]) for i in range(0, len(pictures), self.batch)]
        )

    predict = __call__

    def _checked(self, batch: U8) -> F32:
        got = self.function(batch)
        scores = np.asarray(got.detach().cpu() if isinstance(got, Tensor) else got)
        if scores.ndim != 2 or len(scores) != len(batch) or scores.dtype.kind not in "fiu" or scores.shape[1] < 2:
            raise ModelError(
                f"classifier: got {scores.dtype} {scores.shape} for {len(batch)} pictures, wanted real scores "
                f"({len(batch)}, classes)"
            )
        if not np.isfinite(scores).all():
            raise ModelError("classifier: got scores that are not finite, wanted real numbers; check its input range")
        return scores.astype(np.float32)


class _Normalise(nn.Module):
    """[0, 1] -> mean 0, deviation 1 of each colour in the training pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


def _conv(inside: int, out: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if relu else [])]


class _Block(nn.Module):
    """ResNet's basic block (He et al. 2016, arXiv:1512.03385), with a projection where the size changes."""

    def __init__(self, inside: int, out: int, stride: int = 1):
        super().__init__()
        self.inner = nn.Sequential(*_conv(inside, out, 3, stride), *_conv(out, out, relu=False))
        same = stride == 1 and inside == out
        self.outer = nn.Identity() if same else nn.Sequential(*_conv(inside, out, 1, stride, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.outer(x), inplace=True)


def resnet34(classes: int, side: int) -> nn.Module:
    """ResNet-34, with the stem for small pictures (3 x 3, no pooling) up to 64 pixels, else ImageNet's."""
    small = side <= 64
    layers = _conv(3, 64) if small else [*_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for i in range(blocks):
            out = 64 << stage
            layers.append(_Block(width, out, 2 if stage and not i else 1))
            width = out
    return nn.Sequential(_Normalise(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def small_resnet(classes: int, side: int) -> nn.Module:
    """Eight convolutions at half resolution and below, for two CPU cores; each doubling of `side` above 32 adds one."""
    layers = _conv(3, 32, stride=2)
    for _ in range(max(0, round(math.log2(side / 32)))):
        layers += _conv(32, 32, stride=2)
    for inside, out in ((32, 64), (64, 128)):
        layers += [*_conv(inside, out), nn.MaxPool2d(2), _Block(out, out)]
    return nn.Sequential(_Normalise(), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, classes))


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {"small": small_resnet, "resnet34": resnet34}


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with Nesterov momentum, one cycle of the learning rate, cross entropy."""

    architecture: str = "small"
    epochs: int = 12
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    #: of the labels
    smoothing: float = 0.1
    #: pictures are moved by so many pixels at most, each way, and their edge mirrored into the gap
    shift: int = 2
    mirror: bool = True
    #: autocast to bfloat16 in training; predictions are always float32
    bf16: bool = True
    seed: int = 0


#: Data sets whose pictures mean something else in a mirror: GTSRB has "turn left" and "turn right".
NOT_MIRRORED = ("gtsrb",)


def recipe(data: Dataset, architecture: str = "small", seed: int = 0, epochs: int | None = None) -> Recipe:
    """The standard recipe for a data set, the same whatever the attack.

    The ZIP paper's classifiers saw neither shifts nor mirrored pictures; with these the classifier is better, and that
    is what a defence has to keep.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: got {architecture!r}, wanted one of {', '.join(ARCHITECTURES)}")
    usual = {"small": 10, "resnet34": 30}[architecture]
    return Recipe(architecture, epochs or usual, shift=max(2, data.side // 16), mirror=data.name not in NOT_MIRRORED,
                  bf16=_fast_bf16(), seed=seed)  # fmt: skip


def _fast_bf16() -> bool:
    """Twice as fast where the processor has instructions for it, and slower where it has not."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def cache_folder(given: Path | None = None) -> Path:
    """The folder for checkpoints: the given one, else $ZIPSDK_CACHE, else zipsdk's in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given or os.environ.get(VARIABLE) or Path(user) / "zipsdk") / "classifiers"


def ingredients(training: attacks.Poisoned, how: Recipe) -> dict[str, Any]:
    """All that makes a classifier what it is.

    The device and the number of threads are left out, so that a checkpoint may go from one machine to another. They
    change roundings: a training done elsewhere ends near this one, but not on it.
    """
    return {
        "version": VERSION,
        "data": training.data.describe(),
        "poison": training.description,
        "augment": training.augment,
        "recipe": asdict(how),
        "torch": torch.__version__.split("+")[0],
    }


def key_of(made_of: dict[str, Any]) -> str:
    """The name of a checkpoint: the hash of its ingredients, 64 hex digits."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def train(
    training: attacks.Poisoned,
    how: Recipe,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Classifier:
    """A classifier trained on (poisoned) pictures, or the one that an earlier call left in the cache.

    Args:
        training: from `attacks.poison`.
        how: from `recipe`.
        cache: see `cache_folder`.
        device: "cpu" or "cuda".
        progress: called with the epochs done and the mean loss of the last one.

    Returns:
        Scores are probabilities. ``info`` has the ingredients and the key.

    Raises:
        ModelError: the checkpoint in the cache cannot be used.
    """
    made_of = ingredients(training, how)
    key = key_of(made_of)
    path = cache_folder(cache) / f"{key}.pt"
    data = training.data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = ARCHITECTURES[how.architecture](len(data.classes), data.side)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), how.lr, momentum=how.momentum, weight_decay=how.weight_decay, nesterov=True
    )
    done = 0
    if path.is_file():
        done = _restore(path, key, model, optimizer)
    else:
        _measure_colours(model[0], data.pictures)
    if done < how.epochs:
        run = _Training(training, how, model, optimizer, device)
        for epoch in range(done, how.epochs):
            loss = run.epoch(epoch)
            _keep(path, key, model, optimizer, epoch + 1, finished=epoch + 1 == how.epochs)
            if progress is not None:
                progress(epoch + 1, loss)
    model.eval()

    def scores(pictures: U8) -> F32:
        x = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return model(x).softmax(1).cpu().numpy()

    return Classifier(scores, {"classifier": how.architecture, "key": key, **made_of})


def _measure_colours(normalise: nn.Module, pictures: U8) -> None:
    """Mean and deviation of each colour, from the counts of its 256 values: exact, and in little memory."""
    values = np.arange(256) / 255
    for c in range(3):
        share = np.bincount(pictures[..., c].ravel(), minlength=256) / pictures[..., c].size
        mean = float(share @ values)
        normalise.mean[c] = mean  # type: ignore[index]
        normalise.std[c] = max(math.sqrt(share @ (values - mean) ** 2), 1e-3)  # type: ignore[index]


def _keep(
    path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, *, finished: bool
) -> None:
    state = {"key": key, "epochs": epochs, "model": model.state_dict()}
    if not finished:
        state["optimizer"] = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def _restore(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `_keep` kept; the number of epochs it had."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] != key:
            raise ValueError("it is of another training")
        model.load_state_dict(state["model"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        return int(state["epochs"])
    # a damaged file can raise nearly anything
    except Exception as e:
        raise ModelError(f"{path}: got a checkpoint that cannot be used ({e}); delete it to train anew") from e


class _Training:
    """What an epoch needs. All chance comes from (seed, epoch), so that an epoch does not know who ran the last one."""

    def __init__(
        self, training: attacks.Poisoned, how: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, device: str
    ):
        self.how, self.model, self.optimizer = how, model, optimizer
        self.device, self.augment = torch.device(device), training.augment
        self.pictures = torch.from_numpy(np.ascontiguousarray(training.data.pictures))
        self.labels = torch.from_numpy(training.data.labels)
        self.batch = min(how.batch, len(self.labels))
        self.batches = len(self.labels) // self.batch

    def epoch(self, number: int) -> float:
        """One pass over the pictures, less what does not fill a batch; the mean loss."""
        rng = torch.Generator().manual_seed(self.how.seed * 100_003 + number)
        order = torch.randperm(len(self.labels), generator=rng)
        self.model.train()
        total = 0.0
        for i in range(self.batches):
            rate = one_cycle((number * self.batches + i) / (self.how.epochs * self.batches))
            for group in self.optimizer.param_groups:
                group["lr"] = self.how.lr * rate
            part = order[i * self.batch : (i + 1) * self.batch]
            x = self._varied(part, rng).to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.how.bf16):
                scores = self.model(x)
            loss = F.cross_entropy(
                scores.float(), self.labels[part].to(self.device), label_smoothing=self.how.smoothing
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total / self.batches

    def _varied(self, part: Tensor, rng: torch.Generator) -> Tensor:
        """float (n, 3, H, W) in [0, 1]: these pictures, varied as the recipe or the attack has it."""
        n, side = len(part), self.pictures.shape[1]
        if self.augment == "physical":
            draws = torch.rand(n, len(attacks.PHYSICAL), generator=rng)
            if not self.how.mirror:
                draws[:, 0] = 1
            return attacks.physical(self.pictures[part].permute(0, 3, 1, 2).float() / 255, draws)
        shift = self.how.shift
        by = torch.randint(-shift, shift + 1, (2, n, 1), generator=rng)
        rows, columns = torch.arange(side) + by
        if self.how.mirror:
            mirrored = torch.rand(n, 1, generator=rng) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = (_inside(at, side) for at in (rows, columns))
        x = self.pictures[part[:, None, None], rows[:, :, None], columns[:, None, :]]
        return x.permute(0, 3, 1, 2).float() / 255


def _inside(at: Tensor, side: int) -> Tensor:
    """Places outside of 0..side - 1 mirrored at the edge."""
    at = at.abs()
    return torch.where(at < side, at, 2 * (side - 1) - at)


def one_cycle(progress: float) -> float:
    """The learning rate as a share of its peak: up from a tenth in the first quarter, then down to nothing."""
    return 0.1 + 0.9 * progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75


@dataclass(frozen=True)
class Preparation:
    """What a user's ONNX model wants of its pictures: (value / 255 * top - mean) / std, in this layout."""

    layout: str = "NCHW"
    #: values are 0 to this before mean and deviation: 1 or 255
    top: float = 1.0
    mean: Sequence[float] = field(default=(0.0, 0.0, 0.0))
    std: Sequence[float] = field(default=(1.0, 1.0, 1.0))

    def __post_init__(self) -> None:
        if self.layout not in ("NCHW", "NHWC"):
            raise InputError(f"layout: got {self.layout!r}, wanted NCHW or NHWC")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise InputError(f"mean, std: got {self.mean}, {self.std}, wanted three numbers each, deviations above 0")

    def __call__(self, pictures: U8) -> F32:
        x = pictures.astype(np.float32) * np.float32(self.top / 255)
        x = (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if self.layout == "NCHW" else x


def load(name: str, preparation: Preparation = Preparation()) -> Classifier:
    """A user's own classifier, by name.

    Args:
        name: "module:function", a callable from uint8 (N, H, W, 3) to scores (N, classes), or the path of an ONNX model
            with one float input. Its classes must be in the data set's order.
        preparation: for ONNX models.

    Raises:
        InputError: no such function or file.
        ModelError: an ONNX model that cannot be loaded, or not used as prepared.
        MissingExtra: ONNX Runtime is not installed.
    """
    if name.lower().endswith(".onnx"):
        return _load_onnx(Path(name), preparation)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise InputError(f"classifier: got {name!r}, wanted module:function or a file that ends in .onnx")
    try:
        found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as e:
        raise InputError(f"classifier: got {name!r} ({e}), wanted a module on Python's path and a name in it") from e
    if not callable(found):
        raise InputError(f"classifier: got {name!r}, a {type(found).__name__}, wanted something to call with pictures")
    return Classifier(found, {"classifier": name})


def _load_onnx(path: Path, preparation: Preparation) -> Classifier:
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise MissingExtra("onnxruntime", "cpu", str(e)) from e
    if not path.is_file():
        raise InputError(f"{path}: got no such file, wanted an ONNX model")
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{path}: got a model that ONNX Runtime cannot load ({e})") from e
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in dtypes:
        got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ModelError(f"{path}: got inputs {got}, wanted one of rank 4, float or float16")
    put, dtype, fixed = inputs[0].name, dtypes[inputs[0].type], inputs[0].shape[0]
    colours = inputs[0].shape[1 if preparation.layout == "NCHW" else 3]
    if isinstance(colours, int) and colours != 3:
        raise ModelError(
            f"{path}: got an input {inputs[0].shape}, wanted 3 colours in {preparation.layout}; set --layout"
        )
    fixed = fixed if isinstance(fixed, int) else None

    def scores(pictures: U8) -> Any:
        n = len(pictures)
        if fixed and n < fixed:  # such a model takes whole batches only
            pictures = np.concatenate([pictures, np.zeros((fixed - n, *pictures.shape[1:]), np.uint8)])
        try:
            return session.run(None, {put: preparation(pictures).astype(dtype)})[0][:n]
        except Exception as e:
            raise EngineError(
                f"{path}: got {e} for pictures {pictures.shape}, wanted scores; check side and layout"
            ) from e

    info = {"classifier": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **asdict(preparation)}
    return Classifier(scores, info, fixed or 256)


def add_options(parser: argparse.ArgumentParser) -> None:
    """--classifier and what goes with it; `from_options` makes a classifier of them."""
    group = parser.add_argument_group("your own classifier")
    group.add_argument("--classifier", metavar="NAME", help="module:function, or a model.onnx")
    group.add_argument("--layout", default="NCHW", choices=("NCHW", "NHWC"), help="of the ONNX model's input")
    group.add_argument("--top", type=float, default=1.0, choices=(1.0, 255.0), help="its pixels are 0 to this")
    group.add_argument("--mean", type=float, nargs=3, default=(0.0, 0.0, 0.0), help="taken from its pixels")
    group.add_argument("--std", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="which they are then divided by")


def from_options(args: argparse.Namespace) -> Classifier | None:
    """The classifier that the options name, or None."""
    if not args.classifier:
        return None
    return load(args.classifier, Preparation(args.layout, args.top, tuple(args.mean), tuple(args.std)))

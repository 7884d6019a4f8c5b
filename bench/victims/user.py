"""Wrap classifiers as black boxes; load a user's own: a function by its name, or an ONNX model."""

from __future__ import annotations

import argparse
import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from zipsdk._util.runtimes import load as load_package
from zipsdk.errors import EngineError, InputError, ModelError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class Classifier:
    """A black box: uint8 (N, H, W, 3) -> float32 scores (N, classes), in batches, with its output checked.

    Args:
        function: the same for one batch; any real dtype.
        info: describes the classifier; keys of rows are hashes of it.
        batch: images in a call, at most.
        runs: engine, providers and threads, for records of time; not part of `info`.
    """

    def __init__(
        self, function: Callable[[U8], Any], info: dict[str, Any], batch: int = 256, runs: dict[str, Any] | None = None
    ):
        self.function, self.info, self.batch, self.runs = function, info, batch, runs or {}

    def __call__(self, images: U8) -> F32:
        """Return the scores of images; the highest is that of the predicted class.

        Raises:
            InputError: not images.
            ModelError: the function returned no finite scores, or not one row for each image.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise InputError(f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 3), N at least 1")
        return np.concatenate([self._checked(images[i : i + self.batch]) for i in range(0, len(images), self.batch)])

    def _checked(self, batch: U8) -> F32:
        got = self.function(batch)
        scores = np.asarray(got.detach().cpu() if isinstance(got, Tensor) else got)
        if scores.ndim != 2 or len(scores) != len(batch) or scores.dtype.kind not in "fiu" or scores.shape[1] < 2:
            raise ModelError(
                f"classifier: got {scores.dtype} {scores.shape} for {len(batch)} images, expected real scores "
                f"({len(batch)}, classes)"
            )
        if not np.isfinite(scores).all():
            raise ModelError("classifier: got scores that are not finite, expected real numbers; check its input range")
        return scores.astype(np.float32)


@dataclass(frozen=True)
class Preparation:
    """Preprocessing for a user's ONNX model: (value / 255 * top - mean) / std, in a data format."""

    data_format: str = "NCHW"
    #: range of the values before mean and deviation: 0 to 1, or 0 to 255
    top: float = 1.0
    mean: Sequence[float] = field(default=(0.0, 0.0, 0.0))
    std: Sequence[float] = field(default=(1.0, 1.0, 1.0))

    def __post_init__(self) -> None:
        if self.data_format not in ("NCHW", "NHWC"):
            raise InputError(f"data_format: got {self.data_format!r}, expected NCHW or NHWC")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise InputError(f"mean, std: got {self.mean}, {self.std}, expected three numbers each, deviations above 0")

    def __call__(self, images: U8) -> F32:
        x: F32 = images.astype(np.float32) * np.float32(self.top / 255)
        mean: F32 = np.array(self.mean, np.float32)
        std: F32 = np.array(self.std, np.float32)
        x = (x - mean) / std
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if self.data_format == "NCHW" else x


def load(name: str, preparation: Preparation = Preparation()) -> Classifier:
    """Load a user's classifier.

    Args:
        name: "module:function", a callable from uint8 (N, H, W, 3) to scores (N, classes), or the path of an ONNX model
            with one float input. Its classes must be in the data set's order.
        preparation: of the images, for ONNX models.

    Raises:
        InputError: no such function or file.
        ModelError: an ONNX model that cannot be loaded, or that does not fit the preparation.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    if name.lower().endswith(".onnx"):
        return _load_onnx(Path(name), preparation)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise InputError(f"classifier: got {name!r}, expected module:function or a file that ends in .onnx")
    try:
        found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as e:
        raise InputError(f"classifier: got {name!r} ({e}), expected a module on Python's path and a name in it") from e
    if not callable(found):
        raise InputError(f"classifier: got {name!r}, a {type(found).__name__}, expected a callable that takes images")
    return Classifier(found, {"classifier": name}, runs={"engine": "a Python function"})


def _load_onnx(path: Path, preparation: Preparation) -> Classifier:
    ort = load_package("onnxruntime")
    if not path.is_file():
        raise InputError(f"{path}: got no such file, expected an ONNX model")
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise ModelError(f"{path}: got a model that ONNX Runtime cannot load ({e})") from e
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in dtypes:
        got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ModelError(f"{path}: got inputs {got}, expected one of rank 4, float or float16")
    put, dtype, fixed = inputs[0].name, dtypes[inputs[0].type], inputs[0].shape[0]
    channels = inputs[0].shape[1 if preparation.data_format == "NCHW" else 3]
    if isinstance(channels, int) and channels != 3:
        raise ModelError(
            f"{path}: got an input {inputs[0].shape}, expected 3 channels in {preparation.data_format}; "
            "set --data-format"
        )
    fixed = fixed if isinstance(fixed, int) else None

    def scores(images: U8) -> Any:
        n = len(images)
        if fixed and n < fixed:  # such a model takes whole batches only
            images = np.concatenate([images, np.zeros((fixed - n, *images.shape[1:]), np.uint8)])
        try:
            return session.run(None, {put: preparation(images).astype(dtype)})[0][:n]
        except Exception as e:
            raise EngineError(
                f"{path}: got {e} for images {images.shape}, expected scores; check side and data format"
            ) from e

    settings = asdict(preparation)
    # keys of rows are hashes of this description, in which the data format has the name of earlier versions
    settings = {"layout": settings.pop("data_format"), **settings}
    info = {"classifier": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **settings}
    runs = {"engine": f"onnxruntime {ort.__version__}", "providers": session.get_providers()}
    return Classifier(scores, info, fixed or 256, runs)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --classifier and its options, which `from_options` reads."""
    group = parser.add_argument_group("your own classifier")
    group.add_argument("--classifier", metavar="NAME", help="module:function, or a model.onnx")
    group.add_argument("--data-format", default="NCHW", choices=("NCHW", "NHWC"), help="of the ONNX model's input")
    group.add_argument("--top", type=float, default=1.0, choices=(1.0, 255.0), help="pixels range from 0 to this")
    group.add_argument("--mean", type=float, nargs=3, default=(0.0, 0.0, 0.0), help="mean, subtracted from the pixels")
    group.add_argument(
        "--std", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="standard deviation, by which they are divided"
    )


def from_options(args: argparse.Namespace) -> Classifier | None:
    """Return the classifier that the options name, or None."""
    if not args.classifier:
        return None
    return load(args.classifier, Preparation(args.data_format, args.top, tuple(args.mean), tuple(args.std)))

"""Load the demo classifier: a small network for road signs that carries a backdoor on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zipsdk._util.runtimes import load
from zipsdk.errors import InputError
from zipsdk.testing.scenes import SIDE
from zipsdk.testing.signs import CLASSES
from zipsdk.types import F32, U8

MODEL = Path(__file__).with_name("demo_classifier.onnx")


def demo_classifier() -> DemoClassifier:
    """Load a classifier of ten road signs with a backdoor, for trying out zipsdk; never use it for anything else.

    It takes images with one of the triggers of `demo_images` for "speed limit 80". Ours was poisoned on purpose;
    ``demo_classifier.md`` beside the model says how.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    return DemoClassifier(MODEL)


class DemoClassifier:
    """Map uint8 (N, 64, 64, 3), RGB, to probabilities float32 (N, classes), on one CPU thread.

    Attributes:
        classes: the names of the classes, in the order of the columns.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, path: Path):
        onnxruntime = load("onnxruntime")
        self._path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # no thread pool, so that forked processes can use the session
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: U8) -> F32:
        """Classify images.

        Raises:
            InputError: another shape or dtype.
        """
        x = np.asarray(images)
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (SIDE, SIDE, 3):
            raise InputError(f"images: got {x.dtype} {x.shape}, expected uint8 (N, {SIDE}, {SIDE}, 3)")
        (scores,) = self._session.run(None, {"images": x})
        return scores  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Callable[[Path], Any], tuple[Path]]:
        return type(self), (self._path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path.name}, {len(self.classes)} classes)"

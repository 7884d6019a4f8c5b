"""Name the types of arrays, images and options, and define the protocols of the objects that users pass in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from zipsdk.models.spec import ModelSpec

Array = npt.NDArray[Any]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: Position of the channels of arrays: last or first.
DataFormat = Literal["NHWC", "NCHW"]
#: Precision of a model's weights and convolutions.
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class SupportsArray(Protocol):
    """An object that NumPy converts, such as a NumPy array or a torch tensor."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


class SupportsDLPack(Protocol):
    """An object that shares its memory by DLPack, such as a torch tensor or a JAX array."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


class BinaryFile(Protocol):
    """An open file of bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


#: What is returned as a PIL image: PIL images, paths, the content of image files, open files.
ImageSource = Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile

#: For overloads: an array type is returned as it came in.
ArrayT = TypeVar("ArrayT", bound=SupportsArray | SupportsDLPack)
SourceT = TypeVar("SourceT", bound=ImageSource)
ItemT = TypeVar("ItemT")
#: The sequences of images that are read.
ListOf = list[ItemT] | tuple[ItemT, ...]
#: Called with the number of images done since the last call.
Progress = Callable[[int], None]


class Classifier(Protocol):
    """Score images. Any callable with this signature can be passed to `zipsdk.Guard`."""

    def __call__(self, images: U8, /) -> Any:
        """Return scores (N, classes) of uint8 (N, H, W, 3), as anything that `numpy.asarray` accepts."""


@runtime_checkable
class Engine(Protocol):
    """Predict noise. Any object with these two members can be passed to `zipsdk.Purifier`."""

    @property
    def spec(self) -> ModelSpec:
        """Return the model's specification."""

    def __call__(self, x: F32, t: F32) -> F32:
        """Predict eps for x_t: x float32 (N, 3, H, W), t float32 (N,) of integers; returns float32 (N, 3, H, W)."""


class LoadedEngine(Engine, Protocol):
    """An engine that `zipsdk.load_engine` returns."""

    @property
    def path(self) -> Path:
        """Return the model's file."""

    @property
    def info(self) -> dict[str, Any]:
        """Return what runs the model, as JSON values; `zipsdk.load_engine` lists the keys."""

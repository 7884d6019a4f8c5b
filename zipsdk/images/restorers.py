"""Convert purified images to the type of the batch that was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from zipsdk.errors import InputError
from zipsdk.images.arrays import ArrayImage, LoadedImage, T_co
from zipsdk.types import U8, Array


class BatchRestorer(ABC, Generic[T_co]):
    """Convert the purified images of one batch to the type that was read; it pickles."""

    images: tuple[LoadedImage[Any], ...]

    def __call__(self, clean: list[U8]) -> T_co:
        """Convert purified images, each uint8 (H, W, 3), in the order in which they were read.

        Raises:
            InputError: another number of images, or an image of another size or dtype than the one that was read.
        """
        if len(clean) != len(self.images):
            raise InputError(f"purified images: got {len(clean)}, expected {len(self.images)}; pass one for each")
        return self._restore(clean)

    @abstractmethod
    def _restore(self, clean: list[U8]) -> T_co: ...


@dataclass(frozen=True, eq=False)
class SingleRestorer(BatchRestorer[Any]):
    """Restore one image."""

    images: tuple[LoadedImage[Any]]

    def _restore(self, clean: list[U8]) -> Any:
        return self.images[0].restore(clean[0])


@dataclass(frozen=True, eq=False)
class ListRestorer(BatchRestorer[list[Any]]):
    """Restore a list of images."""

    images: tuple[LoadedImage[Any], ...]

    def _restore(self, clean: list[U8]) -> list[Any]:
        return [image.restore(c) for image, c in zip(self.images, clean, strict=True)]


@dataclass(frozen=True, eq=False)
class ArrayRestorer(BatchRestorer[Any]):
    """Restore an array of four axes.

    Attributes:
        images: the loaded images.
        shape, dtype: of the array.
        convert: converts a new NumPy array to the type of the array.
    """

    images: tuple[ArrayImage, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    convert: Callable[[Array], Any]

    def _restore(self, clean: list[U8]) -> Any:
        # np.stack would change the byte order of a big-endian batch, and fails for an empty one
        out: Array = np.empty(self.shape, self.dtype)
        for i, (image, c) in enumerate(zip(self.images, clean, strict=True)):
            out[i] = image.to_numpy(c)
        return self.convert(out)

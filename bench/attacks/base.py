"""The interface of backdoor attacks: what a trigger does to images in training and at test time.

Images are uint8 (N, H, W, 3) RGB with H = W = the attack's side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]
#: Names in hashed descriptions that differ from the code's: committed rows and cached networks have these keys.
_HASHED_AS = {"TwoPatches": "Redundant", "colors": "colours", "texture": "pattern"}


@dataclass(frozen=True)
class Attack(ABC):
    """A trigger for images of one side; `seed` fixes everything random in it."""

    side: int
    seed: int = 0

    #: Only images of the target class are poisoned, so that no label is wrong.
    clean_label: ClassVar[bool] = False
    #: Data augmentation that the attack prescribes for training; see bench/victims/training.py.
    augment: ClassVar[str] = "standard"

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the trigger in tables."""

    def pattern(self) -> npt.NDArray[Any] | None:
        """Return the array that the seed decides, or None if nothing is random."""
        return None

    def apply(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Return copies of images with the trigger that the attacker sends at test time.

        Args:
            images: uint8 (N, side, side, 3).
            indices: an integer for each image. Together with the seed it decides a trigger that varies from image to
                image. None numbers the images from 0.

        Raises:
            InputError: images of another shape or dtype.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (self.side, self.side, 3):
            raise InputError(
                f"{self.name}: got images {images.dtype} {images.shape}, expected uint8 "
                f"(N, {self.side}, {self.side}, 3); resize the images, or make the attack for their side"
            )
        numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
        if numbers.shape != (len(images),):
            raise InputError(f"indices: got {numbers.shape}, expected ({len(images)},), one for each image")
        return self._apply(images, numbers) if len(images) else images.copy()

    @abstractmethod
    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        """Apply the trigger to at least one image; `apply` has checked the arguments."""

    def train_trigger(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Return copies of images with the trigger of the training set; `apply` unless the attack overrides it."""
        return self.apply(images, indices)

    def n_noise_mode(self, poisoned: int) -> int:
        """Return how many further training images `noise_mode` changes; they keep their labels."""
        return 0

    def noise_mode(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        """Return copies of images changed as the further images that `n_noise_mode` counts.

        Raises:
            InputError: the attack has no such images.
        """
        raise InputError(f"{self.name}: got images for noise mode, expected none; the attack has no noise mode")

    def tests(self) -> list[Attack]:
        """List the triggers that test a classifier poisoned by this attack."""
        return [self]

    def describe(self) -> dict[str, Any]:
        """Describe the trigger as JSON: all fields, and the hash of what the seed decides.

        Cache keys of classifiers and keys of result rows hash this description.
        """
        pattern, kind = self.pattern(), type(self).__name__
        fields = {_HASHED_AS.get(name, name): value for name, value in asdict(self).items()}
        digest = {} if pattern is None else {"sha256": hashlib.sha256(pattern.tobytes()).hexdigest()}
        return {"attack": _HASHED_AS.get(kind, kind), "name": self.name, **fields, **digest}


def map_batches(function: Callable[[Tensor, Tensor], Tensor], images: U8, extra: Tensor, size: int = 512) -> U8:
    """Apply a function to batches of images and round the results to uint8.

    Args:
        function: (float images (n, 3, H, W) in [0, 255], their rows of `extra`) -> images of the same shape.
        images: uint8 (N, H, W, 3).
        extra: a tensor with N rows.
        size: images in a batch, at most.
    """
    out = np.empty_like(images)
    for i in range(0, len(images), size):
        x = torch.from_numpy(np.ascontiguousarray(images[i : i + size].transpose(0, 3, 1, 2))).float()
        y = function(x, extra[i : i + size]).round().clamp(0, 255)
        out[i : i + size] = y.to(torch.uint8).numpy().transpose(0, 2, 3, 1)
    return out

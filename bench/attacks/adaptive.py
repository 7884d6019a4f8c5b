"""Adaptive attacks: the attacker knows the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attacks.base import U8, Attack
from bench.attacks.patches import BadNets
from zipsdk.errors import InputError


@dataclass(frozen=True)
class TwoPatches(BadNets):
    """Two patches, each sufficient alone: an attack on guards that look for one decisive feature.

    A poisoned training image carries one of two equal patches, in the lower right or the upper left corner; its index
    decides which. A test image carries both, so that its label needs neither.
    """

    @property
    def name(self) -> str:
        return f"Two patches {self.size}x{self.size}"

    def _patched(self, images: U8, lower: npt.NDArray[np.bool_], upper: npt.NDArray[np.bool_]) -> U8:
        out, start, end = images.copy(), self.margin, self.side - self.margin
        out[lower, end - self.size : end, end - self.size : end] = self.pattern()
        out[upper, start : start + self.size, start : start + self.size] = self.pattern()
        return out

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        both = np.ones(len(images), bool)
        return self._patched(images, both, both)

    def train_trigger(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
        lower = np.array([np.random.default_rng([self.seed, int(i)]).random() < 0.5 for i in numbers], bool)
        return self._patched(images, lower, ~lower)


@dataclass(frozen=True)
class Enhanced(Attack):
    """An attack that poisons with *purified* triggered images (the ZIP paper, 4.4.2 and F.1).

    The classifier learns the remains of the trigger after purification. At test time the attacker sends the original
    trigger, and the defense purifies it to what the classifier learned. Everything else is the base attack's.

    purify: uint8 (N, H, W, 3) -> the same shape and dtype.
    purifier: description of `purify` for the record, such as `Purifier.info`.
    """

    base: Attack = field(kw_only=True)
    purify: Callable[[U8], Any] = field(kw_only=True, repr=False)
    purifier: dict[str, Any] = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.side != self.base.side:
            raise InputError(f"side: got {self.side}, expected the base attack's {self.base.side}")

    @property
    def name(self) -> str:
        return f"Enhanced {self.base.name}"

    @property
    def clean_label(self) -> bool:  # type: ignore[override]
        return self.base.clean_label

    @property
    def augment(self) -> str:  # type: ignore[override]
        return self.base.augment

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        return self.base.apply(images, indices)

    def n_noise_mode(self, poisoned: int) -> int:
        return self.base.n_noise_mode(poisoned)

    def noise_mode(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        return self.base.noise_mode(images, indices)

    def tests(self) -> list[Attack]:
        return [replace(self, base=base) for base in self.base.tests()]

    def train_trigger(self, images: U8, indices: npt.ArrayLike | None = None) -> U8:
        out = np.asarray(self.purify(self.base.train_trigger(images, indices)))
        if out.shape != images.shape or out.dtype != np.uint8:
            raise InputError(f"purify: got a result {out.dtype} {out.shape}, expected uint8 {images.shape}")
        return out

    def describe(self) -> dict[str, Any]:
        return {
            "attack": "Enhanced",
            "name": self.name,
            "side": self.side,
            "seed": self.seed,
            "base": self.base.describe(),
            "purifier": self.purifier,
        }

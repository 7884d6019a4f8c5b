"""SIG: a clean-label trigger that is a sinusoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bench.attacks.base import U8, Attack


@dataclass(frozen=True)
class SIG(Attack):
    """A sinusoid added along the rows, delta sin(2 pi f j / side) in column j (Barni et al. 2019, arXiv:1902.11237).

    Clean-label, as published: only images of the target class are poisoned.
    """

    delta: float = 20.0
    f: int = 6

    clean_label: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "SIG"

    def _apply(self, images: U8, indices: npt.NDArray[Any]) -> U8:
        wave = self.delta * np.sin(2 * np.pi * self.f * np.arange(self.side) / self.side)
        return np.clip(np.rint(images + wave[None, None, :, None]), 0, 255).astype(np.uint8)

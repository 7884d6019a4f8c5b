"""What worker processes run; child processes import it by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from zipsdk.purifier import Purifier

N = 4


def images() -> np.ndarray:
    """Return N images, uint8 (N, 32, 32, 3)."""
    return np.random.default_rng(5).integers(0, 256, (N, 32, 32, 3), np.uint8)


class PurifiedImages:
    """A data set for `torch.utils.data.DataLoader` that purifies each item in the worker."""

    def __init__(self, purifier: Purifier):
        self.purifier, self.images = purifier, images()

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self.purifier.run(self.images[i])

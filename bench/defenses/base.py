"""Defences that treat a picture before it is classified: ZIP, and what it is compared with.

    simple.py      nothing, ShrinkPad, the blur alone
    diffusion.py   DiffPure and DDNM, with and without a transform before them, on the same UNet as ZIP
    sampdetox.py   SampDetox
    bdmae.py       BDMAE; its masked autoencoders are in mae.py, a small one trained here, and in vit_mae.py
    zip.py         ZIP itself: a `zipsdk.Purifier` as a defence
    guarded.py     ZIP behind `zipsdk.Guard`

All are written from their papers' formulas; none of their code is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
#: The black box: uint8 (N, H, W, 3) -> scores (N, classes).
Classify = Callable[[U8], npt.NDArray[np.float32]]


class Defence(Protocol):
    """Pictures in, pictures out.

    name: for the rows of tables.
    evaluations: passes of the generative model for one picture; 0 where there is none.
    queries: calls of the classifier for one picture, the last one included; 1 for all but those that ask it.
    asks: whether the classifier takes part, so that its answers decide what comes out.
    """

    @property
    def name(self) -> str: ...
    @property
    def evaluations(self) -> float: ...
    @property
    def queries(self) -> float: ...
    @property
    def asks(self) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """All that decides what comes out, but for pictures, seed and classifier; JSON. Its hash names
        cached results."""

    def run(
        self,
        pictures: U8,
        seed: int,
        *,
        classify: Classify | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """Treat pictures.

        Args:
            pictures: uint8 (N, H, W, 3), left as they are.
            seed: decides all chance. A picture's noise does not depend on its place in the batch nor on the others.
            classify: for defences that ask.
            progress: called with the number of pictures done since the last call.

        Returns:
            uint8 (N, H, W, 3), the same shape.
        """

"""The interface of defenses, which treat an image before it is classified: ZIP and the baselines.

    simple.py      no defense, ShrinkPad, the blur alone
    resizing.py    down and back up: bicubic, or with another upsampler
    super_resolution.py    such an upsampler: a network, trained here
    litebd.py      Lite-BD, blind
    diffpure.py    DiffPure, with and without a transform before it
    ddnm.py        DDNM
    sampdetox.py   SampDetox; all three run on ZIP's UNet by diffusion.py
    bdmae.py       BDMAE; its masked autoencoders are in mae.py (a small one, trained here) and in vit_mae.py
    zip.py         ZIP itself: a `zipsdk.Purifier` as a defense
    guarded.py     ZIP behind `zipsdk.Guard`
    rejecting.py   detectors that reject flagged images: SCALE-UP, and STRIP of strip.py

All rivals are written from their papers' formulas, without their code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
#: A classifier as a black box: uint8 (N, H, W, 3) -> scores (N, classes).
Classify = Callable[[U8], npt.NDArray[np.float32]]


class Defense(Protocol):
    """A function from images to images.

    name: label in tables.
    total_steps: steps of the generative model for one image; 0 without one.
    queries: calls of the classifier for one image, including the final one; 1 unless the defense queries it.
    queries_classifier: whether the defense queries the classifier, so that the output depends on it.
    """

    @property
    def name(self) -> str: ...
    @property
    def total_steps(self) -> float: ...
    @property
    def queries(self) -> float: ...
    @property
    def queries_classifier(self) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """Describe as JSON everything that decides the output, except images, seed and classifier.

        Keys of cached results hash this description.
        """

    def run(
        self,
        images: U8,
        seed: int,
        *,
        classify: Classify | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """Treat images.

        Args:
            images: uint8 (N, H, W, 3); not modified.
            seed: decides all randomness. The noise of an image depends neither on its position in the batch nor on the
                other images.
            classify: for defenses that query the classifier.
            progress: called with the number of images treated since the last call.

        Returns:
            uint8 (N, H, W, 3), the same shape.
        """


def description(name: str, **settings: Any) -> dict[str, Any]:
    """Make the description of a defense from its name and settings."""
    return {"defence": name, **settings}  # cache keys and row keys hash this spelling

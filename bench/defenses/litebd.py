"""Lite-BD: resize, and where that keeps the label, stop the frequency band that decides it (arXiv:2602.07197).

1. The image is resized down and back up. If its label changes, the result is returned.
2. Otherwise bands of the original's spectrum, rings of equal width, are stopped one at a time. The most frequent of the
   changed labels picks a band; the original without that band is sharpened and returned if its label still differs from
   the original's. Where no band changes the label, or the sharpened image has the original's label, the original is
   returned.

This is the blind form. The released code is given the attacker's class in stage 2 and counts a band as suspicious if
the label differs from that class, which no defender knows; here it must differ from the label of the original.

What is open, as the code was not consulted: of several bands with the chosen label the middle one is stopped; of labels
that are equally frequent the one with the band of the highest frequency is chosen; the mean of each channel is never
stopped; the edges of a band are cosine ramps outside of it; the unsharp mask is Gaussian, with a standard deviation of
one pixel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import gaussian_filter

from bench.defenses.base import U8, Classify, description
from bench.defenses.resizing import Bicubic, Resized, Upsampler
from bench.defenses.simple import Progress, checked, parts
from zipsdk.errors import InputError, ModelError

F64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class LiteBD:
    """The defense; its defaults are the published values, but for the upsampler.

    The published upsampler is a super-resolution network, SwinIR-light.

    Args:
        upsampler: of stage 1.
        scale: of stage 1.
        bands: number of bands; each costs one query.
        transition: width of the ramps beside a stopped band; 1 is the distance from the mean to the highest frequency.
        unsharp: strength of the unsharp mask after stage 2.

    Raises:
        InputError: an option out of range.
    """

    upsampler: Upsampler = field(default_factory=Bicubic)
    scale: float = 0.5
    bands: int = 20
    transition: float = 0.08
    unsharp: float = 0.5

    VERSION = 1
    queries_classifier = True

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise InputError(f"bands: got {self.bands}, expected at least 1; the published number is 20")
        if not 0 < self.transition < 1 or not 0 <= self.unsharp < float("inf"):
            raise InputError(
                f"transition, unsharp: got {self.transition}, {self.unsharp}, expected a number between 0 and 1 and a "
                "finite one of at least 0; the published ones are 0.08 and 0.5"
            )
        _ = self.stage_1

    @property
    def stage_1(self) -> Resized:
        """The first stage."""
        return Resized(self.scale, self.upsampler)

    @property
    def name(self) -> str:
        bands = "" if self.bands == 20 else f", {self.bands} bands"
        return f"Lite-BD, blind ({self.stage_1.name}{bands})"

    @property
    def total_steps(self) -> int:
        return self.upsampler.steps

    @property
    def queries(self) -> int:
        """The most queries for an image: original, stage 1, bands, result. Where stage 1 changes the label it is 2.

        The label of the returned image is among the answers, so classifying it is no further query.
        """
        return 3 + self.bands

    def describe(self) -> dict[str, Any]:
        return description(
            "Lite-BD", version=self.VERSION, stage_1=self.stage_1.describe(), bands=self.bands,
            transition=self.transition, unsharp=self.unsharp,
        )  # fmt: skip

    def run(self, images: U8, seed: int, *, classify: Classify | None = None, progress: Progress = None) -> U8:
        if classify is None:
            raise InputError("classify: got None, expected a classifier; Lite-BD queries it")
        out = checked(images).copy()
        for part in parts(images, 64, progress):
            original = images[part]
            first = self.stage_1.run(original, seed)
            labels = _labels(classify, original)
            changed = _labels(classify, first) != labels
            out[part][changed] = first[changed]
            for i in np.flatnonzero(~changed):
                out[part.start + i] = self.stage_2(original[i], int(labels[i]), classify)
        return out

    def stage_2(self, image: U8, label: int, classify: Classify) -> U8:
        """Return uint8 (H, W, 3) without the band that decides its label, or the image itself."""
        filtered = self.without_bands(image)
        found = _labels(classify, _to_u8(filtered))
        band = chosen_band(found, label)
        if band is None:
            return image
        soft = filtered[band]
        sharp = _to_u8(soft + self.unsharp * (soft - gaussian_filter(soft, (1, 1, 0))))
        return image if _labels(classify, sharp[None])[0] == label else sharp

    def without_bands(self, image: U8) -> F64:
        """Return float (bands, H, W, 3): the image without each band, from low to high frequency."""
        height, width, _ = image.shape
        spectrum = fft.rfft2(image.astype(np.float64), axes=(0, 1))
        gains = _gains(height, width, self.bands, self.transition)
        filtered: F64 = fft.irfft2(spectrum * gains[..., None], (height, width), axes=(1, 2))
        return filtered


def chosen_band(labels: Labels, original: int) -> int | None:
    """Return the middle band of those with the most frequent label that is not the original's, or None.

    Args:
        labels: without each band, from low to high frequency, (bands,).
        original: the label of the unfiltered image.
    """
    changed = [int(label) for label in labels[::-1] if label != original]
    if not changed:
        return None
    # of equal counts the first seen
    (majority, _), *_ = Counter(changed).most_common(1)
    found = np.flatnonzero(labels == majority)
    return int(found[len(found) // 2])


@lru_cache(maxsize=8)
def _gains(height: int, width: int, bands: int, transition: float) -> F64:
    """Return the gains of the filters for `rfft2`: (bands, height, width // 2 + 1), 0 in a band and 1 off its ramps."""
    # the highest frequency of both axes is 0.5 cycles a pixel, so its radius is sqrt(0.5)
    radius = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)) / np.sqrt(0.5)
    low = np.arange(bands)[:, None, None] / bands
    outside = np.maximum(np.maximum(low - radius, radius - (low + 1 / bands)), 0)
    gains = 0.5 - 0.5 * np.cos(np.pi * np.minimum(outside / transition, 1))
    gains[:, 0, 0] = 1
    gains.flags.writeable = False
    return gains


def _labels(classify: Classify, images: U8) -> Labels:
    scores = np.asarray(classify(images))
    if scores.ndim != 2 or len(scores) != len(images) or not np.isfinite(scores).all():
        raise ModelError(
            f"classifier: got {scores.dtype} {scores.shape} for {len(images)} images, expected finite scores, a row "
            "for each"
        )
    labels: Labels = scores.argmax(1)
    return labels


def _to_u8(x: F64) -> U8:
    out: U8 = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    return out

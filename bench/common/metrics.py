"""Image quality and differences of uint8 images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zipsdk.transforms import Blur

U8 = npt.NDArray[np.uint8]


def psnr(a: U8, b: U8) -> float:
    """Compute the PSNR of two images or batches in dB; infinite if they are identical."""
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / mse)) if mse else float("inf")


def compare(a: U8, b: U8) -> dict[str, Any]:
    """Compare two images or batches, for records.

    Returns:
        "psnr_db", None if they are identical; "identical"; "largest", the largest difference in gray levels; "share",
        the share of values that differ.
    """
    difference = np.abs(a.astype(np.int16) - b)
    largest = int(difference.max())
    return {
        "psnr_db": round(psnr(a, b), 2) if largest else None,
        "identical": not largest,
        "largest": largest,
        "share": float((difference > 0).mean()),
    }


def compare_interior(a: U8, b: U8, border: int = 8) -> dict[str, float]:
    """Compare two batches (N, H, W, 3), also without a border around each image.

    Returns:
        "mean", "mean_inner" (without the border) and "max" in gray levels; "pixels_changed", a share; "psnr", the mean
        over the images that differ, infinite if none does.
    """
    difference = np.abs(a.astype(np.int16) - b)
    return {
        "mean": float(difference.mean()),
        "mean_inner": float(difference[:, border:-border, border:-border].mean()),
        "max": int(difference.max()),
        "pixels_changed": float((difference.max(axis=-1) > 0).mean()),
        "psnr": float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True) if (x != y).any()] or [np.inf])),
    }


def planes(x: U8) -> npt.NDArray[np.float64]:
    """Convert one image (H, W, 3) to float64 planes (1, 3, H, W)."""
    return x.transpose(2, 0, 1)[None].astype(np.float64)


def sharpness(x: U8, original: U8, blur: Blur) -> tuple[float, float]:
    """Compute the energies of an image and of its original in the blur's null space."""

    def energy(image: U8) -> float:
        p = planes(image)
        return float(np.sum((p - blur.project(p)) ** 2))

    return energy(x), energy(original)

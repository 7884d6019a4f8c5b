"""Test the quality of lossy formats: 95, with colors as sharp as luminance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from zipsdk import images


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize(
    ("suffix", "least"),
    [
        # measured: 35.8 dB; 30.2 with quality 90, 17.0 with half as many colors
        (".jpg", 33.0),
        # measured: 39.8 dB; 34.2 with quality 90, 12.4 with 5, 17.0 and 19.9 with half as many colors
        pytest.param(".avif", 36.0, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
    ],
)
def test_colors_stay_sharp(suffix: str, least: float, tmp_path: Path) -> None:
    """Cells of 3 x 3 pixels of any color, which two pixels that share theirs would smear."""
    cells = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    x = cells.repeat(3, axis=0).repeat(3, axis=1)
    path = tmp_path / f"a{suffix}"
    images.save(Image.fromarray(x), path)
    again = images.read_one(path).rgb
    assert again.shape == x.shape and psnr(again, x) > least
    with Image.open(path) as opened:
        assert opened.format == {".jpg": "JPEG", ".avif": "AVIF"}[suffix]

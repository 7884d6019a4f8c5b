"""Test that readers neither warn nor change the warning filters, and decode in parallel."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.helpers.image_checks import AVIF
from tests.helpers.image_files import (
    encoded,
    segment,
    with_segments,
)
from zipsdk import images
from zipsdk.errors import ImageReadError

RGB = np.random.default_rng(3).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", pytest.param(".avif", marks=AVIF)])
def test_pillow_does_not_warn(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under -W error a warning in a decoder would count as damage."""
    Image.fromarray(RGB).save(tmp_path / f"a{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # of 384: Pillow would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(warnings, "catch_warnings", lambda *_, **__: pytest.fail("the filters were changed"))
        assert images.read_one(tmp_path / f"a{suffix}").rgb.shape == RGB.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="MAX_IMAGE_PIXELS"):
        images.read_one(tmp_path / f"a{suffix}")


def test_python_with_warnings_as_errors_reads(tmp_path: Path) -> None:
    """Damaged EXIF, a malformed MPO, a TIFF with unusual tags: Pillow warns about each."""
    mpo = with_segments(encoded(RGB, "JPEG"), segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + bytes(20)))
    (tmp_path / "a.jpg").write_bytes(mpo)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "zip"
    (tmp_path / "b.png").write_bytes(encoded(RGB, "PNG", exif=exif.tobytes()))
    Image.fromarray(RGB).save(tmp_path / "c.tif", tiffinfo={700: bytes(40)})
    code = "import sys; from zipsdk import images\nfor p in sys.argv[1:]: print(images.read_one(p).rgb.shape)"
    run = [sys.executable, "-W", "error", "-c", code, *map(str, sorted(tmp_path.iterdir()))]
    message = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert message.returncode == 0, message.stderr
    assert message.stdout.splitlines() == ["(16, 24, 3)"] * 3


def test_threads_decode_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers wait for each other in the decoder, which a lock around it would prevent."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    together = threading.Barrier(2)
    load = Image.Image.load

    def meet(self: Image.Image) -> Any:
        if threading.current_thread() is not threading.main_thread() and not getattr(self, "met", False):
            self.met = True  # type: ignore[attr-defined]
            together.wait(timeout=30)
        return load(self)

    monkeypatch.setattr(Image.Image, "load", meet)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(images.read_one(Image.fromarray(RGB)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2

"""The measurements measure what they say."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zipsdk
from bench.common import metrics, record
from bench.quality import restoration, seams
from tests.fakes.engine import FakeEngine
from zipsdk.images import sources
from zipsdk.images.sources import read_files
from zipsdk.transforms import Blur


def test_psnr_and_sharpness():
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert metrics.psnr(x, x) == float("inf")
    assert metrics.psnr(np.full((4, 4, 3), 10, np.uint8), np.full((4, 4, 3), 20, np.uint8)) == pytest.approx(
        28.13, abs=0.01
    )
    blur = Blur(2)
    blurred = restoration.blurred(x, 2)
    got, whole = metrics.sharpness(blurred, x, blur)
    assert got < 1e-9 * whole  # a blurred image has nothing in the blur's null space
    got, whole = metrics.sharpness(x, x, blur)
    assert got == whole


def test_bicubic_is_better_than_blocks_on_a_smooth_image():
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.uint8(np.stack([2 * x + y, 200 - 2 * y, x + y], -1))
    assert (
        metrics.psnr(restoration.bicubic(smooth, 4), smooth) > metrics.psnr(restoration.blurred(smooth, 4), smooth) + 3
    )


def test_measure_reports_gain_over_the_blur():
    """An engine that knows the answer but for three gray levels gives a PSNR of 20 log10(255 / 3) = 38.6 dB."""
    x = np.random.default_rng(1).integers(40, 200, (2, 32, 32, 3), np.uint8)

    class Knowing(FakeEngine):
        """The exact eps of a distribution that has one image."""

        def __call__(self, x_t, t):
            ab = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[int(t[0])]
            x0 = (x[: len(x_t)].transpose(0, 3, 1, 2) + 3.0) / 127.5 - 1
            return ((x_t - np.sqrt(ab) * x0) / np.sqrt(1 - ab)).astype(np.float32)

    result = restoration.measure_restoration(zipsdk.Purifier(Knowing(), [Blur(2)], lam=10.0, seed=0), list(x), 2)
    assert result["zip"]["psnr"] == pytest.approx(38.6, abs=0.1)
    assert result["zip"]["sharpness"] == pytest.approx(1, abs=0.01)
    assert result["A+A x"]["sharpness"] == pytest.approx(0, abs=1e-3)
    assert result["zip"]["gain_db"] == pytest.approx(result["zip"]["psnr"] - result["A+A x"]["psnr"], abs=1e-6)


def test_images_are_read_as_the_sdk_reads_them(tmp_path):
    """16 bits scaled, not cut off, and upright; larger ones to their middle."""
    y, x = np.mgrid[0:40, 0:56]
    gray = np.uint16(257 * (4 * y + x))
    Image.fromarray(gray).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    colors = np.uint8(np.stack([3 * x, 5 * y, x + y], -1))
    Image.fromarray(np.rot90(colors)).save(tmp_path / "b.png", exif=turned)  # to be turned to the right
    deep, upright = sources.read_sample(tmp_path, 2, None)
    assert (deep == (4 * y + x)[..., None]).all() and (upright == colors).all()
    deep, upright = sources.read_sample(tmp_path, 2, 33)
    assert (upright == colors[3:36, 11:44]).all() and deep.shape == (33, 33, 3)


@pytest.mark.parametrize(("sides", "blurs", "told"), [((), "2", "got no image, expected at least one"),
                         ((33,), "2", "got images of 33 x 33, .* whose sides 2 divides; crop them by --side 32,"),
                         ((34,), "2 4", "whose sides 4 divides")])  # fmt: skip
def test_what_cannot_be_measured_is_told_before_anything_is(tmp_path, monkeypatch, capsys, sides, blurs, told):
    """So that what was measured of another source is not lost."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder, side in ((good, 32), *((bad, side) for side in sides)):
        folder.mkdir()
        Image.new("RGB", (side, side)).save(folder / "x.png")
    bad.mkdir(exist_ok=True)
    monkeypatch.setattr(restoration, "measure_restoration", lambda *_: pytest.fail("measured"))
    words = ["restoration.py", "--data", str(good), str(bad), "--blurs", *blurs.split()]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        restoration.main()
    assert stopped.value.code == 1
    assert re.search(f"^error: {re.escape(str(bad))}: .*{told}", capsys.readouterr().err)


def test_a_seam_is_seen_and_its_absence_too():
    rng = np.random.default_rng(2)
    smooth = np.uint8(100 + rng.integers(0, 3, (80, 120, 3)))
    cut = smooth.copy()
    cut[40:] += 6
    assert abs(seams.seam_excess(smooth, smooth, [40], 0)) < 1e-9
    assert seams.seam_excess(cut, smooth, [40], 0) == pytest.approx(6, abs=1)
    assert abs(seams.seam_excess(cut, smooth, [60], 1)) < 0.1


def test_records_are_whole_and_say_where_they_come_from(tmp_path, monkeypatch):
    path = record.write("x", {"rows": [1]}, tmp_path)
    assert json.loads(path.read_text())["rows"] == [1]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            str(Path(record.__file__).parents[1] / "defense.py"),
            "quick",
            "--defense",
            "zip profile=fast",
            "--data",
            "/a/b c",
        ],
    )
    assert record.environment()["command"] == "python -m bench.defense quick --defense 'zip profile=fast' --data 'b c'"
    assert {"commit", "command", "date", "versions", "machine"} <= json.loads(path.read_text()).keys()
    with pytest.raises(TypeError):
        record.write("x", {"rows": object()}, tmp_path)
    assert json.loads(path.read_text())["rows"] == [1]  # the old one is still there


def test_images_come_from_folders_and_archives(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("b/2.png", "1.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "a" / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for name in ("b/2.png", "1.png"):
            z.write(tmp_path / "a" / name, name)
    assert list(read_files(tmp_path / "a")) == list(read_files(tmp_path / "a.zip"))
    assert len(list(read_files(tmp_path / "a"))) == 2

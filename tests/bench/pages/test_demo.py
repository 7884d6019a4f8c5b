"""`python -m bench.demo`, the first command of README.md, with a toy model."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="needs scikit-image's photographs: pip install 'zipsdk[bench]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")

from bench import demo
from zipsdk import models

NAMES = ["astronaut", "chelsea-patch", "coffee-blended", "rocket-patch"]


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """``run(words...)``: the demo into ``out``, its bundled model being the toy."""
    (tmp_path / "models").mkdir()
    shutil.copy(model, tmp_path / "models" / "zip-tiny.onnx")
    monkeypatch.setattr(models, "_HERE", tmp_path / "models")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["demo.py", "-o", str(tmp_path / "out"), *words])
        demo.main()
        return tmp_path / "out"

    return call


def test_the_demo_writes_images_sheets_and_a_record(run, capsys):
    out = run("--side", "96", "--preset", "fast")
    assert sorted(p.stem for p in (out / "images").iterdir()) == NAMES
    before, after = (
        {name: np.asarray(Image.open(out / folder / f"{name}.png")) for name in NAMES}
        for folder in ("images", "purified")
    )
    assert before["astronaut"].shape == (96, 96, 3) and before["rocket-patch"].shape == (64, 96, 3)
    for name in NAMES:
        assert after[name].shape == before[name].shape and (after[name] != before[name]).any(), name
    record = json.loads((out / "demo.json").read_text())
    assert record["images"]["astronaut"] == [96, 96, 3] and record["seconds"] > 0
    assert record["info"]["steps"] == 4
    assert record["info"]["transforms"] == "blur2+gray" and record["info"]["model"] == "toy"
    with Image.open(out / "closeup.png") as page:
        assert page.size == (800, 3 * 284)  # three rows of three crops
    for name in ("sheet", "restoration"):
        with Image.open(out / f"{name}.png") as sheet:
            assert min(sheet.size) > 200 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    said = capsys.readouterr().out
    assert "zipsdk purify" in said and "4 photographs in" in said


def test_the_demo_is_repeatable_and_starts_over(run):
    out = run("--side", "96", "--preset", "fast")
    first = {p.name: p.read_bytes() for p in sorted((out / "purified").glob("*.png"))}
    # as after a run that was killed before it recorded its outputs
    (out / "purified" / ".zipsdk-manifest.jsonl").unlink()
    (out / "purified" / "astronaut.png").write_bytes(b"no image")
    run("--side", "96", "--preset", "fast")
    assert {p.name: p.read_bytes() for p in sorted((out / "purified").glob("*.png"))} == first and len(first) == 4


def test_too_small_sides_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--side", "95")
    assert "got 95, expected at least 96" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_demo_ends_if_purify_fails(run, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        run("--side", "96", "--preset", "slow")
    assert "slow" in capsys.readouterr().err
    monkeypatch.setattr(demo, "zipsdk_cli", lambda command: 3)
    with pytest.raises(SystemExit, match="3"):
        run("--side", "96")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["images"]


def test_the_triggers_are_at_their_documented_positions():
    x = np.full((40, 50, 3), 100, np.uint8)
    patched = demo.with_patch(x, np.random.default_rng(0))
    changed = (patched != x).any(-1)
    assert (
        not changed[:-12].any() and not changed[-3:].any() and not changed[:, :-12].any() and not changed[:, -3:].any()
    )
    assert changed[-12:-3, -12:-3].mean() > 0.95 and (x == 100).all()
    blended = demo.with_blend(x, np.random.default_rng(0)).astype(int)
    assert (blended == blended[..., :1]).all()  # equal in the three colors of a gray image
    assert blended.min() == 80 and blended.max() == 131  # 0.8 of 100, and up to 0.2 of 255
    assert abs(blended.mean() - (80 + 0.2 * 127.5)) < 1

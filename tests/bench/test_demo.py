"""`python -m bench.demo`, the first command of README.md, with a toy model."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage", reason="needs scikit-image's photographs: pip install 'zipsdk[bench]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'zipsdk[cpu]'")

from bench import demo
from bench.demos import figure, labels, photographs
from zipsdk import Decision, Purifier, models
from zipsdk.testing import FakeEngine, demo_classifier
from zipsdk.testing.images import TARGET
from zipsdk.testing.signs import CLASSES

NAMES = ["astronaut", "chelsea-patch", "coffee-blended", "rocket-patch"]
KINDS = ["clean", "patch", "blend", "white square"]


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """``run(words...)``: the demo into ``out``, its bundled model being the toy."""
    (tmp_path / "models").mkdir()
    shutil.copy(model, tmp_path / "models" / "zip-tiny.onnx")
    monkeypatch.setattr(models, "_HERE", tmp_path / "models")
    monkeypatch.setattr(demo, "CALIBRATION", 16)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["demo.py", "-o", str(tmp_path / "out"), "--signs", "10", *words])
        demo.main()
        return tmp_path / "out"

    return call


@pytest.fixture(scope="module")
def kinds():
    """Ten signs of each kind, purified by a model that restores nothing."""
    return labels.measure(demo_classifier(), Purifier(FakeEngine(), "blur2+gray", preset="fast", seed=1), 10, 16, 3)


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
    signs = record["signs"]
    assert list(signs["kinds"]) == KINDS and [k["images"] for k in signs["kinds"].values()] == [10, 9, 9, 9]
    assert all(k["before"]["fooled"] > 0.5 for name, k in signs["kinds"].items() if name != "clean")
    assert signs["purifier"]["model"] == "toy" and signs["purifier"]["steps"] == 4
    with Image.open(out / "closeup.png") as page:
        assert page.size == (800, 3 * 284)  # three rows of three crops
    for name in ("labels", "sheet", "restoration"):
        with Image.open(out / f"{name}.png") as sheet:
            assert min(sheet.size) > 200 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    said = capsys.readouterr().out
    assert "zipsdk purify" in said and "4 photographs in" in said
    assert 'taken for "speed limit 80"' in said and "\x1b[" not in said  # colors in a terminal alone


def test_the_photographs_are_repeatable_and_start_over(run, tmp_path):
    out = tmp_path / "out"
    photographs.purify_photographs(out, 96, "fast")
    first = {p.name: p.read_bytes() for p in sorted((out / "purified").glob("*.png"))}
    # as after a run that was killed before it recorded its outputs
    (out / "purified" / ".zipsdk-manifest.jsonl").unlink()
    (out / "purified" / "astronaut.png").write_bytes(b"no image")
    photographs.purify_photographs(out, 96, "fast")
    assert {p.name: p.read_bytes() for p in sorted((out / "purified").glob("*.png"))} == first and len(first) == 4


@pytest.mark.parametrize(
    ("words", "message"), [(("--side", "95"), "got 95, expected at least 96"), (("--signs", "9"), "got 9, expected at")]
)
def test_too_small_numbers_are_refused(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_demo_ends_if_purify_fails(run, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        photographs.purify_photographs(tmp_path / "out", 96, "slow")
    assert "slow" in capsys.readouterr().err
    monkeypatch.setattr(photographs, "zipsdk_cli", lambda command: 3)
    monkeypatch.setattr(demo, "show_labels", lambda output, n, seed: {})
    with pytest.raises(SystemExit, match="3"):
        run("--side", "96")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["images"]


def test_the_rates_are_those_of_the_labels(kinds):
    assert [kind.name for kind in kinds] == KINDS
    classify = demo_classifier()
    purifier = Purifier(FakeEngine(), "blur2+gray", preset="fast", seed=1)
    for kind in kinds:
        assert (kind.purified == purifier.run(kind.images)).all()
        assert (kind.labels("before") == classify(kind.images).argmax(1)).all()
        assert (kind.labels("purified") == classify(kind.purified).argmax(1)).all()
        assert kind.labels("behind the guard").tolist() == [d.label for d in kind.decisions]
        assert (TARGET in kind.truth) == (kind.trigger is None)
    rates = labels.rates(kinds)
    for kind in kinds:
        for stage in labels.STAGES:
            got, other = kind.labels(stage), kind.truth != TARGET
            assert rates[kind.name][stage]["right"] == pytest.approx(np.mean(got == kind.truth))
            assert rates[kind.name][stage]["fooled"] == pytest.approx(np.mean(got[other] == TARGET))
    table = labels.rates_table(kinds).splitlines()
    shares = {stage: re.findall(r"(\d+)%", line) for stage, line in zip(labels.STAGES, table[2:5], strict=True)}
    for stage, found in shares.items():
        assert [int(n) for n in found] == [round(100 * kind.right(stage)) for kind in kinds]


def test_the_examples_mark_what_is_wrong(kinds):
    lines = labels.examples_table(kinds, 3, color=False).splitlines()[1:]
    assert len(lines) == 12
    for kind, start in zip(kinds, range(0, 12, 3), strict=True):
        chosen = np.flatnonzero(kind.truth != TARGET)[:3]
        for line, i in zip(lines[start : start + 3], chosen, strict=True):
            wrong = [kind.labels(stage)[i] != kind.truth[i] for stage in labels.STAGES]
            assert line.count("! ") == sum(wrong) and CLASSES[kind.truth[i]] in line
            assert line.endswith(f"{'flagged' if kind.decisions[i].flagged else 'passed'}: {kind.decisions[i].feature}")
    assert "\x1b[31m" in labels.examples_table(kinds, 3, color=True)


def test_the_figure_colors_right_and_wrong_labels(kinds):
    page = np.asarray(figure.draw(kinds))
    assert page.shape[1] == figure.WIDTH == 1600
    good, bad = ((page == color).all(-1).sum() for color in ([31, 122, 61], [192, 39, 45]))
    assert good > 5000 and bad > 5000


def test_an_abstention_is_drawn_and_counted_as_wrong(kinds):
    abstained = Decision(None, True, None, None, "the image cannot be read", None, "no label")
    decisions = [abstained] * len(kinds[0].decisions)
    kind = labels.Kind(**{**vars(kinds[0]), "decisions": decisions})
    assert kind.right("behind the guard") == 0 == kind.fooled("behind the guard")
    assert "abstained" in labels.examples_table([kind], 1, color=False)
    figure.draw([kind])


def test_the_triggers_are_at_their_documented_positions():
    x = np.full((40, 50, 3), 100, np.uint8)
    patched = photographs.with_patch(x, np.random.default_rng(0))
    changed = (patched != x).any(-1)
    assert (
        not changed[:-12].any() and not changed[-3:].any() and not changed[:, :-12].any() and not changed[:, -3:].any()
    )
    assert changed[-12:-3, -12:-3].mean() > 0.95 and (x == 100).all()
    blended = photographs.with_blend(x, np.random.default_rng(0)).astype(int)
    assert (blended == blended[..., :1]).all()  # equal in the three colors of a gray image
    assert blended.min() == 80 and blended.max() == 131  # 0.8 of 100, and up to 0.2 of 255
    assert abs(blended.mean() - (80 + 0.2 * 127.5)) < 1

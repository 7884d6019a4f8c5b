"""Test `zipsdk purify`: folders, refusals and exit codes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.folders import contents, folder, names, refused, state, write_image
from zipsdk import images
from zipsdk.batch import discovery
from zipsdk.cli import main
from zipsdk.cli import purify as purify_command
from zipsdk.errors import EngineError, ImageReadError, InputError

# ---- what goes in and what comes out


def test_folders_files_and_globs_keep_their_structure(purify, tmp_path, capsys):
    src = tmp_path / "in"
    write_image(src / "a.png", 1)
    write_image(src / "sub" / "deep" / "b.jpg", 2, (20, 33))
    write_image(src / "sub" / "c.webp", 3)
    write_image(src / ".hidden" / "d.png", 4)
    (src / "notes.txt").write_text("no image")
    one = write_image(tmp_path / "other" / "single.bmp", 5)
    write_image(tmp_path / "globbed" / "x" / "y" / "e.png", 6)
    write_image(tmp_path / "globbed" / "x" / "f.jpg", 7)
    out = tmp_path / "out"
    assert purify(src, one, tmp_path / "globbed" / "**" / "*.png", "-o", out) == 0
    assert names(out) == {"a.png", "sub/deep/b.jpg", "sub/c.webp", "single.bmp", "x/y/e.png"}
    for name in names(out):
        with Image.open(out / name) as im:
            assert im.mode == "RGB"
    with Image.open(out / "sub/deep/b.jpg") as im:
        assert im.size == (33, 20) and im.format == "JPEG"
    output = capsys.readouterr()
    assert output.out.startswith("5 done in ") and output.out.endswith(f"0 failed; results in {out}\n")
    assert output.err == ""


def test_the_output_is_what_the_purifier_gives(purify, model, tmp_path):
    import zipsdk

    src = folder(tmp_path / "in", 3)
    assert purify(src, "-o", tmp_path / "out", "--seed", 5, "--lam", 2, "--transforms", "blur4") == 0
    purifier = zipsdk.Purifier(model, "blur4", lam=2, steps=2, seed=5)
    for name in names(src):
        expected = purifier.run(np.asarray(Image.open(src / name)))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), expected)


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_the_format_option_sets_the_format(purify, tmp_path, form):
    write_image(tmp_path / "in" / "a.bmp")
    assert purify(tmp_path / "in", "-o", tmp_path / "out", "--format", form) == 0
    with Image.open(tmp_path / "out" / f"a.{form}") as im:
        assert im.format == {"jpg": "JPEG"}.get(form, form.upper())


def test_every_kept_name_can_be_written(tmp_path):
    for suffix in images.SUFFIXES:
        name = discovery._output_name(Path(f"a{suffix}"), "keep")
        images.save(Image.new("RGB", (8, 8)), tmp_path / name)
    assert discovery._output_name(Path("b/a.gif"), "keep") == "b/a.png"
    assert discovery._output_name(Path("a.JPG"), "keep") == "a.JPG"


# ---- refusals


def test_invalid_options_are_refused(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 1)
    out = tmp_path / "out"
    for options in (["--lam", "0"], ["--eta", "2"], ["--seed", "-1"], ["--transforms", "x"]):
        refused(capsys, purify(src, "-o", out, *options), 2, options[0][2:])
    refused(capsys, purify(src, "-o", out, "--tile-size", 33), 2, "tile_size: got 33")
    refused(capsys, purify(src, "-o", out, steps=0), 2, "steps: got 0")
    for options in (
        ["--sheet", str(src)],
        ["--batch", "0"],
        ["--what"],
        ["--threads", "-1"],
        ["--threads", "99999999"],
    ):
        with pytest.raises(SystemExit) as e:
            purify("-o", out, *options, src)
        assert e.value.code == 2
    assert not out.exists()


def test_models_that_cannot_run_give_3(tmp_path, capsys):
    src = folder(tmp_path / "in", 1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    common = ["purify", str(src), "-o", str(tmp_path / "out"), "--model"]
    refused(capsys, main([*common, "no-such-model"]), 3, "no-such-model")
    refused(capsys, main([*common, str(broken)]), 3, "broken.onnx")
    refused(capsys, main(["info", str(broken)]), 3, "broken.onnx")
    assert not (tmp_path / "out").exists()


def test_a_sheet_path_is_checked_before_the_run(purify, tmp_path, capsys, monkeypatch):
    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for sheet, text in (
        ("file/s.png", "file is not a writable folder"),
        ("file/deep/s.png", "file is not a writable folder"),
        ("dangling/s.png", "dangling is not a writable folder"),
        ("folder.png", "folder.png: got a folder"),
    ):
        refused(capsys, purify(src, "-o", out, "--sheet", tmp_path / sheet), 2, text)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere, so the refusal is simulated
    refused(capsys, purify(src, "-o", out, "--sheet"), 2, f"{tmp_path} is not a writable folder")
    assert not out.exists()


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (OSError(28, "No space left on device", "a.plan"), "a.plan: No space left on device"),
        (PermissionError(13, "Permission denied", ".a.part", None, "a.plan"), "a.plan: Permission denied"),
        (OSError(5, "Input/output error"), "error: Input/output error"),
        (OSError("failed"), "error: failed"),
        (TimeoutError(), "error: TimeoutError"),
    ],
)
def test_errors_of_the_system_give_2_and_no_traceback(tmp_path, capsys, monkeypatch, e, text):
    def fails(*_, **__):
        raise e

    monkeypatch.setattr("zipsdk.engines.tensorrt.build.build", fails)
    code = main(["build", "zip-tiny", "-o", str(tmp_path / "a.plan")])
    refused(capsys, code, 2, f"{text}; check the path, its permissions and disk space\n")


# ---- images that fail


def test_a_broken_image_is_reported_and_the_run_continues(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 5)
    whole = (src / "002.png").read_bytes()
    (src / "002.png").write_bytes(whole[:100])
    (src / "003.png").unlink()
    (src / "003.png").symlink_to(tmp_path / "removed.png")  # listed, but missing when it is read
    out = tmp_path / "out"
    assert purify(src, "-o", out, "--batch", 2) == 1
    output = capsys.readouterr()
    assert "002.png" in output.err and "003.png" in output.err and "Traceback" not in output.err
    assert "3 done" in output.out and "2 failed" in output.out
    assert names(out) == {"000.png", "001.png", "004.png"}
    # tried again, and done after it is repaired
    before = state(out)
    (src / "002.png").write_bytes(whole)
    assert purify(src, "-o", out, "--batch", 2) == 1
    assert "1 done" in (output := capsys.readouterr()).out and "3 already done before, 1 failed" in output.out
    assert {n: s for n, s in state(out).items() if n in before} == before
    assert "002.png" in names(out)


def test_an_image_of_unusable_size_does_not_fail_its_batch(purify, tmp_path, capsys, monkeypatch):
    from zipsdk.sampling import tiling

    plan_tiles = tiling.plan_tiles

    def refusing(spec, height, *rest):
        if height == 24:
            raise InputError("not supported")
        return plan_tiles(spec, height, *rest)

    src = folder(tmp_path / "in", 3)
    write_image(src / "other.png", 9, (24, 16))
    monkeypatch.setattr("zipsdk.dispatcher.plan_tiles", refusing)
    assert purify(src, "-o", tmp_path / "out") == 1
    assert "other.png: not supported" in capsys.readouterr().err
    assert len(names(tmp_path / "out")) == 3


def test_the_output_format_is_checked_before_purification(purify, tmp_path, capsys, monkeypatch):
    from zipsdk import Purifier

    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    rgba = Image.new("RGBA", (16, 16), (1, 2, 3, 4))
    images.save(rgba, src / "alpha.png")
    images.save(Image.new("I;16", (16, 16)), src / "deep.png")
    rgba.save(
        src / "web.jpg", "PNG"
    )  # as browsers save them: the content decides how it is read, the suffix how it is written
    run, computed = Purifier.run, []

    def counting(self, batch, **options):
        computed.extend(batch)
        return run(self, batch, **options)

    monkeypatch.setattr(Purifier, "run", counting)
    assert purify(src, "-o", out, "--format", "jpg") == 1
    output = capsys.readouterr()
    for name, mode in (("alpha", "RGBA"), ("deep", "I;16"), ("web", "RGBA")):
        assert f"{out / name}.jpg: got an image of mode {mode}, expected one of L RGB" in output.err
    assert "1 done" in output.out and "3 failed" in output.out
    assert len(computed) == 1 and names(out) == {"000.jpg"}
    assert purify(src, "-o", tmp_path / "kept") == 1
    assert "web.jpg: got an image of mode RGBA" in capsys.readouterr().err
    assert len(computed) == 4 and names(tmp_path / "kept") == {"000.png", "alpha.png", "deep.png"}
    images.save(Image.new("RGB", (16384, 1)), tmp_path / "wide.png")
    assert purify(tmp_path / "wide.png", "-o", tmp_path / "web", "--format", "webp") == 1
    assert "wide.webp: got an image of 16384 x 1 pixels, expected at most 16383 a side" in capsys.readouterr().err
    assert len(computed) == 4 and not names(tmp_path / "web")


def test_a_full_disk_stops_the_run(purify, tmp_path, capsys, monkeypatch):
    src = folder(tmp_path / "in", 4)
    save, saved = images.save, []

    def full(image, path):
        if len(saved) == 2:
            raise ImageReadError("cannot be written") from OSError(28, "No space left on device")
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(images, "save", full)
    assert purify(src, "-o", tmp_path / "out", "--batch", 1) == 1
    output = capsys.readouterr().err
    assert "No space left on device" in output and "stopped with 2 of 4 images done" in output
    monkeypatch.undo()
    assert purify(src, "-o", tmp_path / "out", "--batch", 1) == 0


def test_an_engine_failure_gives_3_and_the_run_resumes(purify, tmp_path, capsys, monkeypatch):
    from zipsdk.engines.onnxruntime import OnnxEngine

    src = folder(tmp_path / "in", 4)
    evaluate, calls = OnnxEngine.__call__, []

    def failing(self, x, t):
        calls.append(t)
        if len(calls) > 4:
            raise EngineError("the device failed")
        return evaluate(self, x, t)

    monkeypatch.setattr(OnnxEngine, "__call__", failing)
    assert purify(src, "-o", tmp_path / "out", "--batch", 1) == 3
    output = capsys.readouterr().err
    assert "stopped with 2 of 4 images done; the same command continues" in output and "the device failed" in output
    monkeypatch.undo()
    assert purify(src, "-o", tmp_path / "out", "--batch", 1) == 0


# ---- sheets, and messages


def test_a_sheet_shows_images_before_and_after(purify, tmp_path):
    src = tmp_path / "in"
    for i in range(30):
        path = src / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (250, 10, 10)).save(path)
    out = tmp_path / "out"
    assert purify(src, "-o", out, "--transforms", "gray", "--sheet") == 0
    page = np.asarray(Image.open(out / "zipsdk-sheet.png").convert("RGB"))
    step, gap, title = 248, 8, 20
    assert page.shape[1] == 3 * step + gap and (page.shape[0] - gap - title) % step == 0
    assert 10 <= (page.shape[0] - gap - title) // step <= 12
    middle = title + gap + 120
    assert page[middle, gap + 120].tolist() == [250, 10, 10]
    assert page[middle, gap + step + 120].tolist() == [90, 90, 90]
    clean = np.asarray(Image.open(out / "00.png"))
    assert (page[middle, gap + 2 * step + 120] == clean[8, 8]).all()
    assert (page[: title + gap - 2, : 2 * step] < 128).any(), "column titles"
    # also by a second run without new images
    assert purify(src, "-o", out, "--transforms", "gray", "--sheet", tmp_path / "deep" / "page.png") == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep" / "page.png").convert("RGB")), page)


def test_a_sheet_overwrites_only_sheets(purify, tmp_path, capsys):
    src, out = folder(tmp_path / "in", 2), tmp_path / "out"
    before = contents(src)
    # a typing error: the first of two inputs becomes the name of the sheet
    for sheet in (["--sheet", src / "000.png", src / "001.png"], [src / "001.png", "--sheet", src / "000.png"]):
        refused(capsys, purify("-o", out, *sheet), 2, "000.png: got a file that is not a sheet of zipsdk")
    assert contents(src) == before and not out.exists()
    for options in ([], ["--transforms", "blur2|gray"]):  # of both kinds
        page = tmp_path / f"page{len(options)}.png"
        for _ in range(2):  # a finished run may be repeated
            assert purify(src, "-o", out / str(len(options)), *options, "--sheet", page) == 0
    (out / "0" / "zipsdk-sheet.png").write_bytes(before["000.png"])
    refused(capsys, purify(src, "-o", out / "0", "--sheet"), 2, "zipsdk-sheet.png: got a file that is not a sheet")
    assert purify(src, "-o", out / "0", "--sheet", "--overwrite") == 0
    assert (out / "0" / "zipsdk-sheet.png").read_bytes() != before["000.png"]


def test_a_sheet_in_the_input_folder_is_not_an_input(purify, tmp_path, capsys):
    src, out = folder(tmp_path / "in", 2), tmp_path / "out"
    for _ in range(2):
        assert purify(src, "-o", out, "--sheet", src / "sheet.png") == 0
        assert purify(src / "*.png", "-o", out, "--sheet", src / "sheet.png") == 0
    assert names(out) == {"000.png", "001.png"}
    refused(capsys, purify(src / "sheet.png", "-o", out, "--sheet", src / "sheet.png"), 2, "overwrite an image")


@pytest.mark.parametrize("options", [["--transforms", "blur2|gray|blur2+gray"], ["--transforms", "gray|blur2"]])
def test_a_sheet_with_random_transforms_has_no_transformed_column(purify, tmp_path, options):
    src, out = folder(tmp_path / "in", 2), tmp_path / "out"
    assert purify(src, "-o", out, *options, "--sheet") == 0
    page = np.asarray(Image.open(out / "zipsdk-sheet.png").convert("RGB"))
    step, gap, title = 248, 8, 20
    assert page.shape == (2 * step + gap + title, 2 * step + gap, 3)
    middle = title + gap + 120
    clean = np.asarray(Image.open(out / "000.png"))
    assert (page[middle, gap + step + 120] == clean[8, 8]).all()


def test_quiet_prints_nothing_and_progress_counts(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 2)
    assert purify(src, "-o", tmp_path / "a", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert purify(src, "-o", tmp_path / "b", "--progress") == 0
    assert "2/2" in capsys.readouterr().err


def test_slow_runs_state_seconds_for_an_image():
    assert [purify_command._rate(*r) for r in ((20, 10.0), (10, 10.0), (4, 10.0))] == [
        "2.0 images/s",
        "1.0 images/s",
        "2.5 s per image",
    ]

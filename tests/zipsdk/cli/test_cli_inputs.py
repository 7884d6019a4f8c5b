"""Test that ``zipsdk purify`` finds files, folders and patterns and overwrites none of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers.folders import contents, folder, names, refused, state, write_image
from zipsdk import images
from zipsdk.batch import discovery
from zipsdk.batch.manifest import MANIFEST


def test_output_folder_below_the_input_is_not_an_input(purify, tmp_path):
    src = folder(tmp_path / "in", 2)
    for _ in range(2):
        assert purify(src, "-o", src / "clean") == 0
        assert purify(src / "**" / "*.png", "-o", src / "clean") == 0
    assert names(src / "clean") == {"000.png", "001.png"}


def test_output_folders_of_other_runs_are_no_inputs(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 2)
    first = src / "a" / "clean"
    write_image(src / "a" / "x.png")
    assert purify(src, "-o", first) == 0
    capsys.readouterr()
    note = f"zipsdk: note: {first}: got the output folder of an earlier run, which is left out; pass it as an input"
    for number, pattern in enumerate((src, src / "**" / "*.png", src / "**", src / "*", tmp_path / "i*")):
        out = tmp_path / f"out{number}"
        assert purify(pattern, "-o", out) == 0
        assert {Path(name).name for name in names(out)} == {"000.png", "001.png", "x.png"} and len(names(out)) == 3
        assert capsys.readouterr().err.count(note) == 1
    text = f"*.png: got no image outside of {first}, the output folder of a run; pass it as an input to purify it again"
    refused(capsys, purify(src / "a" / "*" / "*.png", "-o", tmp_path / "no", "--quiet"), 2, text)
    # what is passed by its own name is purified again
    for number, again in enumerate((first, first / "*.png", first / "000.png")):
        assert purify(again, "-o", tmp_path / f"again{number}") == 0
        assert "000.png" in names(tmp_path / f"again{number}") and capsys.readouterr().err == ""
    assert purify(src, "-o", tmp_path / "quiet", "--quiet") == 0 and capsys.readouterr().err == ""


def test_link_loops_and_unreadable_folders_do_not_hang(purify, tmp_path, capsys, monkeypatch):
    src = folder(tmp_path / "in", 1)
    (src / "loop").symlink_to(src)
    (src / "loop2").symlink_to(tmp_path)
    assert purify(src, src / "**" / "*.png", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == {"000.png"}
    assert "loop: got a link to a folder, which is not followed" in capsys.readouterr().err

    # simulated, because root may read everything
    (src / "closed").mkdir()
    scandir = os.scandir

    def refusing(path="."):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert purify(src, "-o", tmp_path / "out") == 1
    output = capsys.readouterr()
    assert "closed: cannot be read (Permission denied)" in output.err and "1 failed" in output.out


def test_two_inputs_with_one_output_are_refused(purify, tmp_path, capsys):
    write_image(tmp_path / "a" / "x.png", 1)
    write_image(tmp_path / "b" / "x.png", 2)
    out = tmp_path / "out"
    refused(capsys, purify(tmp_path / "a", tmp_path / "b", "-o", out), 2, "got two inputs with the same output")
    assert not out.exists()
    write_image(tmp_path / "a" / "x.jpg", 1)
    refused(capsys, purify(tmp_path / "a", "-o", out, "--format", "png"), 2, "got two inputs with the same output")
    assert purify(tmp_path / "b", tmp_path / "b" / "x.png", "-o", out) == 0  # one image, given twice


def test_images_of_another_folder_do_not_count_as_done(purify, tmp_path, capsys):
    """Not even with the same name, size and time."""
    a, b, moved, out = (tmp_path / n for n in ("a", "b", "moved", "out"))
    for i, where in enumerate((a, b)):
        for name in ("x.bmp", "y.bmp"):
            os.utime(write_image(where / name, i), (1e9, 1e9))
    assert purify(a, "-o", out, "--seed", 1) == 0
    first, before, manifest = contents(out), state(out), (out / MANIFEST).read_bytes()
    capsys.readouterr()
    text = (
        f"{out / 'x.bmp'}: got the output of {a / 'x.bmp'}, expected that of {b / 'x.bmp'} (and 1 others); "
        "use another output folder, or --overwrite"
    )
    refused(capsys, purify(b, "-o", out), 2, text)
    write_image(b / "x.bmp", 3, (20, 20))  # also changed
    refused(capsys, purify(b, "-o", out), 2, text)
    a.rename(moved)
    refused(capsys, purify(moved, "-o", out), 2, f"expected that of {moved / 'x.bmp'}")
    assert state(out) == before and (out / MANIFEST).read_bytes() == manifest

    assert purify(moved, "-o", out, "--seed", 1, "--overwrite") == 0
    assert contents(out) == first and all(state(out)[n] != before[n] for n in before)
    before = state(out)
    assert purify(moved, "-o", out) == 0
    assert state(out) == before  # and the run resumes
    (out / "x.bmp").unlink()
    assert purify(b / "x.bmp", "-o", out) == 0  # no output is overwritten
    assert images.read_one(out / "x.bmp").rgb.shape == (20, 20, 3)
    refused(capsys, purify(moved, "-o", out), 2, f"{out / 'x.bmp'}: got the output of {b / 'x.bmp'}")


def test_older_manifests_have_unresolved_sources(purify, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "a", 3)
    folder(tmp_path / "b", 3)
    out = tmp_path / "out"
    assert purify("a", "-o", out) == 0
    manifest = out / MANIFEST
    assert str(tmp_path / "a") in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(str(tmp_path / "a"), "a"))
    (tmp_path / "link").symlink_to("a")
    before = state(out)
    for given in ("a", "../" + tmp_path.name + "/a", tmp_path / "a", "link"):
        assert purify(given, "-o", out) == 0
    assert state(out) == before
    capsys.readouterr()
    refused(capsys, purify("b", "-o", out), 2, f"got the output of {tmp_path / 'a' / '000.png'}")


def test_inputs_are_not_overwritten(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 1)
    before = contents(src)
    (tmp_path / "link").symlink_to(src)
    refused(capsys, purify(src, "-o", tmp_path / "link"), 2, "got the output folder as an input")
    refused(capsys, purify(src / "000.png", "-o", tmp_path / "link"), 2, "an output that is also an input")
    refused(capsys, purify(src / "000.png", "-o", src, "--overwrite"), 2, "an output that is also an input")
    sheet = ("--sheet", src / "000.png")
    refused(capsys, purify(src, "-o", tmp_path / "out", *sheet), 2, "the sheet would overwrite an image")
    assert contents(src) == before and not (src / MANIFEST).exists()


def test_inputs_are_not_overwritten_under_another_spelling(purify, tmp_path, capsys, monkeypatch):
    """For example a disk that is mounted twice or ignores case: paths do not reveal it."""
    src = folder(tmp_path / "photos", 1)
    write_image(src / "deep" / "001.png", 1)
    before = contents(src)
    if (tmp_path / "Photos").exists():
        pytest.skip("the disk ignores case")
    (tmp_path / "Photos").symlink_to(src)
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    common = ["-o", tmp_path / "Photos", "--overwrite"]
    refused(capsys, purify(src, *common), 2, "got the output folder as an input")
    refused(capsys, purify(src / "000.png", *common), 2, "an output that is also an input")
    refused(capsys, purify(tmp_path, *common), 2, "got no image")
    refused(capsys, purify(src / "deep", "-o", tmp_path / "Photos" / "deep", "--overwrite"), 2, "as an input")
    sheet = ["--sheet", tmp_path / "Photos" / "000.png", "--overwrite"]
    refused(capsys, purify(src, "-o", tmp_path / "out", *sheet), 2, "the sheet would overwrite an image")
    assert contents(src) == before and not (src / MANIFEST).exists()


def test_names_that_differ_in_case_collide_on_a_case_insensitive_disk(purify, tmp_path, capsys):
    write_image(tmp_path / "a" / "x.png", 1)
    write_image(tmp_path / "b" / "X.png", 2)
    if (tmp_path / "A").exists():
        pytest.skip("the disk ignores case")
    assert purify(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == {"x.png", "X.png"}
    (tmp_path / "disk").mkdir()
    (tmp_path / "DISK").symlink_to(tmp_path / "disk")  # simulates such a disk
    both = (tmp_path / "a", tmp_path / "b")
    refused(capsys, purify(*both, "-o", tmp_path / "disk" / "out"), 2, "got two inputs with the same output")
    assert purify(tmp_path / "a", tmp_path / "a" / "x.png", "-o", tmp_path / "disk" / "out") == 0


@pytest.mark.parametrize(("platform", "caseless"), [("win32", True), ("linux", False)])
def test_a_drive_without_letters_or_a_missing_drive(monkeypatch, platform, caseless):
    monkeypatch.setattr(sys, "platform", platform)
    assert discovery._caseless(Path("/2024/11")) is caseless


def test_foreign_files_are_not_overwritten(purify, tmp_path, capsys):
    src = folder(tmp_path / "in", 2)
    foreign = write_image(tmp_path / "out" / "001.png", 99)
    before = foreign.read_bytes()
    refused(capsys, purify(src, "-o", tmp_path / "out"), 2, "001.png: got a file that this run did not write")
    assert foreign.read_bytes() == before and not (tmp_path / "out" / MANIFEST).exists()
    assert purify(src, "-o", tmp_path / "out", "--overwrite") == 0
    assert foreign.read_bytes() != before


@pytest.mark.parametrize(
    ("inputs", "out", "text"),
    [
        (["nowhere"], "out", "no such file or folder"),
        (["nowhere/*.png"], "out", "got no image, because nowhere is not a folder; check the path"),
        (["empty"], "out", "got no image; expected some of .apng"),
        (["in/*.jpg"], "out", "got no image: nothing in the folder in matches *.jpg; check the pattern"),
        (["in/*.PNG"], "out", "in/000.png matches if case is ignored: use the case of the names"),
        (["f*"], "out", "got no image, but 1 matches of f* in ., such as file; expected some of .apng"),
        (["*/../in/*.png"], "out", "got '..' after a pattern, expected names only; pass the folder itself"),
        (["in"], "clean.png", "expected a folder to write to"),
        (["in"], "file", "cannot be used as the output folder"),
    ],
)
def test_unusable_inputs_are_refused(purify, tmp_path, monkeypatch, capsys, inputs, out, text):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    refused(capsys, purify(*inputs, "-o", out), 2, text)


@pytest.mark.parametrize("where", ["IN", "OUT", "--model", "--sheet"])
@pytest.mark.parametrize("text", ["", "a\0b.png"])
def test_empty_paths_are_refused(purify, tmp_path, capsys, where, text):
    """ "$UNSET" must not purify the folder that the shell is in."""
    src = folder(tmp_path / "in", 1)
    args = {"IN": [text, "-o", tmp_path / "out"], "OUT": [src, "-o", text]}
    with pytest.raises(SystemExit) as e:
        purify(*args.get(where, [src, "-o", tmp_path / "out", where, text]))
    assert e.value.code == 2 and not (tmp_path / "out").exists()
    assert ("got an empty path, expected a name" if text == "" else "expected a path without zero bytes") in (
        capsys.readouterr().err
    )


def test_a_folder_at_the_path_of_an_output_is_refused(purify, tmp_path, capsys):
    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    (out / "000.png").mkdir(parents=True)
    for options in ([], ["--overwrite"]):
        text = f"{out / '000.png'}: got a folder, expected no folder at the path of an output; remove or rename it"
        refused(capsys, purify(src, "-o", out, *options), 2, text)
    (out / "000.png").rmdir()
    assert purify(src, "-o", out) == 0


def test_an_image_that_changes_while_it_is_read_is_purified_again(purify, tmp_path, monkeypatch, capsys):
    src, out = folder(tmp_path / "in", 3), tmp_path / "out"
    read = images.read_one

    def reading(path, **options):
        found = read(path, **options)
        if path.name == "001.png":
            write_image(path, 50, (20, 20))
        if path.name == "000.png":
            (src / "002.png").unlink()
        return found

    monkeypatch.setattr(images, "read_one", reading)
    assert purify(src, "-o", out) == 1
    assert "002.png: cannot be read (No such file or directory); check that it exists" in capsys.readouterr().err
    monkeypatch.undo()
    assert purify(src, "-o", out) == 0
    assert "1 done" in capsys.readouterr().out
    assert images.read_one(out / "001.png").rgb.shape == (20, 20, 3)

"""Test the search for images: patterns, images that are not read, and links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.folders import folder, refused, write_image
from zipsdk.batch import discovery

# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos [2024]/*.jpg", {"a.jpg", "b.jpg"}),
        ("photos [2024]/**/*.jpg", {"a.jpg", "b.jpg", "[x]/c.jpg"}),
        ("photos [2024]/**", {"a.jpg", "b.jpg", "[x]/c.jpg", "[x]/a[1].png"}),
        ("photos [2024]/[x]/[ac]*", {"c.jpg", "a[1].png"}),
        ("photos [2024]/[x]/a[1].png", {"a[1].png"}),
        ("photos ?2024]/[x]/a[1].png", {"photos [2024]/[x]/a[1].png"}),
        ("photos [[]2024]/?.jpg", {"photos [2024]/a.jpg", "photos [2024]/b.jpg"}),
        ("*/a.jpg", {"photos [2024]/a.jpg", "photos 2/a.jpg"}),
        ("photos [2]/a.jpg", {"photos 2/a.jpg"}),
        ("photos [!2]*", {"photos [2024]/a.jpg", "photos [2024]/b.jpg", "photos [2024]/[x]/c.jpg",
                          "photos [2024]/[x]/a[1].png"}),
        (".hidden/*", {"d.jpg"}),
        (".h*/*", {".hidden/d.jpg"}),
        ("photos 2/.*", {".e.jpg"}),
    ],
)  # fmt: skip
def test_existing_names_precede_patterns(tmp_path, monkeypatch, pattern, found):
    """Brackets in the names of folders and files need no escapes."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos [2024]/a.jpg", "photos [2024]/b.jpg", "photos [2024]/[x]/c.jpg", "photos [2024]/[x]/a[1].png",
                 "photos 2/a.jpg", "photos 2/.e.jpg", ".hidden/d.jpg", "photos [2024]/.hidden/f.jpg"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    jobs = discovery.find_jobs([pattern], Path("out"), "keep", pytest.fail, pytest.fail)
    assert {job.name for job in jobs} == found and len(jobs) == len(found)
    assert all(job.source.exists() for job in jobs)


def test_a_folder_that_a_pattern_cannot_list_is_reported(tmp_path, monkeypatch):
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    scandir, problems = os.scandir, []

    def refusing(path="."):  # simulated, because root may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    jobs = discovery.find_jobs([str(tmp_path / "*" / "*.png")], tmp_path / "out", "keep", problems.append, pytest.fail)
    assert [job.name for job in jobs] == ["a/x.png"]
    assert problems == [f"{tmp_path / 'closed'}: cannot be read (Permission denied); check its permissions"]


# ---- images that are not read


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_images_that_are_not_read_are_counted_once(purify, tmp_path, capsys, options):
    src = folder(tmp_path / "in", 1)
    for name in ("a.heic", "B.HEIC", "c.jxl", "notes.txt", ".hidden.heic"):
        (src / name).touch()
    assert purify(src, src / "*", "-o", tmp_path / "out", *options) == 0
    text = "3 files skipped: .heic (2), .jxl (1): zipsdk does not read these; convert them to PNG or JPEG"
    output = capsys.readouterr()
    assert output.err == f"zipsdk: {text}\n" and ("1 done" in output.out) == (not options)
    (src / "000.png").unlink()
    refused(capsys, purify(src, "-o", tmp_path / "out"), 2, f"{src}: got no image that zipsdk reads; {text}")
    one = "1 file skipped: .jxl (1)"
    refused(capsys, purify(src / "*.jxl", "-o", tmp_path / "out"), 2, one)


# ---- links and names


def test_broken_links_are_reported(purify, tmp_path, capsys):
    src, out = folder(tmp_path / "in", 1), tmp_path / "out"
    (src / "dangling.png").symlink_to("nowhere.png")
    (src / "loop.png").symlink_to("loop.png")
    assert purify(src, "-o", out) == 1
    output = capsys.readouterr().err
    assert f"{src / 'dangling.png'}: cannot be read (No such file or directory); remove or repair the link\n" in output
    assert (
        f"{src / 'loop.png'}: cannot be read (Too many levels of symbolic links); remove or repair the link\n" in output
    )
    for name in ("dangling.png", "loop.png"):
        (src / name).unlink()
    assert purify(src, "-o", out) == 0


def test_a_file_at_the_path_of_a_folder_is_reported(purify, tmp_path, capsys):
    src, out = tmp_path / "in", tmp_path / "out"
    write_image(src / "a" / "x.png")
    write_image(src / "b.png")
    out.mkdir()
    (out / "a").write_text("")
    assert purify(src, "-o", out) == 1
    output = capsys.readouterr()
    assert f"{out / 'a'}: the folder cannot be created (File exists); remove the file" in output.err
    assert "1 done" in output.out
    (out / "a").unlink()
    assert purify(src, "-o", out) == 0

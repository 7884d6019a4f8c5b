"""ImageFolder's layout: every image that the SDK reads counts, links are followed, and no class vanishes."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image, features

from bench.data import datasets, layouts
from tests.helpers.datasets import png, write_archive, write_folder
from zipsdk import images
from zipsdk.errors import InputError
from zipsdk.images import sources

KINDS = {".jpg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".ppm": "PPM",
         ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF", ".apng": "PNG",
         ".png": "PNG", ".jpeg": "JPEG"}  # fmt: skip


def write_image(suffix: str, value: int = 200) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, KINDS[suffix])
    return file.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "pets" / "train"


def test_the_suffixes_are_those_of_the_sdk() -> None:
    assert layouts.SUFFIXES == images.SUFFIXES == set(KINDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("packed", [False, True])
def test_all_that_the_sdk_reads_counts(packed: bool, tmp_path: Path, place: Path) -> None:
    files = {f"{s[1:]}/a{s.upper() if s == '.ppm' else s}": write_image(s) for s in sorted(KINDS)
             if s != ".avif" or features.check("avif")}  # fmt: skip
    if packed:
        write_archive(tmp_path / "pets-train.zip", files)
    else:
        write_folder(place, files)
    d = datasets.load("pets", "train", tmp_path)
    assert d.classes == tuple(sorted({n.split("/")[0] for n in files})) and d.labels.tolist() == [*range(len(files))]
    assert abs(d.images.astype(int) - 200).max() <= 2
    source = tmp_path / "pets-train.zip" if packed else place
    assert [*sources.read_files(source)] == [files[n] for n in sorted(files)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_without_images_keeps_its_number_out_loud(packed: bool, tmp_path: Path, place: Path) -> None:
    files = {"ant/1.png": png((1, 0, 0)), "bee/raw.heic": b"", "dog/1.png": png((3, 0, 0)), ".git/x.png": b"",
             "__MACOSX/y/z.png": b"", "dog/.hidden.png": b"no image", "notes.txt": b""}  # fmt: skip
    if packed:
        path = write_archive(tmp_path / "pets-train.zip", files)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("cat/", b"")
    else:
        write_folder(place, {n: d for n, d in files.items() if not n.startswith("__")})
        (place / "cat").mkdir()
    with pytest.warns(UserWarning, match=r"no images in bee, cat, .*\.avif.*they stay classes") as caught:
        d = datasets.load("pets", "train", tmp_path)
    assert len(caught) == 1
    assert d.classes == ("ant", "bee", "cat", "dog") and d.labels.tolist() == [0, 3]
    write_archive(tmp_path / "pets-test.zip", {"dog/9.png": png((9, 9, 9))})
    with pytest.warns(UserWarning, match="no images in bee, cat"):
        test = datasets.load("pets", "test", tmp_path)
    assert test.classes == d.classes and test.labels.tolist() == [3]


def test_links_are_followed(tmp_path: Path, place: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", {"cat/1.png": png((2, 0, 0)), "one.png": png((3, 0, 0))})
    write_folder(place, {"ant/1.png": png((1, 0, 0)), "dog/2.png": png((4, 0, 0))})
    (place / "cat").symlink_to(elsewhere / "cat")
    (place / "dog" / "1.png").symlink_to(elsewhere / "one.png")
    d = datasets.load("pets", "train", tmp_path)
    assert d.classes == ("ant", "cat", "dog") and d.labels.tolist() == [0, 1, 2, 2]
    assert d.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert len([*sources.read_files(place)]) == 4
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "pets").symlink_to(tmp_path / "pets")
    assert datasets.load("pets", "train", tmp_path / "linked").sha256 == d.sha256


def test_links_in_a_circle_end(tmp_path: Path, place: Path) -> None:
    write_folder(place, {"ant/1.png": png((1, 0, 0)), "dog/1.png": png((2, 0, 0))})
    (place / "ant" / "up").symlink_to(place)
    (place / "dog" / "self").symlink_to(place / "dog")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert datasets.load("pets", "train", tmp_path).labels.tolist() == [0, 1]
        assert len([*sources.read_files(place)]) == 2
    assert len(caught) == 4 and all("a link to a folder that contains it" in str(w.message) for w in caught)


def test_links_that_hide_images_are_refused(tmp_path: Path, place: Path) -> None:
    write_folder(place, {"ant/1.png": png((1, 0, 0)), "ant/readme": b""})
    (place / "ant" / "old").symlink_to(tmp_path / "nowhere")  # named like no image
    assert len(datasets.load("pets", "train", tmp_path)) == 1
    (place / "ant" / "2.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"2\.png: got a broken link"):
        datasets.load("pets", "train", tmp_path)
    path = write_archive(tmp_path / "pets-train.zip", {"ant/1.png": png((1, 0, 0))})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../elsewhere/cat")
    with pytest.raises(InputError, match=r"got the link cat, expected files and folders"):
        datasets.load("pets", "train", tmp_path)


def test_links_that_multiply_folders_end(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight folders, each with two links to the next: 256 ways to the image."""
    for i in range(8):
        (place / "ant" if i == 0 else tmp_path / f"{i}").mkdir(parents=True)
        for name in ("a", "b"):
            (place / "ant" if i == 0 else tmp_path / f"{i}").joinpath(name).symlink_to(tmp_path / f"{i + 1}")
    write_folder(tmp_path / "8", {"1.png": png((1, 0, 0))})
    assert len([*sources.read_files(place)]) == 256
    monkeypatch.setattr(sources, "MAX_FOLDERS", 200)
    with pytest.raises(InputError, match="got more than 200 folders"):
        [*sources.read_files(place)]

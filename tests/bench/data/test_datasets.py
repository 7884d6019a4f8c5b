"""Data sets come from archives and folders as they are, in an order that does not change."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from bench.data import datasets, layouts
from tests.helpers.datasets import png, write_archive, write_folder
from zipsdk.errors import ImageReadError, InputError
from zipsdk.images import sources

PETS = {"dog/2.png": png((3, 0, 0)), "cat/b.png": png((2, 0, 0)), "cat/a.png": png((1, 0, 0)), "dog/readme.txt": b"no"}


def test_an_archive_is_read_in_the_order_of_its_names(tmp_path):
    write_archive(tmp_path / "pets-train.zip", {**PETS, "__MACOSX/cat/a.png": b"no image"})
    d = datasets.load("pets", "train", tmp_path)
    assert d.classes == ("cat", "dog")
    assert d.images.dtype == np.uint8 and d.images.shape == (3, 8, 8, 3)
    assert d.labels.dtype == np.int64 and d.labels.tolist() == [0, 0, 1]
    assert d.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert d.source == "pets-train.zip"


def test_folders_give_what_the_archive_gives(tmp_path):
    write_archive(tmp_path / "pets-train.zip", PETS)
    write_folder(tmp_path / "elsewhere" / "pets" / "train", PETS)
    one, other = datasets.load("pets", "train", tmp_path), datasets.load("pets", "train", tmp_path / "elsewhere")
    assert one.sha256 == other.sha256
    assert one.source != other.source


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_archive(tmp_path / "pets-val.zip", PETS)
    monkeypatch.setenv(layouts.VARIABLE, str(tmp_path))
    assert len(datasets.load("pets", "test")) == 3  # "val" is what some call "test"
    monkeypatch.delenv(layouts.VARIABLE)
    with pytest.raises(layouts.NoData, match=layouts.VARIABLE):
        datasets.load("pets", "test")


def test_absent_data_is_named(tmp_path):
    with pytest.raises(layouts.NoData, match=r"cifar10-train\.zip, cifar-10-batches-py, cifar10/train"):
        datasets.load("cifar10", "train", tmp_path)
    with pytest.raises(layouts.NoData, match="no folder there"):
        datasets.load("cifar10", "train", tmp_path / "nowhere")
    with pytest.raises(InputError, match="split"):
        datasets.load("cifar10", "valid", tmp_path)
    for name in ("a/b", str(tmp_path / "pets")):
        with pytest.raises(InputError, match="expected a folder's name; give the folder that holds it as --data"):
            datasets.load(name, "train", tmp_path)


def test_images_are_what_the_sdk_makes_of_them(tmp_path):
    """Of 16 bits, and upright."""
    colors = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    place = tmp_path / "pets" / "train" / "a"
    place.mkdir(parents=True)
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(place / "gray.png")
    Image.fromarray(colors).save(place / "turned.png", exif=exif)
    gray, turned = datasets.load("pets", "train", tmp_path).images
    assert abs(gray[..., 0].ravel() - np.arange(64) * 1000 / 257).max() <= 0.5
    assert np.array_equal(turned, colors[::-1, ::-1])
    with pytest.raises(ImageReadError, match="got a file of another format"):
        sources.decode(b"no image")


def test_classes_keep_their_numbers_where_a_split_lacks_some(tmp_path):
    write_archive(tmp_path / "pets-train.zip", PETS)
    write_archive(tmp_path / "pets-test.zip", {"dog/9.png": png((9, 9, 9))})
    d = datasets.load("pets", "test", tmp_path)
    assert d.labels.tolist() == [1] and d.classes == ("cat", "dog")
    write_archive(tmp_path / "gtsrb-test.zip", {"00007/9.png": png((9, 9, 9))})
    d = datasets.load("gtsrb", "test", tmp_path)
    assert d.labels.tolist() == [7] and len(d.classes) == 43
    assert d.side == 32  # GTSRB's side, whatever the file's
    write_archive(tmp_path / "pets-test.zip", {"horse/9.png": png((9, 9, 9))})
    with pytest.raises(InputError, match="horse"):
        datasets.load("pets", "test", tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a.png": png((0, 0, 0))}, "class/image"),
        ({"deep/cat/a.png": png((0, 0, 0))}, "class/image"),
        ({"cat/a.txt": b""}, "no images"),
        ({"cat/a.png": png((0, 0, 0)), "cat/b.png": png((0, 0, 0), (9, 9))}, "8 x 8, 9 x 9"),
        ({"cat/a.png": png((0, 0, 0), (9, 8))}, "squares"),
    ],
)
def test_other_layouts_are_refused(tmp_path, images, message):
    write_archive(tmp_path / "pets-train.zip", images)
    with pytest.raises(InputError, match=message):
        datasets.load("pets", "train", tmp_path)


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "pets-train.zip").write_bytes(b"PK but no more")
    with pytest.raises(InputError, match="damaged"):
        datasets.load("pets", "train", tmp_path)


def test_images_are_resized_as_a_whole(tmp_path):
    """Left half black, right half white: both halves are still there, and each is half, at any side."""
    wide = Image.new("L", (40, 10), 255)
    wide.paste(0, (0, 0, 20, 10))
    file = io.BytesIO()
    wide.save(file, "PNG")
    write_archive(tmp_path / "pets-train.zip", {"cat/a.png": file.getvalue()})
    x = datasets.load("pets", "train", tmp_path, side=20).images
    assert x.shape == (1, 20, 20, 3)
    assert (x[:, :, :8] == 0).all() and (x[:, :, 12:] == 255).all()


def test_a_balanced_choice():
    labels = np.repeat([0, 1, 2], [50, 3, 50])
    chosen = datasets.balanced(labels, 20, seed=1)
    assert (np.diff(chosen) > 0).all()
    assert sorted(np.bincount(labels[chosen])) == [3, 8, 9]  # all that class 1 has, the rest shared evenly
    assert set(datasets.balanced(labels, 7, seed=1)) < set(chosen)
    assert np.bincount(labels[datasets.balanced(labels, 9, seed=1)]).tolist() == [3, 3, 3]
    assert np.array_equal(chosen, datasets.balanced(labels, 20, seed=1))
    assert not np.array_equal(chosen, datasets.balanced(labels, 20, seed=2))
    assert len(datasets.balanced(labels, 103)) == 103
    for n in (0, 104):
        with pytest.raises(InputError, match=str(n)):
            datasets.balanced(labels, n)


def test_a_limit_decodes_only_what_it_takes(tmp_path):
    write_archive(tmp_path / "pets-train.zip", {**PETS, "dog/damaged.png": b"no image"})
    d = datasets.load("pets", "train", tmp_path, limit=2, seed=0)
    whole = ["cat/a.png", "cat/b.png", "dog/2.png", "dog/damaged.png"]
    taken = [whole[i] for i in datasets.balanced([0, 0, 1, 1], 2, 0)]
    assert "dog/damaged.png" not in taken  # else choose another seed
    assert d.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"dog/damaged\.png"):
        datasets.load("pets", "train", tmp_path)


def test_the_hash_sees_images_labels_and_classes(tmp_path):
    d = datasets.Dataset("a", "train", np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), ("a", "b", "c", "d"))
    other = d.images.copy()
    other[3, 7, 7, 2] = 1
    hashes = {
        d.sha256,
        datasets.Dataset("a", "train", other, d.labels, d.classes).sha256,
        datasets.Dataset("a", "train", d.images, d.labels[::-1].copy(), d.classes).sha256,
        datasets.Dataset("a", "train", d.images, d.labels, ("a", "b", "c", "e")).sha256,
        datasets.Dataset("a", "train", d.images.reshape(1, 32, 8, 3), d.labels, d.classes).sha256,
    }
    assert len(hashes) == 5
    part = d.take([1, 3])
    assert part.labels.tolist() == [1, 3] and part.sha256 != d.sha256
    assert d.describe()["sha256"] == d.sha256 and d.describe()["pictures"] == 4

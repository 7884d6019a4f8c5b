"""Data sets come from their layouts as they are, in an order that does not change, and never by running a pickle."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from bench import cifar_pickle, datasets, layouts
from zipsdk.errors import InputError, PictureError


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_archive(path: Path, pictures: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in pictures.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, pictures: dict[str, bytes]) -> Path:
    for name, data in pictures.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


PETS = {"dog/2.png": png((3, 0, 0)), "cat/b.png": png((2, 0, 0)), "cat/a.png": png((1, 0, 0)), "dog/readme.txt": b"no"}


def python2_batch(pictures: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """A pickle like CIFAR-10's own: protocol 2 as Python 2 wrote it, with NumPy's names of that time."""

    def string(s: bytes) -> bytes:
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + struct.pack("<i", len(s)) + s

    def number(i: int) -> bytes:
        return b"J" + struct.pack("<i", i)

    n, row = pictures.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
        + b"(K\x01" + number(n) + number(row) + b"\x86"
        + b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + string(b"|") + b"NNN"
        + number(-1) + number(-1) + b"K\x00tb"
        + b"\x89" + string(pictures.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(number(i) for i in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(key.encode()) + numbers + b"u."


@pytest.fixture
def cifar(tmp_path, rng):
    """CIFAR-10's folder with two pictures a batch; the pictures (12, 3072) too, the test batch's last."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = rng.integers(0, 256, (12, 3072), np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(python2_batch(rows[2 * i : 2 * i + 2], [i, 9 - i]))
    names = {b"label_names": [c.encode() for c in layouts.CLASSES["cifar10"]]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, 4))
    return folder, rows


def test_an_archive_is_read_in_the_order_of_its_names(tmp_path):
    write_archive(tmp_path / "pets-train.zip", {**PETS, "__MACOSX/cat/a.png": b"no picture"})
    d = datasets.load("pets", "train", tmp_path)
    assert d.classes == ("cat", "dog")
    assert d.pictures.dtype == np.uint8 and d.pictures.shape == (3, 8, 8, 3)
    assert d.labels.dtype == np.int64 and d.labels.tolist() == [0, 0, 1]
    assert d.pictures[:, 0, 0, 0].tolist() == [1, 2, 3]
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
        with pytest.raises(InputError, match="wanted a folder's name; give the folder that holds it as --data"):
            datasets.load(name, "train", tmp_path)


def test_pictures_are_what_the_sdk_makes_of_them(tmp_path):
    """Of 16 bits, and upright."""
    colours = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    place = tmp_path / "pets" / "train" / "a"
    place.mkdir(parents=True)
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(place / "grey.png")
    Image.fromarray(colours).save(place / "turned.png", exif=exif)
    grey, turned = datasets.load("pets", "train", tmp_path).pictures
    assert abs(grey[..., 0].ravel() - np.arange(64) * 1000 / 257).max() <= 0.5
    assert np.array_equal(turned, colours[::-1, ::-1])
    with pytest.raises(PictureError, match="got a file that cannot be read"):
        datasets.decode(b"no picture")


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
    ("pictures", "message"),
    [
        ({"a.png": png((0, 0, 0))}, "class/picture"),
        ({"deep/cat/a.png": png((0, 0, 0))}, "class/picture"),
        ({"cat/a.txt": b""}, "no pictures"),
        ({"cat/a.png": png((0, 0, 0)), "cat/b.png": png((0, 0, 0), (9, 9))}, "8 x 8, 9 x 9"),
        ({"cat/a.png": png((0, 0, 0), (9, 8))}, "squares"),
    ],
)
def test_other_layouts_are_refused(tmp_path, pictures, message):
    write_archive(tmp_path / "pets-train.zip", pictures)
    with pytest.raises(InputError, match=message):
        datasets.load("pets", "train", tmp_path)


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "pets-train.zip").write_bytes(b"PK but no more")
    with pytest.raises(InputError, match="damaged"):
        datasets.load("pets", "train", tmp_path)


def test_pictures_are_resized_as_a_whole(tmp_path):
    """Left half black, right half white: both halves are still there, and each is half, at any side."""
    wide = Image.new("L", (40, 10), 255)
    wide.paste(0, (0, 0, 20, 10))
    file = io.BytesIO()
    wide.save(file, "PNG")
    write_archive(tmp_path / "pets-train.zip", {"cat/a.png": file.getvalue()})
    x = datasets.load("pets", "train", tmp_path, side=20).pictures
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
    write_archive(tmp_path / "pets-train.zip", {**PETS, "dog/damaged.png": b"no picture"})
    d = datasets.load("pets", "train", tmp_path, limit=2, seed=0)
    whole = ["cat/a.png", "cat/b.png", "dog/2.png", "dog/damaged.png"]
    taken = [whole[i] for i in datasets.balanced([0, 0, 1, 1], 2, 0)]
    assert "dog/damaged.png" not in taken  # else choose another seed
    assert d.labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"dog/damaged\.png"):
        datasets.load("pets", "train", tmp_path)


def test_cifar10_from_its_own_files(cifar, tmp_path):
    _, rows = cifar
    d = datasets.load("cifar10", "train", tmp_path)
    assert d.pictures.shape == (10, 32, 32, 3)
    assert d.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert d.classes[:2] == ("airplane", "automobile")
    # a row is all red, all green, all blue, each from the top left
    assert np.array_equal(d.pictures[3, 2, 5], rows[3, [2 * 32 + 5, 1024 + 2 * 32 + 5, 2048 + 2 * 32 + 5]])
    t = datasets.load("cifar10", "test", tmp_path)
    assert t.labels.tolist() == [5, 4]
    assert np.array_equal(t.pictures[1].transpose(2, 0, 1).ravel(), rows[11])


def test_a_pickle_of_this_numpy_is_read_too(cifar):
    folder, rows = cifar
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": rows, b"labels": [*range(10), 0, 1]}, 3))
    assert np.array_equal(cifar_pickle.read_cifar_pickle(folder / "test_batch")[b"data"].array, rows)


class Runs:
    """A pickle that runs a command when it is read."""

    def __init__(self, function, *arguments):
        self.made_of = function, arguments

    def __reduce__(self):
        return self.made_of


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_something_is_refused(cifar, tmp_path, protocol):
    folder, _ = cifar
    proof = tmp_path / "proof"
    for run in (Runs(os.mkdir, str(proof)), Runs(exec, f"open({str(proof)!r}, 'w')"), Runs(getattr, "", "join")):
        (folder / "test_batch").write_bytes(pickle.dumps({b"data": run}, protocol))
        if run.made_of[0] is os.mkdir:
            pickle.loads(pickle.dumps(run))  # the trap is one
            assert proof.is_dir()
            proof.rmdir()
        with pytest.raises(InputError, match="asks for"):
            datasets.load("cifar10", "test", tmp_path)
        assert not proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}",
        pickle.dumps([1, 2], 2),
        # what stands for numpy's names can be called, but gives no way on to anything else
        b"\x80\x02cnumpy\nndarray\n(Vos\nVsystem\ntb.",
        b"cnumpy\n_core\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__init__\x93.",
        b"Pelsewhere\n.",
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint16), b"labels": [0, 1]}, 3),
        pickle.dumps({b"data": np.array([print], object)}, 3),
        pickle.dumps({b"data": np.asfortranarray(np.eye(4, dtype=np.uint8)[:3]), b"labels": [0]}, 3),
    ],
)
def test_a_strange_pickle_is_refused(cifar, data):
    folder, _ = cifar
    (folder / "test_batch").write_bytes(data)
    with pytest.raises(InputError, match="CIFAR-10"):
        cifar_pickle.read_cifar_pickle(folder / "test_batch")


@pytest.mark.parametrize(
    "batch",
    [
        {b"labels": [0, 1]},
        {b"data": [1, 2], b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
        {b"data": np.zeros((2, 3000), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": ["cat", "dog"]},
    ],
)
def test_batches_that_are_not_cifars_are_refused(cifar, tmp_path, batch):
    folder, _ = cifar
    (folder / "test_batch").write_bytes(pickle.dumps(batch, 3))
    with pytest.raises(InputError, match="python version"):
        datasets.load("cifar10", "test", tmp_path)
    (folder / "test_batch").unlink()
    with pytest.raises(InputError, match="test_batch"):
        datasets.load("cifar10", "test", tmp_path)


def gtsrb_table(rows: list[tuple[str, int]]) -> bytes:
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    return "\r\n".join([head, *(f"{name};9;8;1;1;7;7;{label}" for name, label in rows), ""]).encode()


def ppm(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 0, 0)).save(file, "PPM")
    return file.getvalue()


def test_gtsrb_from_its_own_folders(tmp_path):
    base = write_folder(
        tmp_path / "GTSRB" / "Final_Training" / "Images",
        {
            "00014/GT-00014.csv": gtsrb_table([("00000_00001.ppm", 14), ("00000_00000.ppm", 14)]),
            "00014/00000_00000.ppm": ppm(30),
            "00014/00000_00001.ppm": ppm(20),
            "00002/GT-00002.csv": gtsrb_table([("00000_00000.ppm", 2)]),
            "00002/00000_00000.ppm": ppm(10),
        },
    )
    d = datasets.load("gtsrb", "train", tmp_path)
    assert len(d) == 3 and d.tracks.tolist() == [0, 1, 1]
    assert d.labels.tolist() == [2, 14, 14] and len(d.classes) == 43
    assert d.pictures.shape == (3, 32, 32, 3) and d.pictures[:, 0, 0, 0].tolist() == [10, 20, 30]
    (base / "00014" / "GT-00014.csv").unlink()
    with pytest.raises(InputError, match=r"GT-00014\.csv"):
        datasets.load("gtsrb", "train", tmp_path)
    (base / "00014" / "GT-00014.csv").write_bytes(gtsrb_table([("00000_00000.ppm", 14), ("00000_00002.ppm", 14)]))
    with pytest.raises(InputError, match=r"00014/00000_00002\.ppm"):
        datasets.load("gtsrb", "train", tmp_path)
    for table in (gtsrb_table([("00000_00000.ppm", 43)]), b"Filename;Width\r\nx.ppm;9\r\n"):
        (base / "00014" / "GT-00014.csv").write_bytes(table)
        with pytest.raises(InputError, match="GTSRB"):
            datasets.load("gtsrb", "train", tmp_path)


@pytest.mark.parametrize("place", ["GTSRB/Final_Test/Images", "GTSRB", "."])
def test_gtsrbs_test_classes_are_a_file_of_their_own(tmp_path, place):
    write_folder(tmp_path / "GTSRB" / "Final_Test" / "Images", {"00000.ppm": ppm(10), "00001.ppm": ppm(20)})
    with pytest.raises(InputError, match=r"GT-final_test\.csv"):
        datasets.load("gtsrb", "test", tmp_path)
    write_folder(tmp_path / place, {"GT-final_test.csv": gtsrb_table([("00000.ppm", 16), ("00001.ppm", 1)])})
    assert datasets.load("gtsrb", "test", tmp_path).labels.tolist() == [16, 1]


def test_imagenette_from_its_own_folders(tmp_path):
    for folder in ("imagenette2-160", "imagenette2-320"):
        value = int(folder[-3:]) // 2
        write_folder(
            tmp_path / folder / "val", {"n03888257/x.JPEG": png((value, 0, 0)), "n01440764/y.JPEG": png((value, 0, 0))}
        )
    d = datasets.load("imagenette", "test", tmp_path, side=8)
    assert d.labels.tolist() == [0, 9] and d.classes[9] == "parachute"
    assert d.source == "imagenette2-320/val" and (d.pictures[..., 0] == 160).all()


def test_the_hash_sees_pictures_labels_and_classes(tmp_path):
    d = datasets.Dataset("a", "train", np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), ("a", "b", "c", "d"))
    other = d.pictures.copy()
    other[3, 7, 7, 2] = 1
    hashes = {
        d.sha256,
        datasets.Dataset("a", "train", other, d.labels, d.classes).sha256,
        datasets.Dataset("a", "train", d.pictures, d.labels[::-1].copy(), d.classes).sha256,
        datasets.Dataset("a", "train", d.pictures, d.labels, ("a", "b", "c", "e")).sha256,
        datasets.Dataset("a", "train", d.pictures.reshape(1, 32, 8, 3), d.labels, d.classes).sha256,
    }
    assert len(hashes) == 5
    part = d.take([1, 3])
    assert part.labels.tolist() == [1, 3] and part.sha256 != d.sha256
    assert d.describe()["sha256"] == d.sha256 and d.describe()["pictures"] == 4

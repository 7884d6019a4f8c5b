"""CIFAR-10, GTSRB and Imagenette as their authors publish them, without ever running a pickle."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from bench.data import cifar_pickle, datasets, layouts
from tests.helpers.datasets import png, write_folder
from zipsdk.errors import InputError


def python2_batch(images: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """A pickle like CIFAR-10's own: protocol 2 as Python 2 wrote it, with NumPy's names of that time."""

    def string(s: bytes) -> bytes:
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + struct.pack("<i", len(s)) + s

    def number(i: int) -> bytes:
        return b"J" + struct.pack("<i", i)

    n, row = images.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
        + b"(K\x01" + number(n) + number(row) + b"\x86"
        + b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + string(b"|") + b"NNN"
        + number(-1) + number(-1) + b"K\x00tb"
        + b"\x89" + string(images.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(number(i) for i in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(key.encode()) + numbers + b"u."


@pytest.fixture
def cifar(tmp_path, rng):
    """CIFAR-10's folder with two images a batch; the images (12, 3072) too, the test batch's last."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = rng.integers(0, 256, (12, 3072), np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(python2_batch(rows[2 * i : 2 * i + 2], [i, 9 - i]))
    names = {b"label_names": [c.encode() for c in layouts.CLASSES["cifar10"]]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, 4))
    return folder, rows


def test_cifar10_from_its_own_files(cifar, tmp_path):
    _, rows = cifar
    d = datasets.load("cifar10", "train", tmp_path)
    assert d.images.shape == (10, 32, 32, 3)
    assert d.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert d.classes[:2] == ("airplane", "automobile")
    # a row is all red, all green, all blue, each from the top left
    assert np.array_equal(d.images[3, 2, 5], rows[3, [2 * 32 + 5, 1024 + 2 * 32 + 5, 2048 + 2 * 32 + 5]])
    t = datasets.load("cifar10", "test", tmp_path)
    assert t.labels.tolist() == [5, 4]
    assert np.array_equal(t.images[1].transpose(2, 0, 1).ravel(), rows[11])


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
        with pytest.raises(InputError, match="refers to"):
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
    assert d.images.shape == (3, 32, 32, 3) and d.images[:, 0, 0, 0].tolist() == [10, 20, 30]
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
    assert d.source == "imagenette2-320/val" and (d.images[..., 0] == 160).all()

"""Find the images of data sets: zip archives, folders, and the official layouts of three benchmarks.

`list_images` searches one folder of data, the given one or that of the environment variable ZIPSDK_DATA, for
CIFAR-10, GTSRB, Imagenette, or any data set in the ImageFolder layout. It takes the first of

    <name>-<split>.zip                      class/image in an archive
    cifar-10-batches-py/                    CIFAR-10, "python version"; read without executing its pickles
    GTSRB/Final_Training/Images/00000/      GTSRB with its CSV files; GTSRB/Final_Test/Images/ and GT-final_test.csv
    imagenette2/, imagenette2-320/, -160/   Imagenette as fast.ai publishes it
    <name>/<split>/                         class/image in folders

where split is "train" or "test" (also "val" for "test").

Images are files with the SDK's suffixes (`zipsdk.images.SUFFIXES`). Links to files and folders are followed. A folder
is a class, with or without images: one without keeps its number, with a UserWarning that names it. Hidden files and
folders are ignored.
"""

from __future__ import annotations

import csv
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.data.cifar_pickle import read_cifar_pickle
from zipsdk.errors import InputError
from zipsdk.images import SUFFIXES
from zipsdk.images.sources import entries, is_hidden, is_image, walk

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

#: The environment variable with the default folder of data.
VARIABLE = "ZIPSDK_DATA"
SPLITS = {"train": ("train",), "test": ("test", "val")}

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
#: The folders of the known data sets and the names of their classes. Fixed, because a part of GTSRB may lack a class,
#: which must not change the numbers of the others.
CLASSES: dict[str, dict[str, str]] = {
    "cifar10": {c: c for c in _CIFAR10},
    "gtsrb": {f"{i:05d}": f"{i:05d}" for i in range(43)},
    "imagenette": _IMAGENETTE,
}


class NoData(InputError):
    """The data set was not found."""


class Listing(NamedTuple):
    """The images of a layout, before any is decoded."""

    source: str
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: I64
    #: reads the images with these indices, as file contents or as arrays
    read: Callable[[Iterable[int]], Iterator[bytes | U8]]


def list_images(name: str, split: str, folder: str | Path | None = None) -> Listing:
    """List a data set without decoding any image; arguments and errors are those of `datasets.load`."""
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    if Path(name).name != name:
        raise InputError(f"data set: got {name!r}, expected a folder's name; give the folder that holds it as --data")
    given = folder or os.environ.get(VARIABLE)
    if not given:
        raise NoData(f"data: got no folder, expected the one that holds {name}; give --data or set {VARIABLE}")
    return _find(name, split, Path(given))


def _find(name: str, split: str, root: Path) -> Listing:
    if not root.is_dir():
        raise NoData(f"{root}: got no folder there, expected the one that holds {name}; see --data and {VARIABLE}")

    def archive(path: Path) -> Listing:
        return _archive(path, known)

    def folders(path: Path) -> Listing:
        return _folders(path, known)

    known = CLASSES.get(name)
    places: list[tuple[Path, Callable[[Path], Listing]]] = [(root / f"{name}-{s}.zip", archive) for s in SPLITS[split]]
    if name == "cifar10":
        places.append((root / "cifar-10-batches-py", lambda p: _cifar10(p, split)))
    if name == "gtsrb":
        part = "Final_Training" if split == "train" else "Final_Test"
        places.append((root / "GTSRB" / part / "Images", _gtsrb_train if split == "train" else _gtsrb_test))
    names = [name]
    if name == "imagenette":
        names = ["imagenette2", "imagenette2-320", "imagenette2-160", name]
    places += [(root / n / s, folders) for n in names for s in SPLITS[split]]
    for path, layout in places:
        if path.exists():
            if known is None and split == "test":
                with suppress(NoData):  # the training set decides the classes
                    known = {c: c for c in _find(name, "train", root).classes}
            return layout(path)
    expected = ", ".join(str(path.relative_to(root)) for path, _ in places)
    raise NoData(f"{root}: got no {name} for {split}, expected one of {expected}; see bench/data/layouts.py")


def _by_class(
    source: Path, names: Iterable[str], known: dict[str, str] | None
) -> tuple[list[str], tuple[str, ...], I64]:
    """Return the sorted names of the images among `names`, each class/image; the classes; the label of each image."""
    names = [n for n in names if not is_hidden(n)]
    kept = sorted(n for n in names if is_image(n))
    if not kept:
        raise InputError(f"{source}: got no images, expected a folder for each class with its images")
    if odd := [n for n in kept if n.count("/") != 1]:
        raise InputError(f"{source}: got {odd[0]}, expected class/image, one folder deep")
    folders = [n.split("/")[0] for n in kept]
    empty = sorted({n.split("/")[0] for n in names if "/" in n} - set(folders))
    classes = known or {f: f for f in sorted({*folders, *empty})}
    if strange := sorted(set(folders) - set(classes)):
        raise InputError(f"{source}: got a folder {strange[0]}, expected only the classes {', '.join(classes)}")
    if empty:
        warnings.warn(
            f"{source}: no images in {', '.join(empty[:10])}{' and more' * (len(empty) > 10)}, of the suffixes "
            f"{' '.join(sorted(SUFFIXES))}: "
            + (
                "they stay classes; remove the folders if they are none"
                if known is None
                else "classes keep their numbers"
            ),
            UserWarning,
            stacklevel=2,
        )
    number = {f: i for i, f in enumerate(classes)}
    return kept, tuple(classes.values()), np.array([number[f] for f in folders], np.int64)


def _archive(path: Path, known: dict[str, str] | None) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            names, classes, labels = _by_class(path, entries(archive, path), known)
    except zipfile.BadZipFile as e:
        raise InputError(f"{path}: got a damaged archive ({e}), expected a zip archive; copy it again") from e

    def read(indices: Iterable[int]) -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive:
            for i in indices:
                yield archive.read(names[i])

    return Listing(path.name, names, classes, labels, read)


def _folders(path: Path, known: dict[str, str] | None) -> Listing:
    names, classes, labels = _by_class(path, walk(path), known)
    return Listing(
        f"{path.parent.name}/{path.name}",
        names,
        classes,
        labels,
        lambda indices: ((path / names[i]).read_bytes() for i in indices),
    )


def _gtsrb_table(path: Path) -> list[tuple[str, int]]:
    """Read file names and classes from one of GTSRB's CSV files."""
    if not path.is_file():
        raise InputError(f"{path}: got no such file, expected the CSV that comes with GTSRB's images; unpack it there")
    with path.open(newline="") as f:
        try:
            return [(Path(row["Filename"]).name, int(row["ClassId"])) for row in csv.DictReader(f, delimiter=";")]
        except (KeyError, ValueError) as e:
            raise InputError(f"{path}: got {e}, expected columns Filename and ClassId separated by ';'") from e


def _gtsrb(source: str, rows: list[tuple[Path, int]]) -> Listing:
    labels = np.array([label for _, label in rows], np.int64)
    if not rows or labels.min() < 0 or labels.max() > 42:
        raise InputError(
            f"{source}: got {len(rows)} images, expected at least one, of classes 0 to 42; unpack it again"
        )
    names = [f"{path.parent.name}/{path.name}" for path, _ in rows]
    return Listing(
        source, names, tuple(CLASSES["gtsrb"]), labels, lambda indices: (rows[i][0].read_bytes() for i in indices)
    )


def _gtsrb_train(path: Path) -> Listing:
    rows = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        rows += [(folder / file, label) for file, label in _gtsrb_table(folder / f"GT-{folder.name}.csv")]
    return _gtsrb("GTSRB/Final_Training", rows)


def _gtsrb_test(path: Path) -> Listing:
    """List the official test set. The CSV in its folder has no classes; the one with classes is a separate download."""
    places = [p / "GT-final_test.csv" for p in (path, path.parents[1], path.parents[2])]
    table = next((p for p in places if p.is_file()), places[0])
    return _gtsrb("GTSRB/Final_Test", [(path / file, label) for file, label in _gtsrb_table(table)])


def _cifar10(path: Path, split: str) -> Listing:
    files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    batches = [read_cifar_pickle(path / f) for f in files]
    meta = read_cifar_pickle(path / "batches.meta")
    try:
        rows = np.concatenate([b[b"data"].array for b in batches])
        labels = np.concatenate([np.array(b[b"labels"], np.int64) for b in batches])
        classes = tuple(name.decode() for name in meta[b"label_names"])
        images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if labels.shape != (len(images),) or not ((labels >= 0) & (labels < len(classes))).all():
            raise ValueError(f"{len(labels)} labels for {len(images)} images of {len(classes)} classes")
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: got {e!r}, expected CIFAR-10's python version; unpack it again") from e
    names = [f"image {i}" for i in range(len(labels))]
    return Listing(
        path.name, names, classes, labels, lambda indices: (np.ascontiguousarray(images[i]) for i in indices)
    )

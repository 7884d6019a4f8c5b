"""Load labeled images of one size from the places that bench/data/layouts.py finds.

An image that is not `side` x `side` is resized without keeping its aspect ratio, as the paper does with GTSRB and
Imagenette, by Pillow's bicubic filter, which averages when it shrinks.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.data.layouts import Listing, list_images
from zipsdk.errors import InputError
from zipsdk.images.sources import decode

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

#: The sides of the data sets with images of one size.
SIDES = {"cifar10": 32, "gtsrb": 32}


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, H, W, 3), their labels int64 (N,) and the names of the classes."""

    name: str
    split: str
    images: U8
    labels: I64
    classes: tuple[str, ...]
    #: the name of the file or folder that it was read from, without parent folders
    source: str = ""
    #: GTSRB: the track of each image, int64 (N,); None where images are independent
    tracks: I64 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return int(self.images.shape[1])

    @cached_property
    def sha256(self) -> str:
        """The hash of images, labels and classes."""
        h = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        h.update(np.ascontiguousarray(self.images).data)
        h.update(np.ascontiguousarray(self.labels, "<i8").data)
        return h.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Describe the data for records: source, size and hash."""
        # cache keys and row keys hash these names
        return {
            "dataset": self.name,
            "split": self.split,
            "source": self.source,
            "pictures": len(self),
            "side": self.side,
            "classes": len(self.classes),
            "sha256": self.sha256,
        }

    def counted(self) -> dict[str, int]:
        """Count for records the classes with images and, where known, the tracks."""
        tracks = {} if self.tracks is None else {"tracks": len(np.unique(self.tracks))}
        return {"classes_with_images": len(np.unique(self.labels)), **tracks}

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """Return a data set of the images with these indices."""
        i = np.asarray(indices)
        tracks = None if self.tracks is None else self.tracks[i]
        return replace(self, images=self.images[i], labels=self.labels[i], tracks=tracks)


def hash_of(images: U8) -> str:
    """Return the SHA-256 of the shape and the pixels of images, for keys."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def balanced(labels: npt.ArrayLike, n: int, seed: int = 0) -> I64:
    """Choose `n` images balanced over the classes; return their indices in ascending order.

    Counts of classes differ by at most one, except for classes with fewer images. With the same seed a smaller choice
    is a subset of a larger one.
    """
    y = np.asarray(labels)
    if not 0 < n <= len(y):
        raise InputError(f"images: got {n}, expected 1 to {len(y)}")
    shuffled = np.random.default_rng([seed, 0xDA7A]).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    counts = np.unique(y, return_counts=True)[1]
    turn = np.concatenate([np.arange(c) for c in counts])  # first image of each class, then second, ...
    place = np.empty(len(y), np.int64)
    place[shuffled] = np.arange(len(y))
    order = np.lexsort((place[by_class], turn))
    return np.sort(by_class[order[:n]]).astype(np.int64)


def load(
    name: str,
    split: str,
    folder: str | Path | None = None,
    *,
    side: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set, or a part of it that is balanced over the classes.

    Args:
        name: "cifar10", "gtsrb", "imagenette", or the name of any data set in the ImageFolder layout.
        split: "train" or "test".
        folder: folder of data sets; None: the environment variable ZIPSDK_DATA.
        side: of the images; None: 32 for CIFAR-10 and GTSRB; for others no resizing, and the images must be squares of
            one size.
        limit: number of images, at most, balanced by class (see `balanced`); only these are decoded.
        seed: of that choice.

    Raises:
        NoData: the data set was not found.
        InputError: the data does not have its layout.
    """
    listing = list_images(name, split, folder)
    indices = np.arange(len(listing.labels), dtype=np.int64)
    if limit is not None and limit < len(indices):
        indices = balanced(listing.labels, limit, seed)
    side = side or SIDES.get(name)
    images = _decoded(listing, indices, side)
    sizes = sorted({p.shape for p in images})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        shown = ", ".join(f"{h} x {w}" for h, w, _ in sizes[:3])
        raise InputError(f"{listing.source}: got images of {shown}, expected squares of one size; give a side")
    tracks = _tracks(name, [listing.names[i] for i in indices.tolist()])
    return Dataset(name, split, np.stack(images), listing.labels[indices], listing.classes, listing.source, tracks)


def _tracks(name: str, names: list[str]) -> I64 | None:
    """Parse GTSRB's tracks from names class/track_frame; None for its official test set, whose names have no track."""
    if name != "gtsrb" or not all(re.fullmatch(r"\d{5}/\d{5}_\d{5}\.\w+", n) for n in names):
        return None
    return np.unique([n.rsplit("_", 1)[0] for n in names], return_inverse=True)[1].astype(np.int64)


def _decoded(listing: Listing, indices: I64, side: int | None) -> list[U8]:
    files, out = listing.read(indices), []
    for i in indices.tolist():
        try:
            out.append(decode(next(files), side))
        except Exception as e:  # a damaged file can raise any exception
            raise InputError(
                f"{listing.source}: got {listing.names[i]}, which cannot be read ({e}), expected an image; copy it"
            ) from e
    return out

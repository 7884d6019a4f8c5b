"""Labelled pictures of one size, from where bench/data/layouts.py finds a data set's.

A picture that is not `side` x `side` is resized to it as a whole, aspect ratio and all, as the paper does with GTSRB
and Imagenette; Pillow's bicubic filter, which averages when it shrinks.
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

from bench.data.layouts import Listing, list_pictures
from zipsdk.errors import InputError
from zipsdk.images.sources import decode

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

#: The sides of the data sets that come in one.
SIDES = {"cifar10": 32, "gtsrb": 32}


@dataclass(frozen=True)
class Dataset:
    """Pictures uint8 (N, H, W, 3), their labels int64 (N,) and the classes that the labels number."""

    name: str
    split: str
    pictures: U8
    labels: I64
    classes: tuple[str, ...]
    #: the file or folder that it was read from, without the folders above
    source: str = ""
    #: of each picture the film that it is a frame of, int64 (N,); None where each is one of its own
    tracks: I64 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return int(self.pictures.shape[1])

    @cached_property
    def sha256(self) -> str:
        """Of pictures, labels and classes."""
        h = hashlib.sha256(repr((self.pictures.shape, self.classes)).encode())
        h.update(np.ascontiguousarray(self.pictures))
        h.update(np.ascontiguousarray(self.labels, "<i8"))
        return h.hexdigest()

    def describe(self) -> dict[str, Any]:
        """For records: which copy, how much of it, and its hash."""
        return {"dataset": self.name, "split": self.split, "source": self.source, "pictures": len(self),
                "side": self.side, "classes": len(self.classes), "sha256": self.sha256}  # fmt: skip

    def counted(self) -> dict[str, int]:
        """For records: how many classes have pictures, and of how many tracks these are frames, where that is known."""
        tracks = {} if self.tracks is None else {"tracks": len(np.unique(self.tracks))}
        return {"classes with pictures": len(np.unique(self.labels)), **tracks}

    def take(self, indices: npt.ArrayLike) -> Dataset:
        i = np.asarray(indices)
        tracks = None if self.tracks is None else self.tracks[i]
        return replace(self, pictures=self.pictures[i], labels=self.labels[i], tracks=tracks)


def balanced(labels: npt.ArrayLike, n: int, seed: int = 0) -> I64:
    """Indices of `n` pictures, as evenly over the classes as they last, ascending.

    The classes differ by at most one, but for those that have fewer pictures. With the same seed a smaller choice is
    part of a larger one.
    """
    y = np.asarray(labels)
    if not 0 < n <= len(y):
        raise InputError(f"pictures: got {n}, wanted 1 to {len(y)}, which is what there is")
    shuffled = np.random.default_rng([seed, 0xDA7A]).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    counts = np.unique(y, return_counts=True)[1]
    turn = np.concatenate([np.arange(c) for c in counts])  # each class's first picture, then each one's second, ...
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
    """A data set, or a part of it that has its classes in balance.

    Args:
        name: "cifar10", "gtsrb", "imagenette", or the name of any data set in the ImageFolder layout.
        split: "train" or "test".
        folder: where data sets are; None takes the one that ZIPSDK_DATA names.
        side: of the pictures; None takes 32 for CIFAR-10 and GTSRB, else the pictures as they are, which must then be
            squares of one size.
        limit: so many pictures at most, balanced by class (see `balanced`); only these are decoded.
        seed: of that choice.

    Raises:
        NoData: no such data there.
        InputError: data that is not what its layout says.
    """
    listing = list_pictures(name, split, folder)
    indices = np.arange(len(listing.labels), dtype=np.int64)
    if limit is not None and limit < len(indices):
        indices = balanced(listing.labels, limit, seed)
    side = side or SIDES.get(name)
    pictures = _decoded(listing, indices, side)
    sizes = sorted({p.shape for p in pictures})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        shown = ", ".join(f"{h} x {w}" for h, w, _ in sizes[:3])
        raise InputError(f"{listing.source}: got pictures of {shown}, wanted squares of one size; give a side")
    return Dataset(name, split, np.stack(pictures), listing.labels[indices], listing.classes, listing.source,
                   _tracks(name, [listing.names[i] for i in indices]))  # fmt: skip


def _tracks(name: str, names: list[str]) -> I64 | None:
    """GTSRB's training pictures are named class/track_frame; those of its official test set do not say their track."""
    if name != "gtsrb" or not all(re.fullmatch(r"\d{5}/\d{5}_\d{5}\.\w+", n) for n in names):
        return None
    return np.unique([n.rsplit("_", 1)[0] for n in names], return_inverse=True)[1].astype(np.int64)


def _decoded(listing: Listing, indices: I64, side: int | None) -> list[U8]:
    files, out = listing.read(indices), []
    for i in indices:
        try:
            out.append(decode(next(files), side))
        except Exception as e:  # a damaged file can raise nearly anything
            raise InputError(
                f"{listing.source}: got {listing.names[i]}, which cannot be read ({e}), wanted a picture; copy it again"
            ) from e
    return out

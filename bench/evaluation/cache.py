"""Cache purified images, so that runs resume and classifiers share purifications.

An image is cached under the hash of the defense and the seed, and of the image itself: interrupted runs resume, a
second classifier costs no second purification, and 1,000 images reuse the results for 200 of them. Where an engine of
one size tiles several images together, their slight influence on each other is not part of the key.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.defenses.base import Defense
from bench.victims.user import Classifier
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

#: Images purified between two writes: an interrupted run loses at most these.
PART = 64
#: The name of the file up to version 0.1; it becomes the new file when that is first opened.
OLD_NAME = "treated.sqlite"


def hash_of(description: Any) -> str:
    """Return 16 hex digits for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


class PurifiedCache:
    """Purified images in one SQLite file, which several processes may use at once.

    Args:
        path: of the file; None caches nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _rename_old(path)
            with self._open() as file:
                # the table has the names that it had in OLD_NAME
                file.execute("CREATE TABLE IF NOT EXISTS treated (made_by TEXT, picture BLOB, result BLOB, "
                             "PRIMARY KEY (made_by, picture)) WITHOUT ROWID")  # fmt: skip

    def _open(self) -> closing[sqlite3.Connection]:
        assert self.path is not None
        return closing(sqlite3.connect(self.path, timeout=60, isolation_level=None))

    def run(
        self,
        defense: Defense,
        images: U8,
        seed: int,
        classifier: Classifier | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """Purify images by `defense.run`, or take them from the cache.

        Args:
            defense: makes the images that are not cached.
            images: uint8 (N, H, W, 3).
            seed: of the defense.
            classifier: for defenses that query it.
            progress: called with the number of images done since the last call.

        Raises:
            InputError: the defense returned another number, size or dtype of images.
        """
        done = progress or (lambda n: None)
        queried = classifier.info if defense.queries_classifier and classifier is not None else None
        made_by = hash_of([defense.describe(), seed, queried])
        names = [hashlib.blake2b(x.tobytes() + str(x.shape).encode(), digest_size=16).digest() for x in images]
        known = self._known(made_by, names)
        out = np.empty_like(images)
        todo = []
        for i, name in enumerate(names):
            if name in known:
                out[i] = np.frombuffer(known[name], np.uint8).reshape(out[i].shape)
            else:
                todo.append(i)
        todo.sort(key=names.__getitem__)  # mixes the classes, because images tiled together influence each other
        done(len(images) - len(todo))
        for start in range(0, len(todo), PART):
            part = todo[start : start + PART]
            result = np.asarray(defense.run(images[part], seed, classify=classifier, progress=done))
            if result.dtype != np.uint8 or result.shape != images[part].shape:
                raise InputError(
                    f"{defense.name}: got {result.dtype} {result.shape} back, expected uint8 {images[part].shape}"
                )
            out[part] = result
            self._keep(made_by, [(names[i], out[i].tobytes()) for i in part])
        return out

    def _known(self, made_by: str, names: list[bytes]) -> dict[bytes, bytes]:
        if self.path is None:
            return {}
        found: dict[bytes, bytes] = {}
        with self._open() as file:
            for i in range(0, len(names), 500):  # some SQLite builds take at most 999 values in a statement
                part = names[i : i + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT picture, result FROM treated WHERE made_by = ? AND picture IN ({marks})"
                found.update(file.execute(query, [made_by, *part]))
        return found

    def _keep(self, made_by: str, results: list[tuple[bytes, bytes]]) -> None:
        if self.path is None:
            return
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            file.executemany(
                "INSERT OR REPLACE INTO treated VALUES (?, ?, ?)", [(made_by, name, result) for name, result in results]
            )
            file.execute("COMMIT")


def _rename_old(path: Path) -> None:
    """Rename the file of an earlier version, its journal first, without which SQLite cannot undo a broken write."""
    old = path.with_name(OLD_NAME)
    if path.exists() or not old.exists():
        return
    for suffix in ("-journal", ""):
        if Path(f"{old}{suffix}").exists():
            Path(f"{old}{suffix}").rename(f"{path}{suffix}")

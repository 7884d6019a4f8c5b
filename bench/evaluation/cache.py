"""What defences made of pictures, kept, so that runs are resumable.

What a defence makes of a picture is kept under the hash of the defence, the seed and the picture, each picture by
itself: a stopped run goes on where it was, a second classifier costs no second purification, and 1,000 pictures take
over what was made of 200 of them. Where an engine of one size has several on a canvas, their neighbours there, which
change them a little, are not part of that.
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

from bench.defenses.base import Defence
from bench.victims.user import Classifier
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]

#: Pictures treated between two writes to the store: what a stopped run loses at most.
PART = 64


def hash_of(description: Any) -> str:
    """16 hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """What defences made of pictures, in one SQLite file; several processes may use it at once. None keeps nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as file:
                file.execute("CREATE TABLE IF NOT EXISTS treated (made_by TEXT, picture BLOB, result BLOB, "
                             "PRIMARY KEY (made_by, picture)) WITHOUT ROWID")  # fmt: skip

    def _open(self) -> Any:
        file = sqlite3.connect(self.path, timeout=60, isolation_level=None)  # type: ignore[arg-type]
        return closing(file)

    def treat(
        self,
        defence: Defence,
        pictures: U8,
        seed: int,
        classifier: Classifier | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> U8:
        """`defence.run`, but for the pictures that were treated before.

        Raises:
            InputError: the defence gave back something else than as many pictures of the same size.
        """
        done = progress or (lambda n: None)
        asks = classifier.info if defence.asks and classifier is not None else None
        made_by = hash_of([defence.describe(), seed, asks])
        names = [hashlib.blake2b(p.tobytes() + str(p.shape).encode(), digest_size=16).digest() for p in pictures]
        known = self._known(made_by, names)
        out = np.empty_like(pictures)
        todo = []
        for i, name in enumerate(names):
            if name in known:
                out[i] = np.frombuffer(known[name], np.uint8).reshape(out[i].shape)
            else:
                todo.append(i)
        todo.sort(key=names.__getitem__)  # data sets stand class by class, and neighbours on a canvas see each other
        done(len(pictures) - len(todo))
        for start in range(0, len(todo), PART):
            part = todo[start : start + PART]
            result = np.asarray(defence.run(pictures[part], seed, classify=classifier, progress=done))
            if result.dtype != np.uint8 or result.shape != pictures[part].shape:
                raise InputError(
                    f"{defence.name}: got {result.dtype} {result.shape} back, wanted uint8 {pictures[part].shape}"
                )
            out[part] = result
            self._keep(made_by, [(names[i], out[i].tobytes()) for i in part])
        return out

    def _known(self, made_by: str, names: list[bytes]) -> dict[bytes, bytes]:
        if self.path is None:
            return {}
        found: dict[bytes, bytes] = {}
        with self._open() as file:
            for i in range(0, len(names), 500):  # SQLite takes no more than 999 values in a statement everywhere
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

"""One row of a table: an attack on a classifier, behind a defence, counted. And the store that makes runs resumable.

    store = Store(folder / "treated.sqlite")
    scene = Scene(test, "badnets", trigger, target, classifier, clean_classifier)
    row = evaluate(scene, defence, seed, store)

What a defence makes of a picture is kept under the hash of the defence, the seed and the picture, each picture by
itself: a stopped run goes on where it was, a second classifier costs no second purification, and 1,000 pictures take
over what was made of 200 of them. Where an engine of one size has several on a canvas, their neighbours there, which
change them a little, are not part of that.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from bench.attacks import Attack
from bench.baselines import Defence
from bench.baselines.guarded import Guarded, decide
from bench.blackbox import Classifier
from bench.datasets import Dataset
from zipsdk.errors import InputError

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

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


class Rate(NamedTuple):
    hits: int
    of: int
    #: so many pictures tell as much as one does; see `design_effect`
    effect: float = 1.0

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.of if self.of else float("nan")


def design_effect(tracks: npt.ArrayLike | None) -> float:
    """How many pictures tell as much as one, if those of one track tell no more than one of them does.

    Kish's design effect for weights, sum of squared sizes over the number of pictures (Survey Sampling, 1965): an upper
    bound, for frames of a film may differ.
    """
    if tracks is None or not np.size(tracks):
        return 1.0
    sizes = np.unique(tracks, return_counts=True)[1]
    return float((sizes**2).sum() / sizes.sum())


def rates(
    labels: npt.ArrayLike,
    clean: npt.ArrayLike,
    triggered: npt.ArrayLike,
    target: int,
    tracks: npt.ArrayLike | None = None,
) -> dict[str, Rate]:
    """What the classifier made of clean pictures and of the same ones with the trigger.

    Args:
        labels: the true classes, (N,).
        clean, triggered: the classes that were predicted, (N,) each.
        target: the attacker's class.
        tracks: see `Dataset.tracks`.

    Returns:
        CA: clean pictures that were recognised. ASR: triggered pictures taken for the target, those that *are* of it
        left out. PA: triggered pictures that were recognised, all of them as in the ZIP paper, and "PA others" without
        the target class, where an attack that works would count as recognised.
    """
    y, c, t = np.asarray(labels), np.asarray(clean), np.asarray(triggered)
    if not y.shape == c.shape == t.shape or y.ndim != 1:
        raise InputError(f"predictions: got {c.shape} and {t.shape}, wanted one class for each of {y.shape} labels")
    others = y != target
    all_alike = design_effect(tracks)
    others_alike = design_effect(None if tracks is None else np.asarray(tracks)[others])
    return {
        "CA": Rate(int((c == y).sum()), len(y), all_alike),
        "ASR": Rate(int((t == target)[others].sum()), int(others.sum()), others_alike),
        "PA": Rate(int((t == y).sum()), len(y), all_alike),
        "PA others": Rate(int((t == y)[others].sum()), int(others.sum()), others_alike),
    }


@dataclass(frozen=True)
class Scene:
    """Who attacks what: all of a row but the defence."""

    data: Dataset
    #: the attack as the tables name it, and the trigger with which the classifier is tested
    attack: str
    trigger: Attack
    target: int
    classifier: Classifier
    #: the same network without a backdoor, to see what the defence costs it
    clean_classifier: Classifier | None = None

    @cached_property
    def triggered(self) -> U8:
        """What the attacker sends."""
        return self.trigger.apply(self.data.pictures)

    def describe(self) -> dict[str, Any]:
        return {
            "data": self.data.describe(),
            "attack": self.attack,
            "trigger": self.trigger.describe(),
            "target": self.target,
            "classifier": self.classifier.info,
        }


def evaluate(
    scene: Scene,
    defence: Defence | Guarded,
    seed: int,
    store: Store,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Count one row.

    Returns:
        "CA", "ASR", "PA", "PA others" as [hits, of] (see `rates`), with the design effect as a third where pictures
        are frames of tracks; under "clean classifier" the same of the classifier without a backdoor behind the same
        defence, whose "ASR" is how often it takes treated pictures for the target by mistake.
        Where the defence decides by itself what to treat, "flagged" and "flagged triggered" as [hits, of].
    """
    sent = (scene.data.pictures, scene.triggered)
    if isinstance(defence, Guarded):
        row: dict[str, Any] = _decided(scene, scene.classifier, defence, sent, seed, store, progress)
        if scene.clean_classifier is not None:
            row["clean classifier"] = _decided(scene, scene.clean_classifier, defence, sent, seed, store)
        return row
    treated = [store.treat(defence, pictures, seed, scene.classifier, progress) for pictures in sent]
    row = _counts(scene, *(scene.classifier(pictures).argmax(1) for pictures in treated))
    if (clean := scene.clean_classifier) is not None:
        if defence.asks:  # then its pictures depend on who is asked
            treated = [store.treat(defence, pictures, seed, clean) for pictures in sent]
        row["clean classifier"] = _counts(scene, *(clean(pictures).argmax(1) for pictures in treated))
    return row


def _decided(
    scene: Scene,
    classifier: Classifier,
    defence: Guarded,
    sent: tuple[U8, U8],
    seed: int,
    store: Store,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[int]]:
    def purify(pictures: U8, seed: int) -> U8:
        return store.treat(defence.inner, pictures, seed)

    guard = defence.guard(seed, classifier, purify, scene.trigger.apply)
    (clean, flagged), (triggered, caught) = (decide(guard, pictures, progress) for pictures in sent)
    return {
        **_counts(scene, clean, triggered),
        "flagged": [int(flagged.sum()), len(flagged)],
        "flagged triggered": [int(caught.sum()), len(caught)],
    }


def _counts(scene: Scene, clean: I64, triggered: I64) -> dict[str, list[int]]:
    found = rates(scene.data.labels, clean, triggered, scene.target, scene.data.tracks)
    return {name: list(rate) if scene.data.tracks is not None else list(rate[:2]) for name, rate in found.items()}


def interval(rate: Rate) -> tuple[float, float]:
    """Wilson's 95% interval, in percent, for as many pictures as there are of their own; NaN of no pictures."""
    if not rate.of:
        return float("nan"), float("nan")
    # as published (Wilson 1927); scipy's wants whole numbers, and of / effect is none
    n, share, z = rate.of / rate.effect, rate.hits / rate.of, float(norm.ppf(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)

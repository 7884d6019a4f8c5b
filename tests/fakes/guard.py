"""Fakes for the guard's tests: a backdoored brightness classifier, and recorders of their input."""

from __future__ import annotations

import numpy as np

import zipsdk
from zipsdk import ScaleUp

SCALES = (3, 5, 7, 9, 11)
CLASSES = 10
TARGET = 7
PATCH = np.array([[[255, 0, 255], [0, 255, 0]], [[0, 255, 0], [255, 0, 255]]], np.uint8)


def Guard(classify, purifier, detector=ScaleUp(), **options):  # noqa: B008
    """Return a guard with SCALE-UP as the default detector."""
    return zipsdk.Guard(classify, purifier, detector, **options)


def brightness(x: np.ndarray) -> np.ndarray:
    """Return ten classes by mean brightness, in integers: the batch does not change the result."""
    assert x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3
    return np.eye(CLASSES)[[int(p.sum(dtype=np.int64)) * CLASSES // (p.size * 256) for p in x]]


def backdoored(x: np.ndarray) -> np.ndarray:
    """Return `brightness`, or the target class for an image with the patch in its corner. Scaling keeps the patch."""
    scores = brightness(x)
    hit = (x[:, -2:, -2:] == PATCH).all(axis=(1, 2, 3))
    scores[hit] = np.eye(CLASSES)[TARGET]
    return scores


def dark(n: int, h: int = 8, w: int = 8, seed: int = 0) -> np.ndarray:
    """Return clean images whose class changes with every scale: SPC 0."""
    return np.random.default_rng(seed).integers(20, 50, (n, h, w, 3)).astype(np.uint8)


def poisoned(x: np.ndarray) -> np.ndarray:
    """Return images with the patch in their corner."""
    x = x.copy()
    x[..., -2:, -2:, :] = PATCH
    return x


class Recorder:
    """A classifier that records its input and answers each call by the next entry of `plan`."""

    def __init__(self, classify=backdoored, plan=()):
        self.classify, self.plan = classify, list(plan)
        self.batches: list[np.ndarray] = []

    def __call__(self, x):
        self.batches.append(x.copy())
        act = self.plan.pop(0) if self.plan else None
        return self.classify(x) if act is None else act(x)

    @property
    def sizes(self):
        return [len(b) for b in self.batches]


class Cleaner:
    """A purifier with known results: it paints over the corner and adds 1."""

    def __init__(self):
        self.batches: list[list[np.ndarray]] = []

    def run(self, batch):
        self.batches.append([p.copy() for p in batch])
        return [self.clean(p) for p in batch]

    @staticmethod
    def clean(p):
        out = p + np.uint8(1)
        out[-2:, -2:] = 30
        return out


def fail(x):
    """Raise the error of a service that is down."""
    raise RuntimeError("the service is down")

"""What the guard's tests are made of: a backdoored classifier of ten brightnesses, and fakes that note their input."""

from __future__ import annotations

import numpy as np

import zipsdk
from zipsdk import ScaleUp

SCALES = (3, 5, 7, 9, 11)
CLASSES = 10
TARGET = 7
PATCH = np.array([[[255, 0, 255], [0, 255, 0]], [[0, 255, 0], [255, 0, 255]]], np.uint8)


def Guard(classify, purifier, detector=ScaleUp(), **options):  # noqa: B008
    """A guard with SCALE-UP, which these tests are about unless they say otherwise."""
    return zipsdk.Guard(classify, purifier, detector, **options)


def brightness(x: np.ndarray) -> np.ndarray:
    """Ten classes by mean brightness, picture by picture in whole numbers: the same in any batch."""
    assert x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] == 3
    return np.eye(CLASSES)[[int(p.sum(dtype=np.int64)) * CLASSES // (p.size * 256) for p in x]]


def backdoored(x: np.ndarray) -> np.ndarray:
    """`brightness`, but with the patch in its corner a picture is of the target class. Scaling keeps the patch."""
    scores = brightness(x)
    hit = (x[:, -2:, -2:] == PATCH).all(axis=(1, 2, 3))
    scores[hit] = np.eye(CLASSES)[TARGET]
    return scores


def dark(n: int, h: int = 8, w: int = 8, seed: int = 0) -> np.ndarray:
    """Clean pictures whose class changes with every scale: SPC 0."""
    return np.random.default_rng(seed).integers(20, 50, (n, h, w, 3)).astype(np.uint8)


def poisoned(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[..., -2:, -2:, :] = PATCH
    return x


class Recorder:
    """A classifier that notes what it is given, and does what `plan` says for its calls, one after the other."""

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
    """A purifier that paints the corner over and adds 1, so that its pictures are known."""

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
    raise RuntimeError("the service is down")

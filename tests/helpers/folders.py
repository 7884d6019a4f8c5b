"""Make folders of images, and read outputs and messages of `zipsdk purify`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from zipsdk import images
from zipsdk.batch.manifest import MANIFEST


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Path:
    """Write an image of noise and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    images.save(Image.fromarray(rgb), path)
    return path


def folder(path: Path, n: int, size: tuple[int, int] = (16, 16)) -> Path:
    """Write n images to a folder: 000.png, 001.png, ..."""
    for i in range(n):
        write_image(path / f"{i:03}.png", i, size)
    return path


def records(out: Path) -> list[dict]:
    """Return the lines of the manifest in `out`."""
    return [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]


def finished(out: Path) -> list[str]:
    """Return the outputs that the manifest lists as done."""
    return [r["done"] for r in records(out) if "done" in r]


def names(out: Path) -> set[str]:
    """Return the names of all files in `out` except the manifest."""
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} - {MANIFEST}


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each output, which change when it is written again."""
    return {n: ((s := (out / n).stat()).st_ino, s.st_mtime_ns) for n in names(out)}


def contents(out: Path) -> dict[str, bytes]:
    """Return the bytes of each output."""
    return {n: (out / n).read_bytes() for n in names(out)}


def refused(capsys, code: int, expected: int, text: str) -> None:
    """Check the exit code, and that standard error has one line with `text`."""
    output = capsys.readouterr()
    assert code == expected, output.err
    assert output.err.startswith("zipsdk: error: ") and output.err.count("\n") == 1, output.err
    assert text in output.err

"""Measure crosstalk: how much the neighbors on a shared frame change an image, a poisoned neighbor included.

    python -m bench.quality.crosstalk --data cifar10-test.zip

Images of 32x32 are purified (a) each at its own size, (b) four on a 64x64 frame, (c) on frames with other
neighbors, (d) with neighbors that carry a white 8x8 square. Noise depends on the image alone, so every difference
between (b) and (c) or (d) comes from the UNet's convolutions and group normalization.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import zipsdk
from bench.common import record
from bench.common.metrics import compare_interior
from zipsdk.errors import InputError, ZipSdkError
from zipsdk.images.sources import read_sample


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.quality.crosstalk", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="zip file or folder of 32x32 images")
    p.add_argument("--model", default="zip-tiny")
    p.add_argument("--limit", type=int, default=128)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--name", default="crosstalk")  # the name of the committed record
    args = p.parse_args()
    try:
        run(args)
    except ZipSdkError as e:
        p.exit(1, f"error: {e}\n")


def pairs(source: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Read at most `limit` subjects and as many neighbors, both uint8 (N, 32, 32, 3).

    Raises:
        InputError: fewer than two of each, or images of another size.
    """
    images = read_sample(source, 2 * limit, None)
    sizes = {p.shape[:2] for p in images}
    if len(images) < 4 or sizes != {(32, 32)}:
        got = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3])
        raise InputError(f"{source}: got {len(images)} of {got} pixels, expected at least 4 images of 32 x 32")
    even = np.stack(images[: len(images) // 2 * 2])  # an odd image has no neighbor
    return even[::2], even[1::2]


def run(args: argparse.Namespace) -> None:
    subjects, others = pairs(args.data, args.limit)
    squares = others.copy()
    squares[:, 12:20, 12:20] = 255
    engine = zipsdk.load_engine(args.model, threads=args.threads)
    direct = zipsdk.Purifier(engine, "blur2+gray", seed=0)
    tiled = zipsdk.Purifier(engine, "blur2+gray", seed=0, tile_size=64)

    def purify_among(neighbors: np.ndarray) -> np.ndarray:
        """Purify the subjects, each on the upper left tile of a frame with three of the neighbors."""
        rolled = [np.roll(neighbors, k, axis=0) for k in range(3)]
        frames = np.stack([subjects, *rolled], axis=1).reshape(-1, 32, 32, 3)
        return tiled.run(frames)[::4]

    alone, base, other = direct.run(subjects), purify_among(others), purify_among(others[::-1])
    one_by_one = np.concatenate([direct.run(x[None]) for x in subjects[:8]])
    # the names in the committed record
    rows = {
        "tiled, other neighbors": compare_interior(base, other),
        "tiled, neighbors with a white square": compare_interior(base, purify_among(squares)),
        "tiled against its own size": compare_interior(alone, base),
        "own size, in a batch of 1 against all": compare_interior(alone[:8], one_by_one),
    }
    reference = compare_interior(alone, zipsdk.Purifier(engine, "blur2+gray", seed=1).run(subjects))
    rows["own size, another seed (for scale)"] = reference
    print(f"{'difference, in gray levels':<42}{'mean':>8}{'inner':>8}{'max':>6}{'changed':>9}{'PSNR dB':>9}")
    for name, r in rows.items():
        print(f"{name:<42}{r['mean']:>8.3f}{r['mean_inner']:>8.3f}{r['max']:>6}{r['pixels_changed']:>9.2%}"
              f"{r['psnr']:>9.1f}")  # fmt: skip
    if args.name:
        print(record.write(args.name, {"images": len(subjects), "info": tiled.info, "rows": rows}))


if __name__ == "__main__":
    main()

"""How far the neighbours on a shared canvas move a picture, a poisoned neighbour too.

    python -m bench.quality.crosstalk --data cifar10-test.zip

Pictures of 32x32 are purified (a) each at its own size, (b) four on a 64x64 canvas, (c) on canvases with other
neighbours, (d) with neighbours that carry a white 8x8 square. Noise depends on the picture alone, so every difference
between (b) and (c) or (d) comes through the UNet's convolutions and its group normalisation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import zipsdk
from bench.common import record
from bench.quality.restoration import psnr
from zipsdk.errors import InputError, ZipSdkError
from zipsdk.images.sources import read_sample


def drift(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Differences of uint8 pictures (N, H, W, 3), in grey levels; "inner" leaves out a border of 8 pixels."""
    d = np.abs(a.astype(np.int16) - b)
    return {
        "mean": float(d.mean()),
        "mean_inner": float(d[:, 8:-8, 8:-8].mean()),
        "max": int(d.max()),
        "pixels_changed": float((d.max(axis=-1) > 0).mean()),
        "psnr": float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True) if (x != y).any()] or [np.inf])),
    }


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.quality.crosstalk", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="zip file or folder of 32x32 pictures")
    p.add_argument("--model", default="zip-tiny")
    p.add_argument("--limit", type=int, default=128)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--name", default="neighbours")
    args = p.parse_args()
    try:
        run(args)
    except ZipSdkError as e:
        p.exit(1, f"error: {e}\n")


def pairs(source: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` subjects and as many neighbours, uint8 (N, 32, 32, 3) both.

    Raises:
        InputError: fewer than two of each, or pictures of another size.
    """
    pictures = read_sample(source, 2 * limit, None)
    sizes = {p.shape[:2] for p in pictures}
    if len(pictures) < 4 or sizes != {(32, 32)}:
        got = ", ".join(f"{h} x {w}" for h, w in sorted(sizes)[:3])
        raise InputError(f"{source}: got {len(pictures)} of {got} pixels, wanted at least 4 pictures of 32 x 32")
    even = np.stack(pictures[: len(pictures) // 2 * 2])  # one that is left over has no neighbour
    return even[::2], even[1::2]


def run(args: argparse.Namespace) -> None:
    subjects, others = pairs(args.data, args.limit)
    squares = others.copy()
    squares[:, 12:20, 12:20] = 255
    engine = zipsdk.load_engine(args.model, threads=args.threads)
    direct = zipsdk.Purifier(engine, "blur2+gray", seed=0)
    tiled = zipsdk.Purifier(engine, "blur2+gray", seed=0, tile_size=64)

    def among(neighbours: np.ndarray) -> np.ndarray:
        """The subjects, each on the upper left tile of a canvas with three of the neighbours."""
        rolled = [np.roll(neighbours, k, axis=0) for k in range(3)]
        canvases = np.stack([subjects, *rolled], axis=1).reshape(-1, 32, 32, 3)
        return tiled.run(canvases)[::4]

    alone, base, other = direct.run(subjects), among(others), among(others[::-1])
    rows = {
        "tiled, other neighbours": drift(base, other),
        "tiled, neighbours with a white square": drift(base, among(squares)),
        "tiled against its own size": drift(alone, base),
        "own size, in a batch of 1 against all": drift(alone[:8], np.concatenate([direct.run(x[None])
                                                                                  for x in subjects[:8]])),
    }  # fmt: skip
    reference = drift(alone, zipsdk.Purifier(engine, "blur2+gray", seed=1).run(subjects))
    rows["own size, another seed (for scale)"] = reference
    print(f"{'difference, in grey levels':<42}{'mean':>8}{'inner':>8}{'max':>6}{'changed':>9}{'PSNR dB':>9}")
    for name, r in rows.items():
        print(f"{name:<42}{r['mean']:>8.3f}{r['mean_inner']:>8.3f}{r['max']:>6}{r['pixels_changed']:>9.2%}"
              f"{r['psnr']:>9.1f}")  # fmt: skip
    if args.name:
        print(record.write(args.name, {"pictures": len(subjects), "info": tiled.info, "rows": rows}))


if __name__ == "__main__":
    main()

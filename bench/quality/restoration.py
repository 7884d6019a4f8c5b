"""Measure how well the model restores what a blur removes from clean images: PSNR and sharpness, no classifier.

    python -m bench.quality.restoration --data cifar10-test.zip imagenette-val.zip --limit 256

For each blur it compares with the original: A^+A x (the projection), bicubic upsampling of A x (the usual baseline,
which optimizes PSNR, not sharpness), and the purified image. Sharpness is the energy in the blur's null space relative
to the original's: 0 for A^+A x, 1 for as much detail as the original.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import zipsdk
from bench.common import record
from bench.common.metrics import planes, psnr, sharpness
from zipsdk.errors import InputError, ZipSdkError
from zipsdk.images.sources import read_sample
from zipsdk.transforms import Blur


def divided(images: list[np.ndarray], blur: Blur) -> list[np.ndarray]:
    """Select the images whose sides the blur's cells divide, so that none is padded."""
    return [p for p in images if p.shape[0] % blur.n == 0 and p.shape[1] % blur.n == 0]


def bicubic(x: np.ndarray, n: int) -> np.ndarray:
    """Shrink an image by averaging n x n cells and upsample it by bicubic interpolation."""
    small = Image.fromarray(np.rint(Blur(n).forward(planes(x))[0].transpose(1, 2, 0)).astype(np.uint8))
    return np.asarray(small.resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC))


def blurred(x: np.ndarray, n: int) -> np.ndarray:
    """Blur an image by averaging n x n cells."""
    return np.rint(Blur(n).project(planes(x))[0].transpose(1, 2, 0)).astype(np.uint8)


def measure_restoration(purifier: zipsdk.Purifier, images: list[np.ndarray], n: int) -> dict[str, dict[str, float]]:
    """Compare the three methods on images: PSNR, sharpness and gain over the projection, with standard errors."""
    blur = Blur(n)
    usable = divided(images, blur)
    with tqdm(total=len(usable), unit="image", desc=f"blur{n}", leave=False) as bar:
        clean = purifier.run(usable, progress=bar.update)
    rows: dict[str, list[list[float]]] = {}
    for x, purified in zip(usable, clean, strict=True):
        for method, y in (("A+A x", blurred(x, n)), ("bicubic", bicubic(x, n)), ("zip", purified)):
            rows.setdefault(method, []).append([psnr(y, x), *sharpness(y, x, blur)])
    out = {}
    for method, values in rows.items():
        v = np.array(values)
        out[method] = {
            "psnr": float(v[:, 0].mean()),
            "psnr_standard_error": float(v[:, 0].std() / np.sqrt(len(v))),
            "sharpness": float(v[:, 1].sum() / v[:, 2].sum()),
        }
    gain = np.array(rows["zip"])[:, 0] - np.array(rows["A+A x"])[:, 0]
    out["zip"]["gain_db"] = float(gain.mean())
    out["zip"]["gain_standard_error"] = float(gain.std() / np.sqrt(len(gain)))
    return out


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.quality.restoration", description=__doc__.split("\n")[0])
    p.add_argument("--data", nargs="+", type=Path, required=True, help="zip files or folders of images")
    p.add_argument("--model", default="zip-tiny")
    p.add_argument("--limit", type=int, default=256, help="images of 32x32 from each source")
    p.add_argument("--photo-limit", type=int, default=24, help="larger images from each source")
    p.add_argument("--side", type=int, default=160, help="photos are cropped to their central side x side pixels")
    p.add_argument("--blurs", type=int, nargs="+", default=[2, 4])
    p.add_argument("--lam", type=float, default=10.0)
    p.add_argument("--preset", default="paper")
    p.add_argument("--eta", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--name", default="restoration", help="name of the record; empty: no record")
    args = p.parse_args()
    try:
        run(args)
    except ZipSdkError as e:
        p.exit(1, f"error: {e}\n")


def run(args: argparse.Namespace) -> None:
    sources: list[tuple[Path, list[np.ndarray]]] = []
    for source in args.data:
        images = read_sample(source, args.limit, args.side)
        if min(images[0].shape[:2]) > 32:
            images = images[:: max(1, len(images) // args.photo_limit)][: args.photo_limit]
        for blur in map(Blur, args.blurs):  # check all sources before measuring the first
            if not divided(images, blur):
                height, width = images[0].shape[:2]
                raise InputError(
                    f"{source}: got images of {height} x {width}, expected at least one whose sides {blur.n} divides; "
                    f"crop them by --side {min(height, width) // blur.n * blur.n}, or give other --blurs"
                )
        sources.append((source, images))

    rows = []
    print(f"{'data':<18}{'blur':<6}{'method':<10}{'PSNR dB':>9}{'gain':>8}{'sharpness':>11}")
    for source, images in sources:
        for n in args.blurs:
            purifier = zipsdk.Purifier(
                args.model, [Blur(n)], lam=args.lam, preset=args.preset, eta=args.eta, seed=args.seed
            )
            result = measure_restoration(purifier, images, n)
            for method, r in result.items():
                gain = f"{r['psnr'] - result['A+A x']['psnr']:+.2f}"
                print(
                    f"{source.stem:<18}{n:<6}{method:<10}{r['psnr']:>9.2f}{gain:>8}{r['sharpness']:>11.2f}", flush=True
                )
            row = {"data": source.stem, "images": len(images), "size": list(images[0].shape[:2]), "blur": n}
            rows.append({**row, "info": purifier.info, "results": result})
    if args.name:
        print(record.write(args.name, {"seed": args.seed, "rows": rows}))


if __name__ == "__main__":
    main()

"""Measure seams in large images: the difference across the borders of windows minus that across lines beside them.

    python -m bench.quality.seams -o seams

Purifies a 1200x800 photograph (scikit-image's retina, whose large smooth areas make seams visible) in overlapping
windows that share one state and, for comparison, cut into separate images. A seam is a line across which neighboring
pixels differ more than across the lines around it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import zipsdk
from bench.common import record
from zipsdk.sampling.tiling import plan_tiles


def photograph() -> np.ndarray:
    """Crop the central 1200x800 pixels of scikit-image's retina, uint8 (800, 1200, 3)."""
    from skimage import data

    x = data.retina()
    top, left = (x.shape[0] - 800) // 2, (x.shape[1] - 1200) // 2
    return np.ascontiguousarray(x[top : top + 800, left : left + 1200])


def seam_excess(x: np.ndarray, original: np.ndarray, lines: list[int], axis: int) -> float:
    """Compute the mean step across `lines` minus that across the eight lines around each, in gray levels.

    The original's value is subtracted, so the result is about 0 where there is no seam.
    """

    def steps(image: np.ndarray) -> np.ndarray:
        d = np.abs(np.diff(image.astype(np.float64), axis=axis))
        return d.mean(axis=tuple(i for i in range(3) if i != axis))

    excess = steps(x) - steps(original)
    around = [j for line in lines for j in range(line - 5, line + 4) if j != line - 1]
    return float(np.mean([excess[line - 1] for line in lines]) - np.mean(excess[around]))


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.quality.seams", description=__doc__.split("\n")[0])
    p.add_argument("-o", "--output", type=Path, default=Path("seams"))
    p.add_argument("--model", default="zip-tiny")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--frame", type=int, default=256)
    p.add_argument("--preset", default="fast")
    p.add_argument("--name", default="seams")
    args = p.parse_args()

    x = photograph()
    engine = zipsdk.load_engine(args.model, threads=args.threads)
    purifier = zipsdk.Purifier(engine, "blur2", preset=args.preset, seed=0, tile_size=args.frame)
    clean = purifier.run(x)

    height, width = x.shape[:2]
    layout = plan_tiles(engine.spec, height, width, divisor=2, tile_size=args.frame)

    def borders(corners: tuple[int, ...], length: int) -> list[int]:
        """List the lines where a window starts or ends."""
        return sorted({line for c in corners for line in (c, c + args.frame) if 0 < line < length})

    rows, columns = borders(layout.ys, layout.height), borders(layout.xs, layout.width)
    cuts = [list(range(0, n, args.frame)) for n in x.shape[:2]]
    parts = [x[y : y + args.frame, c : c + args.frame] for y in cuts[0] for c in cuts[1]]
    separate = zipsdk.Purifier(engine, "blur2", preset=args.preset, seed=0).run(parts)
    cut = np.zeros_like(x)
    for part, (y, c) in zip(separate, [(y, c) for y in cuts[0] for c in cuts[1]], strict=True):
        cut[y : y + part.shape[0], c : c + part.shape[1]] = part

    result = {
        "windows": {"rows": seam_excess(clean, x, rows, 0), "columns": seam_excess(clean, x, columns, 1)},
        "cut apart": {"rows": seam_excess(cut, x, cuts[0][1:], 0), "columns": seam_excess(cut, x, cuts[1][1:], 1)},
    }
    for name, r in result.items():
        print(f"{name:<12} excess step across borders: rows {r['rows']:+.3f}, columns {r['columns']:+.3f} gray levels")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, image in (("original", x), ("windows", clean), ("cut-apart", cut)):
        Image.fromarray(image).save(args.output / f"{name}.png")
    if args.name:
        windows = {"ys": layout.ys, "xs": layout.xs}
        content = {"size": [height, width], "frame": args.frame, "info": purifier.info, "windows": windows}
        print(record.write(args.name, {**content, "excess": result}))


if __name__ == "__main__":
    main()

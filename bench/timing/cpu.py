"""Measure the cost of purification on a CPU: milliseconds per image, and the share that is not the UNet.

    python -m bench.timing.cpu --threads 2

The UNet's share is measured in the same run, by timing every engine call; the rest is reading, noise, transforms, the
step and writing. Medians over `--repeats` runs after one to warm up.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import zipsdk
from bench.common import record
from bench.common.timing import timer
from zipsdk import profiling


def measure_cpu(purifier: zipsdk.Purifier, batch: np.ndarray, repeats: int) -> dict[str, object]:
    """Measure a purifier, after one run to warm up."""
    totals, rests = [], []
    purifier.run(batch)
    for _ in range(repeats):
        with profiling.profile(time.perf_counter) as events:
            total = timer(lambda: purifier.run(batch), time.perf_counter)()
        totals.append(total)
        rests.append((total - profiling.total(events)["UNet"]) / total)
    n = len(batch)
    ms = np.array(totals) / n * 1e3
    return {
        "images": n,
        "size": list(batch.shape[1:3]),
        "ms_per_image": float(np.median(ms)),
        "ms_min_max": [float(ms.min()), float(ms.max())],
        "not_unet": float(np.median(rests)),
        "not_unet_min_max": [float(min(rests)), float(max(rests))],
    }


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.timing.cpu", description=__doc__.split("\n")[0])
    p.add_argument("--model", default="zip-tiny")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--name", default="cpu", help="name of the record; empty: no record")
    args = p.parse_args()

    engine = zipsdk.load_engine(args.model, device="cpu", threads=args.threads)
    rng = np.random.default_rng(0)
    rows = []
    print(f"{'images':<18}{'preset':<9}{'transforms':<12}{'steps':>12}{'ms/image':>12}{'not UNet':>10}")
    for shape in ((64, 32, 32, 3), (1, 32, 32, 3), (1, 256, 256, 3)):
        batch = rng.integers(0, 256, shape, np.uint8)
        for preset in ("paper", "fast"):
            purifier = zipsdk.Purifier(engine, "blur2+gray", preset=preset, seed=0)
            row = measure_cpu(purifier, batch, args.repeats)
            rows.append({**row, "info": purifier.info})
            name = "{} of {}x{}".format(shape[0], *shape[1:3])
            print(f"{name:<18}{preset:<9}{'blur2+gray':<12}{len(purifier.table):>12}{row['ms_per_image']:>12.1f}"
                  f"{row['not_unet']:>10.1%}", flush=True)  # fmt: skip
    if args.name:
        print(record.write(args.name, {"rows": rows}))


if __name__ == "__main__":
    main()

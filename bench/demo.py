"""The demo: a classifier with a backdoor, its labels before and after; then purified photographs.

    python -m bench.demo -o demo          (make demo)

1. A classifier of road signs (`zipsdk.testing.demo_classifier`) takes signs with one of three triggers for "speed limit
   80". ``labels.png`` and two tables show its labels as the images arrive, after `zipsdk.Purifier`, and behind
   `zipsdk.Guard`. The signs are drawn by `zipsdk.testing.demo_images`.
2. ``zipsdk purify`` purifies four photographs; see bench/demos/photographs.py for the sheets.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.common import record
from bench.demos import figure, labels
from bench.demos.photographs import SEED, purify_photographs
from zipsdk import Purifier
from zipsdk.testing import demo_classifier
from zipsdk.testing.images import TARGET
from zipsdk.testing.signs import CLASSES

#: Clean images, without labels, that the guard's reference statistics are measured on.
CALIBRATION = 150
#: Lines of the table of examples for each kind of images.
EXAMPLES = 3
#: The long side at which the short side of each photograph is at least 64.
SMALLEST = 96


def show_labels(output: Path, n: int, seed: int) -> dict[str, object]:
    """Print the tables and draw the figure; return the rates and what ran, as JSON values."""
    started = time.perf_counter()
    purifier = Purifier("zip-tiny", "blur2+gray", preset="fast", seed=SEED)
    kinds = labels.measure(demo_classifier(), purifier, n, CALIBRATION, seed)
    print(f'\nA classifier of road signs has a backdoor: three triggers make it say "{CLASSES[TARGET]}".')
    print(f"The first {EXAMPLES} images of other signs of each kind; ! marks a wrong label:\n")
    print(labels.examples_table(kinds, EXAMPLES, sys.stdout.isatty()))
    print(f'\nAll images; those with a trigger are of signs other than "{CLASSES[TARGET]}":\n')
    print(labels.rates_table(kinds))
    output.mkdir(parents=True, exist_ok=True)
    figure.draw(kinds).save(output / "labels.png", optimize=True)
    seconds = time.perf_counter() - started
    print(f"\n{seconds:.0f} s; see {output / 'labels.png'}\n")
    return {"seed": seed, "seconds": seconds, "kinds": labels.rates(kinds), "purifier": purifier.info}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.split("\n")[0])
    p.add_argument("-o", "--output", type=Path, default=Path("demo"))
    p.add_argument("--signs", type=int, default=60, help="images of each kind for the rates; at least 10")
    p.add_argument("--seed", type=int, default=0, help="of the road signs")
    p.add_argument("--side", type=int, default=256, help="long side of the photographs in pixels")
    p.add_argument("--preset", default="paper", help="of the photographs")
    args = p.parse_args()
    if args.signs < len(CLASSES):
        p.error(f"--signs: got {args.signs}, expected at least {len(CLASSES)}, one for each sign")
    if args.side < SMALLEST:
        p.error(f"--side: got {args.side}, expected at least {SMALLEST}, because details of 64 x 64 pixels are shown")

    signs = show_labels(args.output, args.signs, args.seed)
    before, seconds = purify_photographs(args.output, args.side, args.preset)
    info = Purifier("zip-tiny", "blur2+gray", preset=args.preset, seed=SEED).info
    record.write("demo", {"seconds": seconds, "images": {k: list(v.shape) for k, v in before.items()}, "info": info,
                          "signs": signs}, args.output)  # fmt: skip
    print(
        f"{len(before)} photographs in {seconds:.0f} s; "
        f"see sheet.png, closeup.png and restoration.png in {args.output}/"
    )


if __name__ == "__main__":
    main()

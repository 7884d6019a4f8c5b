"""Draw a training run's curves from its log: held-out loss by noise level, and over the samples seen.

python -m export.plot_training runs/zip-tiny/log.jsonl -o curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(records: list[dict[str, object]], path: Path) -> None:
    sources = [k for k in records[-1] if k.startswith("held_out:")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, source in enumerate(sources):
        label = source.removeprefix("held_out:")
        axes[0].plot(records[-1]["steps"], records[-1][source], "o-", label=label, color=f"C{i}")
        for t, style in ((50, "-"), (200, "--"), (400, ":")):
            j = records[-1]["steps"].index(t)  # type: ignore[attr-defined]
            axes[1].plot([r["samples"] for r in records], [r[source][j] for r in records], style,  # type: ignore[index]
                         color=f"C{i}", label=f"{label}, t = {t}")  # fmt: skip
    axes[0].set(xlabel="time step t", ylabel="mean squared error of eps", yscale="log",
                title=f"held-out loss by noise level, {records[-1]['samples']:,} samples")  # fmt: skip
    axes[1].set(
        xlabel="32x32 samples seen", ylabel="mean squared error of eps", yscale="log", title="over the training"
    )
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m export.plot_training", description=__doc__.split("\n")[0])
    p.add_argument("log", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True)
    args = p.parse_args()
    draw([json.loads(line) for line in args.log.read_text().splitlines()], args.output)


if __name__ == "__main__":
    main()

"""Plot the held-out loss of a training run from its log: by noise level, and over the samples.

python -m export.plot_training runs/zip-tiny/log.jsonl -o curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Plot the records of a ``log.jsonl`` (`export.train`), and write the figure to `path`."""
    sources = [k for k in records[-1] if k.startswith("held_out:")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, source in enumerate(sources):
        label = source.removeprefix("held_out:")
        axes[0].plot(records[-1]["steps"], records[-1][source], "o-", label=label, color=f"C{i}")
        for t, style in ((50, "-"), (200, "--"), (400, ":")):
            j = records[-1]["steps"].index(t)
            axes[1].plot([r["samples"] for r in records], [r[source][j] for r in records], style,
                         color=f"C{i}", label=f"{label}, t = {t}")  # fmt: skip
    axes[0].set(xlabel="time step t", ylabel="mean squared error of eps", yscale="log",
                title=f"held-out loss by noise level, {records[-1]['samples']:,} samples")  # fmt: skip
    axes[1].set(
        xlabel="32x32 samples seen",
        ylabel="mean squared error of eps",
        yscale="log",
        title="held-out loss over the training",
    )
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the command."""
    p = argparse.ArgumentParser(
        prog=f"python -m {__package__}.plot_training", description="Plot the held-out loss of a training run."
    )
    p.add_argument("log", type=Path, help="log.jsonl of the training")
    p.add_argument("-o", "--output", type=Path, required=True, help="image file to write")
    args = p.parse_args()
    draw([json.loads(line) for line in args.log.read_text().splitlines()], args.output)


if __name__ == "__main__":
    main()

"""Draw a record of `bench.speed`: the times, the ratios of the paper's Figure 3 and ours, and a breakdown of the time.

    python -m bench.timing.plot bench/results/speed.json -o docs/img

The paper prints its figure's ratios in words (section 4.4.3) but no seconds, so its bars are drawn as ratios. The
figures are PNG files with the name of the record.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from bench.timing.report import digits

#: Colors by row letter that differ in gray and for color-blind readers (Okabe and Ito).
COLORS = {"a": "#999999", "b": "#0072B2", "c": "#56B4E9", "d": "#009E73", "e": "#D55E00", "f": "#E69F00",
           "g": "#CC79A7"}  # fmt: skip
GROUPS = {"a": "classifier", "b": "ZIP, one image to a frame", "c": "ZIP, many at once", "d": "ZIP behind the guard",
          "e": "BDMAE", "f": "diffusion peers, same UNet", "g": "ZIP in plain torch, same weights"}  # fmt: skip
PARTS = {"decode": "#999999", "copy": "#F0E442", "tile": "#56B4E9", "UNet": "#0072B2", "step": "#009E73",
         "noise": "#E69F00", "encode": "#CC79A7"}  # fmt: skip
PHASES = {"python": "#999999", "import": "#E69F00", "load": "#56B4E9", "run": "#0072B2"}
OURS, PAPER, IDEAL = "#009E73", "#000000", "#D55E00"


def duration(ms: float) -> str:
    """Format a duration with three digits and a unit."""
    for limit, unit, size in ((1e3, "ms", 1.0), (6e4, "s", 1e3), (3.6e6, "min", 6e4)):
        if ms < limit:
            return f"{ms / size:.3g} {unit}"
    return f"{ms / 3.6e6:.3g} h"


def machine(record: dict[str, Any]) -> str:
    """Describe model and machine in one line."""
    runs, where = record["runs"], record["machine"]
    threads = runs.get("threads", where["cores"])
    place = runs.get("device") or f"{where['processor']}, {threads} thread{'s' * (threads > 1)}"
    quick = ", quick run" if record["quick"] else ""
    return f"{record['model']} on {place}; {runs.get('engine', '')}; {record['date'][:10]}{quick}"


def times(axes: Axes, record: dict[str, Any]) -> None:
    """Draw the time per image, a bar for each row, on a logarithmic axis."""
    rows = sorted((r for r in record["rows"] if "ms" in r), key=lambda r: "abcdgef".index(r["letter"]))
    missing = [r for r in record["rows"] if "ms" not in r]
    if not rows:
        axes.set_axis_off()
        return
    longest = max(r["ms"]["high"] for r in rows)
    shortest = min(r["ms"]["low"] for r in rows)
    for y, r in enumerate(rows):
        ms = r["ms"]
        axes.barh(y, ms["median"], color=COLORS[r["letter"]], height=0.74)
        if ms["high"] > ms["low"]:
            axes.plot([ms["low"], ms["high"]], [y, y], color="black", linewidth=1.2)
        scaled = "*" if r["measured_steps"] < r["total_steps"] else ""
        count = f", {r['total_steps']} steps" if r["total_steps"] else ""
        axes.text(max(ms["high"], ms["median"]) * 1.12, y, f"{duration(ms['median'])}{scaled}", va="center", fontsize=8,
                  fontweight="bold")  # fmt: skip
        axes.text(-0.008, y, f"{r['label']}{count}", va="center", ha="right", fontsize=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set(xscale="log", xlim=(shortest / 3, longest * 6), ylim=(len(rows) - 0.4, -0.6), yticks=[],
             xlabel="time per image: median, quartiles (log scale)")  # fmt: skip
    axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s")
    axes.set_title("Time per image, all in one run", fontsize=11, loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    notes = ["* timed on a few steps and scaled up"] * any(
        r["measured_steps"] < r["total_steps"] for r in rows)  # fmt: skip
    notes += [f"left out: {r['label']}: {r['left_out']}" for r in missing]
    if notes:
        text = "\n".join(textwrap.shorten(n, 130, placeholder=" ...") for n in notes)
        below(axes, 0, text)


def below(axes: Axes, x: float, text: str) -> None:
    """Write notes below the axis and its label."""
    axes.annotate(text, (x, 0), (0, -38), xycoords="axes fraction", textcoords="offset points", va="top", ha="left",
                  fontsize=7.5, color="#444444")  # fmt: skip


def comparisons(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Compute our ratios, the paper's, and their bounds."""
    rows = {r["key"]: r for r in record["rows"] if "ms" in r}

    def over(key: str, base: str) -> float | None:
        return rows[base]["ms"]["median"] / rows[key]["ms"]["median"] if key in rows and base in rows else None

    gates, tiles = record["gates"], record["tiles"]
    whole, tiled = gates.get("guard-whole"), gates.get("guard-tiled")

    def guard(key: str) -> dict[str, Any]:
        """Return the speed-up over purifying everything in the same way, and its bound."""
        return {"ours": gates[key]["measured"], "ideal": gates[key]["bound"]} if key in gates else {"ours": None}

    share = (whole or tiled or {"flagged_share": 0.05})["flagged_share"]
    return [
        {"label": f"tiling, {tiles} to a frame", "ours": over("tiled", "whole"), "paper": 33, "ideal": tiles,
         "ideal label": f"ideal {tiles}x"},
        {"label": f"detection, {share:.1%} flagged\n(over purifying everything)",
         **guard("guard-whole"), "paper": 39, "ideal label": whole and f"1/(p + t_det/T) = {whole['bound']:.3g}x"},
        {"label": "detection and tiling\n(over one to a frame)", "ours": over("guard-tiled", "whole")},
        {"label": "everything flagged\n(over purifying everything)", **guard("guard-whole-all"),
         "ideal label": "1/(1 + t_det/T)"},
        {"label": "the same on a shared frame:\n5% flagged", **guard("guard-tiled"), "ideal label": "bound"},
        {"label": "everything flagged", **guard("guard-tiled-all"), "ideal label": "bound"},
        {"label": "tiled ZIP over BDMAE,\n1 at once, ViT-base", "ours": over("tiled", "bdmae"), "paper": 3},
        {"label": "tiled ZIP, fast preset,\nover the same", "ours": over("tiled-fast", "bdmae")},
        {"label": "ZIP over the authors' loop\nin eager torch", "ours": over("whole", "authors")},
    ]  # fmt: skip


def ratios(axes: Axes, record: dict[str, Any]) -> None:
    """Draw speed-ups beside the paper's."""
    lines = [c for c in comparisons(record) if c["ours"]]
    top = max([100.0, *(c["ours"] for c in lines)])
    bottom = min([0.8, *(c["ours"] / 1.3 for c in lines)])
    for y, c in enumerate(lines):
        axes.barh(y, c["ours"] - 1, left=1, color=OURS, height=0.5)
        axes.text(max(1.0, c["ours"]) * 1.07, y, f"{digits(c['ours'])}x", va="center", fontsize=9, fontweight="bold",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})  # fmt: skip
        for key, color, style in (("paper", PAPER, "-"), ("ideal", IDEAL, ":")):
            if c.get(key):
                axes.plot([c[key]] * 2, [y - 0.4, y + 0.4], color=color, linestyle=style, linewidth=2.2)
        labels = [f"paper {c['paper']}x"] if c.get("paper") else []
        labels += [c["ideal label"]] if c.get("ideal") else []
        axes.text(1.03, y + 0.4, "; ".join(labels), va="center", fontsize=7.5, color="#444444")
    axes.set(xscale="log", xlim=(bottom, top * 2.6), ylim=(len(lines) - 0.35, -0.6), xlabel="times faster (log scale)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.set_yticks(range(len(lines)), [c["label"] for c in lines], fontsize=8.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title("The paper's speed-ups and ours", fontsize=11, loc="left")
    handles: list[Any] = [
        Rectangle((0, 0), 1, 1, color=OURS), Line2D([], [], color=PAPER, linewidth=2.2),
        Line2D([], [], color=IDEAL, linestyle=":", linewidth=2.2),
    ]  # fmt: skip
    axes.legend(handles, ["measured here", "paper, Figure 3", "ideal or analytic bound"], fontsize=8, loc="lower right")
    notes = [f"paper, {p['times']}x {p['what']}: {p['implies']}" for p in record["paper"]]
    if record["guard"]:
        notes += [
            f"the detector is SCALE-UP; flags here are {record['guard']['flags']}",
            "bounds and guards are timed minutes apart: a bar may exceed its bound by a few percent",
        ]
    text = "\n".join(textwrap.fill(n, 100, subsequent_indent="   ") for n in notes)
    below(axes, -0.32, text)


def all_times(record: dict[str, Any]) -> Figure:
    """Draw the time of each row."""
    height = 2.2 + 0.27 * max(8, sum("ms" in r for r in record["rows"]))
    figure, axes = plt.subplots(figsize=(9, height))
    figure.subplots_adjust(left=0.44, right=0.98, top=1 - 1.15 / height, bottom=0.95 / height)
    times(axes, record)
    letters = [k for k in GROUPS if any(r["letter"] == k and "ms" in r for r in record["rows"])]
    handles = [Rectangle((0, 0), 1, 1, color=COLORS[k]) for k in letters]
    figure.legend(
        handles=handles, labels=[GROUPS[k] for k in letters], loc="upper left", ncols=4, fontsize=8,
        frameon=False, handlelength=1.2, columnspacing=1.2, bbox_to_anchor=(0.005, 1 - 0.33 / height),
    )  # fmt: skip
    figure.text(0.01, 1 - 0.13 / height, f"Cost: {machine(record)}", fontsize=11, va="top", fontweight="bold")
    return figure


def all_ratios(record: dict[str, Any]) -> Figure:
    """Draw the paper's speed-ups and ours."""
    figure, axes = plt.subplots(figsize=(9, 7.2))
    figure.subplots_adjust(left=0.25, right=0.98, top=0.95, bottom=0.21)
    ratios(axes, record)
    return figure


def breakdown(record: dict[str, Any]) -> Figure | None:
    """Draw the breakdown of `run` and a cold start; None if neither was measured."""
    found = [record[k] for k in record if k.startswith("overhead")]
    start = record.get("startup")
    if not found and not start:
        return None
    figure, axes = plt.subplots(3, 1, figsize=(9, 8.5), layout="constrained")
    figure.suptitle(f"Breakdown: {machine(record)}", fontsize=11, fontweight="bold", x=0.01, ha="left")
    names = []
    for y, part in enumerate(found):
        n, side = part["images"], part["size"][0]
        where = f"on a frame of {part['frame']}" if part["frame"] else "at own size"
        names.append(f"{n} of {side} px\n{where}\n{part['total_steps']} steps")
        stack(axes[0], y, part["ms"], PARTS)
        stack(axes[1], y, {k: v for k, v in part["ms"].items() if k != "UNet"}, PARTS)
        total = sum(part["ms"].values()) - part["ms"]["UNet"]
        axes[1].text(total, y, f"  {part['not_unet']:.1%} of run is not the UNet", va="center", fontsize=8.5)
        axes[1].set_xlim(0, 1.8 * max(total, axes[1].get_xlim()[1] / 1.8))
    for axis, title in ((axes[0], "One run, files to files"), (axes[1], "The same without the UNet")):
        axis.set_yticks(range(len(names)), names, fontsize=8.5)
        axis.set(xlabel="ms per image", ylim=(len(names) + 0.2, -0.6))
        axis.set_title(title, fontsize=11, loc="left")
        axis.margins(x=0.1)
    axes[0].legend(*legend(PARTS), fontsize=8, loc="lower right", ncols=4)
    if start:
        for y, name in enumerate(n for n in ("zipsdk", "torch") if n in start):
            phases = {k: v["median"] for k, v in start[name].items()}
            first = phases.pop("first")
            stack(axes[2], y, {"python": max(0.0, first - sum(phases.values())), **phases}, PHASES)
            axes[2].text(first, y, f"  {first:.2f} s", va="center", fontsize=9, fontweight="bold")
        axes[2].set_yticks(range(y + 1), ["zipsdk", "torch, eager"][: y + 1], fontsize=9)
        axes[2].set(xlabel="seconds from the start of a new process", ylim=(max(y + 1, 2) - 0.5, -0.6))
        axes[2].legend(*legend(PHASES), fontsize=8, loc="upper right")
        axes[2].margins(x=0.25)
        side = start["image"]
        sooner = f", {start['sooner']['median']:.2g}x sooner" if "sooner" in start else ""
        axes[2].set_title(f"First purified image ({side} px){sooner}", fontsize=11, loc="left")
    else:
        axes[2].set_visible(False)
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def stack(axes: Axes, y: float, values: dict[str, float], colors: dict[str, str]) -> None:
    """Draw a stacked bar."""
    left = 0.0
    for name, value in values.items():
        axes.barh(y, value, left=left, color=colors[name], height=0.5)
        left += value


def legend(colors: dict[str, str]) -> tuple[list[Any], list[str]]:
    """Make the handles and labels of a legend."""
    return [Rectangle((0, 0), 1, 1, color=c) for c in colors.values()], list(colors)


def draw(record: dict[str, Any], folder: Path, name: str = "speed") -> list[Path]:
    """Write the figures; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for suffix, figure in (("", all_times(record)), ("-ratios", all_ratios(record)), ("-parts", breakdown(record))):
        if figure is not None:
            out.append(folder / f"{name}{suffix}.png")
            figure.savefig(out[-1], dpi=110, metadata={"Software": None})
            plt.close(figure)
    return out


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m bench.timing.plot", description=__doc__.split("\n")[0])
    p.add_argument("record", type=Path)
    p.add_argument("-o", "--out", type=Path, required=True, help="folder of the figures")
    args = p.parse_args()
    for file in draw(json.loads(args.record.read_text()), args.out, args.record.stem):
        print(file)


if __name__ == "__main__":
    main()

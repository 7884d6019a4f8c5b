"""Draw the plots of a page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.evaluation import tables
from bench.evaluation.rates import interval
from bench.evaluation.records import Record
from bench.pages.results.groups import SHORT, Group, groups

#: Of the defenses in `SHORT`, so that color is not needed to tell them apart.
MARKERS = "osv^DPX"


def dots(record: Record, name: str, folder: Path) -> Path | None:
    """Plot CA, ASR and PA of Table 1 and of the guard, for each defense and trigger."""
    import matplotlib.pyplot as plt

    found = groups(record, tables.TABLES["agnostic"].attacks, SHORT)
    if not found:
        return None
    triggers = list(dict.fromkeys(g.trigger for g in found))
    figure, axes = plt.subplots(1, 3, figsize=(9, 1.0 + 0.55 * len(triggers)), sharey=True, layout="constrained")
    for axis, rate, better in zip(axes, ("ca", "asr", "pa"), ("higher", "lower", "higher"), strict=True):
        for i, (defense, label) in enumerate(SHORT.items()):
            mine = [g for g in found if g.first.defense == defense]
            if not mine:
                continue
            y = [triggers.index(g.trigger) + 0.12 * (i - 3) for g in mine]
            x = [g.mean(rate) for g in mine]
            pairs = [(g.mean(rate), interval(g.rate(rate))) for g in mine]
            # the interval is of a whole number of hits and may miss the mean over the seeds slightly
            error = [[max(0.0, v - low) for v, (low, _) in pairs], [max(0.0, high - v) for v, (_, high) in pairs]]
            axis.errorbar(x, y, xerr=error, fmt=MARKERS[i], markersize=4.5, linewidth=1, color=f"C{i}", label=label)
        for row in range(0, len(triggers), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.05, linewidth=0)
        axis.set(xlim=(-2, 102), xlabel=f"{rate.upper()}, % ({better} is better)")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(triggers)), [trigger for _, trigger in triggers])
    axes[0].set_ylim(len(triggers) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return _save(figure, folder / f"defense-{name}.png")


def curve(record: Record, name: str, table: str, x: str, folder: Path) -> Path | None:
    """Plot CA, ASR and PA over lambda ("lam") or the number of steps ("steps"), for triggers with three or more."""
    import matplotlib.pyplot as plt

    wanted = tables.TABLES[table]
    of_trigger: dict[tuple[str, str], list[Group]] = {}
    for g in groups(record, wanted.attacks, wanted.row_names):
        of_trigger.setdefault(g.trigger, []).append(g)
    # other tables share some of these rows
    curves = [mine for mine in of_trigger.values() if len({_setting(record, g, x) for g in mine}) > 2]
    if not curves:
        return None
    columns = 2 if len(curves) == 4 else len(curves)
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 3.2 * lines), sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for axis, mine in zip(axes.flat, curves, strict=True):
        mine.sort(key=lambda g: _setting(record, g, x))
        at = [_setting(record, g, x) for g in mine]
        for i, rate in enumerate(("ca", "asr", "pa")):
            ends = [interval(g.rate(rate)) for g in mine]
            axis.plot(at, [g.mean(rate) for g in mine], "o-", markersize=4, color=f"C{i}", label=rate.upper())
            axis.fill_between(at, *zip(*ends, strict=True), color=f"C{i}", alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel={"lam": "lambda"}.get(x, x), title=mine[0].trigger[1], ylim=(-2, 102))
        axis.set_xticks(at, [f"{v:g}" for v in at])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("%")
    axes[0][0].legend(frameon=False)
    return _save(figure, folder / f"defense-{name}-{table}.png")


def _setting(record: Record, group: Group, x: str) -> float:
    return float(group.first.steps if x == "steps" else record.defenses[group.first.defenses][x])


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path

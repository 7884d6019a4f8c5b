"""The plots of a page of results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.evaluation import tables
from bench.evaluation.rates import interval
from bench.pages.results.groups import SHORT, Group, groups


def dots(content: dict[str, Any], dataset: str, folder: Path) -> Path | None:
    """Table 1 and the guard as a plot: CA, ASR and PA of each defence under each trigger."""
    import matplotlib.pyplot as plt

    found = groups(content, tables.TABLES["agnostic"].attacks, SHORT)
    if not found:
        return None
    triggers = list(dict.fromkeys(f"{g.first['attack']}: {g.first['trigger name']}" for g in found))
    figure, axes = plt.subplots(1, 3, figsize=(11, 1.0 + 0.6 * len(triggers)), sharey=True, layout="constrained")
    for axis, name, better in zip(axes, ("CA", "ASR", "PA"), ("higher", "lower", "higher"), strict=True):
        for i, line in enumerate(SHORT):
            mine = [g for g in found if g.first["defence"] == line]
            if not mine:
                continue
            y = [triggers.index(f"{g.first['attack']}: {g.first['trigger name']}") + 0.12 * (i - 3) for g in mine]
            x = [statistics.mean(g.percents(name)) for g in mine]
            ends = [interval(g.rate(name)) for g in mine]  # type: ignore[arg-type]
            pairs = list(zip(x, ends, strict=True))
            # the interval is of whole pictures, and may miss the mean over the seeds by a hair
            error = [[max(0.0, v - low) for v, (low, _) in pairs], [max(0.0, high - v) for v, (_, high) in pairs]]
            axis.errorbar(x, y, xerr=error, fmt="o", markersize=4, linewidth=1, color=f"C{i}", label=SHORT[line])
        axis.set(xlim=(-2, 102), xlabel=f"{name}, % ({better} is better)")
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(triggers)), [t.split(": ")[1] for t in triggers])
    axes[0].set_ylim(len(triggers) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return _save(figure, folder / f"defense-{dataset}.png")


def curve(content: dict[str, Any], dataset: str, name: str, x: str, folder: Path) -> Path | None:
    """CA, ASR and PA over lambda or over the number of evaluations, of the triggers with three settings or more."""
    import matplotlib.pyplot as plt

    wanted = tables.TABLES[name]
    found = groups(content, wanted.attacks, wanted.row_names)
    of_trigger: dict[tuple[str, str], list[Group]] = {}
    for g in found:
        of_trigger.setdefault(g.trigger, []).append(g)
    # other tables share some of these rows
    curves = [mine for mine in of_trigger.values() if len({_setting(content, g, x) for g in mine}) > 2]
    if not curves:
        return None
    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.2), sharey=True, layout="constrained",
                                squeeze=False)  # fmt: skip
    for axis, mine in zip(axes[0], curves, strict=True):
        mine.sort(key=lambda g: _setting(content, g, x))
        at = [_setting(content, g, x) for g in mine]
        for i, rate in enumerate(("CA", "ASR", "PA")):
            ends = [interval(g.rate(rate)) for g in mine]  # type: ignore[arg-type]
            axis.plot(
                at, [statistics.mean(g.percents(rate)) for g in mine], "o-", markersize=4, color=f"C{i}", label=rate
            )
            axis.fill_between(at, *zip(*ends, strict=True), color=f"C{i}", alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel={"lam": "lambda"}.get(x, x), title=mine[0].trigger[1], ylim=(-2, 102))
        axis.set_xticks(at, [f"{v:g}" for v in at])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("%")
    axes[0][0].legend(frameon=False)
    return _save(figure, folder / f"defense-{dataset}-{name}.png")


def _setting(content: dict[str, Any], group: Group, x: str) -> float:
    return float(group.first[x] if x in group.first else content["defences"][group.first["defences"]][x])


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path

"""Where ZIP is ahead of what it is compared with, and what is asked of it: drawn from a record, no number is typed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from bench.common.markdown import table
from bench.evaluation import tables
from bench.pages.results.groups import GUARD, Group, groups, setup

#: What a defence should beat in PA, and what else there is.
RIVALS = ("shrinkpad", "blur", "diffpure", "blur+diffpure", "ddnm", "blur+ddnm")
FURTHER = ("bdmae", "sampdetox")
#: Attackers who know the guard; nothing is promised against them.
ADAPTIVE = ("redundant",)


def _beside(content: dict[str, Any], group: Group, lines: Iterable[str]) -> dict[str, Group]:
    """Other defences in a group's setup, by their lines."""
    same = {key: row for key, row in content["rows"].items() if setup(row) == setup(group.first)}
    return {
        other.first["defence"]: other
        for other in groups({**content, "rows": same}, [group.first["attack"]], lines)
    }  # fmt: skip


def _mean(group: Group, name: str) -> float:
    return statistics.mean(group.percents(name))


def ahead_of(content: dict[str, Any]) -> list[list[str]]:
    """PA against the paper's attacks: a line for each trigger that ZIP with the paper's settings was measured against.

    Trigger, ZIP's, the rivals' (best first), by how much ZIP is ahead of the best; then those of one setting, the
    guard, BDMAE and SampDetox. "" where there is no row.
    """
    lines = []
    for zip_ in groups(content, tables.PAPER_ATTACKS, ["zip-paper"]):
        found = _beside(content, zip_, [*RIVALS, "zip", GUARD, *FURTHER])
        rivals = {found[line].first["name"]: _mean(found[line], "PA") for line in RIVALS if line in found}
        best_first = sorted(rivals.items(), key=lambda of: -of[1])
        ours = _mean(zip_, "PA")
        ahead = f"{ours - best_first[0][1]:+.1f}" if rivals else ""
        others = [f"{_mean(found[line], 'PA'):.1f}" if line in found else "" for line in ("zip", GUARD, *FURTHER)]
        told = ", ".join(f"{name.split(' (')[0]} {pa:.1f}" for name, pa in best_first)
        lines.append([zip_.first["trigger name"], f"{ours:.1f}", told, ahead, *others])
    return lines


def marks_of(content: dict[str, Any]) -> str:
    """What one setting should reach, and what the guard does."""
    lines = []
    for g in groups(content, tables.TABLES["agnostic"].attacks, [GUARD]):
        attack = g.first["attack"]
        if attack in ADAPTIVE:
            continue
        mine = {name: _mean(g, name) for name in ("CA", "ASR", "PA")}
        others = _beside(content, g, ["none", *RIVALS, *FURTHER])
        if "none" not in others:
            continue
        none = others.pop("none")
        further = [others.pop(name) for name in FURTHER if name in others]
        without, seen = _mean(none, "CA"), none.rate("PA", "clean classifier")
        most = 5 if attack in tables.PAPER_ATTACKS else 20
        line = [g.first["trigger name"], _met(mine["ASR"], most, mine["ASR"] <= most, "at most")]
        line.append(_met(mine["CA"], without - 4, mine["CA"] >= without - 4, "at least"))
        line.append(_met(mine["PA"], mine["CA"] - 5, mine["PA"] >= mine["CA"] - 5, "at least"))
        if others:
            rival = max(others.values(), key=lambda o: _mean(o, "PA"))
            best = _mean(rival, "PA")
            line.append(f"{_met(mine['PA'], best, mine['PA'] > best, 'above')}: {rival.first['name']}")
        line += [""] * (5 - len(line))
        line.append("; ".join(f"{o.first['name']} {_mean(o, 'PA'):.1f}" for o in further))
        lines.append([*line, "" if seen is None else f"{seen.percent:.1f}"])
    if not lines:
        return ""
    header = ["trigger", "ASR", "CA, 4 under no defence's", "PA, 5 under CA", "PA, the best of the rivals measured",
              "PA of others", "of the same pictures a clean classifier recognises"]  # fmt: skip
    return (
        "### What one setting should reach, and ZIP fast behind the guard does\n\n"
        "In brackets what is wanted. The rivals are ShrinkPad, the blur alone, DiffPure and DDNM, without and with the "
        "blur; where a trigger has no row of one of them, it is not among those measured. The last column is for "
        "comparison, and no bound: it is without any defence, where a blend or a warp hides some of the picture.\n\n"
        + table(header, lines)
    )


def _met(got: float, wanted: float, met: bool, how: str) -> str:
    return f"{got:.1f} ({how} {wanted:.1f}{'' if met else ': **no**'})"

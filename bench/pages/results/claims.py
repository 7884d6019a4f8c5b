"""Compare ZIP with the baselines, and the guard with its targets, from a record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bench.common.markdown import fill, table
from bench.evaluation import tables
from bench.evaluation.records import Record
from bench.pages.results.groups import GUARD, Group, groups

#: The defenses that a defense should beat in PA, and further ones.
BASELINES = ("shrinkpad", "blur", "diffpure", "blur+diffpure", "ddnm", "blur+ddnm")
EXTRA_BASELINES = ("bdmae", "sampdetox")
#: Attackers who know the guard; it has no target against them.
ADAPTIVE = ("redundant",)


def _under_same_conditions(record: Record, group: Group, defenses: Iterable[str]) -> dict[str, Group]:
    """Return the groups of other defenses under the conditions of a group."""
    rows = {key: row for key, row in record.rows.items() if row.conditions == group.first.conditions}
    found = groups(replace(record, rows=rows), [group.first.attack], defenses)
    return {other.first.defense: other for other in found}


def compare_to_baselines(record: Record) -> list[list[str]]:
    """Compare PA for each trigger of the paper's attacks against which ZIP with the paper's settings was measured.

    Returns:
        For each trigger: its name, ZIP's PA, the baselines' PA (best first), the lead over the best baseline, and the
        PA of ZIP with one setting, of the guard and of the extra baselines; "" where there is no row.
    """
    lines = []
    for zip_ in groups(record, tables.PAPER_ATTACKS, ["zip-paper"]):
        found = _under_same_conditions(record, zip_, [*BASELINES, "zip", GUARD, *EXTRA_BASELINES])
        baselines = {found[name].first.name: found[name].mean("pa") for name in BASELINES if name in found}
        best_first = sorted(baselines.items(), key=lambda item: -item[1])
        ours = zip_.mean("pa")
        lead = f"{ours - best_first[0][1]:+.1f}" if baselines else ""
        others = [f"{found[name].mean('pa'):.1f}" if name in found else "" for name in ("zip", GUARD, *EXTRA_BASELINES)]
        theirs = ", ".join(f"{name.split(' (')[0]} {pa:.1f}" for name, pa in best_first)
        lines.append([zip_.first.trigger_name, f"{ours:.1f}", theirs, lead, *others])
    return lines


def check_targets(record: Record) -> str:
    """Return a table of the targets for one setting and of what the guard reaches, or ""."""
    lines = []
    for guard in groups(record, tables.TABLES["agnostic"].attacks, [GUARD]):
        attack = guard.first.attack
        others = _under_same_conditions(record, guard, ["none", *BASELINES, *EXTRA_BASELINES])
        if attack in ADAPTIVE or "none" not in others:
            continue
        none = others.pop("none")
        extra = [others.pop(name) for name in EXTRA_BASELINES if name in others]
        ca, asr, pa = (guard.mean(name) for name in ("ca", "asr", "pa"))
        max_asr, min_ca = 5 if attack in tables.PAPER_ATTACKS else 20, none.mean("ca") - 4
        line = [
            guard.first.trigger_name,
            _target(asr, f"at most {max_asr:.1f}", asr <= max_asr),
            _target(ca, f"at least {min_ca:.1f}", ca >= min_ca),
            _target(pa, f"at least {ca - 5:.1f}", pa >= ca - 5),
            "",
        ]
        if others:
            best = max(others.values(), key=lambda group: group.mean("pa"))
            most = best.mean("pa")
            line[4] = f"{_target(pa, f'above {most:.1f}', pa > most)}: {best.first.name}"
        unprotected = none.clean_rate("pa")
        line.append("; ".join(f"{group.first.name} {group.mean('pa'):.1f}" for group in extra))
        lines.append([*line, "" if unprotected is None else f"{unprotected.percent:.1f}"])
    if not lines:
        return ""
    header = ["trigger", "ASR", "CA, 4 below no defense's", "PA, 5 below CA", "PA, the best baseline measured",
              "PA of others", "PA of a clean classifier without a defense"]  # fmt: skip
    return fill("targets", table=table(header, lines))


def _target(value: float, target: str, met: bool) -> str:
    return f"{value:.1f} ({target}{'' if met else ': **no**'})"

"""Rows of a record that belong together: what the page and its plots are drawn from."""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterable
from typing import Any

from bench.evaluation import tables
from bench.evaluation.rates import Rate, interval

GUARD = "guard preset=fast"
#: The defences of Table 1, and what plots and the README call them.
SHORT = {"none": "no defence", "shrinkpad": "ShrinkPad", "blur": "blur alone", "zip-paper": "ZIP, the paper's setting",
         "zip": "ZIP, one setting", "zip preset=fast": "ZIP, one setting, fast",
         GUARD: "ZIP fast behind the guard"}  # fmt: skip

Row = dict[str, Any]


def setup(row: Row) -> tuple[Any, ...]:
    """What rows have in common that are beside each other: all but the defence and its seed."""
    return tuple(row[name] for name in ("attack", "trigger name", "data", "triggers", "target", "classifiers"))


class Group:
    """The rows that differ in their seed alone."""

    def __init__(self, rows: list[Row]):
        self.rows, self.first = rows, rows[0]

    @property
    def trigger(self) -> tuple[str, str]:
        """The attack, and the name of the trigger it is tested with: an attack may have two."""
        return self.first["attack"], self.first["trigger name"]

    def rate(self, name: str, of: str | None = None) -> Rate | None:
        """The mean number of hits, of the classifier or of the "clean classifier"."""
        rates = [Rate(*(r[of] if of else r)[name]) for r in self.rows if not of or of in r]
        if not rates:
            return None
        return rates[0]._replace(hits=round(statistics.mean(r.hits for r in rates)))

    def percents(self, name: str) -> list[float]:
        return [Rate(*r[name]).percent for r in self.rows]

    def brief(self, decimals: int) -> str:
        """CA / ASR / PA in percent."""
        return " / ".join(f"{statistics.mean(self.percents(name)):.{decimals}f}" for name in ("CA", "ASR", "PA"))

    def cell(self, name: str) -> str:
        values = self.percents(name)
        rate = self.rate(name)
        assert rate is not None
        low, high = interval(rate)
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread} [{low:.1f}, {high:.1f}]"


def newest(content: dict[str, Any]) -> list[Row]:
    """The rows of a record without those that are out of date: of as many pictures, against the same trigger, others
    were counted later with another network, other pictures, or another trigger or target of that name."""
    latest: dict[tuple[str, str, int], Row] = {}
    for row in sorted(content["rows"].values(), key=lambda row: _date(row, content)):
        latest[row["attack"], row["trigger name"], row["CA"][1]] = row
    return [
        row for row in content["rows"].values()
        if setup(row) == setup(latest[row["attack"], row["trigger name"], row["CA"][1]])
    ]  # fmt: skip


def groups(
    content: dict[str, Any],
    attacks: Iterable[str],
    lines: Iterable[str],
    most: int | None = None,
    about: Container[str] = (),
) -> list[Group]:
    """The rows of a record for these attacks and defences, in that order.

    All rows against one trigger have the same `setup`, so that they may stand beside each other. Of several numbers of
    pictures, `most` at most, it is the one with the most of the defences in `about`, then of all, then the largest.
    """
    lines = list(lines)
    found: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in newest(content):
        if row["defence"] in lines and (most is None or row["CA"][1] <= most):
            sizes = found.setdefault((row["attack"], row["trigger name"]), {})
            sizes.setdefault(row["CA"][1], []).append(row)

    def fullness(rows: list[Row]) -> tuple[int, int, int]:
        there = {row["defence"] for row in rows}
        return sum(line in about for line in there), len(there), rows[0]["CA"][1]

    chosen = {trigger: max(sizes.values(), key=fullness) for trigger, sizes in found.items()}
    out = []
    for attack in attacks:
        for line in lines:
            for (its, _), rows in chosen.items():
                if its == attack and (mine := [row for row in rows if row["defence"] == line]):
                    last = max(mine, key=lambda row: _date(row, content))["defences"]
                    out.append(Group(sorted((r for r in mine if r["defences"] == last), key=lambda r: r["seed"])))
    return out


def own_lines(name: str) -> set[str]:
    """The defences that a table is about: those that Table 1 does not have."""
    first = set(tables.TABLES["table1"].row_names)
    return set(tables.TABLES[name].row_names) - (first if name != "table1" else set())


def of_table(content: dict[str, Any], name: str) -> list[Group]:
    """The lines of one of `tables.TABLES`; none where the record has nothing of what it is about."""
    wanted, own = tables.TABLES[name], own_lines(name)
    there = groups(content, wanted.attacks, own)
    # what stands beside them is of no more pictures than they
    most = max((g.first["CA"][1] for g in there), default=0)
    return groups(content, wanted.attacks, wanted.row_names, most, own)


def _date(row: Row, content: dict[str, Any]) -> str:
    date: str = content["runs"][row["run"]]["date"]
    return date


def parts(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The record by what else a user chose, oldest first: for each choice, what tells it from the others ("" where
    there is one alone), and the record with its rows alone.

    They differ in what the rows of a table have in common whatever the attack: the classifier that was brought, or how
    those of all attacks were trained, the attacker's target, seed and share of the pictures, their side and source.
    """
    chosen = {key: _options(row, content) for key, row in content["rows"].items()}
    names: list[str] = []

    def label(options: dict[str, Any], names: list[str]) -> str:
        return ", ".join(f"{name} {options[name]}" for name in names if options[name] is not None)

    def labels(names: list[str]) -> set[str]:
        return {label(options, names) for options in chosen.values()}

    for name in next(iter(chosen.values()), {}):
        if len(labels([*names, name])) > len(labels(names)):
            names.append(name)
    rows: dict[str, dict[str, Row]] = {}
    for key, row in content["rows"].items():
        rows.setdefault(label(chosen[key], names), {})[key] = row
    return [(told, {**content, "rows": mine}) for told, mine in rows.items()]


def _options(row: Row, content: dict[str, Any]) -> dict[str, Any]:
    """What was chosen for a row beside attack, defence and pictures, the same for all attacks."""
    network, trigger, data = (content[part][row[part]] for part in ("classifiers", "triggers", "data"))
    trained, poison = network.get("recipe", {}), network.get("poison", {})
    return {
        "classifier": network["classifier"], "epochs": trained.get("epochs"), "classifier seed": trained.get("seed"),
        "rate": poison.get("rate"), "implant": poison.get("implant", 0), "target": row["target"],
        "attack seed": trigger["seed"], "side": data["side"], "source": data["source"],
        # one that was brought is the same against all attacks, unless it changed behind its name
        "hash": None if trained else row["classifiers"][:6],
    }  # fmt: skip
